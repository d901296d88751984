"""Get one job done: find it or submit it, wait for its output, explain its end.

A launcher that was ended anywhere can be started again: it finds the job that its predecessor submitted.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import submitit

from engine import files, paths
from engine.jobs import interrupts, scheduler, snapshot
from engine.jobs.cluster import Cluster, Request
from engine.jobs.process import Ending, ModuleJob, ending_path
from engine.jobs.scheduler import Job, Status
from engine.schema.base import parse

EXIT_CANCELLED = 75
TAIL_LINES = 25
_LOCAL_POLL_SEC = 0.2
_SLURM_POLL_SEC = 1.0
_UNHURRIED = 10
"""An end is believed when it was seen for two polls; so many times longer in states that Slurm may leave again."""
_LEAVING_SEC = 60
_TEMPORARY = ("Unable to contact slurm controller", "Socket timed out", "Unexpected message received")
_USUAL_REASONS = {"", "Priority", "Resources", "BeginTime", "Dependency"}


_THREADS_HERE = [
    f"{library}_{noun}_THREADS"
    for noun, libraries in {"NUM": ("OMP", "GOTO", "OPENBLAS", "MKL", "NUMEXPR"), "MAXIMUM": ("VECLIB",)}.items()
    for library in libraries
]
"""Snakemake sets these to the threads of a rule: none, for one that waits for Slurm."""


_MARK_START = 'echo "start of job $SLURM_JOB_ID on $SLURM_JOB_NODELIST" >&2'
"""The log of a job that was queued again has several starts."""
_TASK_ENDED = re.compile(r"srun: error: \S+: tasks? (\d+)\S*: ")
_FROM_OUTSIDE = re.compile(r"slurmstepd\S*: error: \*\*\*|srun: Job step aborted")


class JobFailedError(RuntimeError):
    """A job ended without a result; the message holds the end of its log."""


class JobCancelledError(RuntimeError):
    """A job was ended from outside."""


@dataclass(frozen=True)
class Launch:
    """What is to be run, and what says that it is done."""

    name: str
    """Name of the job; with the working directory it tells whose job it is."""
    folder: Path
    """Folder of this job, its predecessors and its logs."""
    output: Path
    command: tuple[str, ...]
    """Module and arguments."""
    cluster: Cluster
    request: Request

    def is_done(self) -> bool:
        """Whether the output is there. The folder is listed, since a network file system may remember its absence."""
        return self.output.parent.is_dir() and self.output.name in os.listdir(self.output.parent)


class Launcher:
    """Gets one job done: attaches to the one that exists, or submits it."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.job: Job | None = None
        self._gpus = contextlib.ExitStack()

    def run(self) -> None:
        """Wait until the output is there.

        Raises:
            JobFailedError: If the job ended without it.
            JobCancelledError: If somebody ended the job.
        """
        with scheduler.locked(self.launch.folder / "lock"), self._gpus:
            if self.launch.is_done():
                return
            self.job = self._earlier()
            if self.job is not None:
                _say(f"attached to job {self.job.job_id} ({self.job.name})")
                self._hold(self.job.gpus)
                end = self._wait(self.job)
                if end is None:
                    return
                # It ended while nobody looked: its successor goes on from what it saved.
                _say(f"job {self.job.job_id} has ended ({end}) without a result; submitting it again")
                self._gpus.close()
            self._submit()
            assert self.job is not None
            _say(f"submitted job {self.job.job_id} ({self.job.name}), log {self.job.log(0, 'err')}")
            end = self._wait(self.job)
            if end is not None:
                raise (JobCancelledError if end == "CANCELLED" else JobFailedError)(explain(self.job, end))

    def _earlier(self) -> Job | None:
        """Return the job that an earlier launcher submitted, if it may still be there."""
        job = scheduler.read(self.launch.folder)
        if job is not None and job.end is None:
            return job
        number = self._find() if self.launch.cluster.scheduler == "slurm" else None
        return None if number is None else self._adopt(number)

    def _find(self) -> str | None:
        """Look for a Slurm job whose number could not be noted; only an answer from now on counts."""
        since = time.time()
        while True:
            try:
                return scheduler.find(self.launch.name, not_before=since)
            except ConnectionError as error:
                _say(f"{error}; asking again")
                time.sleep(self.launch.cluster.poll_sec)

    def _adopt(self, number: str) -> Job:
        """Note a job that was submitted, but whose submission did not come to its end."""
        found = sorted(self.launch.folder.glob(f"*/{number}"))
        logs = found[-1] if found else self._new_folder() / number
        logs.mkdir(parents=True, exist_ok=True)
        pickled = logs / f"{number}_submitted.pkl"
        if not pickled.exists():
            # The job waits a minute for this file, which is written after the submission.
            delayed = submitit.helpers.DelayedSubmission(self._module_job(()))
            delayed.set_timeout(self.launch.request.timeout_min, self.launch.cluster.max_requeues)
            with files.atomic_write(pickled) as temporary:
                delayed.dump(temporary)
        job = self._described(number, logs)
        scheduler.write(self.launch.folder, job)
        return job

    def _submit(self) -> None:
        cluster = self.launch.cluster
        code = snapshot.take()
        gpus = self._take_gpus() if cluster.scheduler == "local" else ()
        submit = self._submit_local if cluster.scheduler == "local" else self._submit_slurm
        while True:
            # A session of its own: Ctrl-C and a closed terminal reach the launcher, never a job or half a submission.
            with interrupts.deferred():
                problem = interrupts.in_new_session(lambda: submit(code, gpus), self.launch.folder / "controller.log")
                if problem is None:
                    self.job = scheduler.read(self.launch.folder)
                    return
            if not any(words in problem for words in _TEMPORARY):
                raise JobFailedError(f"job {self.launch.name} could not be submitted: {problem}")
            # Slurm may have taken the job and lost the answer.
            _say(f"{problem}; asking again")
            time.sleep(cluster.poll_sec)
            number = self._find()
            if number is not None:
                self.job = self._adopt(number)
                return

    def _submit_local(self, code: Path, gpus: tuple[int, ...]) -> None:
        request, cluster = self.launch.request, self.launch.cluster
        executor = submitit.LocalExecutor(self._new_folder(), max_num_timeout=cluster.max_requeues)
        executor.update_parameters(
            # Takes the place of submitit's controller, which would be started next.
            setup=[f"exec {shlex.join([sys.executable, '-m', 'engine.jobs.controller', str(executor.folder)])}"],
            timeout_min=request.timeout_min,
            tasks_per_node=request.tasks,
            gpus_per_node=len(gpus),
            visible_gpus=gpus,
            signal_delay_s=min(cluster.warn_before_limit_sec, 30 * request.timeout_min),
        )
        with submitit.helpers.clean_env():
            os.environ.update(_python_path(code))
            job = executor.submit(self._module_job(gpus))
        ticks = scheduler.start_ticks(int(job.job_id))
        described = self._described(job.job_id, job.paths.folder)
        update = {"gpus": gpus, "start_ticks": ticks}
        scheduler.write(self.launch.folder, described.model_copy(update=update))

    def _submit_slurm(self, code: Path, gpus: tuple[int, ...]) -> None:
        executor = submitit.AutoExecutor(
            self._new_folder() / "%j", cluster="slurm", slurm_max_num_timeout=self.launch.cluster.max_requeues
        )
        executor.update_parameters(name=self.launch.name, **slurm_parameters(self.launch.cluster, self.launch.request))
        exports = [f"export {key}={shlex.quote(value)}" for key, value in _python_path(code).items()]
        executor.update_parameters(slurm_setup=[_MARK_START, *self.launch.cluster.setup, *exports])
        # Of a job that this runs in, nothing must reach the new one; which cluster it is and the user's defaults must.
        kept = {key: value for key, value in os.environ.items() if key == "SLURM_CONF" or key.startswith("SBATCH_")}
        with submitit.helpers.clean_env():
            os.environ.update(kept)
            for name in _THREADS_HERE:
                os.environ.pop(name, None)
            job = executor.submit(self._module_job(()))
        scheduler.write(self.launch.folder, self._described(job.job_id, job.paths.folder))

    def _module_job(self, gpus: tuple[int, ...]) -> ModuleJob:
        module, *argv = self.launch.command
        locks = tuple(str(_gpu_lock(gpu).absolute()) for gpu in gpus)
        return ModuleJob(module, argv, self.launch.cluster.scratch, locks)

    def _described(self, number: str, logs: Path) -> Job:
        return Job(
            scheduler=self.launch.cluster.scheduler,
            job_id=number,
            name=self.launch.name,
            command=self.launch.command,
            logs=os.path.relpath(logs),
            started_at=time.time(),
            host=socket.gethostname(),
        )

    def _new_folder(self) -> Path:
        """Return a folder that no earlier job used: job numbers start again in a new cluster."""
        folder = self.launch.folder
        numbers = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
        new = folder / str(max(numbers, default=0) + 1)
        new.mkdir()
        return new

    def _wait(self, job: Job) -> str | None:
        """Return None when the output is there, and the last state if the job has ended without it."""
        state = self._last_state(job)
        is_done = self.launch.is_done()
        scheduler.write(self.launch.folder, job.model_copy(update={"end": "COMPLETED" if is_done else state}))
        return None if is_done else state

    def _last_state(self, job: Job) -> str:
        is_local = job.scheduler == "local"
        poll_sec = _LOCAL_POLL_SEC if is_local else self.launch.cluster.poll_sec
        done_since = ended_since = None
        ask_at = 0.0
        said: tuple[str, ...] = ()
        while True:
            if self.launch.is_done():
                done_since = done_since or time.monotonic()
                # A process on this machine still holds its memory and its GPUs for a moment.
                if not is_local or time.monotonic() - done_since > _LEAVING_SEC:
                    return "COMPLETED"
            # A process that failed says so itself: no need to wait for the next poll then.
            first = _first_ending(job)
            # Not for ever, though: the job may have been queued again, and its last words are then of an earlier start.
            hurried = first is not None and time.time() - first[1].at < _LEAVING_SEC
            if hurried or time.monotonic() >= ask_at:
                ask_at = time.monotonic() + poll_sec
                status = scheduler.status(job, not_before=time.time() - (_SLURM_POLL_SEC if hurried else poll_sec))
                if said != (said := _worth_saying(status)):
                    _say(f"job {job.job_id} {' '.join(filter(None, said))}")
                may_come_back = status.word in scheduler.COMES_BACK
                if status.phase != "ended":
                    ended_since = None
                elif is_local:
                    return status.word if first is None else "FAILED" if first[1].signal_number is None else "CANCELLED"
                elif first is not None and not may_come_back:
                    return status.word
                else:
                    ended_since = ended_since or time.monotonic()
                    if time.monotonic() - ended_since >= 2 * poll_sec * (_UNHURRIED if may_come_back else 1):
                        return status.word
            time.sleep(_LOCAL_POLL_SEC if is_local else _SLURM_POLL_SEC)

    def _take_gpus(self) -> tuple[int, ...]:
        """Wait until enough GPUs of this machine are free, and hold them."""
        wanted = self.launch.request.gpus_per_node
        if not wanted:
            return ()
        machine = _gpus_of_this_machine()
        if wanted > len(machine):
            why = "" if machine else f": {_ask_torch('distributed.explain_no_gpu()')}"
            raise ValueError(f"{self.launch.name} asks for {wanted} GPUs, this machine has {len(machine)}{why}")
        has_said = False
        while True:
            with scheduler.locked(paths.scheduler() / "gpus.lock"):
                free = [gpu for gpu in machine if not scheduler.is_locked(_gpu_lock(gpu))][:wanted]
                if len(free) == wanted:
                    self._hold(tuple(free))
                    return tuple(free)
            if not has_said:
                _say(f"waiting for {wanted} free GPUs of {len(machine)}")
            has_said = True
            time.sleep(_SLURM_POLL_SEC)

    def _hold(self, gpus: tuple[int, ...]) -> None:
        """Hold GPUs together with the job that uses them, so that they are free when both have ended."""
        for gpu in gpus:
            path = _gpu_lock(gpu)
            path.parent.mkdir(parents=True, exist_ok=True)
            file: IO[str] = self._gpus.enter_context(path.open("a+"))
            fcntl.flock(file, fcntl.LOCK_SH)


