"""Two and four processes that share a batch do what one does with it, for every method and choice of options."""

from typing import Any

import pytest
import torch
from support.small import make_method, random_features, train_step
from support.spawn import run_in_processes
from variants import VARIANTS, label, same

from engine.distributed import Collectives, ProcessGroup

STEPS = 6
"""Three epochs, and a restart where there are any."""


def train_all(collectives: Collectives | None = None) -> dict[str, Any]:
    """Train every variant; return what each step gave, and the state at the end."""
    results = {}
    for name, options in VARIANTS:
        method = make_method(name, dtype=torch.float64, collectives=collectives or ProcessGroup(), **options)
        batches = [random_features(step) for step in range(STEPS)]
        # One sample twice, in rows of different processes.
        batches[-1].index_B[5] = batches[-1].index_B[0]
        steps = [train_step(method, step, batch) for step, batch in enumerate(batches)]
        method.complete_state()
        results[label((name, options))] = {"steps": steps, "state": dict(method.state_dict())}
    return results


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return train_all(Collectives())


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def together(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return run_in_processes(train_all, request.param)


@pytest.mark.parametrize("variant", [label(variant) for variant in VARIANTS])
def test_processes_train_as_one_and_end_in_one_state(
    variant: str, alone: dict[str, Any], together: list[dict[str, Any]]
) -> None:
    # Only the order of summation differs, which an optimiser's first step magnifies.
    torch.testing.assert_close(together[0][variant], alone[variant], rtol=1e-6, atol=1e-8, equal_nan=True)
    assert all(same(other[variant], together[0][variant]) for other in together[1:])
