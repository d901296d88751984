"""Single jobs that fail: they end at once, and the first words of the error say how."""

import json
import shutil
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


def started(slurm, *command, output="output", setup=(), sbatch=None, env=None, **request):
    cluster = {"scheduler": "slurm", "partition": "main", "poll_sec": 1, "setup": setup, "sbatch": sbatch or {}}
    options = {"--cluster": cluster, "--request": {"mem_gb": 1, "timeout_min": 15, **request}}
    texts = [text for name, value in options.items() for text in (name, json.dumps(value))]
    place = ["--name", "fails", "--folder", "jobs", "--output", output]
    launcher = [sys.executable, "-m", "engine.launch", *place, *texts, "--", *command]
    env = {**slurm.env, "PYTHONPATH": ".", **(env or {})}
    return subprocess.Popen(launcher, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def launched(slurm, *command, **how):
    """Run a job; returns the launcher's exit code and what it says."""
    launcher = started(slurm, *command, **how)
    _, error = launcher.communicate(timeout=300)
    return launcher.returncode, error


def launch(slurm, *command, **how):
    """Run a job that fails; returns the error, and the seconds from its start to the end of its launcher."""
    start = time.monotonic()
    code, error = launched(slurm, *command, **how)
    assert code == 1
    return error, time.monotonic() - start


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


ENVIRONMENT = {
    "SBATCH_PARTITION": "nowhere",
    "SBATCH_JOB_NAME": "mine",
    "SBATCH_TIMELIMIT": "1",
    "SQUEUE_PARTITION": "urgent",
}


@pytest.mark.parametrize("sbatch", [{}, {"export": "NONE"}], ids=["by the user", "by the cluster file"])
def test_a_job_starts_with_all_it_needs_whatever_the_site_exports(root, slurm, sbatch):
    (root / "work.py").write_text(
        "import os, pathlib\ndef main(argv):\n"
        "    pathlib.Path('output').write_text(os.environ['MINE'] + os.environ['PYTHONPATH'])\n"
    )
    slurm.run("sbatch", "--chdir", str(root), "-J", b"caf\xe9", "--wrap", "sleep 1")  # no launcher trips over it
    setup = ["export MINE=set-", f"export PYTHONPATH={root}:$PYTHONPATH:/of/setup"]
    code, error = launched(slurm, "work", setup=setup, sbatch=sbatch, env=ENVIRONMENT)
    assert code == 0, error
    said = (root / "output").read_text()
    assert said.startswith("set-/")
    assert said.endswith("/of/setup")


def test_a_line_of_setup_that_fails_ends_the_job(root, slurm):
    error, seconds = launch(
        slurm, "work", setup=["[ -e nothing ] || true", "module_that_is_not_there load cuda", "true"]
    )
    assert "error: a line of the cluster file's setup failed: module_that_is_not_there load cuda" in error
    assert seconds < SOON_SEC


def test_a_job_whose_code_was_removed_says_so(root, slurm):
    with slurm.held():
        launcher = started(slurm, "work")
        while not paths.job(root / "jobs").exists():
            assert launcher.poll() is None
        shutil.rmtree(root / paths.code())
    _, error = launcher.communicate(timeout=300)
    assert "error: the code of this job is gone" in error
    assert launcher.returncode == 1


def test_a_process_that_asks_by_its_exit_code_is_queued_again(root, slurm):
    (root / "work.py").write_text(
        "import os, pathlib\ndef main(argv):\n    if not pathlib.Path('again').exists():\n"
        "        pathlib.Path('again').touch()\n        os._exit(144)\n    pathlib.Path('output').touch()\n"
    )
    code, error = launched(slurm, "work")
    assert code == 0, error
    assert "attached" not in error
