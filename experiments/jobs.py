"""List, show and end the jobs of this folder."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from engine import files, paths
from engine.jobs import scheduler
from engine.jobs.scheduler import Job
from engine.jobs.slurm import CANCELLED, Status
from engine.schema.base import parse
from engine.schema.suite import ExpandedSuite

_ANSWER_AGE_SEC = 5.0
_WIDE = 144
"""Columns of a terminal on which the whole table fits."""


class JobView(NamedTuple):
    """A job as it is shown."""

    run_id: str
    """Empty for jobs that prepare data."""
    folder: Path
    """That of the jobs of its name, of which it is the newest."""
    job: Job
    status: Status

    @property
    def is_live(self) -> bool:
        """It is queued or running, or nobody can tell."""
        return self.status.phase != "ended"

    @property
    def has_failed(self) -> bool:
        """It ended without a result, and nobody ended it."""
        return not self.is_live and self.status.word not in ("COMPLETED", CANCELLED)


def look() -> list[JobView]:
    """Return the newest job of every folder of jobs."""
    return [_view(path) for path in paths.job_records()]


def outputs(suites: Iterable[ExpandedSuite]) -> dict[Path, Path]:
    """Return what the jobs of suites make, by their folders."""
    found = {}
    for suite in suites:
        for run_id, milestones in ((run.spec.run_id, run.milestones) for run in suite.runs):
            key = suite.evaluation.key
            found[paths.jobs(run_id) / "train"] = paths.record(run_id)
            found |= {paths.evaluate_jobs(run_id, n, key): paths.evaluated(run_id, n, key) for n in milestones}
    return found


def in_need(views: Iterable[JobView], suites: Iterable[ExpandedSuite]) -> list[JobView]:
    """Choose the jobs that are queued or running, and those that failed and whose result is still missing.

    Args:
        views: Jobs.
        suites: What is still asked for: a result of another card or spec is missed by nobody.
    """
    views = list(views)
    expected = outputs(suites) if any(view.has_failed for view in views) else {}

    def is_missed(view: JobView) -> bool:
        return not view.run_id or (view.folder in expected and not expected[view.folder].exists())

    return [view for view in views if view.is_live or (view.has_failed and is_missed(view))]


def show(views: Sequence[JobView], *, width: int) -> Group:
    """Draw jobs; a terminal of fewer than 144 columns gets the logs below the table, of jobs that failed."""
    is_wide = width >= _WIDE
    table = Table(
        Column("job", overflow="fold"),
        Column("number", no_wrap=True),
        Column("state", min_width=9, overflow="fold"),
        Column("submitted", no_wrap=True),
        *([Column("node", min_width=4, overflow="fold"), Column("log", overflow="fold")] if is_wide else []),
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    for view in views:
        since = time.strftime("%d %b %H:%M", time.localtime(view.job.started_at))
        more = (view.status.node, str(view.job.log(0, "err"))) if is_wide else ()
        table.add_row(view.job.name, view.job.job_id, str(view.status), since, *more)
    logs = [] if is_wide else [str(view.job.log(0, "err")) for view in views if view.has_failed]
    return Group(table, *(Text(f"failed: {log}", style="red", overflow="fold") for log in logs))


def cancel(names: Sequence[str]) -> list[Job]:
    """End all jobs of runs, or single jobs by their names.

    Returns:
        The jobs that were ended.

    Raises:
        ValueError: If a name has no job that is queued or running; nothing is ended then.
    """
    live = [view for view in look() if view.is_live]
    chosen = {name: [view for view in live if name in (view.run_id, view.job.name)] for name in names}
    for name, views in chosen.items():
        if not views:
            raise ValueError(
                f"no job of {name!r} is queued or running: `python -m experiments jobs` shows those that are"
            )
    ended = {view.folder: view.job for views in chosen.values() for view in views}
    for folder, job in ended.items():
        scheduler.cancel(folder, job)
    return list(ended.values())


def _view(path: Path) -> JobView:
    job = parse(Job, files.read_text(path), str(path))
    of_run = path.parent.parent.parent
    run_id = of_run.name if of_run.parent == paths.RESULTS / "runs" else ""
    return JobView(run_id, path.parent, job, scheduler.status(job, not_before=time.time() - _ANSWER_AGE_SEC))
