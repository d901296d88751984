"""Get one job done: find it or submit it, wait for its output, explain its end.

A launcher that was ended anywhere can be started again: it finds the job that its predecessor submitted.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
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
_POLLS_TO_BELIEVE = 2
"""Polls for which Slurm must show an end before it is believed."""
_POLLS_IF_IT_MAY_COME_BACK = 20
"""The same for `scheduler.COMES_BACK`: Slurm may show these for a job that it is putting back into the queue."""
_LEAVING_SEC = 60
"""Longest wait for a local job to leave once its output is there: it holds memory and GPUs for a moment. Also the age
up to which the last words of a process are taken for the job's end: older ones may be of an earlier start."""
_TEMPORARY = ("Unable to contact slurm controller", "Socket timed out", "Unexpected message received")

_THREADS_OF_RULES = (
    "OMP_NUM_THREADS", "GOTO_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)  # fmt: skip
"""Snakemake sets these to the threads of a rule: none, for one that waits for Slurm. A job must not inherit them."""
_MARK_START = 'echo "start of job $SLURM_JOB_ID on $SLURM_JOB_NODELIST" >&2'
"""Marks each start in the log: a job that was queued again has several."""
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
    """Name of the job. Name and working directory identify it on Slurm."""
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
        self._gpus = contextlib.ExitStack()
        self._said = ""
        """The job's state as it was last reported."""

    def run(self) -> None:
        """Wait until the output is there.

        Raises:
            JobFailedError: If the job ended without it.
            JobCancelledError: If somebody ended the job.
        """
        lock = self.launch.folder / "lock"
        seen = self._wait_behind(lock)
        with files.locked(lock), self._gpus:
            if self.launch.is_done():
                return
            noted = scheduler.read(self.launch.folder)
            if seen is not None and noted is not None and noted.job_id == seen.job_id and noted.end is not None:
                raise _problem(noted, noted.end)
            self.job = self._earlier()
            if self.job is not None:
                _say(f"attached to job {self.job.job_id} ({self.job.name})")
                self._hold(self.job.gpus)
                is_there = self._status(self.job, not_before=time.time()).phase in ("pending", "running")
                end = self._wait(self.job)
                if end is None:
                    return
                if is_there:
                    raise _problem(self.job, end)
                # It ended while nobody looked: its successor goes on from what it saved.
                _say(f"job {self.job.job_id} has ended ({end}) without a result; submitting it again")
                self._gpus.close()
            self._submit()
            assert self.job is not None
            _say(f"submitted job {self.job.job_id} ({self.job.name}), log {self.job.log(0, 'err')}")
            end = self._wait(self.job)
            if end is not None:
                raise _problem(self.job, end)

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
                if status.phase != "ended":  # how it ended the other says, once it has looked at the output
                    seen = job
                    self._report(job, status)
            time.sleep(_SLURM_POLL_SEC)
        return seen

    def _earlier(self) -> Job | None:
        """Return the job that an earlier launcher submitted, if it may still be there."""
        job = scheduler.read(self.launch.folder)
        if job is not None and job.end is None:
            return job
        number = self._find() if self.launch.cluster.scheduler == "slurm" else None
        return None if number is None else self._adopt(number)

    def _find(self) -> str | None:
        """Look for a Slurm job that was submitted but not noted; an answer from before this call does not count."""
        while True:
            try:
                # Each time from now on: that there was no answer is remembered, as answers are.
                return scheduler.find(self.launch.name, not_before=time.time())
            except ConnectionError as error:
                _say(f"{error}; asking again")
                time.sleep(self.launch.cluster.poll_sec)

    def _adopt(self, number: str) -> Job:
        """Note a job that Slurm has, but whose submission was cut off here."""
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
            for name in _THREADS_OF_RULES:
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
        state = self._wait_here(job) if job.scheduler == "local" else self._wait_on_slurm(job)
        is_done = self.launch.is_done()
        noted = scheduler.read(self.launch.folder)
        if noted is not None and noted.job_id == job.job_id and noted.is_cancelled:
            state = scheduler.CANCELLED
        scheduler.write(self.launch.folder, job.model_copy(update={"end": "COMPLETED" if is_done else state}))
        return None if is_done else state

    def _wait_here(self, job: Job) -> str:
        """Wait until a job on this machine has ended; return its last state."""
        done_since = None
        while (status := self._status(job, not_before=time.time())).phase != "ended":
            if self.launch.is_done():
                done_since = done_since or time.monotonic()
                if time.monotonic() - done_since > _LEAVING_SEC:
                    return "COMPLETED"
            time.sleep(_LOCAL_POLL_SEC)
        first = _first_ending(job)
        return status.word if first is None else "FAILED" if first[1].signal_number is None else scheduler.CANCELLED

    def _wait_on_slurm(self, job: Job) -> str:
        """Wait until a Slurm job has its output or has ended; return its last state."""
        ask_at, ended_since = 0.0, None
        while not self.launch.is_done():
            # A process that failed says so itself: no need to wait for the next poll then.
            failed = _first_ending(job)
            has_just_failed = failed is not None and time.time() - failed[1].at < _LEAVING_SEC
            if has_just_failed or time.monotonic() >= ask_at:
                poll_sec = self.launch.cluster.poll_sec
                ask_at = time.monotonic() + poll_sec
                status = self._status(job, not_before=time.time() - (_SLURM_POLL_SEC if has_just_failed else poll_sec))
                if status.phase != "ended":
                    ended_since = None
                else:
                    ended_since = ended_since or time.monotonic()
                    may_come_back = status.word in scheduler.COMES_BACK
                    polls = _POLLS_IF_IT_MAY_COME_BACK if may_come_back else 0 if failed else _POLLS_TO_BELIEVE
                    if time.monotonic() - ended_since >= polls * poll_sec:
                        return status.word
            time.sleep(_SLURM_POLL_SEC)
        return "COMPLETED"

    def _status(self, job: Job, *, not_before: float) -> Status:
        """Ask for the state of a job, and say when it has changed."""
        status = scheduler.status(job, not_before=not_before)
        self._report(job, status)
        return status

    def _report(self, job: Job, status: Status) -> None:
        """Say the state of a job if it is another than last time."""
        has_reason = status.phase in ("pending", "unknown") and status.reason
        words = (status.word, status.node and f"on {status.node}", f"({status.reason})" if has_reason else "")
        text = " ".join(filter(None, (f"job {job.job_id}", *words)))
        if text != self._said:
            if status.phase == "ended":
                _say(text)  # what that means follows from the output
            else:
                self._tell(text)
        self._said = text

    def _tell(self, text: str) -> None:
        """Say something in the log, and, with the job's name, on a terminal that does not show the log."""
        _say(text)
        if not sys.stderr.isatty():
            sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}: {self.launch.name}\n")
            sys.stdout.flush()

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
            with files.locked(paths.scheduler() / "gpus.lock"):
                free = [gpu for gpu in machine if not scheduler.is_locked(_gpu_lock(gpu))][:wanted]
                if len(free) == wanted:
                    self._hold(tuple(free))
                    return tuple(free)
            if not has_said:
                self._tell(f"waiting for {wanted} free GPUs of {len(machine)}")
            has_said = True
            time.sleep(_SLURM_POLL_SEC)

    def _hold(self, gpus: tuple[int, ...]) -> None:
        """Hold GPUs as long as this launcher lives; the job holds them too."""
        for gpu in gpus:
            path = _gpu_lock(gpu)
            path.parent.mkdir(parents=True, exist_ok=True)
            file: IO[str] = self._gpus.enter_context(path.open("a+"))
            fcntl.flock(file, fcntl.LOCK_SH)


