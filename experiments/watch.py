"""Show how far the runs of suites are, from their files: `python -m experiments watch`.

Cheap with hundreds of runs: of each log only the end is read, and a run that is done only once.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from engine import paths
from engine.jobs import scheduler, slurm
from engine.logs import RecentRate, format_duration, parse_lines, read_attempts
from engine.schema.base import Frozen
from engine.schema.run import RunSpec
from engine.schema.suite import ExpandedSuite

TAIL_BYTES = 32 * 1024
"""Bytes that are read of the end of a log: some tens of lines."""
STATES = {"running": "cyan", "failed": "red", "pending": "yellow", "diverged": "magenta", "to do": "", "done": "green"}
"""In the order in which runs are listed, with their colours."""
ENDED = {"done", "diverged"}
MAX_LOGS = 3
"""Failed jobs whose logs are named."""
_WIDE = 144
"""Columns of a terminal on which the whole table fits."""
_OTHER_COLUMNS = 58
"""Columns of a narrower terminal that everything but the run takes."""
_MIN_RUN = 20
_SKIPPED_COLUMNS = 17
"""Columns that skipped steps and the loss scale take; a narrow terminal gets neither."""


class RunView(Frozen):
    """The progress of a run."""

    run_id: str
    variant: str
    """Its variant in the first of the suites; empty for a main run."""
    state: str
    """One of `STATES`."""
    samples_seen: int
    """At the last line of its log."""
    samples_total: int
    samples_per_sec: float | None
    """Over the last seconds of its log; None unless it is running."""
    left_sec: float | None
    """Training time left at this rate."""
    loss: float | None
    """None before the first line, and if it was not finite."""
    num_skipped: int
    """Steps that fp16 skipped."""
    loss_scale: float | None
    """That of fp16 at the last line; None in other precisions."""
    updated_at: float | None
    """Time of its last line, in seconds since 1970."""
    attempts: int
    """Number of its starts."""
    milestones_evaluated: int
    milestones: int
    """Models to evaluate, once for every evaluation."""
    failed_logs: tuple[str, ...]
    """Logs of jobs that ended without a result, training or evaluation."""

    @property
    def is_complete(self) -> bool:
        """Nothing is left to do, neither training nor evaluation."""
        return self.state in ENDED and self.milestones_evaluated == self.milestones


class SuiteView(Frozen):
    """The progress of a suite."""

    name: str
    states: dict[str, int]
    """Number of runs by state."""
    trained: float
    """Share of all samples that are trained on, in [0, 1]; what a diverged run left out counts as done."""
    samples_per_sec: float | None
    """Of all running runs together."""
    left_sec: float | None
    """Training time left at this rate, with as many runs at a time as now; failed runs are left out."""
    milestones_evaluated: int
    milestones: int


class Overview(Frozen):
    """All suites and runs at one moment."""

    suites: tuple[SuiteView, ...]
    runs: tuple[RunView, ...]
    """Each run once, also if it belongs to several of the suites."""


class Watcher:
    """Looks at the runs of some suites, again and again."""

    def __init__(self, suites: Iterable[ExpandedSuite]) -> None:
        self._suites = list(suites)
        self._specs: dict[str, RunSpec] = {}
        self._variants: dict[str, str] = {}
        self._evaluations: dict[str, set[tuple[int, str]]] = {}
        for suite in self._suites:
            for run in suite.runs:
                run_id = run.spec.run_id
                self._specs[run_id] = run.spec
                self._variants.setdefault(run_id, run.variant)
                self._evaluations.setdefault(run_id, set()).update(
                    (milestone, suite.evaluation.key) for milestone in run.milestones
                )
        self._complete: dict[str, RunView] = {}

    def look(self) -> Overview:
        """Read how far all runs are."""
        runs = {run_id: self._complete.get(run_id) or self._look_at(run_id) for run_id in self._specs}
        self._complete |= {run_id: run for run_id, run in runs.items() if run.is_complete}
        order = list(STATES)
        return Overview(
            suites=tuple(_sum_up(suite.name, [runs[run.spec.run_id] for run in suite.runs]) for suite in self._suites),
            runs=tuple(sorted(runs.values(), key=lambda run: (order.index(run.state), run.run_id))),
        )

    def _look_at(self, run_id: str) -> RunView:
        spec = self._specs[run_id]
        state = scheduler.run_state(run_id)
        starts = read_attempts(run_id)
        lines = _tail(paths.metrics(run_id))
        rate = _rate(lines, starts[-1].first_step) if starts and state == "running" else None
        seen = lines[-1]["samples_seen"] if lines else 0
        models = sorted(self._evaluations[run_id])
        to_evaluate = [model for model in models if not paths.evaluated(run_id, *model).exists()]
        return RunView(
            run_id=run_id,
            variant=self._variants[run_id],
            state=state,
            samples_seen=seen,
            samples_total=spec.samples_seen,
            samples_per_sec=rate,
            left_sec=(spec.samples_seen - seen) / rate if rate else None,
            loss=lines[-1].get("loss/total") if lines else None,
            num_skipped=lines[-1].get("scaler/num_skipped", 0) if lines else 0,
            loss_scale=lines[-1].get("scaler/scale") if lines else None,
            updated_at=paths.metrics(run_id).stat().st_mtime if lines else None,
            attempts=len(starts),
            milestones_evaluated=len(models) - len(to_evaluate),
            milestones=len(models),
            failed_logs=tuple(_failed_logs(run_id, state, [paths.evaluate_jobs(run_id, *m) for m in to_evaluate])),
        )


def _failed_logs(run_id: str, state: str, to_evaluate: Iterable[Path]) -> Iterator[str]:
    folders = [paths.jobs(run_id) / "train"] if state == "failed" else to_evaluate if state in ENDED else []
    for folder in folders:
        job = scheduler.read(folder)
        if job is not None and (state == "failed" or job.end not in {None, "COMPLETED", slurm.CANCELLED}):
            yield str(job.log(0, "err"))


def _tail(path: Path) -> list[dict[str, Any]]:
    """Return the last whole lines of a log, read from its end."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        start = max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES)
        file.seek(start)
        data = file.read()
    # The first line may be cut off by us, the last one by whoever is writing it.
    whole = data[data.find(b"\n") + 1 if start else 0 : data.rfind(b"\n") + 1]
    return list(parse_lines(path, whole.splitlines()))


