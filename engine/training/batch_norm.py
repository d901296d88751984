"""Let batch norm see the parts of the global batch that a run names, on any number of processes."""

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
    """Share a run's `batch_norm_groups` among its processes; every process calls this.

    If several processes share a part, synchronised batch norms replace those of the model, in place.

    Returns:
        Parts of one process's rows; 1 for a model without batch norm.

    Raises:
        ValueError: If the model, the number of processes, the accumulation or the device does not allow the parts.
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
    """Keep the running statistics as they are while the block encodes."""
    # The block moves copies: the graph of another part of the batch still needs the originals.
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
