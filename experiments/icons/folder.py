"""The folder of an embedded data set: training shards, evaluation sets, cards and a manifest.

The folder appears at once and whole: it is made beside its place and moved there after all checks.
"""

from __future__ import annotations

import json
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from engine.evaluation import reading
from engine.files import file_sha256, folder_sha256
from engine.schema.evaluation import EvalCard
from experiments.fetch.shards import Sample
from experiments.icons import cards, sources

ENTRIES = frozenset({"LICENSES.md", "evals", "manifest.json", "pictures.tsv", "train"})
PAIRS_PER_SHARD = 1000
Fill = Callable[[Path, Mapping[str, ZipFile]], dict[str, Any]]
"""Writes a data set made of opened wheels into a folder; returns its manifest."""


class OutputError(ValueError):
    """The output folder holds what is not ours to replace."""


def shard_names(pairs: int) -> list[str]:
    """Return the names of the shards of a number of training pairs."""
    return [f"{shard:05d}.tar" for shard in range(max(1, round(pairs / PAIRS_PER_SHARD)))]


def read_shards(paths: Sequence[Path]) -> list[Sample]:
    """Return the samples of shards, in order."""
    samples: dict[str, Sample] = {}
    for path in paths:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                key, _, extension = member.name.partition(".")
                file = archive.extractfile(member)
                samples.setdefault(key, {})[extension] = file.read() if file else b""
    return list(samples.values())


def manifest(
    folder: Path, recipe: str, name: str, evals: Mapping[str, Mapping[str, Any]], **counts: int
) -> dict[str, Any]:
    """Count and list what was written.

    Args:
        folder: A data set, but for its manifest.
        recipe: Raised when the same wheels are to give another data set.
        name: The data set's.
        evals: `EvalSet.counts` of each evaluation set.
        counts: Further numbers of the training set.
    """
    train = sorted((folder / "train").iterdir())
    captions = [sample["txt"].decode() for shard in train for sample in read_shards([shard])]
    digests = {
        path.relative_to(folder).as_posix(): file_sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }
    return {
        "recipe": recipe,
        "name": name,
        "wheels": {
            wheel.project: {"version": wheel.version, "sha256": wheel.sha256} for wheel in sources.pinned_wheels()
        },
        "train": {"pairs": len(captions), "captions": len(set(captions)), **counts, "shards": len(train)},
        "evals": {key: {**found, "sha256": folder_sha256(folder / "evals" / key)} for key, found in evals.items()},
        "files": digests,
    }


def publish(out: Path, cache: Path, fill: Fill, *, update_cards: bool) -> dict[str, Any]:
    """Make the folder of a data set: beside its place, and moved there once its cards say what is in it.

    Args:
        out: Folder to make; an earlier one is replaced.
        cache: Folder of wheels; missing ones are fetched.
        fill: Writes the data set.
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
        found = fill(folder, wheels)
        (folder / "manifest.json").write_bytes((json.dumps(found, indent=1, sort_keys=True) + "\n").encode())

        made = cards.cards(found)
        for card in made.values():
            if "task" in card:
                reading.count(EvalCard.model_validate({**card, "path": str(folder / "evals" / card["name"])}))
        if update_cards:
            cards.write(made)
        else:
            cards.check(made)
        if out.exists():
            out.rename(Path(beside) / "old")
        folder.rename(out)
    return found
