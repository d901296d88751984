"""One global batch gives the same training, however many processes share it."""

from typing import Any

import pytest
import torch
from support.small import make_method, random_features, train_step
from support.spawn import run_in_processes
from torch import Tensor

from engine.distributed import Collectives, ProcessGroup
from engine.method import Features

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "openclip": ("openclip", {}),
    "openclip chunked": ("openclip", {"chunk_rows": 3}),
    "siglip": ("siglip", {}),
    "siglip chunked": ("siglip", {"chunk_rows": 3}),
    "fastclip v0 2024": ("fastclip", {"version": "v0", "form": 2024}),
    "fastclip v1": ("fastclip", {"version": "v1"}),
    "fastclip v2": ("fastclip", {"version": "v2", "form": 2024}),
    "fastclip v3": ("fastclip", {}),
    "amorlip": ("amorlip", {"init_output_bias": True}),
    "amorlip kl": ("amorlip", {"lambda_loss_type": "kl_div_asym"}),
    "amorlip js": ("amorlip", {"lambda_loss_type": "js_div"}),
    "amorlip average": ("amorlip", {"fit_w_prev": False}),
}
STEPS = 4
"""Two epochs: u is averaged and lambda mixed from the second one on."""


def train_all(collectives: Collectives | None = None) -> dict[str, Any]:
    """Train every variant for some steps; return what each step gave, and the state at the end."""
    results: dict[str, Any] = {}
    for label, (name, options) in VARIANTS.items():
        ours = collectives or ProcessGroup()
        method = make_method(name, dtype=torch.float64, collectives=ours, num_steps=4, **options)
        steps = [train_step(method, step, batch(step)) for step in range(STEPS)]
        results[label] = {"steps": steps, "state": dict(method.state_dict())}
    return results


def batch(step: int) -> Features:
    """A global batch; in the last one a sample comes twice, in rows of different processes."""
    features = random_features(step)
    if step == STEPS - 1:
        features.index_B[5] = features.index_B[0]
    return features


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return train_all(Collectives())


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def together(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return run_in_processes(train_all, request.param)


@pytest.mark.parametrize("label", VARIANTS)
def test_processes_share_a_batch_as_one_process_has_it(
    label: str, alone: dict[str, Any], together: list[dict[str, Any]]
) -> None:
    for process in together:
        # Only the order of summation differs. (Adam's first step is a sign, hence not tighter.)
        torch.testing.assert_close(process[label], alone[label], rtol=1e-7, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("label", VARIANTS)
def test_all_processes_hold_the_same_state(label: str, together: list[dict[str, Any]]) -> None:
    first = tensors(together[0][label]["state"])

    for process in together[1:]:
        assert all(torch.equal(a, b) for a, b in zip(tensors(process[label]["state"]), first, strict=True))


def tensors(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list) else []
    return [tensor for value in values for tensor in tensors(value)]
