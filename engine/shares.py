"""Share out what a method keeps for every pair of the data set: each process has the rows of some positions.

A step reads and writes the rows of its batch. Nothing is added up on the way, so the numbers are those of a method that
keeps all rows on every process, to the bit; and no shape depends on a value, so nothing waits for a GPU.

Shape suffixes: B local batch, G global batch, N the pairs that a process keeps, W processes, X bytes of a pair's rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.distributed import Collectives

_MAX_GATHERED = 1 << 25
"""Pairs of the largest set whose rows are gathered for their mean: 256 MiB of two float32 each."""


@dataclass(frozen=True)
class Shares:
    """The pairs that each process keeps: as many each, in the order of positions.

    Args:
        num_pairs: n: positions are 0 <= position < n.
        collectives: The processes.
        are_apart: Each process keeps its share; otherwise each keeps all pairs.
    """

    num_pairs: int
    collectives: Collectives
    are_apart: bool = True

    @property
    def count(self) -> int:
        """Number of shares: W, or 1 where each process keeps all."""
        return self.collectives.world_size if self.are_apart else 1

    @property
    def rows(self) -> int:
        """N: rows of a buffer, ceil(n / count). The last processes may have some that are of no pair."""
        return -(-self.num_pairs // self.count)

    @property
    def first(self) -> int:
        """Position of the first row of this process."""
        return self.collectives.rank * self.rows if self.count > 1 else 0

    def read(self, index_B: Tensor, *buffers_N: Tensor) -> list[Tensor]:
        """Return the rows of pairs from whichever process keeps them. Every process calls this together.

        Args:
            index_B: Positions of this process's pairs; as many on every process.
            *buffers_N: Buffers of this process, of any types, with any further dimensions.

        Returns:
            Their rows, (B, ...) each.
        """
        if self.count == 1:
            return [buffer_N[index_B] for buffer_N in buffers_N]
        ours = self.collectives
        # Of what others keep any row is sent; who asked takes none of these.
        asked_G = (ours.gather(index_B) - self.first).clamp(0, self.rows - 1)
        answers_GX = ours.all_to_all(_pack([buffer_N[asked_G] for buffer_N in buffers_N]))
        answers_WBX = answers_GX.reshape(self.count, len(index_B), -1)
        packed_BX = answers_WBX[index_B // self.rows, torch.arange(len(index_B), device=index_B.device)]
        return _unpack(packed_BX, buffers_N)

    def write(self, index_B: Tensor, buffers_N: Sequence[Tensor], rows: Sequence[Tensor]) -> None:
        """Write the rows of all processes' pairs, each where it is kept. Every process calls this together.

        Where a pair comes twice, the last of its rows is kept.

        Args:
            index_B: Positions of this process's pairs; as many on every process.
            buffers_N: Buffers of this process.
            rows: New rows for each buffer, (B, ...).
        """
        index_G = self.collectives.gather(index_B)
        new_rows = [rows_B.to(buffer_N) for rows_B, buffer_N in zip(rows, buffers_N, strict=True)]
        if self.collectives.world_size > 1:
            new_rows = _unpack(self.collectives.gather(_pack(new_rows)), buffers_N)
        # The positions of others become the nearest of ours: what is written there is its own new row, or the old one.
        # So all that go to one row bring the same, and no order of writing matters.
        kept_G = index_G.clamp(self.first, self.first + self.rows - 1)
        sorted_G, order_G = index_G.sort(stable=True)
        if self.count == 1:
            from_G = order_G[torch.searchsorted(sorted_G, index_G, right=True) - 1]
            for buffer_N, rows_G in zip(buffers_N, new_rows, strict=True):
                buffer_N[index_G] = rows_G[from_G]
            return
        last_G = (torch.searchsorted(sorted_G, kept_G, right=True) - 1).clamp(min=0)
        is_new_G, from_G, to_G = sorted_G[last_G] == kept_G, order_G[last_G], kept_G - self.first
        for buffer_N, rows_G in zip(buffers_N, new_rows, strict=True):
            is_new = is_new_G.reshape(-1, *(1 for _ in buffer_N.shape[1:]))
            buffer_N[to_G] = torch.where(is_new, rows_G[from_G], buffer_N[to_G])

    def mean(self, buffer_N: Tensor) -> Tensor:
        """Return the mean of all pairs' rows, a scalar. Every process calls this together.

        Over up to 2^25 pairs it is that of one tensor, to the bit; over more it is summed by shares, in float64.
        """
        if self.count == 1:
            return buffer_N.mean()
        if self.num_pairs <= _MAX_GATHERED:
            return self.collectives.gather(buffer_N)[: self.num_pairs].mean()
        total = buffer_N[: max(0, self.num_pairs - self.first)].sum(dtype=torch.float64)
        row_size = buffer_N[0].numel()
        return (self.collectives.all_reduce(total, "sum") / (self.num_pairs * row_size)).to(buffer_N)

    def restore(self, buffer_N: Tensor, parts: Sequence[Tensor]) -> None:
        """Fill this process's buffer from those of any number of processes, in their order."""
        part_rows = len(parts[0])
        end = min(self.first + self.rows, self.num_pairs)
        for number, part in enumerate(parts):
            begin = number * part_rows
            low, high = max(self.first, begin), min(end, begin + part_rows)
            if low < high:
                buffer_N[low - self.first : high - self.first] = part[low - begin : high - begin]


def _pack(rows: Sequence[Tensor]) -> Tensor:
    """Return rows of several types as bytes, (rows, X)."""
    return torch.cat([each.reshape(len(each), -1).contiguous().view(torch.uint8) for each in rows], dim=1)


def _unpack(packed: Tensor, buffers_N: Sequence[Tensor]) -> list[Tensor]:
    """Return rows of the types and sizes of those in `buffers_N`."""
    sizes = [buffer_N[0].nbytes for buffer_N in buffers_N]
    return [
        part.contiguous().view(buffer_N.dtype).reshape(-1, *buffer_N.shape[1:])
        for part, buffer_N in zip(torch.split(packed, sizes, dim=1), buffers_N, strict=True)
    ]
