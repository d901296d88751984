"""Get one job done: find it or submit it, wait for its output, explain its end.

A launcher that was ended anywhere can be started again: it finds the job that its predecessor submitted.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from engine import files, paths
from engine.jobs import local, process, scheduler, slurm, snapshot, submission
from engine.jobs.cluster import Cluster, Request
from engine.jobs.scheduler import Job
from engine.jobs.slurm import SlurmError, Status

EXIT_CANCELLED = 75
TAIL_LINES = 25
_SLURM_POLL_SEC = 1.0
_POLLS_TO_BELIEVE = 2
"""Polls for which Slurm must show an end before it is believed."""
_POLLS_IF_IT_MAY_COME_BACK = 20
"""The same for `slurm.COMES_BACK`: Slurm may show these for a job that it is putting back into the queue."""
_JUST_SEC = 60
"""Age up to which the last words of a process are taken for the job's end: older ones may be of an earlier start."""
_SILENT_SEC, _LONGEST_SILENCE_SEC = 60, 3600
"""Time after which it is said that Slurm does not answer, and after which the launcher gives up."""
_CUT_OFF_SEC = 10
"""Time in which Slurm is to say whether it took a job whose submission was interrupted."""
_TEMPORARY = ("contact slurm controller", "Socket timed out", "Unexpected message received", "has not answered")
_FULL = ("MaxSubmitJob", "GrpSubmitJob", "temporarily unable to accept job", "Resource temporarily unavailable")
_ADVICE = {
    "Invalid generic resource": "this cluster has no such GPUs: write gpus_per_node: 0 in the cluster file, under "
    "train and evaluate, or name its GPUs by gres"
}
_TASK_ENDED = re.compile(r"srun: error: (?P<node>\S+): tasks? (?P<rank>\d+)\S*: (?P<how>.*)")
_FROM_OUTSIDE = re.compile(r"slurmstepd\S*: error: \*\*\*|srun: Job step aborted")


class JobFailedError(RuntimeError):
    """A job ended without a result; the message holds the end of its log."""


class JobCancelledError(RuntimeError):
    """A job was ended from outside."""


@dataclass(frozen=True)
class Launch:
    """A job to get done, and the file that says that it is."""

    name: str
    """Name of the job. With the folder of results it identifies the job on Slurm."""
    folder: Path
    """Folder of the job's record and logs, and of those of earlier jobs with its name."""
    output: Path
    command: tuple[str, ...]
    """Module and arguments."""
    cluster: Cluster
    request: Request

    def is_done(self) -> bool:
        """Tell whether the output is there.

        The folder is listed: a network file system may remember that the file was absent.
        """
        return self.output.parent.is_dir() and self.output.name in os.listdir(self.output.parent)


