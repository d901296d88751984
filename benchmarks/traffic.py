"""Bytes and calls by which each method's loss and gradients travel between processes in a step: counted, not timed.

The first of W processes runs alone. In place of torch.distributed's functions stand ones that count, and give it its
own rows for those of others. Bytes are those that one process sends in a ring. Gradients of encoders are not counted:
they are the same for all methods.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.distributed as dist
from rich.table import Table
from torch import Tensor

from benchmarks import cases
from engine.distributed import ProcessGroup
from engine.method import MethodEnv
from engine.registry import method_class, resolve_config

BASE = "openclip"


class _Message(NamedTuple):
    """Stands for `torch.distributed.P2POp`."""

    op: Any
    tensor: Tensor
    peer: int
    group: Any = None


class _Counted:
    """Functions of torch.distributed for the first of so many processes, which count what it sends."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.calls: Counter[str] = Counter()
        self.num_bytes: Counter[str] = Counter()

    def _count(self, name: str, num_bytes: float) -> None:
        self.calls[name] += 1
        self.num_bytes[name] += round(num_bytes)

    def _others(self, num_bytes: int) -> float:
        return num_bytes * (self.world_size - 1) / self.world_size

    def all_gather(self, parts: Sequence[Tensor], x: Tensor, group: Any = None) -> None:
        """See torch.distributed, as all below."""
        self._count("all_gather", self._others(sum(part.nbytes for part in parts)))
        for part in parts:
            part.copy_(x)

    def reduce_scatter(self, out: Tensor, parts: Sequence[Tensor], op: Any = None, group: Any = None) -> None:
        self._count("reduce_scatter", self._others(sum(part.nbytes for part in parts)))
        out.copy_(parts[0])

    def all_reduce(self, x: Tensor, op: Any = None, group: Any = None) -> None:
        self._count("all_reduce", 2 * self._others(x.nbytes))

    def broadcast(self, x: Tensor, src: int, group: Any = None) -> None:
        self._count("broadcast", x.nbytes)

    def all_to_all_single(self, received: Tensor, x: Tensor, group: Any = None) -> None:
        self._count("all_to_all", self._others(x.nbytes))
        received.copy_(x)

    def batch_isend_irecv(self, messages: Sequence[_Message]) -> list[Any]:
        sent = [message.tensor for message in messages if message.op is dist.isend]
        for message in messages:
            if message.op is dist.irecv:
                message.tensor.copy_(sent[0])
        self._count("send", sum(tensor.nbytes for tensor in sent))
        return []

    @contextlib.contextmanager
    def replaced(self) -> Iterator[None]:
        """Put them in place of torch's within the block."""
        names = ("all_gather", "reduce_scatter", "all_reduce", "broadcast", "all_to_all_single", "batch_isend_irecv")
        with mock.patch.multiple(
            dist,
            get_rank=lambda group=None: 0,
            get_world_size=lambda group=None: self.world_size,
            get_backend=lambda group=None: dist.Backend.NCCL,
            P2POp=_Message,
            **{name: getattr(self, name) for name in names},
        ):
            yield


def count_step(name: str, options: dict[str, Any], *, global_batch: int, dim: int, world_size: int) -> _Counted:
    """Count what a method's loss and gradients send in its second step."""
    counted = _Counted(world_size)
    with counted.replaced():
        env = MethodEnv(
            dim,
            dataset_size=100 * global_batch,
            global_batch_size=global_batch,
            steps_per_epoch=100,
            num_steps=10_000,
            collectives=ProcessGroup(),
            shares_pairs=True,
        )
        method = method_class(name)(resolve_config(name, options), env)
        step = cases.method_step(method, cases.make_features(global_batch // world_size, dim, cases.CPU))
        step()
        counted.calls.clear()
        counted.num_bytes.clear()
        step()
    return counted


def main(argv: list[str] | None = None) -> None:
    """Count, print a table, write the file."""
    parser = cases.parser(__doc__, "methods", "set", "batch", "dim", batch=[4096], dim=[512])
    parser.add_argument("--processes", type=int, default=32, help="W (%(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    table = Table("method", "G", "D", "MB a process", "of openclip's", "calls")
    for batch, dim in itertools.product(args.batch, args.dim):
        sizes = {"global_batch": batch, "dim": dim, "world_size": args.processes}
        base = 0
        for name in dict.fromkeys((BASE, *args.methods)):
            counted = count_step(name, cases.options_of(name, args.set), **sizes)
            num_bytes = counted.num_bytes.total()
            base = base or num_bytes
            row = {"method": name, **sizes, "calls": dict(counted.calls), "num_bytes": num_bytes}
            rows.append(row | {"to_openclip": num_bytes / base})
            calls = ", ".join(f"{count} {kind}" for kind, count in sorted(counted.calls.items()))
            table.add_row(name, f"{batch}", f"{dim}", f"{num_bytes / 1e6:.1f}", f"{num_bytes / base:.2f}", calls)
    cases.show(table)
    cases.write_json(args.json, args, cases.CPU, rows)


if __name__ == "__main__":
    main()
