"""The workflow as a user on a login node starts it: in a copy of the checkout, with a Slurm as its cluster."""

import filecmp
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

from engine import paths

SNAKEMAKE = str(Path(sys.executable).with_name("snakemake"))
CONFIG = ("--config", "cluster=one_machine.yaml", "suites=smoke")
METHODS = ("amorlip", "fastclip", "neuclip", "openclip", "siglip")
NUM_STEPS = 46
"""Of every run of the smoke suite."""


class Checkout:
    """A copy of the checkout, and the workflow in it as a user starts it."""

    def __init__(self, folder, slurm=None, reference=None):
        self.folder, self.slurm, self.reference = folder, slurm, reference
        self.env = slurm.env if slurm else dict(os.environ)

    def write_cluster(self, **settings):
        """Write the file that names this Slurm as the cluster; trainings log every step and have a loader worker."""
        cluster = {
            "scheduler": "slurm",
            "partition": "main",
            "poll_sec": 1,
            "warn_before_limit_sec": 59,
            "train": {"mem_gb": 1, "timeout_min": 10},
            "evaluate": {"mem_gb": 1, "timeout_min": 10},
            "execution": {"log_every_steps": 1, "num_workers": 1},
        }
        (self.folder / "one_machine.yaml").write_text(yaml.safe_dump(cluster | settings))

    def start(self, *args):
        """Start Snakemake in the background, in a process group of its own as a shell does."""
        log = (self.folder / f"snakemake-{time.time_ns()}.txt").open("w+")
        process = subprocess.Popen(
            [SNAKEMAKE, *args], cwd=self.folder, env=self.env, stdout=log, stderr=log, start_new_session=True
        )
        process.log = Path(log.name)
        return process

    def run(self, *args, code=0):
        """Run Snakemake to its end and return what it says."""
        return output_of(self.start(*args), code)

    def experiments(self, *args):
        """Run `python -m experiments` and return what it says."""
        command = [sys.executable, "-m", "experiments", *args]
        env = {**self.env, "COLUMNS": "200"}
        return subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, check=True).stdout

    def log(self, run):
        """What the newest launcher of a training says."""
        path = self.folder / paths.log("train", run.run_id)
        return path.read_text() if path.exists() else ""

    def login_processes(self):
        """Pids of Snakemake and of all that it started here; not those of jobs."""
        for pid in self.slurm.processes():
            try:
                folder, command = os.readlink(f"/proc/{pid}/cwd"), Path(f"/proc/{pid}/cmdline").read_text()
            except OSError:
                continue
            is_ours = folder == os.path.realpath(self.folder)
            if is_ours and ("snakemake" in command or "engine.launch" in command):
                yield pid

    def states(self):
        """Id and state of every job that was ever submitted from here, oldest first."""
        lines = self.slurm.run("squeue", "-h", "-t", "all", "-S", "i", "-o", "%A %T %Z").splitlines()
        found = [line.split(maxsplit=2) for line in lines]
        return {job: state for job, state, folder in found if Path(folder).resolve() == self.folder.resolve()}

    def records(self):
        """The records of the finished runs, by method."""
        folders = (path.parent for path in (self.folder / paths.RESULTS / "runs").glob("*/record.json"))
        return {record["spec"]["method"]["name"]: record for record in map(record_of, folders)}

    def training(self, method):
        """The run of the smoke suite with a method; it need not have started."""
        (run,) = (self.reference.folder / paths.RESULTS / "runs").glob(f"{method}-*")
        return Training(self, run.name)


class Training:
    """A run whose training is a job."""

    def __init__(self, checkout, run_id):
        self.run_id = run_id
        self.record = str(paths.record(run_id))
        self.folder = checkout.folder / paths.run(run_id)
        self.checkout = checkout

    @property
    def jobs(self):
        """Id and state of every training job that this run ever had, oldest first."""
        named = self.checkout.slurm.jobs(
            f"{self.run_id}.{(self.checkout.folder / paths.scheduler() / 'id').read_text()}"
        )
        return {job: state for job, state in self.checkout.states().items() if job in named}

    @property
    def job(self):
        """The run's only job."""
        (job,) = self.jobs
        return job

    @property
    def final_states(self):
        """Last states of all training jobs that this run ever had; a job ends a moment after its result is there."""
        wait_for(f"{self.run_id} has ended", lambda: self.state not in ("PENDING", "RUNNING", "COMPLETING"))
        return list(self.jobs.values())

    @property
    def state(self):
        """Of the run's newest job."""
        return list(self.jobs.values())[-1] if self.jobs else None

    @property
    def step(self):
        """Steps that are done."""
        path = self.folder / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    @property
    def attempts(self):
        """The step that every start of the run went on from."""
        path = self.folder / "attempts.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line)["first_step"] for line in lines]

    def thaw(self):
        """Let the run go on."""
        self.signal(signal.SIGCONT)

    def signal(self, number):
        """Send a signal to the run's processes."""
        assert self.processes
        for pid in self.processes:
            os.kill(pid, number)

    @property
    def processes(self):
        """Pids of the processes that train."""
        wanted = {f"SLURM_JOB_ID={job}" for job in self.jobs}
        return [pid for pid in self.checkout.slurm.processes() if wanted & set(environment(pid)) and runs_python(pid)]


def record_of(run):
    """The record in a run's folder."""
    return json.loads((run / "record.json").read_text())


def freeze(moments, attempt=1):
    """Stop the processes of runs (SIGSTOP), each when it has done a number of steps, or a few more.

    Whatever strikes a job then strikes it at this very moment.

    Args:
        moments: A number of steps for each run.
        attempt: In which start of the run.

    Returns:
        The number of steps that each run has done.
    """
    running = dict(moments)

    def all_are_frozen():
        for run, step in list(running.items()):
            if run.step >= step and len(run.attempts) >= attempt:
                run.signal(signal.SIGSTOP)
                del running[run]
        return not running

    wait_for(f"runs at steps {list(moments.values())}", all_are_frozen, every_sec=0.005)
    done = {}
    for run, step in moments.items():
        wait_for("frozen", lambda run=run: all("\nState:\tT" in status(pid) for pid in run.processes))
        done[run] = run.step
        assert step <= done[run] < NUM_STEPS - 1, f"missed the moment: {done[run]} steps are done"
    return done


def output_of(process, code=0):
    """Wait for a Snakemake that was started and return what it says."""
    found = process.wait(timeout=900)
    text = process.log.read_text()
    assert found == code, text[-6000:]
    return text


def wait_for(what, is_true, every_sec=0.3, timeout_sec=600):
    """Wait until something is true."""
    deadline = time.monotonic() + timeout_sec
    while not is_true():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(every_sec)


def status(pid):
    """/proc/<pid>/status; empty for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ""


def runs_python(pid):
    try:
        return Path(os.readlink(f"/proc/{pid}/exe")).name.startswith("python")
    except OSError:
        return False


def environment(pid):
    """The environment a process was started with."""
    try:
        return Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
    except OSError:
        return []


def same_tables(checkout, reference):
    """Whether all tables that a checkout has are equal to the reference's, byte by byte; returns their names."""
    first, second = (one.folder / paths.tables("smoke") for one in (reference, checkout))
    names = [path.name for path in second.glob("*.*") if path.suffix != ".json" and path.stem != "cost"]
    _, different, missing = filecmp.cmpfiles(first, second, names, shallow=False)
    assert not different
    assert not missing
    return names
