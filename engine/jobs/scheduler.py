"""Find, ask about and end jobs on this machine or on Slurm.

Slurm is asked with its own commands and works without accounting. One answer about all of a user's jobs is shared by
every launcher of a folder, so that the controller sees one question per interval, however many launchers wait.
A controller that does not answer says nothing about a job: its state is then unknown, never ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Literal

from engine import files, paths
from engine.schema.base import Frozen, parse
from engine.schema.record import Record

Phase = Literal["pending", "running", "ended", "unknown"]

CANCELLED = "CANCELLED"
GONE = "GONE"
"""A job that the scheduler no longer remembers."""
_PENDING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
_ENDED = {
    "BOOT_FAIL", CANCELLED, "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT", GONE,
}  # fmt: skip
COMES_BACK = {"NODE_FAIL", "PREEMPTED"}
"""Slurm shows these for a while in jobs that it has already put back into the queue."""
_COMMAND_SEC = 60
_LOCAL_GRACE_SEC = 30


class Job(Frozen):
    """A submitted job, with all that another process needs to find it again."""

    scheduler: Literal["local", "slurm"]
    job_id: str
    name: str
    command: tuple[str, ...]
    logs: str
    """Folder with ``<job id>_<rank>_log.out`` and ``.err``."""
    started_at: float
    """When it had been submitted, in seconds since 1970."""
    host: str
    """Host that submitted it; a local job runs there."""
    start_ticks: int | None = None
    """When a local job's process started, in clock ticks since boot: another process with its number differs in it."""
    gpus: tuple[int, ...] = ()
    """GPUs that a local job holds."""
    is_cancelled: bool = False
    """True if it was ended from here: a job that Slurm has forgotten, or a process that was killed, does not say so."""
    end: str | None = None
    """The last state, once the job is known to have ended: COMPLETED if its result is there."""

    def log(self, rank: int, stream: Literal["out", "err"]) -> Path:
        """Return the log of a process of the job."""
        return Path(self.logs) / f"{self.job_id}_{rank}_log.{stream}"


class Status(Frozen):
    """A scheduler's answer about a job."""

    phase: Phase
    word: str
    """As Slurm spells it, such as OUT_OF_MEMORY."""
    node: str = ""
    reason: str = ""
    """Why a job is pending."""

    def __str__(self) -> str:
        return f"{self.word} ({self.reason})" if self.reason else self.word


class _Listed(Frozen):
    """One line of squeue."""

    job_id: str
    status: Status
    name: str
    folder: str


class _Listing(Frozen):
    """An answer of squeue, and the time of the question."""

    asked_at: float
    jobs: tuple[_Listed, ...] | None
    """None when it did not answer."""


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
    found = _local_status(job) if job.scheduler == "local" else _slurm_status(job, not_before)
    is_cancelled = job.is_cancelled and found.phase == "ended"
    return found.model_copy(update={"word": CANCELLED}) if is_cancelled else found


def find(name: str, *, not_before: float) -> str | None:
    """Return the number of a Slurm job that was submitted from this folder under a name and has not ended.

    Raises:
        ConnectionError: If the controller does not answer.
    """
    listing = _listing(not_before)
    if listing.jobs is None:
        raise ConnectionError("the Slurm controller does not answer")
    here = os.path.realpath(".")
    for listed in listing.jobs:
        if listed.name == name and listed.status.phase != "ended" and os.path.realpath(listed.folder) == here:
            return listed.job_id
    return None


