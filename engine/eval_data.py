"""Read an evaluation set in clip_benchmark's "wds" layout, and refuse what clip_benchmark would pass over in silence.

::

    <path>/classnames.txt                           one name a line; line i is label i
    <path>/zeroshot_classification_templates.txt    one template a line, with {c}
    <path>/instances.jsonl                          association only: {"cue", "candidates", "associations"} a line
    <path>/<split>/nshards.txt                      how many shards there are
    <path>/<split>/0.tar, 1.tar, ...                key.{webp,png,jpg,jpeg} with key.cls (classification),
                                                    key.txt (retrieval: a caption a line; image_caption_selection: the
                                                    right one first), key.npy (metadata columns)

Everything but the images is read and checked before a model is run. Images are read by offset, so that any number of
worker processes sees them in the order of the archives.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from engine import eval_cards
from engine.archive import IMAGE_FORMATS, Damage, read_members
from engine.eval_cache import Decoded, PixelCache
from engine.eval_digest import folder_digest
from engine.evaluation import EvalCard
from engine.imports import late
from engine.spec import Frozen, parse

with late("torch._dynamo", "torch._dynamo.utils"):
    from torchvision.transforms import Compose, Normalize, ToTensor

_TOLD = ("CenterCrop", "CenterCropOrPad", "MaybeConvertMode", "Resize", "ResizeKeepRatio")
"""Steps of open_clip's transforms, of torchvision or its own: class and attributes tell all that they do."""
IMAGE_EXTENSIONS = ("webp", "png", "jpg", "jpeg")
"""In clip_benchmark's order of preference."""
MIN_IMAGES_FOR_WORKERS = 2000
"""Worker processes take longer to start than they save on fewer images."""

Fields = dict[str, tuple[int, int]]
"""Offset and size in the archive, by extension."""


class Instance(Frozen):
    """An association task: which candidates, by their images' keys, go with the cue."""

    cue: str = Field(min_length=1)
    candidates: tuple[str, ...] = Field(min_length=2)
    associations: tuple[str, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Location:
    """Where an image lies."""

    shard: Path
    key: str
    offset: int
    size: int


@dataclass(frozen=True)
class EvalData:
    """All of a set but its pixels; rows are images in the order of the archives."""

    card: EvalCard
    sha256: str
    """Of the folder, as `EvalCard.sha256`."""
    locations: list[Location]
    classes: list[str]
    templates: list[str]
    labels: Tensor
    """(N,) int64, empty unless classification."""
    captions: list[list[str]]
    """By image; of image_caption_selection the right one first. Empty for other tasks."""
    metadata: NDArray[np.float64]
    """(N, columns of the card)."""
    instances: list[Instance]

    def column(self, name: str) -> NDArray[np.int64]:
        """Return a column of the metadata as group ids, (N,): whole numbers, as WILDS takes them."""
        return self.metadata[:, self.card.metadata.index(name)].astype(np.int64)


def read(card: EvalCard) -> EvalData:
    """Read and check a set.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If the set is not what its card or its layout says; names set, shard and key.
    """
    folder = Path(card.path)
    if not eval_cards.is_there(card):
        raise FileNotFoundError(eval_cards.missing([card]))
    sha256 = folder_digest(folder)
    if card.sha256 not in {None, sha256}:
        fail(card, f"{folder} does not hold what its card says")
    classes, templates = _prompts(card, folder) if card.task == "zeroshot_classification" else ([], [])
    instances = _instances(card, folder) if card.task == "association" else []
    locations: list[Location] = []
    labels: list[int] = []
    captions: list[list[str]] = []
    metadata: list[NDArray[np.float64]] = []
    for shard in _shards(card, folder):
        with shard.open("rb") as file:
            for key, fields in _samples(card, shard).items():
                content = partial(_content, card, shard, key, fields, file)
                extension = next((e for e in IMAGE_EXTENSIONS if e in fields), None)
                if extension is None:
                    fail(card, f"{shard}, key {key!r}: no image among {sorted(fields)}; known: {IMAGE_EXTENSIONS}")
                locations.append(Location(shard, key, *fields[extension]))
                if card.task == "zeroshot_classification":
                    labels.append(_label(card, shard, key, content("cls"), len(classes)))
                elif card.task != "association":
                    captions.append(_captions(card, shard, key, content("txt")))
                if card.metadata:
                    metadata.append(_row(card, shard, key, content("npy")))
    _check_counts(card, locations, captions, instances)
    return EvalData(
        card=card,
        sha256=sha256,
        locations=locations,
        classes=classes,
        templates=templates,
        labels=torch.tensor(labels, dtype=torch.int64),
        captions=captions,
        metadata=np.array(metadata, dtype=np.float64).reshape(len(metadata), len(card.metadata)),
        instances=instances,
    )


def fail(card: EvalCard, problem: str) -> NoReturn:
    """Raise a `ValueError` that names the set, and says how to get it anew."""
    again = f"fetch it again ({card.fetch or card.source})"
    if card.build:
        again = f"run `{card.build}` again"
    elif eval_cards.can_be_fetched(card):
        again = f"`python -m experiments evaluation-data {card.name}` fetches what it lacks, and names what is wrong"
    raise ValueError(f"evaluation set {card.name!r}: {problem}: {again}")


def _lines(card: EvalCard, path: Path) -> list[str]:
    if not path.exists():
        fail(card, f"{path} is missing")
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]


