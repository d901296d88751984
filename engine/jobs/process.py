"""Run a module's command line inside a job, and end it as its scheduler expects when the job is told to stop.

The submitted object holds only text. It is pickled by reference, so that the job runs the class from the snapshot.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import submitit

from engine import errors, files
from engine.schema.base import Frozen
from engine.stop import Stopped

_WAIT_TO_BE_ENDED_SEC = 600


class Ending(Frozen):
    """The reason why a process of a job ended without success; it leaves this file beside its logs.

    On this machine `engine.jobs.controller` writes it for a process that was killed.
    """

    at: float
    """Seconds since 1970. When several processes end, the first one tells why."""
    message: str
    signal_number: int | None = None
    """The signal that it obeyed; None if it failed."""


def ending_path(logs: Path, job_id: str, rank: int | str) -> Path:
    """Return the file in which a process of a job leaves its `Ending`."""
    return logs / f"{job_id}_{rank}_ending.json"


class ModuleJob:
    """A module's command line as a job, in as many processes as the job has.

    Args:
        module: Module with a ``main(argv)``.
        argv: Its arguments.
        scratch: Folder for temporary files; may name environment variables of the node.
        gpu_locks: Files to hold while the job runs: the GPUs of this machine that it uses.
    """

    def __init__(
        self, module: str, argv: list[str], scratch: str | None = None, gpu_locks: tuple[str, ...] = ()
    ) -> None:
        self.module, self.argv, self.scratch, self.gpu_locks = module, argv, scratch, gpu_locks

    def __call__(self) -> None:
        """Run in the job."""
        process = _Process()
        with contextlib.ExitStack() as held:
            for path in self.gpu_locks:
                fcntl.flock(held.enter_context(Path(path).open("a+")), fcntl.LOCK_SH)
            try:
                if self.scratch is not None:
                    _use_scratch(self.scratch)
                with _without_collection():
                    module = importlib.import_module(self.module)
                module.main(self.argv)
                return
            except Stopped as stop:
                stopped = stop
            except SystemExit as end:
                if not end.code:
                    return
                process.fail(errors.said(str(end.code)), end.code)
            except Exception as error:  # whatever it was: here the job ends, and the launcher is told
                traceback.print_exc()
                process.fail(f"{type(error).__name__}: {error}", 1)
        process.obey(stopped.signal_number)

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Return the job unchanged to be submitted again: the module goes on from what it saved."""
        return submitit.helpers.DelayedSubmission(self)


def rendezvous_port(job_id: str) -> int:
    """Return the port at which the processes of a job meet; all get the same one.

    It lies below those that Linux by default lends to outgoing connections, 32768 to 60999, among which submitit looks
    too: a connection that held it would end the job.
    """
    return random.Random(job_id).randrange(10_000, 32_768)


class _Process:
    """One process of a job: prepares it, and ends it in the way that its scheduler understands."""

    def __init__(self) -> None:
        environment = submitit.JobEnvironment()
        self.rank, self.is_slurm = environment.global_rank, environment.cluster == "slurm"
        job_paths = environment.paths
        self.ending = ending_path(Path(job_paths.folder), environment.job_id, self.rank)
        # A job that was queued again finds what its earlier start left; half a pickle would stop the next requeue.
        leftovers = [self.ending, job_paths.result_pickle, _half_of(job_paths.result_pickle)]
        for path in (*leftovers, *([_half_of(job_paths.submitted_pickle)] if self.rank == 0 else [])):
            path.unlink(missing_ok=True)
        # The submitting shell may have been part of another distributed job.
        for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            os.environ.pop(name, None)
        os.environ["MASTER_PORT"] = str(rendezvous_port(environment.job_id))
        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        os.environ["NEUCLIP_JOB_ID"] = environment.job_id
        # Modules that save between steps put their own handlers in place of these.
        self.requeue: Callable[[int, FrameType | None], Any] = signal.getsignal(signal.SIGUSR2)  # type: ignore[assignment]
        signal.signal(signal.SIGUSR2, _stop)
        if not self.is_slurm:
            # On Slurm, SIGKILL follows if it is meant so; until then, work goes on.
            signal.signal(signal.SIGTERM, _stop)

    def fail(self, message: str, code: Any, signal_number: int | None = None) -> NoReturn:
        """Leave a message for the launcher and exit; no result is pickled, by no process."""
        ending = Ending(at=time.time(), message=message, signal_number=signal_number)
        files.write_text(self.ending, ending.model_dump_json() + "\n")
        sys.exit(code)

    def obey(self, signal_number: int) -> None:
        """End after the module has saved its work and stopped."""
        if signal_number == signal.SIGUSR2:
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)
            if self.rank == 0:
                try:
                    self.requeue(signal.SIGUSR2, None)
                except Exception as error:  # no more requeues, or Slurm refuses
                    self.fail(f"stopped and saved, but not queued again: {error}", 1)
            if not self.is_slurm:
                sys.exit(0)  # the local controller starts again when all have ended
        else:
            # A warning may still follow; what it asks for is done at once, since everything is saved.
            signal.signal(signal.SIGUSR2, self.requeue)
            if not self.is_slurm:
                name = signal.Signals(signal_number).name
                self.fail(f"stopped by {name}; what was done is saved", 128 + signal_number, signal_number)
        # Slurm ends the processes: only it knows whether the job was preempted, queued again or cancelled.
        time.sleep(_WAIT_TO_BE_ENDED_SEC)
        self.fail(f"stopped by {signal.Signals(signal_number).name}, and nobody ended the job", 128 + signal_number)


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Import without garbage collection, and exempt the imported objects from it later: they all stay.

    Collection takes a fifth of the time of importing torch and open_clip.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(number, 0)


def _half_of(path: Path) -> Path:
    """Return the temporary file that submitit writes before it renames it."""
    return path.with_suffix(path.suffix + ".save_tmp")


def _use_scratch(scratch: str) -> None:
    folder = os.path.expandvars(scratch)
    if "$" in folder:
        raise ValueError(f"scratch = {scratch!r}: on this node that is {folder!r}, a variable is not set")
    Path(folder).mkdir(parents=True, exist_ok=True)
    os.environ["TMPDIR"] = folder
    tempfile.tempdir = None