def slurm_parameters(cluster: Cluster, request: Request) -> dict[str, Any]:
    """Return what submitit's AutoExecutor is told about a job on Slurm."""
    gpus: int | None = request.gpus_per_node or None
    gres = cluster.gres
    if gres is not None and "{gpus_per_node}" in gres:
        gres = gres.format(gpus_per_node=gpus) if gpus else None
        gpus = None
    return {
        "nodes": request.nodes,
        "tasks_per_node": request.tasks,
        "cpus_per_task": request.cpus_per_task,
        "gpus_per_node": gpus,
        "mem_gb": request.mem_gb,
        "timeout_min": request.timeout_min,
        "slurm_partition": cluster.partition,
        "slurm_account": cluster.account,
        "slurm_qos": cluster.qos,
        "slurm_constraint": cluster.constraint,
        "slurm_gres": gres,
        "slurm_exclude": cluster.exclude,
        "slurm_signal_delay_s": cluster.warn_before_limit_sec,
        "slurm_additional_parameters": {"requeue": True, **cluster.sbatch},
        # One process that fails ends the others; before Slurm 22.05 and after it, steps differ in inheriting CPUs.
        "slurm_srun_args": [
            "--kill-on-bad-exit=1",
            *([f"--cpus-per-task={n}"] if (n := request.cpus_per_task) else []),
        ],
    }


