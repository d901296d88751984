"""A training over two nodes, and the evaluations of its twenty milestones, all in the queue at once."""

import re
import shutil

import pytest
import torch
from login_node import Training, output_of, record_of, wait_for
from safetensors.torch import load_file

from engine import paths

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
NUM_MILESTONES = 20
SUITE = f"""
title: One run with twenty milestones
dataset: scenes_tiny
model: tiny-vit
evaluation: scenes_tiny
seeds: [0]
training:
  global_batch_size: 64
  samples_seen: {64 * NUM_MILESTONES}
  milestones: {[(n + 1) / NUM_MILESTONES for n in range(NUM_MILESTONES)]}
  optimizer: {{lr: 3.0e-4, grad_clip_norm: 1.0}}
  augmentation: {{kind: shift, max_shift_px: 2}}
methods:
  neuclip:
    options: {{num_prototypes: 128, restart_period: 8, num_updates: 3, rho: 2.0}}
"""
CONFIG = ("--config", "suites=many", "cluster=one_machine.yaml")


def run_of(checkout, *arguments):
    """Return the folder of the suite's only run, which a dry run tells and does not make."""
    (run,) = re.findall(r"^Job \d+: train (\S+)$", checkout.run("-n", *arguments), re.MULTILINE)
    return checkout.folder / paths.run(run)


@pytest.fixture(scope="module")
def alone(checkout):
    """The run in one process of this machine; returns where its folder was moved to."""
    (checkout.folder / "experiments" / "suites" / "many.yaml").write_text(SUITE)
    folder = run_of(checkout, "--config", "suites=many")
    checkout.run(str(paths.record(folder.name)), "--config", "suites=many")
    shutil.copytree(folder, checkout.folder / "alone")
    shutil.rmtree(folder)
    return checkout.folder / "alone"


@pytest.fixture(scope="module")
def shared(alone, checkout):
    """The run in two processes on two nodes."""
    checkout.write_cluster(train={"nodes": 2, "tasks_per_node": 1, "timeout_min": 10})
    run = Training(checkout, run_of(checkout, "--profile", "slurm", *CONFIG).name)
    checkout.run("--profile", "slurm", run.record, *CONFIG)
    return run


def test_two_nodes_give_the_weights_of_one_process_within_rounding_from_the_same_samples(shared, alone, checkout):
    record, expected = checkout.records()["neuclip"], record_of(alone)
    assert record["attempts"][0]["provenance"]["world_size"] == 2
    assert len(record["first_indices"]) > 64
    assert record["first_indices"] == expected["first_indices"]
    assert set(record["milestones"]) == {str(64 * (n + 1)) for n in range(NUM_MILESTONES)}
    for milestone in record["milestones"].values():
        one, two = (load_file(folder / milestone["weights"]) for folder in (alone, shared.folder))
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=1e-5)


def test_twenty_evaluations_are_in_the_queue_at_once_and_all_succeed(shared, checkout, slurm):
    (evaluation,) = (checkout.folder / "results" / "evaluations").glob("*.json")
    wanted = [paths.evaluated(shared.run_id, 64 * (n + 1), evaluation.stem) for n in range(NUM_MILESTONES)]
    before = checkout.states()
    with slurm.held():
        process = checkout.start("--profile", "slurm", *map(str, wanted), *CONFIG)
        queued = ["COMPLETED"] * len(before) + ["PENDING"] * NUM_MILESTONES
        wait_for("all are queued", lambda: list(checkout.states().values()) == queued)
    output_of(process)
    assert all((checkout.folder / path).exists() for path in wanted)
    wait_for("all have ended", lambda: set(checkout.states().values()) == {"COMPLETED"})
