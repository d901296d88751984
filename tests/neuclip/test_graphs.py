"""Training of the network as a recorded graph, with a stand-in for the GPU that replays it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.small import make_method, progress_of, random_features
from torch import Tensor

from engine.graphs import CudaGraph

NUM_CALLS = 4


def graphed_on_cpu(function: Callable[..., tuple[Tensor, ...]], kept: tuple[Tensor, ...]) -> Callable[..., object]:
    """Do as `torch.cuda.make_graphed_callables`: what is given is copied into `kept`, what comes out is overwritten."""
    results = [result.clone() for result in function(*kept)]

    def replay(*given: Tensor) -> tuple[Tensor, ...]:
        for mine, theirs in zip(kept, given, strict=True):
            mine.copy_(theirs)
        for mine, result in zip(results, function(*kept), strict=True):
            mine.copy_(result)
        return tuple(results)

    return replay


@pytest.mark.parametrize("options", [{}, {"architecture": "mlp"}, {"num_updates": 1}, {"chunk_rows": 3}], ids=str)
def test_a_recorded_graph_trains_the_network_to_the_same_bits(
    options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[object] = []

    def record(function: Callable[..., tuple[Tensor, ...]], kept: tuple[Tensor, ...]) -> Callable[..., object]:
        recorded.append(function)
        return graphed_on_cpu(function, kept)

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
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
    assert len(recorded) == 1
    for name, state in plain.state_dict().items():
        assert torch.equal(graphed.state_dict()[name], state), name