def explain(job: Job, word: str) -> str:
    """Say what became of a job that has no result, with the end of the log of the process that failed first.

    Args:
        job: The job.
        word: Its last state.
    """
    rank, reason = 0, word
    if (silent := _first_without_ending(job)) is not None:
        rank, reason = silent[0], f"{word}: process {silent[0]}: {silent[1]}"
    elif (first := _first_ending(job)) is not None:
        rank, reason = first[0], f"{word}: process {first[0]}: {first[1].message}"
    lines = [f"job {job.job_id} ({job.name}) has no result: {reason}"]
    # What Slurm says about a job is in the log of process 0.
    for path in dict.fromkeys((job.log(0, "err"), job.log(rank, "err"), job.log(rank, "out"))):
        text = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        if text:
            lines += [f"The end of {path}:", *(f"  | {line}" for line in text[-TAIL_LINES:])]
    return "\n".join(lines)


def _first_ending(job: Job) -> tuple[int, Ending] | None:
    """Return the rank and the last words of the process of a job that was the first to fail."""
    pattern = ending_path(Path(job.logs), job.job_id, "*")
    endings = []
    for path in pattern.parent.glob(pattern.name):
        with contextlib.suppress(FileNotFoundError):  # the job was started again meanwhile
            ending = parse(Ending, files.read_text(path), str(path))
            endings.append((ending.at, int(path.name.split("_")[-2]), ending))
    return min(endings)[1:] if endings else None


