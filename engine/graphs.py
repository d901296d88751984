"""Record what a GPU is to do over and over, and let it do that in one piece."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor


class Recorder(Protocol):
    """Runs a function of tensors, without gradients: always the same one, on tensors of the same shapes."""

    def __call__(self, function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return what the function returns."""


def just_run(function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
    """Run it as it is."""
    return function(*tensors)


class CudaGraph:
    """Records a function's work as a CUDA graph in the first call, and replays that in every call.

    The GPU does the same operations on the same numbers, so results are equal to the bit; what is saved is the time to
    launch them one by one. A function may change its tensors in place, and must not wait for the GPU.
    """

    def __init__(self) -> None:
        self._replay: Any = None

    def __call__(self, function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
        """See `Recorder.__call__`."""
        if self._replay is None:
            # The graph keeps these as its own: what is given later is copied there.
            kept = tuple(tensor.clone() for tensor in tensors)
            self._replay = torch.cuda.make_graphed_callables(function, kept)
        # The next call writes over what the graph returns.
        return tuple(result.clone() for result in self._replay(*tensors))
