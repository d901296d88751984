"""Report a run: metrics as means over processes, `metrics.jsonl`, clocks, peak memory, a bar or lines for a person.

Shape suffixes: B local batch, D embedding.
"""

from __future__ import annotations

import hashlib
import json
import math
import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from torch import Tensor

from engine import files, paths
from engine.logs import RecentRate, format_duration, parse_lines
from engine.schema.record import Attempt
from engine.schema.run import RunSpec
from engine.stop import Stopped

LOG_LINE_SEC = 15.0
"""Least time between lines in a log."""
MAX_METRICS = 128
"""Metrics that a method may log in a step."""
_DIGEST_BITS = 20


def pack_metrics(metrics: Mapping[str, Tensor], device: torch.device) -> Tensor:
    """Return metrics as a vector, for `mean_metrics` to read its sum over processes.

    Its length, (2 + MAX_METRICS,), float64, does not depend on the metrics: no process waits for numbers that another
    does not send.

    Args:
        metrics: Scalars by name, on any device, in any order; `mean_metrics` refuses too many.
        device: The device of the vector.
    """
    names = sorted(metrics)
    digest = int.from_bytes(hashlib.sha256("\n".join(names).encode()).digest()[:4], "big") >> (32 - _DIGEST_BITS)
    vector = torch.zeros(2 + MAX_METRICS, dtype=torch.float64)
    # float64 holds the sum of squares exactly, up to 2^53: over 8192 processes.
    vector[:2] = torch.tensor([digest, digest**2])
    vector = vector.to(device, non_blocking=True)
    values = [torch.as_tensor(metrics[name]).detach().to(vector, non_blocking=True) for name in names[:MAX_METRICS]]
    if values:
        vector[2 : 2 + len(values)] = torch.stack(values)
    return vector


def mean_metrics(metrics: Mapping[str, Tensor], sums: Tensor, world_size: int) -> dict[str, float]:
    """Return the means of metrics over processes, in the order of `metrics`.

    Args:
        metrics: The metrics of this process, as given to `pack_metrics`.
        sums: The sum of `pack_metrics` over processes.
        world_size: Number of processes.

    Raises:
        ValueError: On every process, if they logged different names, or too many.
    """
    digests, squares, *values = sums.tolist()
    # Digests are equal on all processes if and only if their variance is zero.
    if int(digests) ** 2 != world_size * int(squares):
        raise ValueError(
            f"processes logged different metrics, this one {', '.join(metrics) or 'none'}: in one step a method's "
            "loss must return metrics of the same names on all processes"
        )
    if len(metrics) > MAX_METRICS:
        raise ValueError(f"the method logged {len(metrics)} metrics: at most {MAX_METRICS} are allowed in a step")
    means = {name: value / world_size for name, value in zip(sorted(metrics), values, strict=False)}
    return {name: means[name] for name in metrics}


def embedding_moments(image_BD: Tensor, text_BD: Tensor) -> Tensor:
    """Return mean and second moment of unit embeddings of both sides as one vector, (2 (1 + D) D,), float64.

    Its mean over processes is that of the global batch. Takes B D^2 products: for logged steps only.
    """
    sides = (image_BD.detach(), text_BD.detach())
    moments = [torch.cat([x_BD.mean(dim=0, keepdim=True), x_BD.T @ x_BD / len(x_BD)]) for x_BD in sides]
    return torch.cat(moments).double().flatten()


def embedding_spread(moments: Tensor, embed_dim: int) -> dict[str, float]:
    """Return the spread of unit embeddings as metrics of each side.

    ``embedding/mean_norm_...`` is the norm of their mean; its square is their mean cosine; 1 if all are equal.
    ``embedding/effective_rank_...`` is 1 / mean cos^2 over all pairs: about the number of directions they use, 1 to D.

    Args:
        moments: `embedding_moments` of the global batch.
        embed_dim: D.
    """
    metrics = {}
    for side, moments_of_side in zip(("image", "text"), moments.view(2, 1 + embed_dim, embed_dim), strict=True):
        metrics[f"embedding/mean_norm_{side}"] = float(moments_of_side[0].norm())
        metrics[f"embedding/effective_rank_{side}"] = float(1 / moments_of_side[1:].square().sum())
    return metrics