def cancel(folder: Path, job: Job) -> None:
    """End the job of a folder of jobs, and note that. A local one may save first; this waits until it has ended.

    Raises:
        ValueError: If Slurm refuses, or does not answer.
    """
    cancelled = job.model_copy(update={"is_cancelled": True})
    if job.scheduler == "slurm":
        what = f"job {job.job_id} ({job.name}) could not be cancelled"
        try:
            subprocess.run(["scancel", job.job_id], capture_output=True, text=True, check=True, timeout=_COMMAND_SEC)
        except FileNotFoundError:
            raise ValueError(f"{what}: there is no scancel here; is this a login node?") from None
        except subprocess.TimeoutExpired:
            again = f"try again with python -m experiments cancel {job.name}"
            raise ValueError(f"{what}: Slurm has not answered for {_COMMAND_SEC} seconds; {again}") from None
        except subprocess.CalledProcessError as error:
            raise ValueError(f"{what}: {error.stderr.strip()}") from None
        write(folder, cancelled)
        return
    write(folder, cancelled)  # before it ends: whoever waits for it reads this then
    # The controller hands SIGTERM on to the job's processes, and ends them itself after SIGINT.
    for number, patience_sec in ((signal.SIGTERM, _LOCAL_GRACE_SEC), (signal.SIGINT, 5), (signal.SIGKILL, 5)):
        if _local_status(job).phase == "ended":
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(job.job_id), number)
        deadline = time.monotonic() + patience_sec
        while time.monotonic() < deadline and _local_status(job).phase != "ended":
            time.sleep(0.1)


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
    """Return when a process started, in clock ticks since boot; None if it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    # The second field is the command in parentheses, and may hold anything.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def _local_status(job: Job) -> Status:
    alive = job.host == socket.gethostname() and start_ticks(int(job.job_id)) == job.start_ticks is not None
    return Status(phase="running", word="RUNNING", node=job.host) if alive else Status(phase="ended", word=GONE)


def _slurm_status(job: Job, not_before: float) -> Status:
    # An answer from before it was submitted does not know it.
    listing = _listing(max(not_before, job.started_at))
    if listing.jobs is None:
        return Status(phase="unknown", word="UNKNOWN", reason="the Slurm controller does not answer")
    for listed in listing.jobs:
        if listed.job_id == job.job_id:
            return listed.status
    return _remembered(job)


def _listing(not_before: float) -> _Listing:
    """Return what squeue says about all my jobs, asked at or after `not_before`, by whoever asked first."""
    folder = paths.scheduler()
    cache = folder / f"queue-{os.getuid()}.json"
    with files.locked(folder / f"queue-{os.getuid()}.lock"):
        if cache.exists():
            listing = parse(_Listing, files.read_text(cache), str(cache))
            # A time to come was written by a machine with another clock: it says nothing about age.
            if not_before <= listing.asked_at <= time.time():
                return listing
        listing = _ask_squeue()
        files.write_text(cache, listing.model_dump_json())
        return listing


def _ask_squeue() -> _Listing:
    asked_at = time.time()
    # -t all: those that have ended lately as well. The folder comes last: only it can hold anything.
    command = ["squeue", "--noheader", "--me", "--states=all", "--format=%A|%T|%N|%r|%j|%Z"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_COMMAND_SEC).stdout
    except FileNotFoundError:
        raise ValueError("the scheduler is 'slurm', but there is no squeue here: is this a login node?") from None
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return _Listing(asked_at=time.time(), jobs=None)
    jobs = []
    for line in answer.splitlines():
        if line.count("|") >= 5:
            job_id, word, node, reason, name, folder = line.split("|", 5)
            listed = Status(phase=_phase(word), word=word, node=node, reason="" if reason == "None" else reason)
            jobs.append(_Listed(job_id=job_id, status=listed, name=name, folder=folder))
    if answer.strip() and not jobs:
        return _Listing(asked_at=time.time(), jobs=None)  # something else answered, such as a proxy with an error page
    return _Listing(asked_at=asked_at, jobs=tuple(jobs))


def _remembered(job: Job) -> Status:
    """Ask accounting, if there is any, how a job ended that has left the queue."""
    command = ["sacct", "--noheader", "--parsable2", "--allocations", "--jobs", job.job_id, "--format=State,NodeList"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_COMMAND_SEC).stdout
    except (OSError, subprocess.CalledProcessError, subprocess.TimeoutExpired):
        answer = ""
    state, _, node = answer.partition("\n")[0].partition("|")
    word = state.partition(" ")[0]  # "CANCELLED by 1000"
    # Accounting may lag behind and call it running still: the controller knows better.
    return Status(phase="ended", word=word if word in _ENDED else GONE, node=node)


def _phase(word: str) -> Phase:
    if word in _ENDED:
        return "ended"
    return "pending" if word in _PENDING else "running"