def _prompts(card: EvalCard, folder: Path) -> tuple[list[str], list[str]]:
    """Return class names and templates; a blank name would be a class, one template without {c} the same for all."""
    names, wordings = folder / "classnames.txt", folder / "zeroshot_classification_templates.txt"
    classes, templates = _lines(card, names), _lines(card, wordings)
    blank = [number for number, name in enumerate(classes, start=1) if not name]
    if blank or not classes:
        fail(card, f"{names}: line {blank[0]} is blank" if blank else f"{names} is empty")
    if card.classes is not None and len(classes) != card.classes:
        fail(card, f"{names}: {len(classes)} class names, its card says {card.classes}")
    for number, template in enumerate(templates, start=1):
        if "{c}" not in template or not _formats(template):
            fail(card, f"{wordings}: line {number} is {template!r}, expected a text with {{c}} and no other braces")
    if not templates:
        fail(card, f"{wordings} is empty")
    return classes, templates


def _formats(template: str) -> bool:
    try:
        template.format(c="")
    except (IndexError, KeyError, ValueError):
        return False
    return True


def _instances(card: EvalCard, folder: Path) -> list[Instance]:
    path = folder / "instances.jsonl"
    lines = _lines(card, path)
    instances = [parse(Instance, line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]
    for number, instance in enumerate(instances, start=1):
        if len(set(instance.candidates)) != len(instance.candidates):
            fail(card, f"{path}, line {number}: a candidate occurs twice")
        if not set(instance.associations) <= set(instance.candidates):
            fail(card, f"{path}, line {number}: an association is not among the candidates")
    return instances


def _shards(card: EvalCard, folder: Path) -> list[Path]:
    path = folder / card.split / "nshards.txt"
    text = path.read_text(encoding="utf-8").strip()
    if not text.isdecimal() or int(text) == 0:
        fail(card, f"{path} says {text!r}, expected the number of shards")
    shards = [folder / card.split / f"{number}.tar" for number in range(int(text))]
    absent = [shard.name for shard in shards if not shard.exists()]
    if absent:
        fail(card, f"{folder / card.split} lacks {', '.join(absent[:5])}; {path} says {text} shards")
    return shards


def _samples(card: EvalCard, shard: Path) -> dict[str, Fields]:
    """Return the members of a shard by key."""
    samples: dict[str, Fields] = {}
    for member in read_members(shard):
        if isinstance(member, Damage):
            fail(card, f"{shard}, behind key {next(reversed(samples), None)!r}: {member.reason}")
        if not member.is_file:
            continue
        # The key ends at the first dot of the file's name; folders may have dots of their own.
        folder, _, name = member.name.rpartition("/")
        stem, _, extension = name.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        fields = samples.setdefault(key, {})
        if extension.lower() in fields:
            fail(card, f"{shard}, key {key!r}: .{extension.lower()} occurs twice")
        fields[extension.lower()] = (member.offset, member.num_bytes)
    return samples


def _content(card: EvalCard, shard: Path, key: str, fields: Fields, file: io.BufferedReader, extension: str) -> bytes:
    if extension not in fields:
        fail(card, f"{shard}, key {key!r}: no .{extension} among {sorted(fields)}")
    offset, size = fields[extension]
    file.seek(offset)
    return file.read(size)


def _label(card: EvalCard, shard: Path, key: str, text: bytes, num_classes: int) -> int:
    try:
        label = int(text)
    except ValueError:
        fail(card, f"{shard}, key {key!r}: the label is {text!r}, expected a whole number")
    if not 0 <= label < num_classes:
        fail(card, f"{shard}, key {key!r}: the label is {label}, there are {num_classes} class names (labels from 0)")
    return label


def _captions(card: EvalCard, shard: Path, key: str, text: bytes) -> list[str]:
    try:
        return text.decode().splitlines()
    except UnicodeDecodeError as error:
        fail(card, f"{shard}, key {key!r}: .txt is no UTF-8 ({error})")


def _row(card: EvalCard, shard: Path, key: str, data: bytes) -> NDArray[np.float64]:
    try:
        row: NDArray[np.float64] = np.load(io.BytesIO(data), allow_pickle=False).astype(np.float64)
    except (ValueError, OSError, EOFError) as error:
        fail(card, f"{shard}, key {key!r}: .npy cannot be read ({error})")
    if row.shape != (len(card.metadata),):
        fail(card, f"{shard}, key {key!r}: .npy has shape {row.shape}, expected the columns {', '.join(card.metadata)}")
    if not (np.isfinite(row) & (row == np.round(row))).all():
        fail(card, f"{shard}, key {key!r}: .npy has {row.tolist()}, expected whole numbers")
    return row


def _check_counts(
    card: EvalCard, locations: list[Location], captions: list[list[str]], instances: list[Instance]
) -> None:
    if card.task == "association":
        if len(instances) != card.images:
            fail(card, f"{len(instances)} instances in {card.path}, its card says {card.images}")
        keys = {location.key for location in locations}
        lacking = sorted({name for instance in instances for name in instance.candidates} - keys)
        if lacking:
            fail(card, f"no image of {len(lacking)} candidates, e.g. {', '.join(lacking[:3])}")
        if len(keys) != len(locations):
            fail(card, "two images have the same key")
        return
    if len(locations) != card.images:
        fail(card, f"{len(locations)} images in {card.path}, its card says {card.images}")
    num_captions = sum(map(len, captions))
    if card.captions is not None and num_captions != card.captions:
        fail(card, f"{num_captions} captions in {card.path}, its card says {card.captions}")
    if card.task == "zeroshot_retrieval" and not num_captions:
        fail(card, f"no captions in {card.path}")
    if card.task == "image_caption_selection":
        for location, choices in zip(locations, captions, strict=True):
            if not 2 <= len(choices) == len(captions[0]) == len(set(choices)):
                fail(
                    card,
                    f"{location.shard}, key {location.key!r}: the captions are {choices}, expected two or more, all "
                    f"different, as many as the first image has ({len(captions[0])}), the right one first",
                )


def split_transform(transform: Any) -> tuple[Callable[[Image.Image], Tensor], Callable[[Tensor], Tensor]]:
    """Split an evaluation transform into what needs one picture and what a whole batch can have at once.

    Args:
        transform: From a PIL image to a float tensor (C, H, W).

    Returns:
        A call from a picture to uint8 pixels (H, W, C), and one from a batch of them (B, H, W, C), on any device, to
        floats (B, C, H, W): the same numbers as `transform` gives, for less. A transform that does not end as
        open_clip's do is left whole, and the second call does nothing.
    """
    steps = getattr(transform, "transforms", [])
    if not (len(steps) > 2 and isinstance(steps[-2], ToTensor) and isinstance(steps[-1], Normalize)):
        return transform, lambda batch: batch
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (steps[-1].mean, steps[-1].std))

    def finish(batch_BHWC: Tensor) -> Tensor:
        batch_BCHW = batch_BHWC.permute(0, 3, 1, 2).contiguous().float() / 255
        return batch_BCHW.sub_(mean.to(batch_BCHW.device)).div_(std.to(batch_BCHW.device))

    return _Pixels(Compose(steps[:-2])), finish