def _first_without_ending(job: Job) -> tuple[int, str] | None:
    """Return the rank of the process of a Slurm job that was the first to end, and srun's line about it.

    None if it could say so itself, or if all were ended from outside.
    """
    log = job.log(0, "err")
    if job.scheduler != "slurm" or not log.exists():
        return None
    text = log.read_text(encoding="utf-8", errors="replace")
    for line in text.rpartition(f"start of job {job.job_id} on ")[2].splitlines():
        if _FROM_OUTSIDE.match(line):
            return None
        if told := _TASK_ENDED.match(line):
            rank = int(told[1])
            return None if ending_path(Path(job.logs), job.job_id, rank).exists() else (rank, line)
    return None


def _worth_saying(status: Status) -> tuple[str, ...]:
    """Return what is reported when it changes: not which of the usual reasons keeps a job waiting."""
    reason = status.reason if status.phase in ("pending", "unknown") and status.reason not in _USUAL_REASONS else ""
    return status.word, status.node and f"on {status.node}", reason and f"({reason})"


def _python_path(code: Path) -> dict[str, str]:
    """Return what makes Python take the packages from a snapshot, and nothing from the working directory."""
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(code), os.environ.get("PYTHONPATH")))),
        "PYTHONSAFEPATH": "1",
    }


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
    """Evaluate in a process of its own: a launcher must stay small, and many wait at once."""
    code = f"from engine import distributed; print({expression})"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.strip()


def _say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


def interrupted(job: Job | None, on_interrupt: str) -> str:
    """Leave or cancel a job, and say what was done."""
    if job is None:
        return "no job was submitted\n"
    if on_interrupt == "cancel":
        scheduler.cancel(job)
        return (
            f"job {job.job_id} ({job.name}) was cancelled; it can be submitted again, and goes on from what it saved\n"
        )
    return (
        f"job {job.job_id} ({job.name}) goes on. To wait for it again, start snakemake again; "
        f"to end it: python -m experiments cancel {job.name}\n"
    )
