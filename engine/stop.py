"""Signals that ask a training to stop: noticed between steps (and between batches of a measurement), agreed on by all
processes, obeyed after a save.

What each signal means to a scheduler is not decided here: a run that stopped has saved, and goes on when it is
started again.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
"""In order of weight: when processes got different ones, the last of these counts for all. SIGUSR2 asks to be
submitted again, SIGTERM does not."""


class Stopped(SystemExit):
    """A training ended between two steps because it was asked to; its checkpoint is on disk.

    Ends a command line with exit code 128 + `signal_number`, as a shell reports a signal.
    """

    def __init__(self, signal_number: int, step: int) -> None:
        super().__init__(128 + signal_number)
        self.signal_number, self.step = signal_number, step

    @classmethod
    def by(cls, counts: Sequence[float], step: int) -> Stopped:
        """Return the end that the weightiest of several signals asks for.

        Args:
            counts: How often each of `STOP_SIGNALS` came; at least one did.
            step: The step that is done.
        """
        seen = [number for number, count in zip(STOP_SIGNALS, counts, strict=True) if count]
        return cls(seen[-1], step)

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.signal_number).name} after step {self.step}, which is saved"


class StopRequest:
    """Notes the signals that arrive inside the block, instead of letting them act.

    A second Ctrl-C acts at once. Outside the main thread, where Python allows no handlers, nothing is noted.
    """

    def __init__(self) -> None:
        self.seen = [False] * len(STOP_SIGNALS)
        """Which of `STOP_SIGNALS` this process got."""
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._earlier = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.seen[STOP_SIGNALS.index(signal.Signals(number))] = True
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
