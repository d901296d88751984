"""Ask Slurm, with its own commands and without accounting. `run` calls each of them.

One answer about all noted jobs is shared by every launcher of a folder, so that the controller sees one question per
interval, however many launchers wait. A controller that does not answer says nothing about a job: its state is then
unknown, never ended.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from engine import files, paths
from engine.schema.base import Frozen, parse

TIMEOUT_SEC = 60
Phase = Literal["pending", "running", "ended", "unknown"]

CANCELLED = "CANCELLED"
GONE = "GONE"
"""A job that the scheduler does not remember."""
_PENDING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
_ENDED = {
    "BOOT_FAIL", CANCELLED, "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT", GONE,
}  # fmt: skip
COMES_BACK = {"NODE_FAIL", "PREEMPTED"}
"""Slurm shows these for a while in jobs that it has already put back into the queue."""
_FINDS_THE_CLUSTER = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"}
_OVERRULES = ("SBATCH_", "SQUEUE_", "SLURM_", "SACCT_", "SCANCEL_", "SRUN_", "SUBMITIT_")
_THREADS_OF_RULES = {
    "OMP_NUM_THREADS", "GOTO_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
}  # fmt: skip
"""Snakemake sets these to the threads of a rule: none, for one that waits for Slurm. A job must not inherit them."""
_FORMAT = "--format=%A|%U|%u|%T|%N|%r"


class SlurmError(ValueError):
    """A command of Slurm failed, or did not answer in time; the message holds what it said."""


class Status(Frozen):
    """A scheduler's answer about a job."""

    phase: Phase
    word: str
    """As Slurm spells it, such as OUT_OF_MEMORY."""
    node: str = ""
    reason: str = ""
    """Why a job is pending, or why nobody knows."""
    user: str = ""
    """Whose job it is, if it is not mine."""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.word, self.reason and f"({self.reason})", self.user and f"of {self.user}")))


class _Answer(Frozen):
    """What squeue said about some jobs, and the time of the question."""

    asked_at: float
    about: tuple[str, ...]
    jobs: dict[str, Status]
    problem: str = ""
    """Why it did not answer."""


def run(*command: str, timeout_sec: float | None = None) -> str:
    """Run a command of Slurm and return what it prints.

    The caller's environment cannot overrule a cluster file. The command has a session of its own: Ctrl-C ends the
    launcher, which then ends the command.

    Raises:
        SlurmError: If it fails, is not there, or has not ended in time (`TIMEOUT_SEC` where none is given).
    """
    timeout_sec = TIMEOUT_SEC if timeout_sec is None else timeout_sec
    kept = {name for name in os.environ if not name.startswith(_OVERRULES)} - _THREADS_OF_RULES
    env = {name: value for name, value in os.environ.items() if name in kept | _FINDS_THE_CLUSTER}
    try:
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True, encoding="utf-8", errors="replace",
        )  # fmt: skip
    except FileNotFoundError:
        text = f"the scheduler is 'slurm', but there is no {command[0]} here: is this a login node?"
        raise SlurmError(text) from None
    with process:
        try:
            out, err = process.communicate(timeout=timeout_sec)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            said = process.communicate()[1].strip()
            raise SlurmError(f"{command[0]} has not answered for {timeout_sec:g} seconds {said}".rstrip()) from None
    if process.returncode:
        raise SlurmError(err.strip() or out.strip() or f"{command[0]} ended with exit code {process.returncode}")
    return out


def submit(script: Path) -> str:
    """Submit a batch script and return the job's number.

    Raises:
        SlurmError: If Slurm refuses it, or what sbatch prints has no number.
    """
    out = run("sbatch", "--parsable", str(script))
    # A site may print lines of its own; behind the number may stand the cluster's name.
    numbers = re.findall(r"^(\d+)(?:;\S*)?\s*$", out, re.MULTILINE)
    if not numbers:
        raise SlurmError(f"sbatch printed no job number, but {out[:300]!r}")
    return str(numbers[-1])


def job_name(name: str) -> str:
    """Return the name of a job in Slurm: with what identifies the folder of results, whatever clone it is seen from."""
    path = paths.scheduler() / "id"
    with files.locked(path.with_suffix(".lock")):
        if not path.exists():
            files.write_text(path, secrets.token_hex(4))
        return f"{name}.{files.read_text(path)}"


def find(name: str, *, timeout_sec: float | None = None) -> str | None:
    """Return the number of the job of these results that has a name, whoever submitted it, and has not ended.

    Raises:
        SlurmError: If squeue does not answer.
    """
    jobs = _squeue(f"--name={job_name(name)}", timeout_sec=timeout_sec)
    return next((number for number, status in jobs.items() if status.phase != "ended"), None)


def status(number: str, others: Callable[[], Iterable[str]], *, not_before: float) -> Status:
    """Return the state of a job.

    Args:
        number: The job.
        others: Gives the numbers of all that may be asked about as well, so that one question is enough.
        not_before: An answer that was given at or after this time is good enough, in seconds since 1970.
    """
    cache = paths.scheduler() / f"queue-{os.getuid()}.json"
    with files.locked(cache.with_suffix(".lock")):
        answer = None
        if cache.exists():
            with contextlib.suppress(ValueError):  # damaged: it is asked again
                answer = parse(_Answer, files.read_text(cache), str(cache))
        # A time to come was written by a machine with another clock: it says nothing about age.
        if answer is None or number not in answer.about or not not_before <= answer.asked_at <= time.time():
            answer = _ask(tuple(sorted({number, *others()})))
            files.write_text(cache, answer.model_dump_json())
    if answer.problem:
        return Status(phase="unknown", word="UNKNOWN", reason=answer.problem)
    return answer.jobs.get(number) or _remembered(number)


def _ask(numbers: tuple[str, ...]) -> _Answer:
    asked_at = time.time()
    try:
        return _Answer(asked_at=asked_at, about=numbers, jobs=_squeue(f"--jobs={','.join(numbers)}"))
    except SlurmError as error:
        if "Invalid job id" in str(error):  # it knows none of them
            return _Answer(asked_at=asked_at, about=numbers, jobs={})
        # That there was no answer is remembered, as answers are.
        return _Answer(asked_at=time.time(), about=numbers, jobs={}, problem=str(error).splitlines()[-1])


def _squeue(which: str, timeout_sec: float | None = None) -> dict[str, Status]:
    """Return the jobs that squeue shows, those that have ended lately as well."""
    out = run("squeue", "--noheader", "--states=all", _FORMAT, which, timeout_sec=timeout_sec)
    found = {}
    for line in out.splitlines():
        if line.count("|") >= 5:
            number, uid, user, word, node, reason = line.split("|", 5)
            found[number] = Status(
                phase="ended" if word in _ENDED else "pending" if word in _PENDING else "running",
                word=word,
                node=node,
                reason="" if reason == "None" else reason,
                user="" if uid == str(os.getuid()) else user,
            )
    if out.strip() and not found:  # something else answered, such as a proxy with an error page
        raise SlurmError(f"squeue does not answer, but says {out.strip()[:200]!r}")
    return found


def _remembered(number: str) -> Status:
    """Ask accounting, if there is any, how a job ended that has left the queue."""
    out = ""
    with contextlib.suppress(SlurmError):
        out = run("sacct", "--noheader", "--parsable2", "--allocations", "--jobs", number, "--format=State,NodeList")
    state, _, node = out.partition("\n")[0].partition("|")
    word = state.partition(" ")[0]  # "CANCELLED by 1000"
    # Accounting may lag behind and call it running still: the controller knows better.
    return Status(phase="ended", word=word if word in _ENDED else GONE, node=node)
