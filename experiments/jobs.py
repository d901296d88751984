"""List and end the jobs of this folder."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from engine import files, paths
from engine.jobs import scheduler
from engine.jobs.scheduler import Job, Status
from engine.schema.base import parse

_ANSWER_AGE_SEC = 5.0


class JobView(NamedTuple):
    """A job as it is shown."""

    run_id: str
    """Empty for jobs that prepare data."""
    job: Job
    status: Status


def look(run_ids: Collection[str] | None = None) -> list[JobView]:
    """Return the newest job of every folder of jobs.

    Args:
        run_ids: Runs whose jobs are wanted; None wants all, also those that prepare data.
    """
    views = (_view(path) for path in paths.job_records())
    return [view for view in views if run_ids is None or view.run_id in run_ids]


def cancel(names: Sequence[str]) -> list[Job]:
    """End all jobs of runs, or single jobs by their names.

    Returns:
        The jobs that were ended.

    Raises:
        ValueError: If a name has no job that is queued or running; nothing is ended then.
    """
    live = [view for view in look() if view.status.phase != "ended"]
    chosen = {name: [view.job for view in live if name in (view.run_id, view.job.name)] for name in names}
    for name, jobs in chosen.items():
        if not jobs:
            raise ValueError(
                f"no job of {name!r} is queued or running: `python -m experiments jobs` shows those that are"
            )
    ended = list({job.job_id: job for jobs in chosen.values() for job in jobs}.values())
    for job in ended:
        scheduler.cancel(job)
    return ended


def _view(path: Path) -> JobView:
    job = parse(Job, files.read_text(path), str(path))
    of_run = path.parent.parent.parent
    run_id = of_run.name if of_run.parent == paths.RESULTS / "runs" else ""
    return JobView(run_id, job, scheduler.status(job, not_before=time.time() - _ANSWER_AGE_SEC))
