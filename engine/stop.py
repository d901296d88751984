"""Signals that ask a training to stop: a block notes them, and the training ends after a save.

The launcher decides what a signal means to the scheduler. A run that stopped goes on when it is started again.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
"""In order of weight: of several, the last one decides. SIGUSR2 asks to be submitted again, SIGTERM does not."""
EXIT_REQUEUE = 144
"""Exit code with which a process of a job that can do no more than exit asks to be started again."""


class Stopped(SystemExit):
    """A training was asked to end, and did between two steps; its checkpoint is on disk.

    Ends a command line with exit code 128 + `signal_number`, as a shell reports a signal.
    """

    def __init__(self, signal_number: int, step: int) -> None:
        super().__init__(128 + signal_number)
        self.signal_number, self.step = signal_number, step

    @classmethod
    def by(cls, counts: Sequence[int], step: int) -> Stopped:
        """Return the end that the weightiest of several signals asks for.

        Args:
            counts: How often each of `STOP_SIGNALS` came; at least one did.
            step: Number of steps that are done.
        """
        return cls([number for number, count in zip(STOP_SIGNALS, counts, strict=True) if count][-1], step)

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.signal_number).name} after step {self.step}, which is saved"


@contextmanager
def stop_signals_noted() -> Iterator[Sequence[bool]]:
    """Note `STOP_SIGNALS` that arrive in the block instead of letting them act; a second Ctrl-C acts at once.

    Notes nothing outside the main thread: Python allows handlers only there.

    Yields:
        For each of `STOP_SIGNALS`, if it has arrived by now.
    """
    seen = [False] * len(STOP_SIGNALS)

    def note(number: int, frame: FrameType | None) -> None:
        seen[STOP_SIGNALS.index(signal.Signals(number))] = True
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():
        yield seen
        return
    earlier = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    try:
        yield seen
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def end_with_parent() -> None:
    """Let this process end when the one that started it has ended: what a pool's workers are to call first.

    Those of a pool whose process was killed would wait for work for ever.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