class _Pixels:
    """From a picture to uint8 (H, W, C); a class, since worker processes may get it pickled."""

    def __init__(self, draw: Compose) -> None:
        self.draw = draw

    def described(self) -> str | None:
        """Return what decides the pixels, in words; None if that cannot be told, as of a function."""
        if any(type(step).__name__ not in _TOLD for step in self.draw.transforms):
            return None
        return "\n".join(f"{type(step)} {vars(step)}" for step in self.draw.transforms)  # a repr may leave things out

    def __call__(self, image: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(self.draw(image)))


class _Images(Dataset[Any]):
    """The pixels of a set; a problem is returned, not raised, so that it leaves a worker in one line."""

    def __init__(self, locations: list[Location], pixels: Callable[[Image.Image], Tensor]) -> None:
        self.locations, self.pixels = locations, pixels

    def __len__(self) -> int:
        return len(self.locations)

    def __getitem__(self, row: int) -> tuple[Tensor, bool] | str:
        at = self.locations[row]
        with at.shard.open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), at.size, at.offset)
        try:
            image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
            image.load()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return f"{at.shard}, key {at.key!r}: the image cannot be decoded ({error})"
        transparent = "A" in image.getbands() or "transparency" in image.info
        # As clip_benchmark and open_clip do: alpha is dropped, whatever colour lies under it.
        return self.pixels(image.convert("RGB")), transparent


