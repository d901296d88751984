"""The embedded data set's shards and pictures, and the check of a written set."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.fetch import shards
from experiments.fetch.shards import Sample
from experiments.icons.render import SIDE_PX

NUM_EVAL_SHARDS = 4
"""clip_benchmark's command line reads with four workers, and webdataset refuses more workers than shards."""
PAIRS_PER_SHARD = 1000


class LayoutError(ValueError):
    """A written set is not what its readers expect."""


def png(pixels: bytes) -> bytes:
    """Return a picture, (SIDE_PX, SIDE_PX, 3) uint8 in C order, as PNG."""
    return shards.png(pixels, SIDE_PX, SIDE_PX)


def read_shards(folder: Path, names: Sequence[str]) -> list[Sample]:
    """Return the samples of the shards named, in order."""
    samples: dict[str, Sample] = {}
    for name in names:
        with tarfile.open(folder / name, "r:") as archive:
            for member in archive:
                key, _, extension = member.name.partition(".")
                file = archive.extractfile(member)
                samples.setdefault(key, {})[extension] = file.read() if file else b""
    return list(samples.values())


def names(pairs: int) -> list[str]:
    """Return the names of the shards for so many training pairs."""
    return [f"{shard:05d}.tar" for shard in range(max(1, round(pairs / PAIRS_PER_SHARD)))]


def npy(number: int) -> bytes:
    """Return a row of metadata with one column, as .npy."""
    file = io.BytesIO()
    np.save(file, np.array([number], dtype="<i8"), allow_pickle=False)
    return file.getvalue()


def write_eval_set(
    folder: Path,
    samples: Sequence[Sample],
    *,
    classes: Sequence[str] = (),
    templates: Sequence[str] = (),
    tasks: Sequence[Mapping[str, object]] = (),
) -> None:
    """Write a set as `engine.evaluation.reading` reads it: classification for classes, association for tasks.

    Without either, it is for retrieval or, with several captions a picture, for choosing one of them.
    """
    shards.write_shards(folder / "test", samples, len(samples), [f"{shard}.tar" for shard in range(NUM_EVAL_SHARDS)])
    files: dict[str, Sequence[str]] = {"test/nshards.txt": [str(NUM_EVAL_SHARDS)]}
    if classes:
        files |= {"classnames.txt": classes, "zeroshot_classification_templates.txt": templates}
    elif tasks:
        files["instances.jsonl"] = [json.dumps(task, ensure_ascii=False) for task in tasks]
    else:
        files["dataset_type.txt"] = ["retrieval"]
    for name, lines in files.items():
        (folder / name).write_bytes("".join(f"{line}\n" for line in lines).encode())


def check_eval_set(folder: Path) -> dict[str, Any]:
    """Read a set as clip_benchmark does and check all that it would pass over in silence.

    Returns:
        Number of ``images``, and of ``classes``, ``captions`` or ``tasks``; ``families``, if they are compared, has
        the number of images of each. ``choices`` are the captions of each picture, if there are several.

    Raises:
        LayoutError: Naming the folder and what is wrong with it.
    """

    def lines(name: str) -> list[str]:
        return (folder / name).read_text(encoding="utf-8").splitlines()

    def require(condition: bool, problem: str) -> None:
        if not condition:
            raise LayoutError(f"{folder}: {problem}. This is a fault of the builder: report it")

    shards = [f"{shard}.tar" for shard in range(int(lines("test/nshards.txt")[0]))]
    found = sorted(path.name for path in (folder / "test").glob("*.tar"))
    require(found == sorted(shards), f"test/nshards.txt says {len(shards)}, there are {found}")
    samples = read_shards(folder / "test", shards)
    require(bool(samples), "it holds no pictures")
    for number, sample in enumerate(samples):
        with Image.open(io.BytesIO(sample["png"])) as picture:
            shape = (picture.mode, *picture.size)
            picture.load()  # checks the sums
        require(shape in {(mode, SIDE_PX, SIDE_PX) for mode in ("RGB", "P")}, f"picture {number} is {shape}")
    if (folder / "dataset_type.txt").exists():
        require(lines("dataset_type.txt") == ["retrieval"], f"dataset_type.txt says {lines('dataset_type.txt')}")
        captions = [sample["txt"].decode().split("\n") for sample in samples]
        choices = len(captions[0])
        require(all(map(str.strip, itertools.chain(*captions))), "a caption is blank")
        require(all(len(set(some)) == len(some) == choices for some in captions), f"not {choices} captions a picture")
        require(len({some[0] for some in captions}) == len(captions), "two pictures have the same caption")
        counts = {"images": len(samples), "captions": choices * len(samples)}
        return counts | ({"choices": choices} if choices > 1 else {})
    if (folder / "instances.jsonl").exists():
        tasks = [json.loads(line) for line in lines("instances.jsonl")]
        shown = [f"{number:06d}" for number in range(len(samples))]
        for task in tasks:
            right, among = set(task["associations"]), task["candidates"]
            require(0 < len(right) < len(set(among)) == len(among) and right < set(among), f"a task is {task}")
        require({key for task in tasks for key in task["candidates"]} == set(shown), "tasks and pictures differ")
        return {"images": len(samples), "tasks": len(tasks)}
    classes, templates = lines("classnames.txt"), lines("zeroshot_classification_templates.txt")
    labels = {int(sample["cls"]) for sample in samples}
    require(all(name.strip() for name in classes) and len(set(classes)) == len(classes), "a class is blank or twice")
    require(labels == set(range(len(classes))), f"{len(classes)} classes, but labels {sorted(labels)}")
    require(
        bool(templates) and all("{c}" in template for template in templates), f"a template without {{c}} in {templates}"
    )
    counted: dict[str, Any] = {"images": len(samples), "classes": len(classes)}
    if any("npy" in sample for sample in samples):
        rows = [np.load(io.BytesIO(sample["npy"]), allow_pickle=False) for sample in samples]
        require(all(row.shape == (1,) for row in rows), "a row of metadata has not one column")
        families, sizes = np.unique(rows, return_counts=True)
        require(np.array_equal(families, np.arange(len(families))), f"families are numbered {families.tolist()}")
        counted["families"] = sizes.tolist()
    return counted
