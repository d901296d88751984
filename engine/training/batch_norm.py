"""Batch norm sees the parts of the global batch that a run names, however many processes share it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from engine.distributed import Collectives
from engine.schema.run import Execution, RunSpec


def share(
    towers: nn.Module, spec: RunSpec, execution: Execution, device: torch.device, collectives: Collectives
) -> int:
    """Prepare the batch norms of a model for `batch_norm_groups`; every process calls this.

    Where several processes share a part, batch norms are replaced in place by synchronised ones.

    Returns:
        The parts of one process's rows: 1 for a model without batch norm.

    Raises:
        ValueError: If the parts cannot be had with this model, number of processes, accumulation or device.
    """
    name, groups, world_size = spec.model.name, spec.batch_norm_groups, collectives.world_size
    if not any(isinstance(module, nn.BatchNorm2d) for module in towers.modules()):
        if groups > 1:
            raise ValueError(f"batch_norm_groups = {groups}, but model {name!r} has no batch norm: leave it out")
        return 1
    per_process, left = divmod(groups, world_size)
    if left and world_size % groups:
        raise ValueError(
            f"batch_norm_groups = {groups} cannot be shared among {world_size} processes: use a number of "
            "processes that divides it, or a multiple of it"
        )
    if execution.accumulation_steps not in {1, per_process}:
        raise ValueError(
            f"model {name!r} has batch norm, which with accumulation_steps = {execution.accumulation_steps} "
            f"would see other parts of the batch than batch_norm_groups = {groups} says: use accumulation_steps 1"
            + (f" or {per_process}" if per_process > 1 else ", or a model without batch norm")
        )
    if per_process:
        return per_process
    if device.type == "cpu":
        raise ValueError(
            f"model {name!r} has batch norm, which on CPUs cannot see one part of the batch from several processes "
            f"(batch_norm_groups = {groups}, {world_size} processes): use fewer processes, GPUs, or a model "
            "without batch norm"
        )
    nn.SyncBatchNorm.convert_sync_batchnorm(towers, collectives.subgroup(world_size // groups))  # type: ignore[no-untyped-call]
    return 1


def norms(model: nn.Module) -> list[nn.Module]:
    """Return the batch norms of a model; their buffers are the running statistics."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Leave running statistics as they are, whatever is encoded in the block."""
    # Copies take their place: a graph from another part of the batch still needs the originals as they are.
    originals = [(norm, dict(norm.named_buffers())) for norm in norms(model)]
    try:
        for norm, buffers in originals:
            for name, buffer in buffers.items():
                setattr(norm, name, buffer.clone())
        yield
    finally:
        for norm, buffers in originals:
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)