def _rate(lines: Sequence[dict[str, Any]], first_step: int) -> float | None:
    """Return recent samples per second of this start of the run."""
    rate = RecentRate()
    for line in lines:
        if line["step"] > first_step and "unix_sec" in line:
            rate.mark(line["unix_sec"], line["samples_seen"])
    return rate.per_sec


def _sum_up(name: str, runs: Sequence[RunView]) -> SuiteView:
    total = sum(run.samples_total for run in runs)
    left = {run.run_id: 0 if run.state in ENDED else run.samples_total - run.samples_seen for run in runs}
    running = [run for run in runs if run.samples_per_sec]
    rate = sum(run.samples_per_sec or 0.0 for run in running)
    to_train = sum(left[run.run_id] for run in runs if run.state != "failed")
    # The slowest run may well be the last one.
    longest_sec = max((run.left_sec or 0.0 for run in running), default=0.0)
    counts = Counter(run.state for run in runs)
    return SuiteView(
        name=name,
        states={state: counts[state] for state in STATES if counts[state]},
        trained=1 - sum(left.values()) / total,
        samples_per_sec=rate or None,
        left_sec=max(to_train / rate, longest_sec) if rate else None,
        milestones_evaluated=sum(run.milestones_evaluated for run in runs),
        milestones=sum(run.milestones for run in runs),
    )


