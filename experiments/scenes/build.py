"""Build a compositional data set: training shards, evaluation sets, licences and a manifest.

The folder appears at once and whole: it is made beside its place and moved there after all checks.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO
from zipfile import ZipFile

from rich.console import Console
from rich.progress import track

from engine.files import file_sha256, folder_sha256
from experiments.fetch.shards import Sample, write_shards
from experiments.icons import licences, sources
from experiments.scenes import cards, drawings, sets
from experiments.scenes.eval_set import Picture
from experiments.scenes.paint import SIDE_PX
from experiments.scenes.scenes import Level

RECIPE = "1"
"""Raised when the same wheels are to give other data sets."""
ENTRIES = frozenset({"LICENSES.md", "evals", "manifest.json", "pictures.tsv", "train"})
PAIRS_PER_SHARD = 1000


class OutputError(ValueError):
    """The output folder holds what is not ours to replace."""


def build(out: Path, cache: Path, level: Level, *, update_cards: bool) -> dict[str, Any]:
    """Make the folder of a data set: beside its place, and moved there once its cards say what is in it.

    Args:
        out: Folder to make; an earlier one is replaced.
        cache: Folder of wheels; missing ones are fetched.
        level: Which data set.
        update_cards: Rewrite the cards with what was built instead of comparing.

    Returns:
        The manifest, which is written as well.

    Raises:
        OutputError: If `out` holds anything that no build writes.
        SourceError: If a wheel cannot be had.
        CardError: If what was built differs from the cards; `out` is left as it was.
        ValueError: If an evaluation set cannot be read.
    """
    out = out.resolve()  # a link stays: what it points to is replaced
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file: give an empty or a new folder")
    strangers = sorted(path.name for path in out.iterdir() if path.name not in ENTRIES) if out.exists() else []
    if strangers:
        raise OutputError(
            f"{out} holds {', '.join(strangers[:5])}, which no build writes: give an empty or a new folder"
        )
    wheels = sources.open_wheels(cache)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-unfinished-") as beside:
        folder = Path(beside) / "new"
        folder.mkdir()
        manifest = fill(folder, wheels, level)
        (folder / "manifest.json").write_bytes((json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode())
        made = cards.counted(manifest)
        cards.check_readable(made, folder)
        if update_cards:
            cards.write(made)
        else:
            cards.check(made)
        if out.exists():
            out.rename(Path(beside) / "old")
        folder.rename(out)
    return manifest


def fill(new: Path, wheels: Mapping[str, ZipFile], level: Level) -> dict[str, Any]:
    """Write a data set into an empty folder.

    Args:
        new: The folder.
        wheels: Opened wheels by project.
        level: Which data set.

    Returns:
        The manifest: what was counted, and every file's digest.
    """
    painter = sets.Painter(level, drawings.stencils(wheels, level))
    evals: dict[str, dict[str, Any]] = {}
    captions: set[str] = set()
    shards = [f"{shard:05d}.tar" for shard in range(max(1, round(level.pairs / PAIRS_PER_SHARD)))]
    with (new / "pictures.tsv").open("w", encoding="utf-8", newline="\n") as table:
        table.write("set\tkey\tscene\tsources\n")
        write_shards(new / "train", _training(painter, table, captions), level.pairs, shards)
        for kind, chosen in sets.eval_sets(painter).items():
            name = f"{level.name}_{kind}"
            folder = new / "evals" / name
            chosen.write(folder)
            evals[name] = {**chosen.counts, "chance": round(chosen.chance, 5), "sha256": folder_sha256(folder)}
            table.writelines(_row(name, number, picture) for number, picture in enumerate(chosen.pictures))
    (new / "LICENSES.md").write_bytes(licences.licence_notes(wheels, SIDE_PX).encode())
    files = (path for path in sorted(new.rglob("*")) if path.is_file())
    return {
        "recipe": RECIPE,
        "name": level.name,
        "wheels": {wheel.project: wheel.requirement for wheel in sources.pinned_wheels()},
        "train": {"pairs": level.pairs, "captions": len(captions)},
        "evals": evals,
        "files": {path.relative_to(new).as_posix(): file_sha256(path) for path in files},
    }


def _training(painter: sets.Painter, table: TextIO, captions: set[str]) -> Iterator[Sample]:
    """Yield training pairs; write the pictures' rows, and gather the captions."""
    shown = track(
        sets.training_pairs(painter),
        "painting",
        painter.level.pairs,
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
    for number, (picture, caption) in enumerate(shown):
        table.write(_row("train", number, picture))
        captions.add(caption)
        yield {"png": picture.png, "txt": caption.encode()}


def _row(name: str, number: int, picture: Picture) -> str:
    return "\t".join((name, f"{number:06d}", picture.scene.key, " ".join(picture.drawings))) + "\n"
