"""Build the embedded data set: pictures, captions and evaluation sets."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from rich.console import Console
from rich.progress import track

from experiments.fetch.shards import write_shards
from experiments.icons import catalogue, folder, licences, render, sets
from experiments.icons.eval_set import EvalSet
from experiments.icons.sets import LOOK_ALIKE, SAME_DRAWING, Picture, Size

RECIPE = "1"
"""Raised when the same wheels are to give another data set."""


def fill(new: Path, wheels: Mapping[str, ZipFile], *, size: Size, jobs: int) -> dict[str, Any]:
    """Write a data set into an empty folder.

    Args:
        new: The folder.
        wheels: Opened wheels by project.
        size: Which data set.
        jobs: Processes that draw; the result does not depend on it.

    Returns:
        The manifest.
    """
    train, evals = _draw(wheels, size, jobs)
    _write(new, train, evals)
    made = licences.MADE.format(side=render.SIDE_PX)
    (new / "LICENSES.md").write_bytes(licences.licence_notes(wheels, made=made).encode())
    counts = {name: chosen.counts for name, chosen in evals.items()}
    concepts = len({picture.icon.concept for picture in train})
    return folder.manifest(new, RECIPE, size.name, counts, concepts=concepts)


def _draw(wheels: Mapping[str, ZipFile], size: Size, jobs: int) -> tuple[list[Picture], dict[str, EvalSet[Picture]]]:
    parts = sets.split(catalogue.read_icons(wheels), size)
    icons, shifts = zip(*parts.drawings(), strict=True)
    rendered = render.render_all(icons, shifts, catalogue.read_fonts(wheels), jobs=jobs)
    console = Console(stderr=True)
    shown = track(rendered, "drawing", len(icons), console=console, disable=not sys.stderr.isatty())
    pictures = {
        (icon.key, shift): Picture(icon, *drawn)
        for icon, shift, drawn in zip(icons, shifts, shown, strict=True)
        if drawn
    }

    def drawn_of(part: Sequence[catalogue.Icon]) -> list[Picture]:
        return [pictures[icon.key, ""] for icon in part if (icon.key, "") in pictures]

    train = sets.distinct(drawn_of(parts.train), SAME_DRAWING)
    validation = sets.unlike(drawn_of(parts.validation), LOOK_ALIKE, train)
    test = sets.unlike(drawn_of(parts.test), LOOK_ALIKE, train + validation)
    styles = sets.unlike(drawn_of(parts.unseen_styles), LOOK_ALIKE, train + validation)
    all_unseen = sets.unlike(drawn_of(parts.all_unseen), LOOK_ALIKE, train + validation)
    evals = {
        **sets.styles(styles, pictures, train, size),
        "unseen_concepts": sets.unseen_concepts(test, size),
        "modifiers": sets.modifiers(test, size),
        "characters": sets.characters(test, size),
        "families": sets.families(test + all_unseen, size),
        "retrieval": sets.retrieval(test, size),
        "unseen_styles_retrieval": sets.retrieval(all_unseen, size),
        "tags": sets.tags(test, train, size),
        "validation": sets.retrieval(validation, size),
    }
    return sets.shuffled(train), {f"{size.name}_{kind}": chosen for kind, chosen in evals.items()}


def _write(new: Path, train: list[Picture], evals: dict[str, EvalSet[Picture]]) -> None:
    table = [("set", "key", "source", "concept"), *_rows("train", train)]
    samples = ({"png": picture.png, "txt": sets.training_caption(picture.icon).encode()} for picture in train)
    write_shards(new / "train", samples, len(train), folder.shard_names(len(train)))
    for name, chosen in evals.items():
        chosen.write(new / "evals" / name)
        table += _rows(name, chosen.pictures)
    (new / "pictures.tsv").write_bytes("".join("\t".join(row) + "\n" for row in table).encode())


def _rows(name: str, pictures: list[Picture]) -> list[tuple[str, str, str, str]]:
    return [(name, f"{number:06d}", p.icon.key, p.icon.concept) for number, p in enumerate(pictures)]
