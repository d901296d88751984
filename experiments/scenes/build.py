"""Build a compositional data set."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO
from zipfile import ZipFile

from rich.console import Console
from rich.progress import track

from experiments.fetch.shards import Sample, write_shards
from experiments.icons import folder, licences, render
from experiments.scenes import drawings, sets
from experiments.scenes.scenes import Level

RECIPE = "1"
"""Raised when the same wheels are to give other data sets."""
WITHOUT = frozenset({"OpenMoji", "emoji"})
"""Sources of the icons that no scene has a drawing or a name from."""
MADE = """\
The pictures are put together from drawings of the sources below: reduced to a part of {side} x {side} pixels, coloured,
in part turned or bent. `pictures.tsv` says which drawings are in each picture. A drawing stays under its source's
licence."""


def fill(new: Path, wheels: Mapping[str, ZipFile], *, level: Level) -> dict[str, Any]:
    """Write a data set into an empty folder.

    Args:
        new: The folder.
        wheels: Opened wheels by project.
        level: Which data set.

    Returns:
        The manifest.
    """
    painter = sets.Painter(level, drawings.stencils(wheels, level))
    counts = {}
    with (new / "pictures.tsv").open("w", encoding="utf-8", newline="\n") as table:
        table.write("set\tkey\tscene\tsources\n")
        samples = _training(painter, table)
        write_shards(new / "train", samples, level.pairs, folder.shard_names(level.pairs))
        for kind, chosen in sets.eval_sets(painter).items():
            name = f"{level.name}_{kind}"
            chosen.write(new / "evals" / name)
            counts[name] = chosen.counts
            table.writelines(_row(name, number, picture) for number, picture in enumerate(chosen.pictures))
    notes = licences.licence_notes(wheels, made=MADE.format(side=render.SIDE_PX), without=WITHOUT)
    (new / "LICENSES.md").write_bytes(notes.encode())
    shown = {"concepts": len(level.concepts), "colours": len(level.colours)}
    return folder.manifest(new, RECIPE, level.name, counts, **shown)


def _training(painter: sets.Painter, table: TextIO) -> Iterator[Sample]:
    pairs = track(
        sets.training_pairs(painter),
        "painting",
        painter.level.pairs,
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
    for number, (picture, caption) in enumerate(pairs):
        table.write(_row("train", number, picture))
        yield {"png": picture.png, "txt": caption.encode()}


def _row(name: str, number: int, picture: sets.Picture) -> str:
    return "\t".join((name, f"{number:06d}", picture.scene.key, " ".join(picture.drawings))) + "\n"
