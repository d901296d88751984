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

    def gather_sides(self, image_BD: Tensor, text_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Return `gather_with_grad` of both, which travel together."""
        return image_BD, text_BD

    def reduce_scatter_with_grad(self, x: Tensor) -> Tensor:
        """Add up `x`, shape (world_size * b, ...), over processes; returns this process's b rows of the sum.

        The reverse of `gather_with_grad`: gradients of all rows flow back to every process.
        """
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


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ours: ProcessGroup) -> Tensor:
        ctx.ours = ours
        return ours.gather(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        return ctx.ours.reduce_scatter(grads[0]), None


class _ReduceScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ours: ProcessGroup) -> Tensor:
        ctx.ours = ours
        return ours.reduce_scatter(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        return ctx.ours.gather(grads[0]), None


class ProcessGroup(Collectives):
    """Collectives over torch.distributed, whose default group must be initialised.

    Args:
        of_cpu: The group for tensors on the CPU, gloo; None takes the default group for all.
    """

    def __init__(self, of_cpu: dist.ProcessGroup | None = None) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self._of_cpu = of_cpu

    def _group(self, x: Tensor) -> dist.ProcessGroup | None:
        return self._of_cpu if x.device.type == "cpu" else None

    def gather(self, x: Tensor) -> Tensor:
        """See `Collectives.gather`."""
        x = x.detach().contiguous()
        gathered = x.new_empty((self.world_size * len(x), *x.shape[1:]))
        dist.all_gather(list(gathered.chunk(self.world_size)), x, group=self._group(x))
        return gathered

    def gather_with_grad(self, x: Tensor) -> Tensor:
        """See `Collectives.gather_with_grad`."""
        apply: Callable[..., Tensor] = _Gather.apply
        return apply(x, self)

    def gather_sides(self, image_BD: Tensor, text_BD: Tensor) -> tuple[Tensor, Tensor]:
        """See `Collectives.gather_sides`."""
        image_GD, text_GD = self.gather_with_grad(torch.stack((image_BD, text_BD), dim=1)).unbind(dim=1)
        return image_GD, text_GD

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """Add up `x` over processes, without gradient; returns this process's rows of the sum."""
        parts = list(x.detach().contiguous().chunk(self.world_size))
        ours = torch.empty_like(parts[0])
        dist.reduce_scatter(ours, parts, group=self._group(x))
        return ours

    def reduce_scatter_with_grad(self, x: Tensor) -> Tensor:
        """See `Collectives.reduce_scatter_with_grad`."""
        apply: Callable[..., Tensor] = _ReduceScatter.apply
        return apply(x, self)

    def all_to_all(self, x: Tensor) -> Tensor:
        """See `Collectives.all_to_all`."""
        received = torch.empty_like(x, memory_format=torch.contiguous_format)
        dist.all_to_all_single(received, x.contiguous(), group=self._group(x))
        return received

    def all_reduce(self, x: Tensor, op: Literal["sum", "mean", "max", "min"]) -> Tensor:
        """See `Collectives.all_reduce`."""
        reduce_op = {"max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}.get(op, dist.ReduceOp.SUM)
        dist.all_reduce(x, op=reduce_op, group=self._group(x))
        return x.div_(self.world_size) if op == "mean" else x

    def broadcast(self, x: Tensor) -> Tensor:
        """See `Collectives.broadcast`."""
        dist.broadcast(x, src=0, group=self._group(x))
        return x

    def subgroup(self, size: int) -> Any:
        """See `Collectives.subgroup`."""
        return dist.new_subgroups(size)[0]  # type: ignore[no-untyped-call]

    def barrier(self) -> None:
        """See `Collectives.barrier`."""
        dist.barrier(group=self._of_cpu)


def start(device: torch.device) -> Collectives:
    """Join the process group that `torchrun` or submitit describes in the environment; without one, stay alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Collectives()
    of_cpu = None
    if not dist.is_initialized():
        # nccl would wait ten minutes: too short while the first process writes a large checkpoint to a slow disk.
        patience = timedelta(minutes=30)
        # By its name open_clip decides how gradients of its gather travel.
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=patience)
        if device.type == "cuda":
            # Tensors on the CPU travel without the GPUs: what processes agree on then waits for no device.
            of_cpu = dist.new_group(backend="gloo", timeout=patience)
            _kept.append(of_cpu)
    return ProcessGroup(of_cpu)


_kept: list[dist.ProcessGroup] = []
"""Kept until the process ends: DistributedDataParallel as the last owner of a group would end gloo's threads while it
holds Python's lock, and hang if a thread that is late with its last tensor waits for that lock."""


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        assert dist.group.WORLD is not None
        _kept.append(dist.group.WORLD)
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
