"""Single jobs that fail: they end at once, and the first words of the error say how."""

import json
import subprocess
import sys
import time

import pytest
from support import toy

from engine import paths

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
SOON_SEC = 60
TWO_PROCESSES = """
import os, pathlib, signal, time

def main(argv):
    "Let the second process be killed as for its memory; the first one notices that it is alone."
    pid = pathlib.Path("pid")
    if os.environ["RANK"] == "1":
        pid.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    while not pid.exists() or os.path.exists(f"/proc/{pid.read_text() or 'self'}"):
        time.sleep(0.01)
    time.sleep(float(argv[0]))
    raise RuntimeError("connection closed by peer")
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def launch(slurm, *command, output="output", setup=(), **request):
    """Run a job that fails; returns the error, and the seconds from its start to the end of its launcher."""
    cluster = {"scheduler": "slurm", "partition": "main", "poll_sec": 1, "setup": setup}
    options = {"--cluster": cluster, "--request": {"mem_gb": 1, "timeout_min": 15, **request}}
    texts = [text for name, value in options.items() for text in (name, json.dumps(value))]
    place = ["--name", "fails", "--folder", "jobs", "--output", output]
    start = time.monotonic()
    launcher = [sys.executable, "-m", "engine.launch", *place, *texts, "--", *command]
    env = {**slurm.env, "PYTHONPATH": "."}
    done = subprocess.run(launcher, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 1
    return done.stderr, time.monotonic() - start


@pytest.mark.parametrize("notices_after_sec", [0, 5])  # srun then reports it before, or after the one that was killed
def test_of_several_processes_the_one_that_was_killed_is_shown(root, slurm, notices_after_sec):
    (root / "work.py").write_text(TWO_PROCESSES)
    error, _ = launch(slurm, "work", str(notices_after_sec), tasks_per_node=2)
    assert "(fails) has no result: FAILED: process 1: srun: error: " in error
    assert ": task 1: Killed\n" in error
    # What the other one says, if Slurm leaves it the time, does not take the first place.
    assert "process 0" not in error


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_training_with_loader_workers_on_a_full_disk_ends(root, slurm, num_workers):
    toy.build(root)
    spec = toy.run_spec("openclip")
    path = str(toy.write_spec(root, spec).relative_to(root))
    execution = json.dumps({"num_workers": num_workers, "save_every_min": 0})
    record = str(paths.record(spec.run_id))
    error, seconds = launch(
        slurm, "engine.train", path, "--execution", execution, output=record, setup=["ulimit -f 100"]
    )
    assert "(fails) has no result: FAILED: process 0: no room for results/runs/" in error
    assert seconds < SOON_SEC