def slurm_parameters(cluster: Cluster, request: Request) -> dict[str, Any]:
    """Return the parameters of submitit's AutoExecutor for a job on Slurm."""
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
        **{f"slurm_{key}": getattr(cluster, key) for key in ("partition", "account", "qos", "constraint", "exclude")},
        "slurm_gres": gres,
        "slurm_signal_delay_s": cluster.warn_before_limit_sec,
        "slurm_additional_parameters": {"requeue": True, **cluster.sbatch},
        # One process that fails ends the others; before Slurm 22.05 and after it, steps differ in inheriting CPUs.
        "slurm_srun_args": [
            "--kill-on-bad-exit=1",
            *([f"--cpus-per-task={n}"] if (n := request.cpus_per_task) else []),
        ],
    }


def _problem(job: Job, end: str) -> JobCancelledError | JobFailedError:
    return (JobCancelledError if end == scheduler.CANCELLED else JobFailedError)(explain(job, end))


def explain(job: Job, word: str) -> str:
    """Return why a job has no result, with the end of the log of the process that failed first.

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
    lines = text.rpartition(f"start of job {job.job_id} on ")[2].splitlines()
    until = itertools.takewhile(lambda line: not _FROM_OUTSIDE.match(line), lines)
    ended = [told for line in until if (told := _TASK_ENDED.match(line))]
    if not ended:
        return None
    # Of a process that was killed and one on its node that noticed, srun may report the other one first.
    same_node = [told for told in ended if told["node"] == ended[0]["node"]]
    first = next((told for told in same_node if not told["how"].startswith("Exited with")), ended[0])
    rank = int(first["rank"])
    return None if ending_path(Path(job.logs), job.job_id, rank).exists() else (rank, first[0])


def _python_path(code: Path) -> dict[str, str]:
    """Return the variables with which Python imports packages from a snapshot and never from the working directory."""
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
    """Evaluate an expression in another process: many launchers wait at once, and importing torch makes one large."""
    code = f"from engine import distributed; print({expression})"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.strip()


def _say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


def interrupted(launcher: Launcher, on_interrupt: str) -> str:
    """Leave or cancel the job of a launcher, and say what was done."""
    job = launcher.job
    if job is None:
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
