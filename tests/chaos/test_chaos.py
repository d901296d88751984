"""Faults in the whole workflow on this machine: whatever strikes, the same command goes on to the same results.

``CHAOS_ROUNDS=200 CHAOS_REPORT=faults.jsonl pytest tests/chaos`` plays so many rounds of eight faults, from seed
``CHAOS_SEED`` (default 0) on, and notes what was done; ``python tests/chaos/count.py faults.jsonl`` counts it.
"""

from pathlib import Path

import pytest

from chaos import faults
from chaos.harness import Round, disk, draw, seeds
from chaos.workflow import World, shared_world

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return shared_world(request.config, tmp_path_factory)


@pytest.fixture(scope="module")
def impossible() -> dict[str, str]:
    return faults.impossible()


@pytest.mark.parametrize("seed", seeds(rounds=4))
def test_a_workflow_that_is_struck_goes_on_to_the_same_results(
    world: World, impossible: dict[str, str], tmp_path: Path, seed: int
) -> None:
    families = [name for name in faults.families() if name not in impossible]
    with disk(tmp_path / "round"):
        Round(world, tmp_path / "round", seed, draw(seed, families)).play()


def test_every_fault_can_be_made_on_this_machine(impossible: dict[str, str]) -> None:
    if impossible:
        pytest.skip("; ".join(f"{family}: {why}" for family, why in impossible.items()))
