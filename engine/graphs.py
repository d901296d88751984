"""Record what a GPU is to do over and over, and let it do that in one piece."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Recorder(Protocol):
    """Runs a function of tensors, without gradients: always the same one, on tensors of the same shapes."""

    def __call__(self, function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return what the function returns."""


def just_run(function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
    """Run it as it is."""
    return function(*tensors)


class _Recorded(NamedTuple):
    graph: Any
    given: tuple[Tensor, ...]
    """Where the graph reads; what is given later is copied there."""
    results: tuple[Tensor, ...]
    """Where it writes, in every replay."""


class CudaGraph:
    """Records a function's work as a CUDA graph in the first call, and replays that in every call.

    The GPU does the same operations on the same numbers, so results are equal to the bit; what is saved is the time to
    launch them one by one. A function may change its tensors in place, and must not wait for the GPU. It is recorded
    once for each rounding of matrix products, which a graph keeps: a measurement rounds otherwise than the steps do.
    """

    def __init__(self) -> None:
        self._recorded: dict[bool, _Recorded] = {}

    def __call__(self, function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
        """See `Recorder.__call__`."""
        rounds = torch.backends.cuda.matmul.allow_tf32
        if rounds not in self._recorded:
            self._recorded[rounds] = _record(function, tensors)
        graph, given, results = self._recorded[rounds]
        for ours, theirs in zip(given, tensors, strict=True):
            ours.copy_(theirs)
        graph.replay()
        # The next call writes over them.
        return tuple(result.clone() for result in results)


def _record(function: Callable[..., tuple[Tensor, ...]], tensors: tuple[Tensor, ...]) -> _Recorded:
    given = tuple(tensor.clone() for tensor in tensors)
    # Libraries set themselves up in a first run, which must not be recorded.
    beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        function(*(tensor.clone() for tensor in tensors))
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    # By default a call of any thread would end the recording, and the loader's thread pins memory at any time.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        results = function(*given)
    return _Recorded(graph, given, results)
