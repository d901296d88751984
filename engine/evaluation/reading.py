"""Read an evaluation set in clip_benchmark's "wds" layout, and refuse what clip_benchmark would pass over in silence.

::

    <path>/classnames.txt                           one name a line; line i is label i
    <path>/zeroshot_classification_templates.txt    one template a line, with {c}
    <path>/instances.jsonl                          association only: {"cue", "candidates", "associations"} a line
    <path>/<split>/nshards.txt                      how many shards there are
    <path>/<split>/0.tar, 1.tar, ...                key.{webp,png,jpg,jpeg} with key.cls (classification),
                                                    key.txt (retrieval: a caption a line; image_caption_selection: the
                                                    right one first), key.npy (metadata columns)

Everything but the images is read and checked before a model is run; `problems` does it before a model is trained.
Imports no torch, so that the workflow can ask.
"""

from __future__ import annotations

import io
import itertools
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from rich.progress import track

from engine.data.archive import WINDOW_BYTES, Damage, read_members
from engine.evaluation import card_files
from engine.evaluation.digest import folder_digest, remembered
from engine.schema.base import Frozen, fingerprint, parse
from engine.schema.evaluation import EvalCard

IMAGE_EXTENSIONS = ("webp", "png", "jpg", "jpeg")
"""In clip_benchmark's order of preference."""
_COUNTING_WINDOW_BYTES = 2**12
"""Bytes that are read at a time of headers and labels, when pictures are not read afterwards."""
_FORMAT = 1
"""Raised when the check becomes stricter, so that sets are counted again."""

Fields = dict[str, tuple[int, int]]
"""Offset and size in the archive, by extension."""


