"""List and end the jobs of this folder."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from pathlib import Path

from engine import files, paths
from engine.jobs import scheduler
from engine.jobs.scheduler import Job
from engine.schema.base import Frozen, parse

COMPLETED = "COMPLETED"
_ANSWER_AGE_SEC = 5.0


class JobView(Frozen):
    """A job as it is shown."""

    job: Job
    run_id: str
    """Empty for jobs that prepare data."""
    state: str
    """As Slurm spells it; in brackets, why it is pending."""
    node: str
    is_live: bool
    """Queued or running, or not known to have ended."""


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
    live = [view for view in look() if view.is_live]
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
    folder = path.parent
    is_of_run = folder.parent.parent.parent == paths.RESULTS / "runs"
    state, node, is_live = job.end or "", "", False
    if job.end is None:
        status = scheduler.status(job, not_before=time.time() - _ANSWER_AGE_SEC)
        state = f"{status.word} ({status.reason})" if status.reason else status.word
        node, is_live = status.node, status.phase != "ended"
    return JobView(
        job=job,
        run_id=folder.parent.parent.name if is_of_run else "",
        state=state,
        node=node,
        is_live=is_live,
    )
