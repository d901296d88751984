"""Several workers share the tests of a run out among them by `conftest.py`."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
TEST = """
import os
import pathlib
import time

import pytest


@pytest.mark.{kind}
@pytest.mark.parametrize("number", range(4))
def test_say_who_runs_it(number):
    time.sleep(0.1)
    with pathlib.Path("said").open("a") as file:
        file.write(f"{group} {{os.environ['PYTEST_XDIST_WORKER']}}\\n")
"""


@pytest.mark.slow
def test_a_file_and_the_folder_of_slurm_stay_on_one_worker_and_slow_ones_come_first(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\npythonpath = ["tests"]\nmarkers = ["slow", "fast"]'
    )
    shutil.copytree(TESTS / "support", tmp_path / "tests" / "support")
    shutil.copy(TESTS / "conftest.py", tmp_path / "tests")
    files = {"a": "fast", "b": "fast", "slurm/c": "fast", "slurm/d": "slow", "z": "slow"}
    for name, kind in files.items():
        group = "slurm" if name.startswith("slurm") else name
        path = tmp_path / "tests" / name
        path.parent.mkdir(exist_ok=True)
        path.with_name(f"test_{path.name}.py").write_text(TEST.format(kind=kind, group=group))

    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--numprocesses", "2"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300)

    said = [line.split() for line in (tmp_path / "said").read_text().splitlines()]
    workers: dict[str, set[str]] = {}
    for group, worker in said:
        workers.setdefault(group, set()).add(worker)
    assert {group: len(found) for group, found in workers.items()} == {"a": 1, "b": 1, "slurm": 1, "z": 1}
    first = {worker: group for group, worker in reversed(said)}
    assert sorted(first.values()) == ["slurm", "z"]