class Instance(Frozen):
    """An association task: which candidates, by their images' keys, go with the cue."""

    cue: str = Field(min_length=1)
    candidates: tuple[str, ...] = Field(min_length=2)
    associations: tuple[str, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Location:
    """The place of an image in a shard."""

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
    labels: NDArray[np.int64]
    """(N,), empty unless classification."""
    captions: list[list[str]]
    """By image; of image_caption_selection the right one first. Empty for other tasks."""
    metadata: NDArray[np.float64]
    """(N, columns of the card)."""
    instances: list[Instance]

    def column(self, name: str) -> NDArray[np.int64]:
        """Return a column of the metadata as group ids, (N,): whole numbers, as WILDS takes them."""
        return self.metadata[:, self.card.metadata.index(name)].astype(np.int64)

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of images, classes and captions, by the card's fields."""
        return {
            "images": len(self.instances) if self.card.task == "association" else len(self.locations),
            "classes": len(self.classes),
            "captions": sum(map(len, self.captions)),
        }


def read(card: EvalCard) -> EvalData:
    """Read and check a set.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If the set is not what its card or its layout says; names set, shard and key.
    """
    folder = Path(card.path)
    if not card_files.is_there(card):
        raise FileNotFoundError(card_files.missing([card]))
    sha256 = folder_digest(folder)
    if card.sha256 not in {None, sha256}:
        fail(card, f"{folder} does not hold what its card says")
    data = _contents(card, sha256, WINDOW_BYTES)
    _check(data)
    return data


def problems(cards: Iterable[EvalCard]) -> list[str]:
    """Return what is wrong with sets: one line for each that does not fit its layout or its card's counts.

    Cheap enough to ask before every workflow: pictures are not read, and a set is counted when it is new or touched.
    """
    lines = []
    for card in track(list(cards), "evaluation sets", transient=True, disable=not sys.stderr.isatty()):
        read_as = fingerprint([_FORMAT, card.task, card.split, *card.metadata])
        try:
            _compare(card, remembered(Path(card.path), read_as[:12], partial(count, card)))
        except ValueError as error:
            lines.append(str(error))
    return lines


def count(card: EvalCard) -> dict[str, int]:
    """Read and check a set, but neither its pictures nor its digest; return `EvalData.counts`.

    Raises:
        ValueError: As `read`.
    """
    data = _contents(card, "", _COUNTING_WINDOW_BYTES)
    _check(data)
    return data.counts


def survey(card: EvalCard) -> EvalData:
    """Read and check a set as `count` does, whatever numbers its card states: those that are found take their place.

    Raises:
        ValueError: As `read`, but for numbers.
    """
    data = _contents(card, "", _COUNTING_WINDOW_BYTES)
    data = replace(data, card=card.model_copy(update=data.counts))
    _check(data)
    return data


def _contents(card: EvalCard, sha256: str, window_bytes: int) -> EvalData:
    folder = Path(card.path)
    classes, templates = _prompts(card, folder) if card.task == "zeroshot_classification" else ([], [])
    instances = _instances(card, folder) if card.task == "association" else []
    locations: list[Location] = []
    labels: list[int] = []
    captions: list[list[str]] = []
    metadata: list[NDArray[np.float64]] = []
    for shard in _shards(card, folder):
        with shard.open("rb", buffering=0) as file:
            for key, fields in _fields(card, shard, window_bytes).items():
                sample = _Sample(card, shard, key, fields, file.fileno())
                locations.append(sample.image)
                if card.task == "zeroshot_classification":
                    labels.append(sample.label)
                elif card.task != "association":
                    captions.append(sample.captions)
                if card.metadata:
                    metadata.append(sample.metadata)
    return EvalData(
        card=card,
        sha256=sha256,
        locations=locations,
        classes=classes,
        templates=templates,
        labels=np.array(labels, dtype=np.int64),
        captions=captions,
        metadata=np.array(metadata, dtype=np.float64).reshape(len(metadata), len(card.metadata)),
        instances=instances,
    )


def fail(card: EvalCard, problem: str) -> NoReturn:
    """Raise a `ValueError` that names the set, and says how to get it anew."""
    raise ValueError(f"evaluation set {card.name!r}: {problem}: {_how_to_mend(card)}")


def _how_to_mend(card: EvalCard) -> str:
    if card.build:
        return f"run `{card.build}` again"
    if card_files.can_be_fetched(card):
        command = f"python -m experiments evaluation-data {card.reference}"
        return f"`{command}` fetches what it lacks, and names what is wrong"
    if card.fetch:
        return f"fetch it again ({card.fetch})"
    return f"mend {card.path}, or edit its card, {card.place}"


def _compare(card: EvalCard, counts: Mapping[str, int]) -> None:
    """Refuse a set that holds another number of anything than its card says; one message for all of them."""
    wrong = {field: count for field, count in counts.items() if getattr(card, field) not in {None, count}}
    if not wrong:
        return
    nouns = {"classes": "class names", "images": "instances" if card.task == "association" else "images"}
    found = ", ".join(f"{count} {nouns.get(field, field)}" for field, count in wrong.items())
    says = ", ".join(str(getattr(card, field)) for field in wrong)
    edit = ", ".join(f"{field}: {count}" for field, count in wrong.items())
    if card.build or card.fetch or card_files.can_be_fetched(card):
        fail(card, f"{card.path} has {found}, its card says {says}")
    raise ValueError(
        f"evaluation set {card.name!r}: {card.path} has {found}, its card says {says}: edit the card, "
        f"{card.place} ({edit}), or complete the folder"
    )


def _lines(card: EvalCard, path: Path) -> list[str]:
    if not path.exists():
        fail(card, f"{path} is missing")
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        fail(card, f"{path} is no UTF-8 ({error})")


def _prompts(card: EvalCard, folder: Path) -> tuple[list[str], list[str]]:
    """Return class names and templates; a blank name would be a class, one template without {c} the same for all."""
    names, wordings = folder / "classnames.txt", folder / "zeroshot_classification_templates.txt"
    classes, templates = _lines(card, names), _lines(card, wordings)
    blank = [number for number, name in enumerate(classes, start=1) if not name]
    if blank or not classes:
        fail(card, f"{names}: line {blank[0]} is blank" if blank else f"{names} is empty")
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
    text = "\n".join(_lines(card, path))
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) == 0:
        fail(card, f"{path} says {text[:80]!r}, expected the number of shards")
    # One after the other: a wrong number may be as large as it likes.
    shards = (folder / card.split / f"{number}.tar" for number in range(int(text)))
    absent = list(itertools.islice((shard.name for shard in shards if not shard.exists()), 5))
    if absent:
        fail(card, f"{folder / card.split} lacks {', '.join(absent)}; {path} says {text} shards")
    return [folder / card.split / f"{number}.tar" for number in range(int(text))]


