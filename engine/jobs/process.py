"""Run a module's command line inside a job, and leave word of how it ended.

``python -m engine.jobs.process ENDING SCRATCH MODULE ARGUMENTS...`` is a process of a job on this machine.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from engine import errors, files
from engine.schema.base import Frozen
from engine.stop import EXIT_REQUEUE, Stopped


class Ending(Frozen):
    """How a process of a job ended; it leaves this file beside its logs.

    On this machine the launcher writes it for a process that was killed. On Slurm one that has done its work leaves
    none.
    """

    at: float
    """Seconds since 1970. When several processes fail, the first one tells why."""
    message: str
    signal_number: int | None = None
    """The signal that it obeyed; SIGUSR2 asks to be started again."""
    is_done: bool = False
    """It has done its work."""


def ending_path(logs: Path, job_id: str, rank: int | str) -> Path:
    """Return the file in which a process of a job leaves its `Ending`."""
    return logs / f"{job_id}_{rank}_ending.json"


def leave(path: Path, message: str, *, at: float | None = None, signal_number: int | None = None) -> None:
    """Write an `Ending` of a process that has not done its work."""
    ending = Ending(at=time.time() if at is None else at, message=message, signal_number=signal_number)
    files.write_text(path, ending.model_dump_json() + "\n")


def rendezvous_port(job_id: str) -> int:
    """Return the port at which the processes of a job meet; all get the same one.

    It lies below those that Linux by default lends to outgoing connections, 32768 to 60999, among which submitit looks
    too: a connection that held it would end the job.
    """
    return random.Random(job_id).randrange(10_000, 32_768)


def run(module: str, argv: list[str], scratch: str | None, ending: Path) -> Stopped | None:
    """Run a module's ``main(argv)``.

    Args:
        module: The module.
        argv: Its arguments.
        scratch: Folder for temporary files; may name environment variables of the node.
        ending: Where to leave word if it fails; the process exits then.

    Returns:
        How it was stopped; None if it has done its work.
    """
    # Modules that save between steps put their own handlers in place of this.
    signal.signal(signal.SIGUSR2, _stop)
    try:
        if scratch:
            _use_scratch(scratch)
        with _without_collection():
            found = importlib.import_module(module)
        found.main(argv)
    except Stopped as stop:
        return stop
    except SystemExit as end:
        if end.code:
            leave(ending, errors.said(str(end.code)))
            sys.exit(end.code)
    except Exception as error:  # whatever it was: here the job ends, and the launcher is told
        traceback.print_exc()
        leave(ending, f"{type(error).__name__}: {error}")
        sys.exit(1)
    return None


def main() -> None:
    """Be a process of a job on this machine."""
    path, scratch, module, *argv = sys.argv[1:]
    ending = Path(path)
    if not sys.stdin.buffer.read(1):
        sys.exit("the launcher was ended before it had noted this process")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    signal.signal(signal.SIGTERM, _stop)
    stopped = run(module, argv, scratch, ending)
    if stopped is None:
        files.write_text(ending, Ending(at=time.time(), message="done", is_done=True).model_dump_json())
        return
    number = signal.Signals(stopped.signal_number)
    leave(ending, f"stopped by {number.name}; what was done is saved", signal_number=number)
    sys.exit(EXIT_REQUEUE if number == signal.SIGUSR2 else 128 + number)


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


def _use_scratch(scratch: str) -> None:
    folder = os.path.expandvars(scratch)
    if "$" in folder:
        raise ValueError(f"scratch = {scratch!r}: on this node that is {folder!r}, a variable is not set")
    Path(folder).mkdir(parents=True, exist_ok=True)
    os.environ["TMPDIR"] = folder
    tempfile.tempdir = None


if __name__ == "__main__":
    main()
