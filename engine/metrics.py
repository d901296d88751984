"""`metrics.jsonl`, clocks by phase, and what a person sees while training."""

from __future__ import annotations

import json
import math
import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from engine import paths


class Clock:
    """Adds up seconds by phase. On a GPU only when `timing`, since reading a clock there means waiting for it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.timing = True
        self.total_sec: dict[str, float] = defaultdict(float)
        self.step_sec: list[float] = []
        self._before_step: dict[str, float] = {}
        self._step_start = 0.0

    def now(self) -> float:
        """Return the time in seconds, after the device has finished what it was given."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a block."""
        if not self.timing:
            yield
            return
        start = self.now()
        try:
            yield
        finally:
            self.total_sec[name] += self.now() - start

    def start_step(self, *, timing: bool) -> None:
        """Begin a step; `timing` says whether its phases are measured."""
        self.timing = timing or self._device.type == "cpu"
        self._before_step = dict(self.total_sec)
        self._step_start = self.now() if self.timing else 0.0

    def end_step(self) -> dict[str, float]:
        """End a step; returns its seconds as ``time/<phase>_sec`` when it was timed."""
        timed, self.timing = self.timing, True
        if not timed:
            return {}
        step_sec = self.now() - self._step_start
        self.step_sec.append(step_sec)
        phases = {k: v - self._before_step.get(k, 0.0) for k, v in self.total_sec.items()}
        times = {f"time/{k}_sec": v for k, v in phases.items() if v > 0}
        return {"time/step_sec": step_sec, **times}

    @property
    def median_step_sec(self) -> float | None:
        """Median over the timed steps, the first ones (warm-up of caches and kernels) left out."""
        steps = self.step_sec[5:] or self.step_sec
        return statistics.median(steps) if steps else None

    def state_dict(self) -> dict[str, Any]:
        """Totals so far, for a checkpoint."""
        return {"total_sec": dict(self.total_sec), "step_sec": list(self.step_sec)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from earlier totals."""
        self.total_sec = defaultdict(float, state["total_sec"])
        self.step_sec = list(state["step_sec"])


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory: of the device on a GPU, resident memory of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_after(path: Path, step: int) -> None:
    """Drop the lines of `metrics.jsonl` beyond `step`, and a last one that was cut off when a run was killed."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    paths.write_text(path, "".join(kept))


class Reporter:
    """Writes metrics to a file, and progress to a terminal (a bar) or a log (plain lines)."""

    def __init__(self, path: Path | None, run_id: str, num_steps: int, first_step: int) -> None:
        if path:
            forget_after(path, first_step)
        self._file = path.open("a", encoding="utf-8", buffering=1) if path else None
        self._num_steps, self._start, self._first_step = num_steps, time.perf_counter(), first_step
        self._last_line = self._start
        self._bar: Progress | None = None
        if path and sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[state]}"))
            self._bar.start()
            self._task = self._bar.add_task(run_id, total=num_steps, completed=first_step, state="")

    def step(self, step: int, metrics: dict[str, Any] | None) -> None:
        """Report that `step` steps are done; `metrics` is the line to write, if any."""
        if metrics is not None and self._file:
            # JSON has no NaN: what is not finite becomes null.
            line = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}
            self._file.write(json.dumps(line) + "\n")
        if not self._file:
            return
        state = "" if metrics is None else self._state(step, metrics)
        if self._bar:
            self._bar.update(self._task, completed=step)
            if state:
                self._bar.update(self._task, state=state)
        elif state and (time.perf_counter() - self._last_line > 15 or step == self._num_steps):
            self._last_line = time.perf_counter()
            sys.stderr.write(f"step {step}/{self._num_steps}  {state}\n")

    def _state(self, step: int, metrics: dict[str, Any]) -> str:
        rate = (step - self._first_step) / max(time.perf_counter() - self._start, 1e-9)
        pairs_per_sec = rate * metrics["samples_seen"] / max(step, 1)
        temperature = metrics["temperature/value"]
        return f"loss {metrics['loss/total']:.4f}  temperature {temperature:.4f}  {pairs_per_sec:,.0f} pairs/s"

    def close(self) -> None:
        """Close the file and the bar."""
        if self._bar:
            self._bar.stop()
        if self._file:
            self._file.close()
