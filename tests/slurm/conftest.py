"""A Slurm cluster, copies of the checkout to run the workflow from, and the smoke suite's results without Slurm."""

import random
import shutil
import sys
import time
from pathlib import Path

import debian
import pytest
from login_node import Checkout
from one_machine_slurm import PACKAGES, OneMachineSlurm

ROOT = Path(__file__).resolve().parents[2]
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "results", "data", "docs", "tests")


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """A Slurm with two nodes. Where it cannot be had the tests are skipped; in continuous integration they fail."""
    debian.require(PACKAGES)
    with OneMachineSlurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """The smoke suite on this machine without Slurm, uninterrupted: what all others must give."""
    folder = tmp_path_factory.mktemp("reference") / "checkout"
    shutil.copytree(ROOT, folder, ignore=NOT_COPIED)
    checkout = Checkout(folder)
    checkout.run("--config", "suites=smoke")
    return checkout


@pytest.fixture(scope="module")
def checkout(reference, slurm, tmp_path_factory):
    """A copy of the checkout with its data built and indexed, and nothing trained; its jobs go to Slurm."""
    folder = tmp_path_factory.mktemp("login") / "checkout"
    shutil.copytree(reference.folder, folder, ignore=shutil.ignore_patterns(".snakemake", "results"))
    # Times are copied too: nothing looks newer than what was made of it.
    shutil.copytree(reference.folder / "results" / "index", folder / "results" / "index")
    return Checkout(folder, slurm, reference)


@pytest.fixture(scope="module")
def moments():
    """Random steps at which runs are struck; the seed is shown when a test fails."""
    seed = time.time_ns() % 2**32
    sys.stderr.write(f"moments are drawn with seed {seed}\n")
    return random.Random(seed)
