"""Trainings with loader workers that fail or are stopped: all their processes end, and they say why."""

import itertools
import os
import resource
import signal

import pytest
from support import toy
from support.killing import Server

from engine import paths
from engine.registry import method_class
from engine.training import loop

TIMEOUT_SEC = 120
"""On a busy machine; a process that hangs does so for ever."""


@pytest.fixture(scope="module")
def server():
    return Server()


@pytest.fixture
def root(tmp_path, monkeypatch):
    toy.build(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def before_a_loss(step, act):
    """Let something happen before the loss of a step is computed."""
    owner = method_class("openclip")
    honest = owner.loss

    def loss(self, features, progress):
        if progress.step == step:
            act()
        return honest(self, features, progress)

    owner.loss = loss


def go_on_strike(*_):
    raise RuntimeError("on strike")


def fail_in_a_step(rank):
    before_a_loss(4, go_on_strike)


def fail_in_the_measurement(rank):
    method_class("openclip").log_normalizers = go_on_strike


def fail_and_leave_the_loader_open(rank):
    fail_in_a_step(rank)
    honest, opened = loop._batches, []

    def batches(trainer):
        opened.append(honest(trainer))
        yield from itertools.chain(*opened)  # which closes nothing

    loop._batches = batches


def damage_the_sidecars(rank):
    for path in (paths.RESULTS / "index" / "_shards").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-8])


def fill_the_disk(rank):
    """Let every checkpoint be too large."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))


def cancel(rank):
    """Send SIGTERM to all processes of the training, workers too, as Slurm does."""
    os.setpgrp()
    before_a_loss(4, lambda: os.killpg(0, signal.SIGTERM))


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize(
    ("blow", "code", "says"),
    [
        (fail_in_a_step, 1, "\nRuntimeError: on strike"),
        (fail_in_the_measurement, 1, "\nRuntimeError: on strike"),
        (fail_and_leave_the_loader_open, 1, "\nRuntimeError: on strike"),
        (damage_the_sidecars, 1, "\nerror: "),
        (fill_the_disk, 1, "\nerror: no room for results/runs/"),
        (cancel, 128 + signal.SIGTERM, ": stopped by SIGTERM after step 5, which is saved"),
    ],
)
def test_a_training_with_loader_workers_ends_and_says_why(root, server, blow, code, says, num_workers):
    spec = toy.run_spec("openclip")
    path = toy.write_spec(root, spec)
    execution = {"num_workers": num_workers, "save_every_min": 0 if blow is fill_the_disk else 10}
    assert server.run(root, path, execution=execution, prepare=blow, timeout_sec=TIMEOUT_SEC) == [code]
    assert says in (root / "log-0.txt").read_text()