class Launcher:
    """Gets one job done: attaches to the one that exists, or submits it."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.job: Job | None = None
        self._is_slurm = launch.cluster.scheduler == "slurm"
        self._is_submitting = False
        self._is_known = True
        """False while Slurm has never shown the job."""
        self._held = contextlib.ExitStack()
        self._gpus: dict[int, IO[str]] = {}
        self._processes: local.Processes | None = None
        """Those of a local job, if they were started here."""
        self._said = self._told = ""
        """The job's state as it was last reported, and what was last waited for."""
        self._silent_since: float | None = None

    def run(self) -> None:
        """Wait until the output is there.

        Raises:
            JobFailedError: If the job ended without it.
            JobCancelledError: If somebody ended the job.
        """
        lock = self.launch.folder / "lock"
        seen = self._wait_behind(lock)
        with files.locked(lock), self._held:
            if self.launch.is_done():
                return
            noted = scheduler.read(self.launch.folder)
            if seen is not None and noted is not None and noted.job_id == seen.job_id and noted.end is not None:
                raise _problem(noted, noted.end)
            if noted is not None and noted.end is None:
                self.job = noted
            elif self._is_slurm:
                self._find()
            if self.job is not None:
                _say(f"attached to job {self.job.job_id} ({self.job.name})")
                self._gpus = local.hold(self.job.gpus, self._held)
                is_there = self._status(self.job, not_before=time.time()).phase in ("pending", "running")
                end = self._wait(self.job)
                if end is None:
                    return
                if is_there:
                    raise _problem(self.job, end)
                # It ended while nobody looked: its successor goes on from what it saved.
                _say(f"job {self.job.job_id} has ended ({end}) without a result; submitting it again")
                self._held.close()
            self.job = None
            self._submit()
            assert self.job is not None
            _say(f"submitted job {self.job.job_id} ({self.job.name}), log {self.job.log(0, 'err')}")
            end = self._wait(self.job)
            if end is not None:
                raise _problem(self.job, end)

    def find_what_was_cut_off(self) -> bool:
        """Look for the job if its submission was interrupted; tell if Slurm took it, or may have."""
        if self.job is None and self._is_submitting:
            try:
                number = slurm.find(self.launch.name, timeout_sec=_CUT_OFF_SEC)
            except SlurmError:
                return True
            if number is not None:
                self._adopt(number)
        return self.job is not None

    def _wait_behind(self, lock: Path) -> Job | None:
        """Wait while another launcher sees to this job, as that of a killed Snakemake does; tell its state.

        Returns:
            The job, if it was seen before it had ended.
        """
        seen = None
        if scheduler.is_locked(lock):
            self._tell("another launcher sees to this, perhaps that of a Snakemake that was killed; waiting for it")
        while scheduler.is_locked(lock):
            job = scheduler.read(self.launch.folder)
            if job is not None and job.end is None:
                status = scheduler.status(job, not_before=time.time() - self.launch.cluster.poll_sec)
                if status.phase not in ("ended", "unknown"):  # of an end the other tells, once it has seen the output
                    seen = job
                    self._report(job, status)
            time.sleep(_SLURM_POLL_SEC)
        return seen

    def _find(self) -> None:
        """Look for a Slurm job that was submitted but not noted."""
        while True:
            try:
                number = slurm.find(self.launch.name)
                break
            except SlurmError as error:
                self._bear(str(error))
                time.sleep(self.launch.cluster.poll_sec)
        self._silent_since = None
        if number is not None:
            self._adopt(number)

    def _adopt(self, number: str) -> None:
        """Note a job that Slurm has, but whose submission was cut off: it has the newest folder."""
        self._note(number, max(self._folders(), default=1))

    def _submit(self) -> None:
        cluster, request = self.launch.cluster, self.launch.request
        code = snapshot.take()
        if not self._is_slurm:
            self._gpus = local.free_gpus(self.launch.name, request.gpus_per_node, self._held, self._wait_for)
            self._note(str(os.getpid()), self._new_folder(), code)
            self._start()
            return
        folder, name = self._folder(self._new_folder()), slurm.job_name(self.launch.name)
        script = submission.write(folder, name, self.launch.command, code, cluster, request)
        self._is_submitting = True
        while self.job is None:
            try:
                self._note(slurm.submit(script), int(folder.name))
                self._is_known = False
            except SlurmError as error:
                self._submit_later(str(error))

    def _submit_later(self, problem: str) -> None:
        """Wait a while, if what sbatch says of a job may change; find the job if Slurm has taken it all the same.

        Raises:
            JobFailedError: If it refuses the job.
        """
        if is_full := any(words in problem for words in _FULL):
            self._wait_for(f"Slurm takes no more jobs now ({problem.splitlines()[0]}); waiting")
        elif is_temporary := any(words in problem for words in _TEMPORARY):
            self._bear(problem)
        if is_full or is_temporary:
            time.sleep(self.launch.cluster.poll_sec)
        self._find()
        if self.job is None and not is_full and not is_temporary:
            raise JobFailedError(self._refused(problem))

    def _refused(self, problem: str) -> str:
        """Return what Slurm said, in full once a minute: the other jobs of a workflow are refused as well."""
        path = paths.scheduler() / "refused.json"
        with files.locked(path.with_suffix(".lock")):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                said = files.read_json(path)
                if said["problem"] == problem and abs(time.time() - said["at"]) < _SILENT_SEC:
                    return f"job {self.launch.name} was not submitted, as {said['name']} was not"
            files.write_text(path, json.dumps({"problem": problem, "name": self.launch.name, "at": time.time()}))
        advice = [advice for words, advice in _ADVICE.items() if words in problem]
        return f"job {self.launch.name} could not be submitted: {': '.join([problem, *advice])}"

    def _note(self, number: str, folder: int, code: Path | None = None) -> None:
        """Note the job, by its number and its own folder."""
        logs = self._folder(folder)
        logs.mkdir(parents=True, exist_ok=True)
        self.job = Job(
            scheduler=self.launch.cluster.scheduler,
            job_id=number,
            name=self.launch.name,
            command=self.launch.command,
            logs=os.path.relpath(logs),
            started_at=time.time(),
            host=socket.gethostname(),
            code="" if code is None else str(code),
            gpus=tuple(self._gpus),
        )
        if self._is_slurm:
            scheduler.write(self.launch.folder, self.job)

    def _start(self) -> None:
        """Start a job on this machine, which notes it."""
        assert self.job is not None
        self._processes = local.Processes(self.job, self.launch.cluster, self.launch.request)
        self.job = self._processes.start(self.launch.folder, list(self._gpus.values()))

    def _folder(self, number: int) -> Path:
        return self.launch.folder / str(number)

    def _folders(self) -> list[int]:
        folder = self.launch.folder
        return [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []

    def _new_folder(self) -> int:
        """Make a folder that no earlier job used, for job numbers start again in a new cluster; return its number."""
        number = max(self._folders(), default=0) + 1
        self._folder(number).mkdir(parents=True)
        return number

    def _wait(self, job: Job) -> str | None:
        """Return None when the output is there, and the last state if the job has ended without it."""
        state = self._wait_on_slurm(job) if job.scheduler == "slurm" else self._wait_here(job)
        assert self.job is not None
        is_done = self.launch.is_done()
        noted = scheduler.read(self.launch.folder)
        if noted is not None and noted.job_id == job.job_id and noted.is_cancelled:
            state = slurm.CANCELLED
        scheduler.write(self.launch.folder, self.job.model_copy(update={"end": "COMPLETED" if is_done else state}))
        return None if is_done else state

    def _wait_here(self, job: Job) -> str:
        """Wait until a job on this machine has ended for good; return its last state."""
        if self._processes is None:
            self._processes = local.Processes(job, self.launch.cluster, self.launch.request)
        while True:
            self._status(self._processes.job, not_before=0)
            state = self._processes.wait(self.launch.is_done)
            noted = scheduler.read(self.launch.folder)
            if state != local.REQUEUED or self.launch.is_done() or (noted is not None and noted.is_cancelled):
                return state
            job = self._processes.job
            if job.num_requeues >= self.launch.cluster.max_requeues:
                return f"TIMEOUT, and max_requeues = {job.num_requeues}"
            self.job = job.model_copy(update={"num_requeues": job.num_requeues + 1})
            self._start()
            _say(f"job {job.job_id} has saved, and was started again")

    def _wait_on_slurm(self, job: Job) -> str:
        """Wait until a Slurm job has its output or has ended; return its last state."""
        ask_at, ended_since = 0.0, None
        while not self.launch.is_done():
            # A process that failed says so itself: no need to wait for the next poll then.
            failed = local.first_ending(job)
            has_just_failed = failed is not None and time.time() - failed[1].at < _JUST_SEC
            if has_just_failed or time.monotonic() >= ask_at:
                poll_sec = self.launch.cluster.poll_sec
                ask_at = time.monotonic() + poll_sec
                status = self._status(job, not_before=time.time() - (_SLURM_POLL_SEC if has_just_failed else poll_sec))
                self._is_known = self._is_known or status.word != slurm.GONE or job.log(0, "err").exists()
                if status.phase != "ended":
                    ended_since = None
                else:
                    ended_since = ended_since or time.monotonic()
                    may_come_back = status.word in slurm.COMES_BACK
                    polls = _POLLS_IF_IT_MAY_COME_BACK if may_come_back else 0 if failed else _POLLS_TO_BELIEVE
                    if time.monotonic() - ended_since >= polls * poll_sec:
                        return status.word if self._is_known else self._unknown(job)
            time.sleep(_SLURM_POLL_SEC)
        return "COMPLETED"

    def _unknown(self, job: Job) -> str:
        """Wait for the job by its name, if sbatch gave a number that squeue has never known."""
        self.job = None
        self._find()
        if self.job is None:
            raise JobFailedError(
                f"job {job.name} was not submitted: sbatch gave number {job.job_id}, which squeue has never known, and "
                f"there is no job of this name; try `sbatch --parsable {job.logs}/submission.sh`"
            )
        self._is_known = True
        return self._wait_on_slurm(self.job)

    def _status(self, job: Job, *, not_before: float) -> Status:
        """Ask for the state of a job, and say when it has changed."""
        status = scheduler.status(job, not_before=not_before)
        if status.phase == "unknown":
            self._bear(status.reason)
        else:
            self._silent_since = None
            self._report(job, status)
        return status

    def _bear(self, problem: str) -> None:
        """Say what is wrong when Slurm has not answered for a minute.

        Raises:
            JobFailedError: When it has not for an hour.
        """
        now = time.monotonic()
        self._silent_since = self._silent_since or now
        minutes = (now - self._silent_since) / 60
        if now - self._silent_since > _LONGEST_SILENCE_SEC:
            raise JobFailedError(
                f"{self.launch.name}: Slurm has not answered for {minutes:.0f} minutes ({problem}): if there is a job, "
                "it goes on; start snakemake again when Slurm answers"
            )
        text = f"Slurm does not answer ({problem}); asking again"
        if now - self._silent_since >= _SILENT_SEC:
            self._wait_for(text)
        elif text != self._said:
            self._said = text
            _say(text)

    def _wait_for(self, what: str) -> None:
        """Say once what is waited for, and wait a moment."""
        if what != self._told:
            self._tell(what)
        self._told = what
        time.sleep(_SLURM_POLL_SEC)

    def _report(self, job: Job, status: Status) -> None:
        """Say the state of a job if it is another than last time."""
        has_reason = status.phase == "pending" and status.reason
        words = (
            status.word,
            status.node and f"on {status.node}",
            f"({status.reason})" if has_reason else "",
            status.user and f"of {status.user}",
        )
        text = " ".join(filter(None, (f"job {job.job_id}", *words)))
        if text != self._said:
            if status.phase == "ended":
                _say(text)  # what that means follows from the output
            else:
                self._tell(text)
        self._said = text
        self._told = ""

    def _tell(self, text: str) -> None:
        """Say something in the log, and, with the job's name, on a terminal that does not show the log."""
        _say(text)
        if not sys.stderr.isatty():
            sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}: {self.launch.name}\n")
            sys.stdout.flush()