def _fields(card: EvalCard, shard: Path, window_bytes: int) -> dict[str, Fields]:
    """Return the members of a shard by key."""
    found: dict[str, Fields] = {}
    for member in read_members(shard, window_bytes):
        if isinstance(member, Damage):
            fail(card, f"{shard}, behind key {next(reversed(found), None)!r}: {member.reason}")
        if not member.is_file:
            continue
        key, extension = member.key_and_extension
        fields = found.setdefault(key, {})
        if extension in fields:
            fail(card, f"{shard}, key {key!r}: .{extension} occurs twice")
        fields[extension] = (member.offset, member.num_bytes)
    return found


@dataclass(frozen=True)
class _Sample:
    """An image and what belongs to it, read from an open shard and checked."""

    card: EvalCard
    shard: Path
    key: str
    fields: Fields
    descriptor: int

    def _fail(self, problem: str) -> NoReturn:
        fail(self.card, f"{self.shard}, key {self.key!r}: {problem}")

    def _content(self, extension: str) -> bytes:
        if extension not in self.fields:
            self._fail(f"no .{extension} among {sorted(self.fields)}")
        offset, size = self.fields[extension]
        return os.pread(self.descriptor, size, offset)

    @property
    def image(self) -> Location:
        extension = next((e for e in IMAGE_EXTENSIONS if e in self.fields), None)
        if extension is None:
            self._fail(f"no image among {sorted(self.fields)}; known: {IMAGE_EXTENSIONS}")
        return Location(self.shard, self.key, *self.fields[extension])

    @property
    def label(self) -> int:
        text = self._content("cls")
        try:
            return int(np.int64(int(text)))
        except (ValueError, OverflowError):
            self._fail(f"the label is {text!r}, expected a whole number")

    @property
    def captions(self) -> list[str]:
        try:
            return self._content("txt").decode().splitlines()
        except UnicodeDecodeError as error:
            self._fail(f".txt is no UTF-8 ({error})")

    @property
    def metadata(self) -> NDArray[np.float64]:
        data = io.BytesIO(self._content("npy"))
        try:
            row: NDArray[np.float64] = np.load(data, allow_pickle=False).astype(np.float64)
        except (ValueError, OSError, EOFError) as error:
            self._fail(f".npy cannot be read ({error})")
        columns = self.card.metadata
        if row.shape != (len(columns),):
            self._fail(f".npy has shape {row.shape}, expected the columns {', '.join(columns)}")
        if not (np.isfinite(row) & (row == np.round(row))).all():
            self._fail(f".npy has {row.tolist()}, expected whole numbers")
        return row


def _check(data: EvalData) -> None:
    """Refuse a set whose parts do not fit together, or not the card; wrong counts first, which explain the rest."""
    card, locations, num_classes = data.card, data.locations, len(data.classes)
    _compare(card, data.counts)
    if card.task == "zeroshot_classification":
        for location, label in zip(locations, data.labels, strict=True):
            if not 0 <= label < num_classes:
                place = f"{location.shard}, key {location.key!r}"
                fail(card, f"{place}: the label is {label}, there are {num_classes} class names (labels from 0)")
    elif card.task == "zeroshot_retrieval" and not any(data.captions):
        fail(card, f"no captions in {card.path}")
    elif card.task == "association":
        keys = {location.key for location in locations}
        lacking = sorted({name for instance in data.instances for name in instance.candidates} - keys)
        if lacking:
            fail(card, f"no image of {len(lacking)} candidates, e.g. {', '.join(lacking[:3])}")
        if len(keys) != len(locations):
            fail(card, "two images have the same key")
    if card.task == "image_caption_selection":
        for location, choices in zip(locations, data.captions, strict=True):
            if not 2 <= len(choices) == len(data.captions[0]) == len(set(choices)):
                fail(
                    card,
                    f"{location.shard}, key {location.key!r}: the captions are {choices}, expected two or more, all "
                    f"different, as many as the first image has ({len(data.captions[0])}), the right one first",
                )
