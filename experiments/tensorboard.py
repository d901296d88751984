"""Write what runs have logged in TensorBoard's format: `python -m experiments tensorboard SUITE`.

Made from `metrics.jsonl` and the results of evaluations, whenever wanted: training needs no TensorBoard, and old runs
can be shown. A run's event file is written anew as a whole when there is more of it, or when it has resumed.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable
from pathlib import Path

from engine import files, paths
from engine.logs import parse_lines
from engine.schema.base import parse
from engine.schema.evaluation import EvalResult
from engine.schema.run import RunSpec
from engine.schema.suite import ExpandedSuite

_PLACE = {"step", "samples_seen", "epoch", "unix_sec"}
_READ_SEC = 3600
"""By then, whoever read an older file has gone on."""


def mirror(suites: Iterable[ExpandedSuite], out: Path, *, every_sec: float | None) -> int:
    """Write what the runs of suites have logged below a folder, one folder a run.

    Args:
        suites: Whose runs.
        out: What becomes TensorBoard's ``--logdir``; runs that logged nothing since they were written are left alone.
        every_sec: Seconds between two looks for new lines, until Ctrl-C; None writes what is there.

    Returns:
        The number of runs that have logged anything.

    Raises:
        ValueError: If TensorBoard is not installed.
    """
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"TensorBoard is needed ({error}): run `pip install -e '.[tensorboard]'` in the checkout"
        ) from None
    specs: dict[str, RunSpec] = {}
    results: dict[str, set[Path]] = {}
    for suite in suites:
        for run in suite.runs:
            run_id = run.spec.run_id
            specs[run_id] = run.spec
            results.setdefault(run_id, set()).update(
                paths.eval_result(run_id, milestone, name)
                for milestone in run.milestones
                for name in suite.evaluation.sets
            )
    logged: list[bool] = []
    try:
        while True:
            logged = [_write(spec, results[run_id], out / run_id) for run_id, spec in specs.items()]
            if every_sec is None:
                break
            time.sleep(every_sec)
    except KeyboardInterrupt:
        pass
    return sum(logged)


def _write(spec: RunSpec, results: Iterable[Path], folder: Path) -> bool:
    """Write a run's event file if the one that is there is older; returns whether the run has logged anything."""
    from torch.utils.tensorboard import SummaryWriter

    metrics = paths.metrics(spec.run_id)
    if not metrics.exists():
        return False
    results = [path for path in sorted(results) if path.exists()]
    newest_ns = max(path.stat().st_mtime_ns for path in (metrics, *results))
    old = list(folder.glob("events.*"))
    if newest_ns in (path.stat().st_mtime_ns for path in old):
        return True
    lines = metrics.read_bytes().rpartition(b"\n")[0].splitlines()  # the last may be half written
    # With this step a TensorBoard forgets what it has read of older files.
    with SummaryWriter(str(folder), purge_step=0) as writer:
        writer.add_text("spec", f"```\n{spec.model_dump_json(indent=1)}\n```", 0)
        for line in parse_lines(metrics, lines):
            for name in (name for name in line if name not in _PLACE):
                value = math.nan if line[name] is None else line[name]  # what was not finite is null in the log
                writer.add_scalar(name, value, line["step"], walltime=line.get("unix_sec"))
        for path in results:
            result = parse(EvalResult, files.read_text(path), str(path))
            step = result.milestone // spec.global_batch_size
            for metric, value in result.metrics.items():
                writer.add_scalar(f"eval/{result.eval_set}/{metric}", value, step, walltime=path.stat().st_mtime)
    (new,) = set(folder.glob("events.*")) - set(old)
    os.utime(new, ns=(newest_ns, newest_ns))
    for path in old:
        if path.stat().st_size:
            os.truncate(path, 0)  # if it were gone, a TensorBoard that is reading it would not go on to the next
        elif path.stat().st_mtime < time.time() - _READ_SEC:
            path.unlink()
    return True
