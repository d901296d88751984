"""Jobs on this machine: processes that outlive their launcher, on GPUs that they share with no other job.

A launcher starts them, warns them of their time limit, ends all when one has failed, and starts them again when they
ask for it. Another one that finds them later does the same, but for the exit code of a process that was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from engine import files, paths
from engine.jobs import process, scheduler
from engine.jobs.cluster import Cluster, Request
from engine.jobs.process import Ending
from engine.jobs.scheduler import Job
from engine.jobs.slurm import CANCELLED, GONE
from engine.schema.base import parse
from engine.stop import EXIT_REQUEUE

REQUEUED = "REQUEUED"
POLL_SEC = 0.2
_GRACE_SEC = 10
"""Time for the other processes to end by themselves after one has failed."""
_LEAVING_SEC = 60
"""Longest wait for a job to leave once its output is there: it holds memory and GPUs for a moment."""


class Processes:
    """The processes of a job on this machine."""

    def __init__(self, job: Job, cluster: Cluster, request: Request) -> None:
        self.job, self._cluster, self._request = job, cluster, request
        self._children: list[subprocess.Popen[bytes]] = []
        """Those that were started here."""

    def start(self, folder: Path, gpus: list[IO[str]]) -> Job:
        """Start them, and note them in their folder of jobs: they begin their work only then.

        Args:
            folder: The folder of jobs.
            gpus: The locks of their GPUs, which they hold as well.

        Returns:
            The job as it is noted.
        """
        job, count = self.job, self._request.tasks
        logs = Path(job.logs)
        if not Path(job.code).is_dir():
            raise ValueError(
                f"the code of job {job.job_id} is gone, {job.code}: start snakemake again, which copies it"
            )
        for path in logs.glob(process.ending_path(logs, job.job_id, "*").name):
            path.unlink()
        shared = {
            # Packages come from the snapshot, and never from the working directory.
            "PYTHONPATH": os.pathsep.join(filter(None, (job.code, os.environ.get("PYTHONPATH")))),
            "PYTHONSAFEPATH": "1",
            "CUDA_VISIBLE_DEVICES": ",".join(map(str, job.gpus)),
            "NEUCLIP_JOB_ID": job.job_id,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(process.rendezvous_port(job.job_id)),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
        }
        command = [sys.executable, "-u", "-m", "engine.jobs.process"]
        self._children = []
        for rank in range(count):
            ending = process.ending_path(logs, job.job_id, rank)
            with job.log(rank, "out").open("ab") as out, job.log(rank, "err").open("ab") as err:
                child = subprocess.Popen(
                    [*command, str(ending), self._cluster.scratch or "", *job.command],
                    env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdin=subprocess.PIPE,
                    stdout=out,
                    stderr=err,
                    pass_fds=[file.fileno() for file in gpus],
                    start_new_session=True,  # Ctrl-C and a closed terminal reach the launcher, never a job
                )
            self._children.append(child)
        # One that has ended already is known by an impossible start.
        noted = tuple((child.pid, scheduler.start_ticks(child.pid) or 0) for child in self._children)
        self.job = job.model_copy(update={"processes": noted, "started_at": time.time()})
        scheduler.write(folder, self.job)
        for child in self._children:
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError), child.stdin as pipe:
                pipe.write(b"\n")
        return self.job

    def wait(self, is_done: Callable[[], bool]) -> str:
        """Wait until all have ended; return the job's last state, or `REQUEUED` if it is to be started again.

        Args:
            is_done: Tells if the output is there.
        """
        limit_sec = 60 * self._request.timeout_min
        warn_sec = min(self._cluster.warn_before_limit_sec, limit_sec / 2)
        end_at = time.monotonic() + limit_sec - max(0, time.time() - self.job.started_at)
        warn_at, done_since, last_look = end_at - warn_sec, math.inf, time.time()
        while self._look(last_look):
            now, last_look = time.monotonic(), time.time()
            first = self._first()
            if first is not None:
                # A stopped one may have left while others still save.
                end_at = min(end_at, now + (_GRACE_SEC if first.signal_number is None else warn_sec))
            if now >= warn_at:
                scheduler.send(self.job, signal.SIGUSR2)
                warn_at = math.inf
            if is_done():
                done_since = min(done_since, now)
                if now - done_since > _LEAVING_SEC:
                    return "COMPLETED"
            elif now >= end_at:
                if first is None:
                    path = process.ending_path(Path(self.job.logs), self.job.job_id, 0)
                    process.leave(path, f"its time limit was over ({self._request.timeout_min} minutes)")
                scheduler.send(self.job, signal.SIGKILL)
            time.sleep(POLL_SEC)
        first = self._first()
        if first is None:
            return GONE
        if first.signal_number is None:
            return "FAILED"
        return REQUEUED if first.signal_number == signal.SIGUSR2 else CANCELLED

    def _first(self) -> Ending | None:
        first = first_ending(self.job)
        return None if first is None else first[1]

    def _look(self, last_look: float) -> list[int]:
        """Return those that live; note how one was killed, at a time before those of others that noticed."""
        codes = [child.poll() for child in self._children]
        living = self.job.living()
        for rank, (pid, _) in enumerate(self.job.processes):
            path = process.ending_path(Path(self.job.logs), self.job.job_id, rank)
            if pid in living or path.exists():
                continue
            code = codes[rank] if self._children else None
            number = signal.SIGUSR2 if code == EXIT_REQUEUE else None
            process.leave(path, _described(code), at=last_look, signal_number=number)
        return living


def first_ending(job: Job) -> tuple[int, Ending] | None:
    """Return the rank and the last words of the process of a job that was the first to end without its work done."""
    pattern = process.ending_path(Path(job.logs), job.job_id, "*")
    endings = []
    for path in pattern.parent.glob(pattern.name):
        with contextlib.suppress(FileNotFoundError):  # the job was started again meanwhile
            ending = parse(Ending, files.read_text(path), str(path))
            if not ending.is_done:
                endings.append((ending.at, int(path.name.split("_")[-2]), ending))
    return min(endings, key=lambda found: found[:2])[1:] if endings else None


def free_gpus(name: str, wanted: int, held: contextlib.ExitStack, wait: Callable[[str], None]) -> dict[int, IO[str]]:
    """Wait until enough GPUs of this machine are free, and hold them; return their locks by number.

    Args:
        name: Whose they will be.
        wanted: How many.
        held: Holds them.
        wait: Waits a while, and says for what.
    """
    if not wanted:
        return {}
    machine = _gpus_of_this_machine()
    if wanted > len(machine):
        why = "" if machine else f": {_ask_torch('distributed.explain_no_gpu()')}"
        raise ValueError(f"{name} asks for {wanted} GPUs, this machine has {len(machine)}{why}")
    while True:
        with files.locked(paths.scheduler() / "gpus.lock"):
            free = [gpu for gpu in machine if not scheduler.is_locked(_gpu_lock(gpu))][:wanted]
            if len(free) == wanted:
                return hold(tuple(free), held)
        wait(f"waiting for {wanted} free GPUs of {len(machine)}")


def hold(gpus: tuple[int, ...], held: contextlib.ExitStack) -> dict[int, IO[str]]:
    """Hold GPUs, which a job may hold as well; return their locks by number."""
    locks: dict[int, IO[str]] = {}
    for gpu in gpus:
        path = _gpu_lock(gpu)
        path.parent.mkdir(parents=True, exist_ok=True)
        locks[gpu] = held.enter_context(path.open("a+"))
        fcntl.flock(locks[gpu], fcntl.LOCK_SH)
    return locks


def _gpu_lock(gpu: int) -> Path:
    return paths.scheduler() / f"gpu-{gpu}.lock"


def _gpus_of_this_machine() -> list[int]:
    """Return the numbers of the GPUs that may be used here."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        try:
            return [int(number) for number in visible.split(",") if number]
        except ValueError:
            raise ValueError(f"CUDA_VISIBLE_DEVICES = {visible!r}: use numbers, such as 0,1") from None
    return list(range(int(_ask_torch("distributed.torch.cuda.device_count()"))))


def _ask_torch(expression: str) -> str:
    """Evaluate an expression in another process: many launchers wait at once, and importing torch makes one large."""
    code = f"from engine import distributed; print({expression})"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.strip()


def _described(code: int | None) -> str:
    """Say how a process ended that said nothing, by its exit code; None if that is not known."""
    if code is None:
        return "it ended and said nothing"
    if code >= 0:
        return f"it ended with exit code {code} and said nothing"
    name = signal.Signals(-code).name
    return f"killed by {name}" + (", as the system does when memory runs out" if name == "SIGKILL" else "")
