"""Read the bytes of any pair of an indexed set, by its position. Nothing is decoded here."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.data import order
from engine.data.archive import member_name
from engine.data.index import Index, Rows, pair_crc32

_ONE_READ_BYTES = 2**14
"""Image and caption are read at once if no more than this lies between them."""


@dataclass(frozen=True)
class _OpenShard:
    path: Path
    descriptor: int
    rows: Rows


class PairReader:
    """The pairs of an index, as bytes.

    Args:
        index: The set's index.
        index_path: Where it was read from.
    """

    def __init__(self, index: Index, index_path: Path) -> None:
        self.index, self.index_path = index, index_path
        self._open_shards: dict[int, _OpenShard] = {}

    def __getstate__(self) -> dict[str, object]:
        # Open files do not travel to worker processes.
        return {**self.__dict__, "_open_shards": {}}

    def read(self, position: int) -> tuple[bytes, bytes]:
        """Return the content of a pair's image member and of its caption member.

        Raises:
            OSError: If the shard cannot be read.
            ValueError: If the shard or the pair is not the one that was indexed.
        """
        shard, (image_offset, image_bytes, caption_offset, caption_bytes, *checksum) = self._locate(position)
        image_end, caption_end = image_offset + image_bytes, caption_offset + caption_bytes
        begin, end = min(image_offset, caption_offset), max(image_end, caption_end)
        if end - begin <= image_bytes + caption_bytes + _ONE_READ_BYTES:
            data = _pread(shard, begin, end)
            image = data[image_offset - begin : image_end - begin]
            caption = data[caption_offset - begin : caption_end - begin]
        else:
            image, caption = _pread(shard, image_offset, image_end), _pread(shard, caption_offset, caption_end)
        if checksum and checksum != [pair_crc32(image, caption)]:
            raise ValueError(
                f"data set {self.index.name!r}: {self.place(position)}: picture and caption are not those that were "
                f"indexed. Fetch {shard.path} again, or `touch` it if it was changed on purpose, and index the data "
                f"set again (`snakemake -f {self.index_path}`)"
            )
        return image, caption

    def announce(self, positions: Iterable[int]) -> None:
        """Say which pairs will be read next, so that the file system can fetch them side by side."""
        if not hasattr(os, "posix_fadvise"):  # macOS
            return
        for position in positions:
            shard, (image_offset, image_bytes, *_) = self._locate(position)
            os.posix_fadvise(shard.descriptor, image_offset, image_bytes, os.POSIX_FADV_WILLNEED)

    def place(self, position: int) -> str:
        """Name the shard of a pair, and its image in there."""
        shard, (image_offset, *_) = self._locate(position)
        return f"shard {shard.path.name}, sample {member_name(shard.descriptor, image_offset)}"

    def _locate(self, position: int) -> tuple[_OpenShard, list[int]]:
        """Return a pair's shard, and its row (`engine.data.index.COLUMNS`)."""
        number = int(np.searchsorted(self.index.starts, position, side="right")) - 1
        shard = self._open_shards.pop(number, None) or self._open(number)
        self._open_shards[number] = shard  # now the last one to be closed
        row: list[int] = shard.rows[position - int(self.index.starts[number])].tolist()
        return shard, row

    def _open(self, number: int) -> _OpenShard:
        # A batch lies in two windows at most, unless shards are smaller than its share of one.
        while len(self._open_shards) >= 2 * order.WINDOW_SHARDS:
            os.close(self._open_shards.pop(next(iter(self._open_shards))).descriptor)
        rows = self.index.read_rows(self.index_path, number)
        path = Path(self.index.folder) / self.index.shards.name[number]
        descriptor = os.open(path, os.O_RDONLY)
        found, known = os.fstat(descriptor).st_size, self.index.shards.num_bytes[number]
        if found != known:
            os.close(descriptor)
            raise ValueError(
                f"{path} has {found} bytes, its index says {known}: fetch it again, or index the data set again "
                f"(`snakemake -f {self.index_path}`)"
            )
        return _OpenShard(path, descriptor, rows)


def _pread(shard: _OpenShard, begin: int, end: int) -> bytes:
    data = os.pread(shard.descriptor, end - begin, begin)
    if len(data) != end - begin:
        raise OSError(f"{shard.path}: expected {end - begin} bytes at {begin}, got {len(data)}: fetch it again")
    return data
