"""A Slurm cluster, copies of the checkout to run the workflow from, and the smoke suite's results without Slurm."""

import random
import shutil
import sys
import time

import pytest
from login_node import Checkout
from one_machine_slurm import PACKAGES, OneMachineSlurm
from support import debian


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """A Slurm with two nodes. Where it cannot be had the tests are skipped; in continuous integration they fail."""
    debian.require(PACKAGES)
    with OneMachineSlurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def reference(smoke):
    """The smoke suite on this machine without Slurm, uninterrupted: what all others must give."""
    return Checkout(smoke)


@pytest.fixture(scope="module")
def checkout(original, reference, slurm, tmp_path_factory):
    """A copy of the checkout with its data built and indexed, and nothing trained; its jobs go to Slurm."""
    folder = tmp_path_factory.mktemp("login") / "checkout"
    shutil.copytree(original, folder)
    # Times are copied too: nothing looks newer than what was made of it.
    for built in ("data", "results/index"):
        shutil.copytree(reference.folder / built, folder / built)
    return Checkout(folder, slurm, reference)


@pytest.fixture(scope="module")
def moments():
    """Random steps at which runs are struck; the seed is shown when a test fails."""
    seed = time.time_ns() % 2**32
    sys.stderr.write(f"moments are drawn with seed {seed}\n")
    return random.Random(seed)
