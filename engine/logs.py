"""The log and the starts of a run, as the run and those who watch it read them. Imports no torch."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from engine import files, paths
from engine.schema.base import parse
from engine.schema.record import Attempt

RECENT_SEC = 30.0
"""Span of a rate: short enough to follow when other work takes the machine, or leaves it."""


def parse_lines(path: Path, lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Read lines of a `metrics.jsonl`.

    Raises:
        ValueError: If a line is none of such a file; names it.
    """
    for line in lines:
        try:
            entry: dict[str, Any] = json.loads(line.decode())
            if type(entry["step"]) is not int:
                raise ValueError(f"it is {entry['step']!r:.40}")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{path}: the line {line[:80].decode(errors='replace')!r} is no JSON object with a 'step' ({error}): "
                "remove that line"
            ) from None
        yield entry


def read_attempts(run_id: str) -> tuple[Attempt, ...]:
    """Return the attempts of a run so far, in order."""
    path = paths.attempts(run_id)
    lines = files.read_text(path).splitlines() if path.exists() else []
    return tuple(parse(Attempt, line, str(path)) for line in lines)


class RecentRate:
    """Steps or samples per second over the last `RECENT_SEC`, or since the mark before if that is longer ago.

    The rate leaves out what was done before the first mark: the first step loads, allocates and compiles.
    """

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque()

    def mark(self, now_sec: float, count: int) -> None:
        """Note that `count` are done."""
        # One mark per second is enough: the newest.
        if len(self._marks) > 1 and now_sec - self._marks[-2][0] < 1:
            self._marks.pop()
        self._marks.append((now_sec, count))
        while len(self._marks) > 2 and self._marks[1][0] <= now_sec - RECENT_SEC:
            self._marks.popleft()

    @property
    def per_sec(self) -> float | None:
        """The rate; None before the second mark."""
        if len(self._marks) < 2:
            return None
        (first_sec, first), (last_sec, last) = self._marks[0], self._marks[-1]
        return (last - first) / max(last_sec - first_sec, 1e-9)


def format_duration(seconds: float) -> str:
    """Return ``h:mm:ss``, or days and hours when there are days.

    >>> format_duration(3725.4), format_duration(200_000)
    ('1:02:05', '2 d 7 h')
    """
    minutes, sec = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{sec:02}" if hours < 24 else f"{hours // 24} d {hours % 24} h"