def show(overview: Overview, *, width: int, max_rows: int | None = None, now: float | None = None) -> Group:
    """Draw an overview.

    Args:
        overview: What to draw.
        width: Columns of the terminal; a narrow one gets fewer columns of the table.
        max_rows: Runs to show; None is all.
        now: Seconds since 1970; None asks the clock.
    """
    now = time.time() if now is None else now
    parts: list[Text | Table] = [_headline(suite) for suite in overview.suites]
    runs = overview.runs[:max_rows]
    has_room = width >= _OTHER_COLUMNS + _SKIPPED_COLUMNS + _MIN_RUN
    has_skipped = has_room and any(run.num_skipped for run in runs)
    more = _SKIPPED_COLUMNS * has_skipped
    is_wide = width >= _WIDE + more
    has_variants = is_wide and any(run.variant for run in runs)
    columns = [
        Column("run", no_wrap=True),
        *([Column("variant", overflow="fold")] if has_variants else []),
        Column("state", no_wrap=True, min_width=8),
        Column("trained", no_wrap=True, min_width=8),
        *([Column("samples", justify="right", no_wrap=True)] if is_wide else []),
        Column("samples/s", justify="right", no_wrap=True, min_width=9),
        Column("left", justify="right", no_wrap=True, min_width=8),
        Column("loss", justify="right", no_wrap=True, min_width=7),
        *([Column(name, justify="right", no_wrap=True, min_width=7) for name in ("skipped", "scale")] * has_skipped),
        *([Column("updated", justify="right", no_wrap=True)] if is_wide else []),
        Column("eval", justify="right", no_wrap=True, min_width=5),
        *([Column("starts", justify="right", no_wrap=True)] if is_wide else []),
    ]
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for run in runs:
        is_stale = run.state == "running" and run.updated_at is not None and now - run.updated_at > 10 * 60
        updated = "" if run.updated_at is None else f"{format_duration(max(0.0, now - run.updated_at))} ago"
        table.add_row(
            run.run_id if is_wide else _shorten(run.run_id, max(_MIN_RUN, width - _OTHER_COLUMNS - more)),
            *([run.variant] if has_variants else []),
            Text(run.state, style=STATES[run.state]),
            ProgressBar(total=run.samples_total, completed=run.samples_seen, width=8),
            *([f"{run.samples_seen:,}/{run.samples_total:,}"] if is_wide else []),
            f"{run.samples_per_sec:,.0f}" if run.samples_per_sec else "",
            format_duration(run.left_sec) if run.left_sec is not None else "",
            f"{run.loss:.4f}" if run.loss is not None else "",
            *([f"{run.num_skipped or ''}", f"{run.loss_scale:.6g}" if run.loss_scale else ""] if has_skipped else []),
            *([Text(updated, style="red" if is_stale else "")] if is_wide else []),
            Text(f"{run.milestones_evaluated}/{run.milestones}", style="red" if run.failed_logs else ""),
            *([str(run.attempts)] if is_wide else []),
        )
    parts.append(table)
    if len(runs) < len(overview.runs):
        parts.append(Text(f"... and {len(overview.runs) - len(runs)} more: --once shows all", style="dim"))
    logs = [log for run in overview.runs for log in run.failed_logs]
    parts += [Text(f"failed: {log}", style="red") for log in logs[:MAX_LOGS]]
    if len(logs) > MAX_LOGS:
        parts.append(Text(f"... and {len(logs) - MAX_LOGS} more that failed", style="red"))
    return Group(*parts)


def _shorten(run_id: str, width: int) -> str:
    """Leave out the middle: a run's method, seed and hash stay."""
    if len(run_id) <= width:
        return run_id
    end = len("s0-01234567")
    return f"{run_id[: width - end - 1]}…{run_id[-end:]}"


def _headline(suite: SuiteView) -> Text:
    states = ", ".join(f"{number} {state}" for state, number in suite.states.items())
    facts = [
        states,
        f"{100 * suite.trained:.0f} % trained",
        f"{suite.milestones_evaluated}/{suite.milestones} models evaluated",
    ]
    if suite.left_sec is not None:
        facts.append(f"{suite.samples_per_sec:,.0f} samples/s, {format_duration(suite.left_sec)} of training left")
    return Text.assemble((suite.name, "bold"), ": ", "; ".join(facts))


def watch(suites: Iterable[ExpandedSuite], console: Console, *, every_sec: float) -> None:
    """Show how far suites are on a terminal, again and again, until everything is done or Ctrl-C is pressed."""
    watcher = Watcher(suites)
    with Live(console=console, auto_refresh=False) as live:
        try:
            while True:
                overview = watcher.look()
                # Two lines for each suite, the table's head, and what may stand below it.
                max_rows = max(1, console.height - 2 * len(overview.suites) - 6)
                live.update(show(overview, width=console.width, max_rows=max_rows), refresh=True)
                if all(run.is_complete for run in overview.runs):
                    return
                time.sleep(every_sec)
        except KeyboardInterrupt:
            return
