"""Build a compositional data set, in the folder's form of `experiments.icons.build`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO
from zipfile import ZipFile

from rich.console import Console
from rich.progress import track

from experiments.fetch.shards import Sample, write_shards
from experiments.icons import licences, render, shards
from experiments.icons.build import manifest, publish
from experiments.scenes import cards, drawings, sets
from experiments.scenes.scenes import Level

RECIPE = "1"
"""Raised when the same wheels are to give other data sets."""
WITHOUT = frozenset({"OpenMoji", "emoji"})
"""Sources of the icons that no scene has a drawing or a name from."""
MADE = """\
The pictures are put together from drawings of the sources below: reduced to a part of {side} x {side} pixels, coloured,
in part turned or bent. `pictures.tsv` says which drawings are in each picture. A drawing stays under its source's
licence."""


def build(out: Path, *, level: Level, cache: Path, update_cards: bool = False) -> dict[str, Any]:
    """Build a data set into `out`, replacing an earlier one.

    Args:
        out: Folder to make.
        level: Which data set.
        cache: Folder of wheels; missing ones are fetched.
        update_cards: Rewrite the cards with what was built instead of comparing.

    Returns:
        The manifest.

    Raises:
        OutputError, SourceError, CardError: As `experiments.icons.build.publish`.
    """

    def fill(folder: Path, wheels: Mapping[str, ZipFile]) -> dict[str, Any]:
        painter = sets.Painter(level, drawings.stencils(wheels, level))
        with (folder / "pictures.tsv").open("w", encoding="utf-8", newline="\n") as table:
            table.write("set\tkey\tscene\tsources\n")
            samples = _training(painter, table)
            write_shards(folder / "train", samples, level.pairs, shards.names(level.pairs))
            for kind, chosen in sets.eval_sets(painter).items():
                name = f"{level.name}_{kind}"
                shards.write_eval_set(
                    folder / "evals" / name,
                    _evaluation(chosen),
                    classes=chosen.classes,
                    templates=chosen.templates,
                )
                table.writelines(_row(name, number, picture) for number, picture in enumerate(chosen.pictures))
        notes = licences.licence_notes(wheels, made=MADE.format(side=render.SIDE_PX), without=WITHOUT)
        (folder / "LICENSES.md").write_bytes(notes.encode())
        return manifest(folder, RECIPE, level.name, concepts=len(level.concepts), colours=len(level.colours))

    return publish(out, cache, fill, cards.family(level), update_cards=update_cards)


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


def _evaluation(chosen: sets.EvalSet) -> list[Sample]:
    samples: list[Sample] = [{"png": picture.png} for picture in chosen.pictures]
    for sample, label in zip(samples, chosen.labels, strict=bool(chosen.labels)):
        sample["cls"] = str(label).encode()
    for sample, captions in zip(samples, chosen.captions, strict=bool(chosen.captions)):
        sample["txt"] = "\n".join(captions).encode()
    return samples


def _row(name: str, number: int, picture: sets.Picture) -> str:
    return "\t".join((name, f"{number:06d}", picture.scene.key, " ".join(picture.drawings))) + "\n"
