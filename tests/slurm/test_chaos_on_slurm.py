"""Faults in the whole workflow on Slurm; see `tests/chaos`, which plays those of this machine."""

import pytest
from chaos import on_slurm
from chaos.harness import Round, disk, draw, seeds
from chaos.workflow import shared_world

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture(scope="module")
def world(request, tmp_path_factory):
    return shared_world(request.config, tmp_path_factory)


@pytest.mark.parametrize("seed", seeds(rounds=1))
def test_a_workflow_that_is_struck_goes_on_to_the_same_results(world, slurm, tmp_path, seed):
    with disk(tmp_path / "round"):
        Round(world, tmp_path / "round", seed, draw(seed, list(on_slurm.families())), slurm).play()
