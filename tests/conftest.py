"""Settings for all tests: one thread per process, so that sums have one order and neighbours do not fight.

With several workers (`make test`) all tests of a file stay on one, so that fixtures of a module are built once, and so
do those of tests/slurm: one cluster at a time.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Of the terminal that tests are started from; xdist gives it to its workers.
os.environ.pop("COLUMNS", None)

import pytest
import torch
from support.checkout import copy_checkout
from support.once import made_once

torch.set_num_threads(1)

for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    # `nohup make test &` ignores these. So does this process, but not those that it starts: tests interrupt them.
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda *_: None)


def group_of(nodeid: str) -> str:
    """Return what stays on one worker together with a test."""
    file = nodeid.partition("::")[0]
    return "tests/slurm" if file.startswith("tests/slurm/") else file


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let workers begin with files that hold slow tests: who is done early takes a short one."""
    if hasattr(config, "workerinput"):
        slow = {group_of(item.nodeid) for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: group_of(item.nodeid) not in slow)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give workers whole groups, in the order of their tests."""
    from xdist.scheduler import LoadScopeScheduling

    class LoadGroups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    config.option.loadscopereorder = False
    return LoadGroups(config, log)


@pytest.fixture(scope="session")
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this checkout. Read it, and change copies."""
    return made_once(request.config, tmp_path_factory, "checkout", copy_checkout)


@pytest.fixture(scope="session")
def smoke(original: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the smoke suite ran, from nothing to its report. Read it, and change copies."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(original / "Snakefile")]
    command += ["--workflow-profile", str(original / "profiles" / "default"), "--config", "suites=smoke"]

    def run(folder: Path) -> None:
        result = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(original)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stdout[-6000:]

    return made_once(request.config, tmp_path_factory, "smoke", run)


@pytest.fixture
def make_read_only() -> Iterator[Callable[[Path], None]]:
    """Let nobody write into a folder, root included, until the test is over."""
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        folder.chmod(0o555)
        if os.geteuid() == 0 and subprocess.run(["chattr", "+i", folder], capture_output=True, check=False).returncode:
            pytest.skip("root may write anywhere on this file system")

    yield make
    for folder in made:
        if os.geteuid() == 0:
            subprocess.run(["chattr", "-i", folder], check=False)
        folder.chmod(0o755)
