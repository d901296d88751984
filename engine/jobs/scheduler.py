"""Note, ask about and end jobs on this machine or on Slurm."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from engine import files, paths
from engine.jobs import slurm
from engine.jobs.slurm import CANCELLED, GONE, Status
from engine.schema.base import Frozen, parse
from engine.schema.record import Record

_GRACE_SEC = 30
"""Time for a local job to save after SIGTERM."""


class Job(Frozen):
    """A submitted job, with all that another process needs to find it again."""

    scheduler: Literal["local", "slurm"]
    job_id: str
    """Slurm's number; of a local job the number of the launcher that started it."""
    name: str
    command: tuple[str, ...]
    logs: str
    """Folder with ``<job id>_<rank>_log.out`` and ``.err``."""
    started_at: float
    """When it had been submitted, in seconds since 1970; of a local job its newest start."""
    host: str
    """Host that submitted it; a local job runs there."""
    code: str = ""
    """Snapshot of the code that a local job runs."""
    processes: tuple[tuple[int, int], ...] = ()
    """Number and start of a local job's processes by rank; see `start_ticks`."""
    gpus: tuple[int, ...] = ()
    """GPUs that a local job holds."""
    num_requeues: int = 0
    """How often a local job was started again."""
    is_cancelled: bool = False
    """True if it was ended from here: a job that Slurm has forgotten, or a process that was killed, does not say so."""
    end: str | None = None
    """The last state, once the job is known to have ended: COMPLETED if its result is there."""

    def log(self, rank: int, stream: Literal["out", "err"]) -> Path:
        """Return the log of a process of the job."""
        return Path(self.logs) / f"{self.job_id}_{rank}_log.{stream}"

    def living(self) -> list[int]:
        """Return the numbers of the processes of a local job that have not ended."""
        is_here = self.host == socket.gethostname()
        return [pid for pid, ticks in self.processes if is_here and start_ticks(pid) == ticks]


def read(folder: Path) -> Job | None:
    """Return the newest job of a folder of jobs; None if there is none."""
    path = paths.job(folder)
    return parse(Job, files.read_text(path), str(path)) if path.exists() else None


def write(folder: Path, job: Job) -> None:
    """Note a job in its folder of jobs."""
    files.write_text(paths.job(folder), job.model_dump_json(indent=1) + "\n")


def is_locked(path: Path) -> bool:
    """Tell whether another process holds the lock of a file, alone or with others."""
    try:
        with files.locked(path, wait=False) if path.exists() else contextlib.nullcontext():
            return False
    except BlockingIOError:
        return True


def status(job: Job, *, not_before: float) -> Status:
    """Ask for the state of a job that is not known to have ended; of another, return the last one.

    Args:
        job: The job.
        not_before: An answer that was given at or after this time is good enough, in seconds since 1970.
    """
    if job.end is not None:
        return Status(phase="ended", word=job.end)
    if job.scheduler == "slurm":
        # An answer from before it was submitted does not know it.
        found = slurm.status(job.job_id, _noted, not_before=max(not_before, job.started_at))
    elif job.living():
        found = Status(phase="running", word="RUNNING", node=job.host)
    else:
        found = Status(phase="ended", word=GONE)
    is_cancelled = job.is_cancelled and found.phase == "ended"
    return found.model_copy(update={"word": CANCELLED}) if is_cancelled else found


def cancel(folder: Path, job: Job) -> None:
    """End the job of a folder of jobs, and note that. A local one may save first; this waits until it has ended.

    Raises:
        ValueError: If Slurm refuses, or does not answer.
    """
    cancelled = job.model_copy(update={"is_cancelled": True})
    if job.scheduler == "slurm":
        try:
            slurm.run("scancel", job.job_id)
        except slurm.SlurmError as error:
            user = status(job, not_before=0).user
            why = f"{error}; it is a job of {user}" if user else f"{error}"
            raise ValueError(
                f"job {job.job_id} ({job.name}) could not be cancelled: {why}; try again with "
                f"python -m experiments cancel {job.name}"
            ) from None
        write(folder, cancelled)
        return
    write(folder, cancelled)  # before it ends: whoever waits for it reads this then
    for number, patience_sec in ((signal.SIGTERM, _GRACE_SEC), (signal.SIGKILL, 5)):
        send(job, number)
        deadline = time.monotonic() + patience_sec
        while job.living() and time.monotonic() < deadline:
            time.sleep(0.1)


def send(job: Job, number: signal.Signals) -> None:
    """Send a signal to the processes of a local job; SIGKILL to all that they have started as well."""
    for pid in job.living():
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if number == signal.SIGKILL else os.kill)(pid, number)


def run_state(run_id: str) -> str:
    """Return how far a run is: to do, pending, running, done, diverged, or failed."""
    record = paths.record(run_id)
    if record.exists():
        outcome = parse(Record, files.read_text(record), str(record)).status
        return "done" if outcome == "finished" else "diverged"
    job = read(paths.jobs(run_id) / "train")
    last = None if job is None else status(job, not_before=time.time() - 15)
    if last is not None and last.phase != "ended":
        return "running" if last.phase == "running" else "pending"
    if is_locked(paths.run(run_id) / "lock"):
        return "running"  # started by hand
    return "to do" if last is None or last.word == CANCELLED else "failed"


def start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None if it has ended.

    Another process with its number differs in this.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    # The second field is the command in parentheses, and may hold anything.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def _noted() -> Iterator[str]:
    """Return the numbers of all Slurm jobs that are noted and not known to have ended."""
    for path in paths.job_records():
        with contextlib.suppress(ValueError, OSError):  # whoever needs that one says what is wrong with it
            job = read(path.parent)
            if job is not None and job.scheduler == "slurm" and job.end is None:
                yield job.job_id