class Clock:
    """Measures steps by the wall, from one logged line to the next, and the phases that they consist of.

    On a GPU phases are timed in logged steps alone, since reading a clock there is to wait for it, and stand for the
    steps since the line before. What happens between steps, such as a checkpoint, is no part of them.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.timing = True
        self.total_sec: dict[str, float] = defaultdict(float)
        self.step_sec: list[float] = []
        """Seconds of a step from line to line, but for each attempt's first line: it also starts loaders and GPUs."""
        self._first_step_sec: float | None = None
        self._before_step: dict[str, float] = {}
        self._step_start = 0.0
        self._line_start: float | None = None
        self._num_steps = 0
        self._is_in_step = False

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
            took = self.now() - start
            self.total_sec[name] += took
            if not self._is_in_step and self._line_start is not None:
                self._line_start += took

    def start_step(self, *, timing: bool) -> None:
        """Begin a step; with `timing` it ends a line, and a GPU times its phases."""
        self.timing = timing or self._device.type == "cpu"
        self._is_in_step = True
        self._before_step = dict(self.total_sec)
        self._step_start = self.now() if self.timing else 0.0
        if self._line_start is None:
            self._line_start = self.now()

    def end_step(self, *, is_line: bool) -> dict[str, float]:
        """End a step; at the end of a line, returns seconds of a step since the last one, and its phases' shares."""
        self.timing, self._is_in_step = True, False
        self._num_steps += 1
        if not is_line:
            return {}
        assert self._line_start is not None
        now = self.now()
        line_sec, timed_sec = now - self._line_start, now - self._step_start
        step_sec = line_sec / self._num_steps
        shares = {}
        for name, total in self.total_sec.items():
            before = self._before_step.get(name, 0.0)
            shares[name] = (total - before) / timed_sec
            if self._device.type == "cuda":
                self.total_sec[name] = before + shares[name] * line_sec
        if self._first_step_sec is None:
            self._first_step_sec = step_sec
        else:
            self.step_sec.append(step_sec)
        self._line_start, self._num_steps = now, 0
        return {"time/step_sec": step_sec} | {
            f"time/{name}_share": share for name, share in shares.items() if share > 0
        }

    @property
    def median_step_sec(self) -> float | None:
        """Median over lines, of seconds of a step."""
        return statistics.median(self.step_sec) if self.step_sec else self._first_step_sec

    def state_dict(self) -> dict[str, Any]:
        """Return the totals so far, for a checkpoint."""
        return {"total_sec": dict(self.total_sec), "step_sec": list(self.step_sec)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from earlier totals."""
        self.total_sec = defaultdict(float, state["total_sec"])
        self.step_sec = list(state["step_sec"])


def forget_peak_memory(device: torch.device) -> None:
    """Start the peak memory of a GPU anew. That of a process on a CPU cannot be set back everywhere."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory: of a GPU's allocator, or of the process on a CPU, resident, since its start.

    On a CPU that includes a checkpoint that was loaded, with the file's pages.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_after(path: Path, step: int) -> None:
    """Drop lines of `metrics.jsonl` after `step`, and a last line that was cut off when a run was killed."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1].splitlines(keepends=True)
    kept = [line for line, entry in zip(whole, parse_lines(path, whole), strict=True) if entry["step"] <= step]
    files.write_text(path, b"".join(kept).decode())


class Reporter:
    """Writes `metrics.jsonl` and shows the progress of a run; a context manager, so that no error leaves a bar behind.

    A terminal shows a bar, a log gets lines with the same facts. Both get a first line (the run, its data, its device,
    its first step) and a last one.

    Args:
        spec: The run.
        attempt: This start of it; None in all processes but the first, which then show and write nothing.
    """

    def __init__(self, spec: RunSpec, attempt: Attempt | None) -> None:
        self._spec, self._attempt = spec, attempt
        self._first_step = self._step = attempt.first_step if attempt else 0
        self._rate = RecentRate()
        self._start_sec = self._last_line_sec = time.perf_counter()
        self._facts: list[str] = []
        self._file: TextIO | None = None
        self._bar: Live | None = None

    def __enter__(self) -> Reporter:
        if self._attempt is None:
            return self
        path = paths.metrics(self._spec.run_id)
        forget_after(path, self._first_step)
        self._file = path.open("a", encoding="utf-8", buffering=1)
        sys.stderr.write(_describe(self._spec, self._attempt) + "\n")
        console = Console(stderr=True)
        if sys.stderr.isatty() and not console.is_dumb_terminal:
            self._bar = Live(get_renderable=self._draw, console=console, transient=True)
            self._bar.start()
        return self

    def step(self, step: int, metrics: dict[str, Any] | None) -> None:
        """Report that `step` steps are done; `metrics` are those of a logged step."""
        if self._file is None:
            return
        now_sec = time.perf_counter()
        self._step = step
        self._rate.mark(now_sec, step)
        if metrics is None:
            return
        # JSON has no NaN: values that are not finite become null.
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}
        line = json.dumps({"unix_sec": round(time.time(), 3), **finite}) + "\n"
        with files.explain_full_disk(paths.metrics(self._spec.run_id), num_bytes=len(line)):
            self._file.write(line)
        self._facts = [f"loss {metrics['loss/total']:.4f}", f"temperature {metrics['temperature/value']:.4f}"]
        is_first_line = self._last_line_sec == self._start_sec
        if self._bar is None and (is_first_line or now_sec - self._last_line_sec >= LOG_LINE_SEC):
            self._last_line_sec = now_sec
            sys.stderr.write("  ".join((self._place(), *self._facts, *self._speed())) + "\n")

    def _place(self) -> str:
        num_steps = self._spec.num_steps
        return f"step {self._step:,}/{num_steps:,}  {100 * self._step // num_steps} %"

    def _speed(self) -> list[str]:
        rate = self._rate.per_sec
        if not rate:
            return []
        left_sec = (self._spec.num_steps - self._step) / rate
        return [f"{rate * self._spec.global_batch_size:,.0f} samples/s", f"{format_duration(left_sec)} left"]

    def _draw(self) -> Group:
        row = Table.grid(padding=(0, 1), expand=True)
        row.add_column(ratio=1)
        row.add_column(no_wrap=True)
        bar = ProgressBar(total=self._spec.num_steps, completed=self._step)
        row.add_row(bar, Text(self._place()))
        return Group(row, Text("  ".join((*self._facts, *self._speed())), overflow="ellipsis", no_wrap=True))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        try:
            self._file.close()
        except OSError:
            # The rest cannot be written after an error either; the first error says more.
            if error is None:
                raise
        if self._bar is not None:
            self._bar.stop()
        elapsed_sec = time.perf_counter() - self._start_sec
        num_samples = (self._step - self._first_step) * self._spec.global_batch_size
        in_all = f"{num_samples:,} samples in {format_duration(elapsed_sec)}, {num_samples / elapsed_sec:,.0f}/s in all"
        sys.stderr.write("  ".join((self._place(), *self._facts, in_all)) + "\n")
        if isinstance(error, Stopped):
            sys.stderr.write(f"{self._spec.run_id}: {error}; started again, it goes on from there\n")


def _describe(spec: RunSpec, attempt: Attempt) -> str:
    origin = attempt.provenance
    processes = "1 process" if origin.world_size == 1 else f"{origin.world_size} processes"
    job = f", job {attempt.job_id}" if attempt.job_id else ""
    start = f"goes on after step {attempt.first_step:,}" if attempt.first_step else "from the start"
    return (
        f"{spec.run_id}: {spec.method.name}, {spec.model.name} on {spec.dataset.pairs:,} pairs of {spec.dataset.name}, "
        f"{spec.num_steps:,} steps of {spec.global_batch_size:,} samples, {spec.precision}; "
        f"{processes} on {origin.device} ({attempt.host}{job}); {start}"
    )
