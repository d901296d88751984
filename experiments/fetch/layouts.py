"""Write evaluation sets of other layouts in the one that `engine.evaluation.reading` reads. No foreign code is run.

What is read is compared with the set's card, and every picture is decoded once.
"""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from engine.data.pictures import IMAGE_FORMATS, open_picture
from engine.evaluation.reading import IMAGE_EXTENSIONS
from engine.schema.evaluation import EvalCard
from experiments.fetch.shards import Sample, png, write_eval_set

IMAGES_PER_SHARD = 500


class LayoutError(ValueError):
    """The files of a set are not what its card says."""


def convert(card: EvalCard, originals: Path, folder: Path) -> None:
    """Write a set into a new folder.

    Args:
        card: The set; ``card.original.layout`` names the layout.
        originals: Folder of the files of ``card.original.files``.
        folder: Made; must not exist.

    Raises:
        LayoutError: If the files hold something else than the card says.
    """
    assert card.original is not None
    try:
        LAYOUTS[card.original.layout](card, originals, folder)
    except LayoutError as error:
        raise LayoutError(f"evaluation set {card.name!r}: {error}") from None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise LayoutError(f"evaluation set {card.name!r}: its files cannot be read ({error})") from error


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise LayoutError(problem)


def _write(card: EvalCard, folder: Path, samples: Iterator[Sample], count: int, instances: Sequence[str] = ()) -> None:
    texts = {"classnames.txt": card.class_names, "zeroshot_classification_templates.txt": card.templates}
    if instances:
        texts = {"instances.jsonl": tuple(instances)}
    write_eval_set(folder, samples, count, -(-count // IMAGES_PER_SHARD), card.split, texts)


def _medmnist(card: EvalCard, originals: Path, folder: Path) -> None:
    """Read ``<split>_images`` (N, H, W[, 3]) uint8 and ``<split>_labels`` (N, 1) of an ``.npz``.

    Source: MedMNIST v2, arXiv:2110.14795.
    """
    assert card.original is not None
    (name,) = card.original.files
    with np.load(originals / name, allow_pickle=False) as arrays:
        for key in (f"{card.split}_images", f"{card.split}_labels"):
            _require(key in arrays, f"{name} has no {key}, only {', '.join(arrays)}")
        pixels: Any = arrays[f"{card.split}_images"]
        labels: Any = arrays[f"{card.split}_labels"]
    shape = pixels.shape
    of_images = pixels.dtype == np.uint8 and (len(shape) == 3 or (len(shape) == 4 and shape[3] == 3))
    _require(of_images, f"{name} has pictures {pixels.dtype} {shape}, expected uint8 (N, H, W) or (N, H, W, 3)")
    of_labels = labels.shape == (len(pixels), 1) and np.issubdtype(labels.dtype, np.integer)
    _require(of_labels, f"{name} has labels {labels.dtype} {labels.shape}, expected whole numbers (N, 1)")
    num_classes = len(card.class_names)
    in_range = labels.min(initial=0) >= 0 and labels.max(initial=0) < num_classes
    _require(bool(in_range), f"{name} has labels up to {labels.max(initial=0)}, there are {num_classes} classes")
    samples = (
        {"png": png(pixels[row].tobytes(), shape[1], shape[2]), "cls": str(labels[row, 0]).encode()}
        for row in range(len(pixels))
    )
    _write(card, folder, samples, len(pixels))


def _pictures(archive: zipfile.ZipFile) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """Return an archive's files, sorted by path, without what macOS adds."""
    members = {PurePosixPath(member.filename): member for member in archive.infolist() if not member.is_dir()}
    seen = (path for path in members if path.parts[0] != "__MACOSX" and not path.name.startswith("."))
    return {path: members[path] for path in sorted(seen)}


def _decode(data: bytes, where: PurePosixPath) -> Image.Image:
    try:
        image = open_picture(data, (*IMAGE_FORMATS, "TIFF"))
        image.load()
    except (OSError, ValueError, SyntaxError) as error:
        raise LayoutError(f"{where} cannot be decoded ({error})") from None
    return image


def _folders(card: EvalCard, originals: Path, folder: Path) -> None:
    """Read a zip with a folder of pictures per class. What is no PNG, JPEG or WebP is written as PNG."""
    assert card.original is not None
    (name,) = card.original.files
    label_of = {folder: label for label, folder in enumerate(card.original.folders)}
    _require(len(label_of) == len(card.class_names), "original.folders and class_names are not equally many")
    with zipfile.ZipFile(originals / name) as archive:
        members = {path: member for path, member in _pictures(archive).items() if path.suffix.lower() in _SUFFIXES}
        strange = sorted({path.parent.name for path in members} - label_of.keys())
        _require(not strange, f"{name} has folders that are no class: {', '.join(strange[:5])}")

        def samples() -> Iterator[Sample]:
            for path, member in members.items():
                data, extension = archive.read(member), path.suffix.lower().removeprefix(".")
                image = _decode(data, path)
                if extension not in IMAGE_EXTENSIONS:
                    data, extension = png(image.convert("RGB").tobytes(), image.height, image.width), "png"
                yield {extension: data, "cls": str(label_of[path.parent.name]).encode()}

        _write(card, folder, samples(), len(members))


_SUFFIXES = {".tif", ".tiff", *(f".{extension}" for extension in IMAGE_EXTENSIONS)}


def _winogavil(card: EvalCard, originals: Path, folder: Path) -> None:
    """Read a csv with an instance a line (``cue``, and JSON lists ``candidates``, ``associations``) and a zip of JPEGs.

    A candidate called X is ``X.jpg``. Pictures are numbered, since a key ends at the first dot of a name. As DataComp
    does, an association that is not among the candidates is not counted.
    """
    assert card.original is not None
    table, pictures = (originals / name for name in card.original.files)
    with table.open(encoding="utf-8", newline="") as file:
        rows = [
            (row["cue"], json.loads(row["candidates"]), json.loads(row["associations"])) for row in csv.DictReader(file)
        ]
    names = sorted({name for _, candidates, _ in rows for name in candidates})
    key_of = {name: f"{number:06d}" for number, name in enumerate(names)}
    with zipfile.ZipFile(pictures) as archive:
        by_name = {path.stem: (path, member) for path, member in _pictures(archive).items() if path.suffix == ".jpg"}
        lacking = [name for name in names if name not in by_name]
        _require(not lacking, f"{pictures.name} lacks the pictures of {len(lacking)} candidates, e.g. {lacking[:3]}")

        def samples() -> Iterator[Sample]:
            for name in names:
                path, member = by_name[name]
                data = archive.read(member)
                _decode(data, path)
                yield {"jpg": data}

        instances = [
            json.dumps(
                {
                    "cue": cue,
                    "candidates": [key_of[name] for name in candidates],
                    "associations": [key_of[name] for name in candidates if name in associations],
                }
            )
            for cue, candidates, associations in rows
        ]
        _write(card, folder, samples(), len(names), instances)


LAYOUTS: dict[str, Callable[[EvalCard, Path, Path], None]] = {
    "folders": _folders,
    "medmnist": _medmnist,
    "winogavil": _winogavil,
}
