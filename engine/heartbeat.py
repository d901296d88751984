"""End a job that stands still, because a process is frozen, or its node, file system or device does not answer.

The work of a process beats as it goes on. Where that stops for too long, threads of every process that still runs say
which one is to blame, and exit so that the job is started again. Time in which a process itself was stopped does not
count, so that a job that was suspended as a whole goes on.
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from engine.stop import EXIT_REQUEUE

MIN_STEPS = 10
"""Median steps that a standstill lasts at least."""
_TO_START_SEC = 1800.0
"""Least limit before the first step is done: it starts loaders, compiles, and warms up devices."""
_LOOKS = 20
"""Looks within `stall_sec`."""


_watching: list[Heartbeat] = []


def beat(place: str) -> None:
    """Note that the work has come to a place, if a `Heartbeat` watches over it."""
    for heartbeat in _watching:
        heartbeat.beat(place)


class _Sign(NamedTuple):
    """What a process was last seen to say, and how many looks ago it said something new."""

    text: str = ""
    age: int = 0


class Heartbeat:
    """Beats with the work of one process and watches over its job.

    Args:
        stall_sec: Standstill after which the job ends, in seconds; at least `MIN_STEPS` median steps.
        folder: Where the processes of the job leave signs for each other, in a file each; None for a single process.
        rank: Number of this process.
    """

    def __init__(self, stall_sec: float, folder: Path | None = None, rank: int = 0) -> None:
        self._stall_sec, self._look_sec = stall_sec, stall_sec / _LOOKS
        self._folder, self._rank = folder, rank
        self._count, self._place = 0, "its start"
        self._step_start: float | None = None
        self._step_sec: deque[float] = deque(maxlen=50)
        self._has_stepped = False
        self._signs: dict[int, _Sign] = {}
        self._done = threading.Event()

    def beat(self, place: str, *, is_step: bool = True) -> None:
        """Note that the work has come to a place, with or without a step done since the last one."""
        if is_step:
            now = time.monotonic()
            if self._step_start is not None:
                self._step_sec.append(now - self._step_start)
                self._has_stepped = True
            self._step_start = now
        self._place = place
        self._count += 1

    @property
    def limit_sec(self) -> float:
        """Standstill after which the job ends now."""
        steps = list(self._step_sec)
        limit = max(self._stall_sec, MIN_STEPS * statistics.median(steps) if steps else 0.0)
        return limit if self._has_stepped else max(limit, _TO_START_SEC)

    def _watch(self) -> None:
        # Reads and writes nothing: a file system that is dead would take this thread along.
        seen, looks = -1, 0
        while not self._done.wait(self._look_sec):
            seen, looks = self._count, looks + 1 if self._count == seen else 0
            if looks * self._look_sec > self.limit_sec:
                said = threading.Thread(target=sys.stderr.write, args=(self._describe(looks),), daemon=True)
                said.start()
                said.join(5)
                os._exit(EXIT_REQUEUE)

    def _exchange(self) -> None:
        assert self._folder is not None
        name = f"{socket.gethostname()}, process id {os.getpid()}"
        number = 0
        while not self._done.wait(self._look_sec / 2):
            number += 1
            with contextlib.suppress(OSError, ValueError):  # full, or not answering: the next time, or never
                # The number is new each time, so that others see that this process lives.
                (self._folder / str(self._rank)).write_text(f"{self._count}\n{self._place}\n{name}\n{number}\n")
                for path in self._folder.iterdir():
                    text, sign = path.read_text(), self._signs.get(int(path.name), _Sign())
                    is_new = text.count("\n") == 4 and text != sign.text
                    self._signs[int(path.name)] = _Sign(text, 0) if is_new else _Sign(sign.text, sign.age + 1)

    def _describe(self, looks: int) -> str:
        """Say who is to blame for a standstill of so many looks."""
        signs = {rank: sign for rank, sign in dict(self._signs).items() if rank != self._rank and sign.text}
        ours = f"process {self._rank} on {socket.gethostname()}, process id {os.getpid()}"
        counts = {rank: int(sign.text.split("\n")[0]) for rank, sign in signs.items()} | {self._rank: self._count}
        frozen = [rank for rank, sign in signs.items() if sign.age >= looks]
        behind = [rank for rank, count in counts.items() if count < max(counts.values())]
        blamed = []
        for rank in frozen or behind or [self._rank]:
            _, place, name, _ = signs[rank].text.split("\n")[:4] if rank != self._rank else ("", self._place, "", "")
            who = ours if rank == self._rank else f"process {rank} on {name}"
            blamed.append(
                f"{who}, {'gives no sign of life since' if rank in frozen else 'does not get beyond'} {place}"
            )
        return (
            f"error: nothing has moved for {looks * self._look_sec:.0f} s (stall_sec = {self._stall_sec:g}, and at "
            f"least {MIN_STEPS} steps): {'; '.join(blamed)}. The job ends, to be started again\n"
        )

    @contextlib.contextmanager
    def watching(self) -> Iterator[Heartbeat]:
        """Watch over the job within the block."""
        threads = [threading.Thread(target=self._watch, daemon=True)]
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            threads.append(threading.Thread(target=self._exchange, daemon=True))
        for thread in threads:
            thread.start()
        _watching.append(self)
        try:
            yield self
        finally:
            _watching.remove(self)
            self._done.set()
            threads[0].join()
            if self._folder is not None:
                threads[1].join(self._look_sec)
                (self._folder / str(self._rank)).unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # others are still there
                    self._folder.rmdir()