def _problem(job: Job, end: str) -> JobCancelledError | JobFailedError:
    return (JobCancelledError if end == slurm.CANCELLED else JobFailedError)(explain(job, end))


def explain(job: Job, word: str) -> str:
    """Return why a job has no result, with the end of the log of the process that failed first.

    Args:
        job: The job.
        word: Its last state.
    """
    rank, reason = 0, word
    if (silent := _first_without_ending(job)) is not None:
        rank, reason = silent[0], f"{word}: process {silent[0]}: {silent[1]}"
    elif (first := local.first_ending(job)) is not None:
        rank, reason = first[0], f"{word}: process {first[0]}: {first[1].message}"
    if word == "FAILED" and job.scheduler == "slurm" and not job.log(0, "err").exists():
        reason = f"{word} before it wrote a log: was {job.logs} removed, or the project's folder moved, after it was "
        reason += "submitted? Start snakemake again, which submits it anew"
    lines = [f"job {job.job_id} ({job.name}) has no result: {reason}"]
    # What Slurm says about a job is in the log of process 0.
    for path in dict.fromkeys((job.log(0, "err"), job.log(rank, "err"), job.log(rank, "out"))):
        text = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        if text:
            lines += [f"The end of {path}:", *(f"  | {line}" for line in text[-TAIL_LINES:])]
    return "\n".join(lines)


