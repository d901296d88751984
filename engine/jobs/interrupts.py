"""Handle signals to a launcher: they wait while it submits, end its waiting, and never reach the job."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that end a launcher. Those that a run obeys are `engine.stop.STOP_SIGNALS`."""


class Interrupted(BaseException):
    """This process was asked to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def in_new_session(action: Callable[[], None], log: Path) -> str | None:
    """Do something in a process that no signal to this one's terminal or process group reaches.

    Returns:
        None if it was done, otherwise what went wrong.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        message = ""
        try:
            os.setsid()
            for number in INTERRUPTS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)
            os.close(reading)
            # What goes on after this must not keep a pipe or a terminal of the launcher open.
            with log.open("ab") as file, open(os.devnull, "rb") as nothing:
                os.dup2(nothing.fileno(), 0)
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            action()
        except BaseException as error:
            message = str(error) or type(error).__name__
        finally:
            with contextlib.suppress(OSError):  # nobody may be there to read it
                os.write(writing, message.encode()[-4000:])
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        text = pipe.read().decode(errors="replace")
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    # A process that was killed says nothing.
    return f"it was ended by {signal.Signals(-code).name}" if code < 0 else text.strip() or None


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Let signals wait until the block is over."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Turn signals into `Interrupted`; those that are ignored, as SIGHUP is under nohup, stay so."""
    earlier = {number: signal.getsignal(number) for number in INTERRUPTS}
    for number, handler in earlier.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def ignored() -> Iterator[None]:
    """Ignore signals in the block, and in processes that it starts."""
    earlier = {number: signal.signal(number, signal.SIG_IGN) for number in INTERRUPTS}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted(number)
