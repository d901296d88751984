"""What runs have logged, in TensorBoard's format: `python -m experiments tensorboard SUITE`.

Made from `metrics.jsonl` and the results of evaluations, whenever wanted: training needs no TensorBoard, old runs can
be shown, and a step that a resumed run takes a second time is there once.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import paths
from engine.evaluation import EvalResult
from engine.metrics import parse_lines
from engine.spec import Frozen, RunSpec, parse
from engine.suite import ExpandedSuite

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_PLACE = {"step", "samples_seen", "epoch", "unix_sec"}


class _Mirrored(Frozen):
    """What event files hold of a run; lies beside them."""

    last_line: str = ""
    """Of the log; where it is not found at its place, the run has resumed and its log is another."""
    end: int = 0
    """Bytes of the log up to the end of that line."""
    results: tuple[str, ...] = ()
    """Files of evaluation results."""


class _RunMirror:
    """One run's folder of event files. They are only ever added to, since a TensorBoard may be reading them."""

    def __init__(self, spec: RunSpec, eval_sets: set[str], folder: Path) -> None:
        self._spec, self._eval_sets, self._folder = spec, eval_sets, folder
        self._writer: SummaryWriter | None = None
        path = folder / "mirrored.json"
        self._mirrored = parse(_Mirrored, paths.read_text(path), str(path)) if path.exists() else _Mirrored()

    def update(self) -> bool:
        """Write what is new; returns whether the run has logged anything at all."""
        path = paths.metrics(self._spec.run_id)
        if not path.exists():
            return False
        with path.open("rb") as file:
            last_line = self._mirrored.last_line.encode()
            file.seek(self._mirrored.end - len(last_line))
            if file.read(len(last_line)) != last_line:
                self._mirrored = _Mirrored()
                self.close()
                file.seek(0)
            data = file.read()
        lines = data[: data.rfind(b"\n") + 1].splitlines(keepends=True)
        for entry in parse_lines(path, lines):
            self._write_metrics(entry)
        results = [path for path in self._results() if str(path) not in self._mirrored.results]
        for path in results:
            self._write_result(path)
        if lines or results:
            assert self._writer is not None
            self._writer.flush()
            self._mirrored = _Mirrored(
                last_line=lines[-1].decode() if lines else self._mirrored.last_line,
                end=self._mirrored.end + sum(map(len, lines)),
                results=(*self._mirrored.results, *map(str, results)),
            )
            paths.write_text(self._folder / "mirrored.json", self._mirrored.model_dump_json())
        return bool(self._mirrored.end)

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _results(self) -> Iterator[Path]:
        for milestone in self._spec.milestones:
            for name in sorted(self._eval_sets):
                path = paths.eval_result(self._spec.run_id, milestone, name)
                if path.exists():
                    yield path

    def _open(self) -> SummaryWriter:
        """Start an event file that takes the place of all that others hold of the steps that were not mirrored."""
        from torch.utils.tensorboard import SummaryWriter

        last_line = self._mirrored.last_line
        first_step = json.loads(last_line)["step"] + 1 if last_line else 0
        writer = SummaryWriter(str(self._folder), purge_step=first_step)
        if not last_line:
            writer.add_text("spec", f"```\n{self._spec.model_dump_json(indent=1)}\n```", 0)
        return writer

    def _write_metrics(self, line: dict[str, Any]) -> None:
        for name, value in line.items():
            if name not in _PLACE:
                self._write(name, line["step"], value, line.get("unix_sec"))

    def _write_result(self, path: Path) -> None:
        result = parse(EvalResult, paths.read_text(path), str(path))
        step = result.milestone // self._spec.global_batch_size
        for metric, value in result.metrics.items():
            self._write(f"eval/{result.eval_set}/{metric}", step, value, path.stat().st_mtime)

    def _write(self, name: str, step: int, value: float | None, unix_sec: float | None) -> None:
        self._writer = self._writer or self._open()
        # What was not finite is null in the log.
        self._writer.add_scalar(name, math.nan if value is None else value, step, walltime=unix_sec)


def mirror(suites: Iterable[ExpandedSuite], out: Path, *, every_sec: float | None) -> int:
    """Write what the runs of suites have logged below a folder, one folder a run.

    Args:
        suites: Whose runs.
        out: What becomes TensorBoard's ``--logdir``; what it has already is not written again.
        every_sec: Go on with what comes, looking so often, until Ctrl-C is pressed; None writes what is there.

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
    eval_sets: dict[str, set[str]] = {}
    for suite in suites:
        for run in suite.runs:
            specs[run.spec.run_id] = run.spec
            eval_sets.setdefault(run.spec.run_id, set()).update(suite.evaluation.sets)
    mirrors = {run_id: _RunMirror(spec, eval_sets[run_id], out / run_id) for run_id, spec in specs.items()}
    logged = set()
    try:
        while True:
            for run_id, run_mirror in mirrors.items():
                if run_mirror.update():
                    logged.add(run_id)
                if every_sec is None:
                    run_mirror.close()
            if every_sec is None:
                break
            time.sleep(every_sec)
    except KeyboardInterrupt:
        pass
    finally:
        for run_mirror in mirrors.values():
            run_mirror.close()
    return len(logged)