def _first_without_ending(job: Job) -> tuple[int, str] | None:
    """Return the rank of the process of a Slurm job that was the first to end, and srun's line about it.

    None if it could say so itself, or if all were ended from outside.
    """
    log = job.log(0, "err")
    if job.scheduler != "slurm" or not log.exists():
        return None
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = text.rpartition(submission.MARK_START.format(job.job_id))[2].splitlines()
    until = itertools.takewhile(lambda line: not _FROM_OUTSIDE.match(line), lines)
    ended = [told for line in until if (told := _TASK_ENDED.match(line))]
    if not ended:
        return None
    # Of a process that was killed and one on its node that noticed, srun may report the other one first.
    same_node = [told for told in ended if told["node"] == ended[0]["node"]]
    first = next((told for told in same_node if not told["how"].startswith("Exited with")), ended[0])
    rank = int(first["rank"])
    return None if process.ending_path(Path(job.logs), job.job_id, rank).exists() else (rank, first[0])


def _say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


def interrupted(launcher: Launcher, on_interrupt: str) -> str:
    """Leave or cancel the job of a launcher, and say what was done."""
    is_there = launcher.find_what_was_cut_off()
    job = launcher.job
    if job is None:
        if is_there:
            return "Slurm does not say whether it took the job: if it did, snakemake, started again, waits for it\n"
        return "no job was submitted\n"
    if on_interrupt == "cancel":
        scheduler.cancel(launcher.launch.folder, job)
        return (
            f"job {job.job_id} ({job.name}) was cancelled; it can be submitted again, and goes on from what it saved\n"
        )
    return (
        f"job {job.job_id} ({job.name}) goes on. To wait for it again, start snakemake again; "
        f"to end it: python -m experiments cancel {job.name}\n"
    )
