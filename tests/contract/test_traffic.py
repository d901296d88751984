"""What methods send between processes in a step stays near to what OpenCLIP sends."""

import pytest
import torch
from support.spawn import run_in_processes

from benchmarks.traffic import count_step
from engine.distributed import ProcessGroup
from engine.method import MethodEnv
from engine.registry import method_class, method_names, resolve_config

SIZES = {"global_batch": 256, "dim": 64, "world_size": 8}


@pytest.mark.parametrize("name", method_names(controls=False))
def test_a_step_sends_at_most_half_as_much_again_as_openclip(name: str) -> None:
    """Beside the gradients of networks that a method trains on each process's own pairs; controls need not be fast."""
    method = method_class(name)(resolve_config(name, {}), MethodEnv(64, 1000, 256, 4, 8))
    networks = 2 * sum(4 * parameter.numel() for parameter in method.parameters() if parameter.ndim)
    ours, base = (count_step(each, {}, **SIZES).num_bytes.total() for each in (name, "openclip"))
    assert 0 < ours <= 1.5 * base + networks


def scatter_and_gather() -> dict[str, torch.Tensor]:
    ours = ProcessGroup()
    x = torch.arange(8.0).reshape(4, 2).add(ours.rank).requires_grad_()
    mine = ours.reduce_scatter_with_grad(x)
    (mine.sum() * (1 + ours.rank)).backward()
    image, text = ours.gather_sides(torch.full((1, 2), 1.0 + ours.rank), torch.full((1, 2), -1.0 - ours.rank))
    return {"mine": mine.detach(), "grad": x.grad, "image": image, "text": text}


def test_sums_are_shared_out_and_their_gradients_reach_every_process() -> None:
    for rank, found in enumerate(run_in_processes(scatter_and_gather, 2)):
        assert found["mine"].tolist() == [[[1, 3], [5, 7]], [[9, 11], [13, 15]]][rank]
        assert found["grad"].tolist() == [[1, 1], [1, 1], [2, 2], [2, 2]]
        assert found["image"].tolist() == [[1, 1], [2, 2]]
        assert found["text"].tolist() == [[-1, -1], [-2, -2]]
