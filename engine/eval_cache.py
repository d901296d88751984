"""Decoded pictures of evaluation sets on disk, so that evaluating the next model does not decode them again.

One NumPy file per set and transform, renamed when it is whole: evaluations that run at the same time see all of it or
nothing. What is not wanted any more can be deleted at any time; a cache that is full takes no more.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import itertools
import shutil
import sys
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine import paths

_LIBRARIES = ("open_clip_torch", "pillow", "torchvision")
_FORMAT = 1
"""Of the files; to be raised when the same key would mean other bytes."""
_RESERVE_BYTES = 2**30
"""Left free on the disk: results and checkpoints need it more."""
_ABANDONED_SEC = 24 * 60 * 60
"""Nobody writes any more to an unfinished file that was touched longer ago: its process was killed."""

Decoded = tuple[Tensor, Tensor]
"""Pixels (B, H, W, C), uint8, and which of the pictures have an alpha channel, (B,), bool."""


@dataclass(frozen=True)
class PixelCache:
    """Decoded sets in a folder that take up to `gib` GiB in all; several evaluations may use it at the same time."""

    folder: Path
    gib: float

    def batches(
        self, decoded: Iterator[Decoded], *, data_sha256: str, transform: str, count: int, batch_size: int
    ) -> Iterator[Decoded]:
        """Return a set's batches: as they were kept, or as they are decoded, which are kept if they fit.

        Args:
            decoded: The batches; nothing is taken from it if the set was kept.
            data_sha256: Digest of the set.
            transform: All that is done to its pictures, in words.
            count: Its pictures.
            batch_size: Pictures in a batch; the last may have fewer.
        """
        # Another version of these may give other pixels.
        versions = [f"{name} {importlib.metadata.version(name)}" for name in _LIBRARIES]
        key = hashlib.sha256("\n".join([str(_FORMAT), data_sha256, transform, *versions]).encode()).hexdigest()
        path = self.folder / f"{key[:32]}.npy"
        return _read(path, batch_size) if path.exists() else self._keep(decoded, path, count)

    def _keep(self, decoded: Iterator[Decoded], path: Path, count: int) -> Iterator[Decoded]:
        first = next(decoded)
        row: Any = np.dtype([("pixels", np.uint8, tuple(first[0].shape[1:])), ("has_alpha", np.bool_)])
        batches = itertools.chain([first], decoded)
        if count * row.itemsize > self._room():
            yield from batches
            return
        with contextlib.closing(_write(path, row, count)) as writer:
            next(writer)
            for batch in batches:
                writer.send(batch)
                yield batch
            writer.send(None)

    def _room(self) -> float:
        """Bytes that are left, within the limit and on the disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        held = 0
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # finished, and renamed, or given up meanwhile
                status = path.stat()
                if path.suffix == ".tmp" and time.time() - status.st_mtime > _ABANDONED_SEC:
                    path.unlink()
                else:
                    held += status.st_size
        return min(self.gib * 2**30 - held, shutil.disk_usage(self.folder).free - _RESERVE_BYTES)


def _write(path: Path, row: Any, count: int) -> Generator[None, Decoded | None, None]:
    """Write a file of the batches that are sent, None at the end; without room, say so and let them pass."""
    num_bytes = count * row.itemsize
    header = {"descr": row.descr, "fortran_order": False, "shape": (count,)}
    try:
        with paths.atomic_write(path, num_bytes=num_bytes) as temporary, temporary.open("wb") as file:
            file.truncate(num_bytes)  # its size tells other evaluations what will be taken
            np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]
            while batch := (yield):
                rows = np.empty(len(batch[0]), row)
                rows["pixels"], rows["has_alpha"] = (part.numpy() for part in batch)
                file.write(rows.tobytes())
    except paths.DiskFullError as error:
        sys.stderr.write(f"decoded pictures are not kept, there is no room in {path.parent} ({error.__cause__})\n")
    while True:
        yield


def _read(path: Path, batch_size: int) -> Iterator[Decoded]:
    rows = np.load(path, mmap_mode="r", allow_pickle=False)
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        yield torch.from_numpy(np.array(batch["pixels"])), torch.from_numpy(np.array(batch["has_alpha"]))
