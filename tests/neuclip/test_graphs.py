"""Training of the network as a recorded graph, with a stand-in for the GPU that replays it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.small import make_method, progress_of, random_features
from torch import Tensor

from engine import graphs
from engine.graphs import CudaGraph

NUM_CALLS = 4


class Gpu:
    """Stands for torch.cuda: a graph replays the function that was called while it was recorded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.modes: list[str] = []
        self.roundings: list[bool] = []
        self.is_recording = False
        monkeypatch.setattr(torch.cuda, "Stream", lambda: self)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", self.record)

    def wait_stream(self, other: Gpu) -> None:
        pass

    @contextlib.contextmanager
    def record(self, graph: Graph, *, capture_error_mode: str) -> Iterator[None]:
        self.modes.append(capture_error_mode)
        self.roundings.append(torch.backends.cuda.matmul.allow_tf32)
        yield


class Graph:
    replay: Callable[[], None]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    honest = graphs._record

    def record(function: Callable[..., tuple[Tensor, ...]], tensors: tuple[Tensor, ...]) -> Any:
        recorded = honest(function, tensors)

        def replay() -> None:
            for result, new in zip(recorded.results, function(*recorded.given), strict=True):
                result.copy_(new)

        recorded.graph.replay = replay
        return recorded

    monkeypatch.setattr(graphs, "_record", record)
    return Gpu(monkeypatch)


@pytest.mark.parametrize("options", [{}, {"architecture": "mlp"}, {"num_updates": 1}, {"chunk_rows": 3}], ids=str)
def test_a_recorded_graph_trains_the_network_to_the_same_bits(options: dict[str, object], gpu: Gpu) -> None:
    plain, graphed = (make_method("neuclip", **options) for _ in range(2))
    graphed._recorder = CudaGraph()
    losses = [
        [
            method.loss(random_features(step, dtype=torch.float32), progress_of(method, step)).total.detach()
            for step in range(NUM_CALLS)
        ]
        for method in (plain, graphed)
    ]
    assert losses[0] == losses[1]
    # What other threads do, such as the one that pins a loader's batches, does not end the recording.
    assert gpu.modes == ["thread_local"]
    for name, state in plain.state_dict().items():
        assert torch.equal(graphed.state_dict()[name], state), name


def test_steps_replay_what_was_recorded_under_their_own_rounding_though_a_measurement_came_first(
    gpu: Gpu,
) -> None:
    run, matmul = CudaGraph(), torch.backends.cuda.matmul
    try:
        for matmul.allow_tf32 in (False, True, False, True, True):
            (result,) = run(lambda x: (x + matmul.allow_tf32,), torch.zeros(1))
            assert bool(result) == matmul.allow_tf32
    finally:
        matmul.allow_tf32 = False
    assert gpu.roundings == [False, True]
