"""What a run needs of a machine, and what of its settings will surely fail or mislead; see `experiments.plan`.

Memory of a process is that of

- weights, gradients and AdamW's two moments (and averaged weights): 4 bytes each for every parameter;
- the method's state;
- what autograd keeps of the forward pass, for each pair of the process's batch. It is counted without a GPU: the
  encoders take two and three pairs under fake tensors, in the run's precision; the difference of the storages kept is a
  pair's.

Not counted: cuDNN's workspaces, the similarities of a chunk, fragments. A real process takes more, hardly less.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from engine.method import MethodEnv
from engine.registry import build_method
from engine.schema.run import ModelSpec, RunSpec
from engine.training.encoder import AUTOCAST
from engine.training.towers import embed_dim, introduce, outline

CARDS_GB = (80, 24)
"""Memory of usual cards: H100 and A100; RTX 4090 and 3090."""
LOADING_MS = {"pillow": (0.93, 2.54), "torch": (0.64, 1.56)}
"""Time of a core to load a JPEG of 256 and one of 512 pixels, by `resize`; see docs/benchmarks.md."""


@functools.cache
def sizes(model: ModelSpec) -> tuple[int, int]:
    """Return the number of parameters of a model, and the width of its embeddings."""
    introduce(model)
    towers = outline(model.name)
    return sum(parameter.numel() for parameter in towers.parameters()), embed_dim(model.name)


def method_bytes(spec: RunSpec) -> int:
    """Return the size of a method's state."""
    with torch.device("meta"):
        state = build_method(spec.method, MethodEnv.of(spec, sizes(spec.model)[1])).state_dict()
    return sum(value.numel() * value.element_size() for value in state.values() if isinstance(value, Tensor))


@functools.cache
def activation_bytes(model: ModelSpec, precision: str) -> int:
    """Return what autograd keeps of a pair, from the encoders' forward to their backward pass."""
    introduce(model)
    towers = outline(model.name).train()
    size, length, dtype = towers.image_size, towers.clip.context_length, AUTOCAST.get(precision)
    kept = []
    with FakeTensorMode():
        state = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, requires_grad=tensor.requires_grad)
            for name, tensor in (*towers.named_parameters(), *towers.named_buffers())
        }
        for num_pairs in (2, 3):  # batch norm needs more than one
            batch = torch.empty(num_pairs, 3, size, size, dtype=torch.uint8), torch.zeros(num_pairs, length).long()
            storages: dict[int, torch.UntypedStorage] = {}

            def keep(tensor: Tensor, storages: dict[int, torch.UntypedStorage] = storages) -> Tensor:
                storage = tensor.untyped_storage()
                storages[storage._cdata] = storage
                return tensor

            with (
                torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
                torch.autocast("cpu", dtype=dtype, enabled=dtype is not None),
                _AsOnAGpu(),
            ):
                encoded = functional_call(towers, state, batch)
            kept.append(sum(storage.nbytes() for storage in storages.values()))
            del encoded
    return kept[1] - kept[0]


class _AsOnAGpu(TorchFunctionMode):
    """Normalises layers in float32, as autocast does on a GPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.layer_norm:
            args = (args[0].float(), *args[1:])
        return func(*args, **kwargs or {})


def memory_bytes(spec: RunSpec, num_pairs: int) -> int:
    """Estimate the memory of a training process that encodes so many pairs at a time."""
    copies = 5 if spec.optimizer.ema_decay else 4
    of_pairs = num_pairs * activation_bytes(spec.model, spec.precision)
    return copies * 4 * sizes(spec.model)[0] + method_bytes(spec) + of_pairs


def num_parts(spec: RunSpec, num_pairs: int, card_gb: int) -> int | None:
    """Return the least number of equal parts of a process's pairs that fit a card one at a time; None if none does."""
    parts = (parts for parts in range(1, num_pairs + 1) if num_pairs % parts == 0)
    return next((n for n in parts if memory_bytes(spec, num_pairs // n) <= card_gb * 1e9), None)


def loader_processes(spec: RunSpec, pairs_per_sec: float) -> tuple[int, int]:
    """Return how many processes load so many JPEGs of 256 and of 512 pixels a second, each on a core of its own."""
    small, large = (math.ceil(pairs_per_sec * ms / 1000) for ms in LOADING_MS[spec.augmentation.resize])
    return small, large


def doubts(spec: RunSpec, num_extra_pairs: int = 0) -> Iterator[str]:
    """Say what of a run's settings fails or misleads wherever it runs; the same words for runs alike.

    Args:
        spec: The run.
        num_extra_pairs: Pairs that its method asks for in every step.
    """
    name, pairs, batch = spec.method.name, spec.dataset.pairs, spec.global_batch_size
    if num_extra_pairs > pairs:
        yield (
            f"{name} encodes {num_extra_pairs} extra pairs in every step, and {spec.dataset.name} has {pairs}: "
            "most come several times; ask for fewer"
        )
    error = spec.normalizer_error
    if error is not None and error.num_anchors > pairs:
        yield (
            f"normalizer_error.num_anchors = {error.num_anchors}, and {spec.dataset.name} has {pairs} pairs: only "
            "those are measured; give no more"
        )
    if error is not None and error.control_size >= pairs:
        yield (
            f"normalizer_error.control_size = {error.control_size}, and {spec.dataset.name} has {pairs} pairs: the "
            "control is nearly exact; give fewer"
        )
    config: dict[str, Any] = dict(spec.method.config)
    rho, bound = config.get("rho"), math.log(batch - 1)
    pulls = config.get("temperature_gradient") == "consistent" and config.get("temperature", {}).get("learnable", True)
    if pulls and isinstance(rho, (int, float)) and rho > bound:
        yield (
            f"{name}: rho = {rho:g} with the consistent gradient, and KL stays below log(G - 1) = {bound:.2f} at a "
            f"batch of {batch}: the temperature falls to its minimum; use a smaller rho"
        )
