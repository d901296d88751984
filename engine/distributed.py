"""Collectives for one or many processes behind one small interface, and process start-up.

Convention: every process computes a loss that is a mean over its own rows, and gradients are averaged
over processes. With `gather_with_grad` this gives the gradient of the mean over the global batch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor


class Collectives:
    """The interface, and its form for one process, where every call returns its input.

    Tensors on the CPU travel between processes even where training is on GPUs, and wait for no GPU.
    """

    rank: int = 0
    world_size: int = 1

    def gather(self, x: Tensor) -> Tensor:
        """Concatenate `x`, shape (b, ...), over processes in rank order: (world_size * b, ...), no gradient."""
        return x.detach()

    def gather_with_grad(self, x: Tensor) -> Tensor:
        """Like `gather`, but gradients flow back to the process that owns each row, summed over processes."""
        return x

    def all_to_all(self, x: Tensor) -> Tensor:
        """Send each process its part of `x`, shape (world_size * b, ...); returns what all sent here, in rank order."""
        return x

    def all_reduce(self, x: Tensor, op: Literal["sum", "mean", "max", "min"]) -> Tensor:
        """Reduce `x` over processes, in place, without gradient; returns `x`."""
        return x

    def broadcast(self, x: Tensor) -> Tensor:
        """Copy `x` of the first process to all, in place; returns `x`."""
        return x

    def subgroup(self, size: int) -> Any:
        """Return the group of `size` neighbours that this process is in; every process calls this."""
        return None

    def barrier(self) -> None:
        """Wait until every process is here."""


class _GatherWithGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rank: int, world_size: int) -> Tensor:
        ctx.rank, ctx.rows = rank, x.shape[0]
        parts = [torch.empty_like(x) for _ in range(world_size)]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        # Gloo has no reduce-scatter: reduce all, and keep the rows of this process.
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad)
        return grad[ctx.rank * ctx.rows : (ctx.rank + 1) * ctx.rows], None, None


class ProcessGroup(Collectives):
    """Collectives over torch.distributed's default group (gloo or nccl), which must be initialised."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()

    def gather(self, x: Tensor) -> Tensor:
        """See `Collectives.gather`."""
        x = x.detach().contiguous()
        parts = [torch.empty_like(x) for _ in range(self.world_size)]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    def gather_with_grad(self, x: Tensor) -> Tensor:
        """See `Collectives.gather_with_grad`."""
        apply: Callable[..., Tensor] = _GatherWithGrad.apply
        return apply(x, self.rank, self.world_size)

    def all_to_all(self, x: Tensor) -> Tensor:
        """See `Collectives.all_to_all`."""
        received = torch.empty_like(x, memory_format=torch.contiguous_format)
        dist.all_to_all_single(received, x.contiguous())
        return received

    def all_reduce(self, x: Tensor, op: Literal["sum", "mean", "max", "min"]) -> Tensor:
        """See `Collectives.all_reduce`."""
        reduce_op = {"max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}.get(op, dist.ReduceOp.SUM)
        dist.all_reduce(x, op=reduce_op)
        return x.div_(self.world_size) if op == "mean" else x

    def broadcast(self, x: Tensor) -> Tensor:
        """See `Collectives.broadcast`."""
        dist.broadcast(x, src=0)
        return x

    def subgroup(self, size: int) -> Any:
        """See `Collectives.subgroup`."""
        return dist.new_subgroups(size)[0]  # type: ignore[no-untyped-call]

    def barrier(self) -> None:
        """See `Collectives.barrier`."""
        dist.barrier()


def start(device: torch.device) -> Collectives:
    """Join the process group that `torchrun` or submitit describes in the environment; without one, stay alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Collectives()
    if not dist.is_initialized():
        # Tensors on the CPU travel without the GPUs: what processes agree on then waits for no device.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        # nccl would wait ten minutes: too short while the first process writes a large checkpoint to a slow disk.
        dist.init_process_group(backend, timeout=timedelta(minutes=30))
    return ProcessGroup()


_left: list[dist.ProcessGroup] = []


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        # Kept: DistributedDataParallel as its last owner would end gloo's threads while it holds Python's lock, and
        # hang if a thread that is late with its last tensor waits for that lock.
        assert dist.group.WORLD is not None
        _left.append(dist.group.WORLD)
        dist.destroy_process_group()


def choose_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu`` or ``cuda`` into this process's device.

    Raises:
        ValueError: If ``cuda`` is asked for and there is none for this process.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(f"a GPU was asked for (gpus_per_node, or device 'cuda'): {explain_no_gpu()}")
    # Some schedulers show every process its own GPU only.
    count, local_rank = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", "0"))
    if 1 < count <= local_rank:
        raise ValueError(
            f"process {local_rank} of this node needs a GPU of its own, and torch sees {count}: start as many "
            "processes as there are GPUs"
        )
    device = torch.device("cuda", 0 if count == 1 else local_rank)
    torch.cuda.set_device(device)
    return device


def explain_no_gpu() -> str:
    """Return why torch sees no GPU, as far as its build and the driver tell, and what to do."""
    cuda, hip = torch.version.cuda, torch.version.hip
    build = f"for CUDA {cuda}" if cuda else f"for ROCm {hip}" if hip else "without CUDA"
    driver = nvidia_driver()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not (cuda or hip):
        advice = "install torch for CUDA (https://pytorch.org/get-started/locally)"
    elif cuda and driver is None:
        advice = "run on a machine with an NVIDIA driver"
    else:
        advice = "let the job see its GPUs, with a driver that is new enough for this build"
    return (
        f"torch sees none. It is {torch.__version__}, built {build}; NVIDIA driver {driver or 'not found'}; "
        f"CUDA_VISIBLE_DEVICES {'not set' if visible is None else repr(visible)}: {advice}, or use gpus_per_node 0"
    )


def nvidia_driver(path: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """Return the version of the NVIDIA driver in the kernel; None without one."""
    said = path.read_text(encoding="utf-8") if path.exists() else ""
    found = re.search(r"^NVRM version:.*?\b(\d+\.\d+(\.\d+)?)\b", said, re.MULTILINE)
    return found and found[1]
