"""Pairs per second of our loader beside a plain sequential webdataset reader, on the same shards.

Both decode JPEGs with Pillow, crop and resize at random (bicubic), tokenise and batch, with as many worker processes.
Ours also resizes with torch in place of Pillow (torch), and then decodes JPEGs at a reduced size besides (reduced). All
take turns. Ratios are medians over rounds, with quartiles, of wall time and of processor time (of this process and its
workers), which other work on the machine disturbs less.

cold   the shards leave the page cache before each turn, and are read from the disk
warm   the shards stay in the page cache
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import itertools
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import webdataset as wds
from PIL import Image
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as tv

from benchmarks import cases, shards
from engine import paths
from engine.data.index import read_index
from engine.data.loader import PairDataset, build_loader
from engine.schema.run import AugmentationSpec
from engine.training.towers import tokenizer

OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "torch": {"resize": "torch"},
    "reduced": {"resize": "torch", "jpeg": "reduced"},
}
"""What the augmentation says, by the name of the contestant."""
COMPARED = (("ours", "webdataset"), ("torch", "ours"), ("reduced", "ours"))

Read = Callable[[int, int], int]
"""Reads a number of batches with a number of workers; returns the number of pairs."""


def our_loader(image_size: int, batch: int, model: str, **augmentation: Any) -> Read:
    """Return a call that reads the next batches in our loader's order."""
    index_path = paths.index(shards.DATASET)
    index, tokenize = read_index(index_path), tokenizer(model)
    turns = itertools.count()

    def read(batches: int, num_workers: int) -> int:
        first = next(turns) * batches
        dataset = PairDataset(
            index,
            index_path,
            image_size=image_size,
            tokenizer=tokenize,
            augmentation=AugmentationSpec(kind="random_resized_crop", **augmentation),
            seed=0,
            cache_bytes=0,
        )
        loader = build_loader(
            dataset,
            seed=0,
            global_batch_size=batch,
            steps=range(first, first + batches),
            num_workers=num_workers,
        )
        return sum(len(loaded.index_B) for loaded in loader)

    return read


def webdataset_reader(files: list[Path], image_size: int, batch: int, model: str) -> Read:
    """Return a call that reads batches, beginning with the first shard each time."""
    crop = RandomResizedCrop(image_size, scale=(0.9, 1.0), interpolation=InterpolationMode.BICUBIC)
    tokenize = tokenizer(model)

    def decode(sample: dict[str, Any]) -> tuple[Tensor, Tensor]:
        image = Image.open(io.BytesIO(sample["jpg"])).convert("RGB")
        return tv.pil_to_tensor(crop(image)), tokenize([sample["txt"].decode()])[0]

    def read(batches: int, num_workers: int) -> int:
        pipeline = wds.DataPipeline(
            wds.SimpleShardList([str(file) for file in files]),
            wds.split_by_worker,
            wds.tarfile_to_samples(),
            wds.map(decode),
            wds.batched(batch, partial=False),
        )
        loader = DataLoader(pipeline, batch_size=None, num_workers=num_workers, worker_init_fn=_start_worker)
        pairs = sum(len(tokens_BT) for _, tokens_BT in itertools.islice(loader, batches))
        if pairs < batches * batch:
            raise ValueError(
                f"--batches {batches}: webdataset read {pairs} pairs of {batches * batch}, as each worker reads whole "
                "batches from its share of the shards; give fewer batches, or more pairs"
            )
        return pairs

    return read


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)


def forget(files: list[Path]) -> None:
    """Drop files from the page cache."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def measure(args: argparse.Namespace, files: list[Path]) -> list[dict[str, Any]]:
    """Measure both readers for every number of workers, cold and warm."""
    rows: list[dict[str, Any]] = []
    sizes = (args.image_size, args.batch, args.model)
    readers = {name: our_loader(*sizes, **augmentation) for name, augmentation in OURS.items()}
    readers["webdataset"] = webdataset_reader(files, *sizes)
    for num_workers, cache in itertools.product(args.workers, args.cache):
        turns = {name: functools.partial(read, args.batches, num_workers) for name, read in readers.items()}
        before = functools.partial(forget, files if cache == "cold" else [])
        seconds = cases.take_turns(turns, args.rounds, before=before)
        row: dict[str, Any] = {"workers": num_workers, "cache": cache}
        for name, measured in seconds.items():
            row[f"{name}_pairs_per_sec"] = args.batches * args.batch / statistics.median(s.wall for s in measured)
        # Pairs per second relative to another's are the inverse of the seconds.
        for name, other in COMPARED:
            wall, cpu = (
                [[getattr(s, clock) for s in seconds[of]] for of in (other, name)] for clock in ("wall", "processor")
            )
            row[f"{name}_to_{other}"] = {"wall": cases.ratio(*wall), "cpu": cases.ratio(*cpu)}
        rows.append(row)
    return rows


def main(argv: list[str] | None = None) -> None:
    """Write shards into a temporary folder, measure, print a table for each pair, write the file."""
    parser = cases.parser(__doc__, "rounds", rounds=9)
    parser.add_argument("--pairs", type=int, default=16384, help="pairs in the shards")
    parser.add_argument("--shards", type=int, default=16, help="number of shards")
    parser.add_argument("--stored-size", type=int, default=256, help="height and width of the pictures in the shards")
    parser.add_argument("--image-size", type=int, default=224, help="height and width that leave the loader")
    parser.add_argument("--model", default="ViT-B-32", help="open_clip model whose tokenizer is used")
    parser.add_argument("--batch", type=int, default=256, help="B")
    parser.add_argument("--batches", type=int, help="batches per turn; default: an epoch")
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 2], help="data loader processes")
    parser.add_argument("--cache", nargs="+", choices=["cold", "warm"], default=["cold", "warm"])
    parser.add_argument("--folder", help="where to write shards (several hundred MB); default: temporary")
    args = parser.parse_args(argv)
    args.batches = args.batches or args.pairs // args.batch
    args.json = args.json and args.json.absolute()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder, contextlib.chdir(folder):
        files = shards.write_shards(args.pairs, args.stored_size, args.shards)
        shard_bytes = sum(file.stat().st_size for file in files)
        rows = measure(args, files)
    title = f"{args.pairs} pairs, {shard_bytes / 2**20:.0f} MiB in {args.shards} shards, B = {args.batch}"
    for name, other in COMPARED:
        table = Table("workers", "cache", f"{name}, pairs/s", other, "ratio, wall", "ratio, processor", title=title)
        for row in rows:
            speeds = (f"{row[f'{of}_pairs_per_sec']:.0f}" for of in (name, other))
            ratios = (cases.show_ratio(row[f"{name}_to_{other}"][clock]) for clock in ("wall", "cpu"))
            table.add_row(str(row["workers"]), row["cache"], *speeds, *ratios)
        cases.show(table)
    cases.write_json(args.json, args, cases.CPU, rows)


if __name__ == "__main__":
    main()