def _collate(items: list[tuple[Tensor, bool] | str]) -> Decoded | str:
    problem = next((item for item in items if isinstance(item, str)), None)
    if problem is not None:
        return problem
    pairs = [item for item in items if not isinstance(item, str)]
    return torch.stack([image for image, _ in pairs]), torch.tensor([transparent for _, transparent in pairs])


class ImageBatches:
    """Batches of a set's pixels, in the set's order.

    Args:
        data: The set.
        pixels: From a PIL image to a tensor.
        batch_size: Images in a batch; the last may have fewer.
        num_workers: Processes that decode.
        cache: Where decoded pictures are kept, if they are; only those of open_clip's own transforms.
    """

    def __init__(
        self,
        data: EvalData,
        pixels: Callable[[Image.Image], Tensor],
        *,
        batch_size: int,
        num_workers: int,
        cache: PixelCache | None = None,
    ) -> None:
        self.data, self.pixels, self.batch_size = data, pixels, batch_size
        self._cache = cache
        small = len(data.locations) < MIN_IMAGES_FOR_WORKERS
        self._loader = DataLoader(
            _Images(data.locations, pixels),
            batch_size=batch_size,
            num_workers=0 if small else num_workers,
            collate_fn=_collate,
        )
        self.num_transparent = 0
        """Images seen so far that have an alpha channel."""

    def __iter__(self) -> Iterator[Tensor]:
        batches = self._decoded()
        transform = self.pixels.described() if isinstance(self.pixels, _Pixels) else None
        if self._cache is not None and transform is not None:
            batches = self._cache.batches(
                batches,
                data_sha256=self.data.sha256,
                transform=transform,
                count=len(self.data.locations),
                batch_size=self.batch_size,
            )
        for images, transparent in batches:
            self.num_transparent += int(transparent.sum())
            yield images

    def _decoded(self) -> Iterator[Decoded]:
        for batch in self._loader:
            if isinstance(batch, str):
                fail(self.data.card, batch)
            yield batch

    def with_captions(self) -> Iterator[tuple[Tensor, list[list[str]]]]:
        """Yield every batch with its images' captions."""
        row = 0
        for images in self:
            yield images, self.data.captions[row : row + len(images)]
            row += len(images)

    def with_labels(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every batch with its labels (B,)."""
        row = 0
        for images in self:
            yield images, self.data.labels[row : row + len(images)]
            row += len(images)
