"""Handle signals to a launcher: they end its waiting, and never reach the job."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that end a launcher. Those that a run obeys are `engine.stop.STOP_SIGNALS`."""


class Interrupted(BaseException):
    """This process was asked to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


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
