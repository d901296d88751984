"""From the engine's JSON files to one checked tidy frame. Refuses holes and anything that does not fit together."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, model_validator

from analysis.frame import COLUMNS
from engine import paths
from engine.spec import RunSpec, fingerprint, parse

MAX_CURVE_POINTS = 400
"""Longer logs are averaged in bins: a figure shows no more, and single steps would alias with periodic restarts."""

Row = dict[str, Any]
Seen = dict[tuple[str, str], tuple[str | None, Path]]
"""For what all runs must share: its digest, and the file that said so first."""
Model = TypeVar("Model", bound=BaseModel)


class CollectError(ValueError):
    """Results are missing or contradict each other."""


class _Part(BaseModel):
    """A part of a file that the engine writes; what the analysis does not use is ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Run(_Part):
    """A run of the suite."""

    run_id: str
    variant: str = ""
    spec: RunSpec


class Card(_Part):
    """What an evaluation set is."""

    title: str = ""
    metric: str
    images: int | None = None
    chance: float | None = None


class Evaluation(_Part):
    """What the suite's runs are evaluated on."""

    sets: tuple[str, ...]
    averages: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]]
    cards: dict[str, Card]

    @model_validator(mode="after")
    def _check(self) -> Evaluation:
        if lacking := [name for name in self.sets if name not in self.cards]:
            raise ValueError(f"no card for {', '.join(lacking)}; every set needs one")
        for average, sets in self.averages.items():
            if unknown := [name for name in sets if name not in self.sets]:
                raise ValueError(
                    f"average {average!r} is over {', '.join(unknown)}, which is not evaluated; "
                    f"allowed: {', '.join(self.sets)}"
                )
        return self


class Suite(_Part):
    """An expanded suite."""

    suite: str
    runs: tuple[Run, ...] = Field(min_length=1)
    evaluation: Evaluation


class Weights(_Part):
    """The exported model of a milestone."""

    sha256: str


class Provenance(_Part):
    """Where a run's numbers come from."""

    commit: str | None = None
    dirty_sha256: str | None = None
    dataset_sha256: str | None = None
    device: str | None = None


class Record(_Part):
    """What came out of a run."""

    schema_version: Literal[1]
    run_id: str
    fingerprint: str
    spec: RunSpec
    status: Literal["finished", "diverged"]
    samples_seen: int
    milestones: dict[int, Weights]
    normalizer_error: tuple[dict[str, float | None], ...] | None = None
    clock_sec: dict[str, float]
    median_step_sec: float | None
    peak_memory_bytes: float | None
    provenance: Provenance


class EvalResult(_Part):
    """What came out of one evaluation of one model."""

    schema_version: Literal[1]
    run_id: str
    milestone: int
    eval_set: str
    status: Literal["evaluated", "absent"]
    metrics: dict[str, float | None]
    main_metric: str
    value: float | None
    num_samples: int | None
    weights_sha256: str | None
    card_sha256: str


def collect(suite_path: Path) -> pd.DataFrame:
    """Collect all results of an expanded suite.

    Args:
        suite_path: The suite's file; results are found beside it as `engine.paths` says.

    Returns:
        The tidy frame, columns as in `analysis.frame.COLUMNS`.

    Raises:
        CollectError: If a result is missing or does not fit; the message names the file.
    """
    suite = _load(Suite, suite_path)
    _refuse_doubles(suite)
    _refuse_holes(suite)
    rows: list[Row] = []
    seen: Seen = {}
    for run in suite.runs:
        path = paths.record(run.run_id)
        record = _load(Record, path)
        _check_record(run, record, path)
        _agree(seen, ("training set", run.spec.dataset.name), record.provenance.dataset_sha256, path)
        shared = _shared(suite.suite, run, record)
        for row in (
            *_score_rows(suite.evaluation, run, record, seen),
            *_normalizer_rows(record),
            *_train_rows(run),
            *_cost_rows(record),
        ):
            rows.append({**shared, "is_final": row["samples_seen"] == run.spec.samples_seen, **row})
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def _shared(suite: str, run: Run, record: Record) -> Row:
    origin = record.provenance
    dirty = f"+{origin.dirty_sha256[:8]}" if origin.dirty_sha256 else ""
    return {
        "suite": suite,
        "run_id": run.run_id,
        "method": run.spec.method.name,
        "variant": run.variant,
        "dataset": run.spec.dataset.name,
        "dataset_pairs": run.spec.dataset.pairs,
        "model": run.spec.model.name,
        "global_batch_size": run.spec.global_batch_size,
        "seed": run.spec.seed,
        "commit": f"{origin.commit or 'unknown'}{dirty}",
        "device": origin.device or "unknown",
        "title": "",
        "metric": "",
        "chance": math.nan,
        "num_samples": None,
        "is_main": False,
        "status": record.status,
    }


def _score_rows(evaluation: Evaluation, run: Run, record: Record, seen: Seen) -> Iterator[Row]:
    for milestone in run.spec.milestones:
        results = {}
        for name in evaluation.sets:
            path = paths.eval_result(run.run_id, milestone, name)
            results[name] = result = _load(EvalResult, path)
            _check_result(result, run, record, milestone, name, evaluation.cards[name], path)
            _agree(seen, ("card of", name), result.card_sha256, path)
        absent = "diverged" if record.status == "diverged" else "absent"
        for name, sets in evaluation.averages.items():
            values = [results[s].value for s in sets]
            known = [value for value in values if value is not None]
            whole = len(known) == len(values)
            chances = [evaluation.cards[s].chance for s in sets]
            yield {
                "kind": "average",
                "samples_seen": milestone,
                "name": name,
                "title": name,
                "metric": "mean",
                "value": math.fsum(known) / len(known) if whole else math.nan,
                "chance": math.fsum(c or 0.0 for c in chances) / len(chances) if None not in chances else math.nan,
                "num_samples": len(sets),
                "is_main": True,
                "status": "evaluated" if whole else absent,
            }
        for name, result in results.items():
            card = evaluation.cards[name]
            metrics = {result.main_metric: result.value, **result.metrics, result.main_metric: result.value}
            for metric, value in metrics.items():
                is_main = metric == result.main_metric
                yield {
                    "kind": "eval",
                    "samples_seen": milestone,
                    "name": name,
                    "title": card.title or name,
                    "metric": metric,
                    "value": math.nan if value is None else value,
                    "chance": math.nan if card.chance is None or not is_main else card.chance,
                    "num_samples": result.num_samples,
                    "is_main": is_main,
                    "status": "evaluated" if value is not None else absent,
                }


def _normalizer_rows(record: Record) -> Iterator[Row]:
    for entry in record.normalizer_error or ():
        for name, value in entry.items():
            if name != "samples_seen":
                seen = int(entry["samples_seen"] or 0)
                yield {"kind": "normalizer", "samples_seen": seen, "name": name, "value": value}


def _train_rows(run: Run) -> Iterator[Row]:
    path = paths.metrics(run.run_id)
    steps: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entry = json.loads(line)
            # A resumed run repeats steps: the last line holds.
            steps[int(entry["step"])] = {**entry, "samples_seen": int(entry["samples_seen"])}
        except (ValueError, KeyError, TypeError) as error:
            raise CollectError(
                f"{path}, line {number}: {line[:80]!r} is no JSON object with 'step' and 'samples_seen' ({error}); "
                "mend the line, or remove the run's folder to train it again"
            ) from None
    if not steps:
        return  # Diverged before the first line was due.
    table = pd.DataFrame([steps[step] for step in sorted(steps)]).select_dtypes("number")
    table = table.drop(columns=["step", "epoch"], errors="ignore")
    bins = pd.Series(range(len(table))) // max(1, math.ceil(len(table) / MAX_CURVE_POINTS))
    groups = table.groupby(bins)
    means, ends = groups.mean(), groups["samples_seen"].max()
    for name in means.columns.drop("samples_seen"):
        kind = "cost" if name.startswith("time/") else "train"
        for samples_seen, value in zip(ends, means[name], strict=True):
            yield {"kind": kind, "samples_seen": samples_seen, "name": name, "value": value}


def _cost_rows(record: Record) -> Iterator[Row]:
    costs: dict[str, float | None] = {f"clock_sec/{clock}": seconds for clock, seconds in record.clock_sec.items()}
    costs |= {"median_step_sec": record.median_step_sec, "peak_memory_bytes": record.peak_memory_bytes}
    for name, value in costs.items():
        yield {"kind": "cost", "samples_seen": record.samples_seen, "name": name, "value": value}


def _load(model: type[Model], path: Path) -> Model:
    try:
        return parse(model, path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise CollectError(f"{path} is missing; make it with: snakemake {path}") from None
    except ValueError as error:
        raise CollectError(str(error)) from None


def _refuse_doubles(suite: Suite) -> None:
    """Refuse runs that tables could not tell apart: they would be taken for seeds of one another."""
    seen: dict[tuple[object, ...], str] = {}
    for run in suite.runs:
        spec = run.spec
        place = (spec.method.name, run.variant, spec.dataset, spec.model.name, spec.global_batch_size, spec.seed)
        if place in seen:
            raise CollectError(
                f"suite {suite.suite!r}: runs {seen[place]} and {run.run_id} have the same method, data set, model, "
                f"batch size, seed and variant {run.variant!r}; give one of them a variant label of its own"
            )
        seen[place] = run.run_id


def _refuse_holes(suite: Suite) -> None:
    needed = []
    for run in suite.runs:
        needed += [paths.record(run.run_id), paths.metrics(run.run_id)]
        for milestone in run.spec.milestones:
            needed += [paths.eval_result(run.run_id, milestone, name) for name in suite.evaluation.sets]
    missing = [str(path) for path in needed if not path.exists()]
    if missing:
        shown = "\n  ".join(missing[:10]) + ("\n  ..." if len(missing) > 10 else "")
        raise CollectError(
            f"suite {suite.suite!r}: {len(missing)} of {len(needed)} result files are missing:\n  {shown}\n"
            f"Train and evaluate what is left with: snakemake {paths.collected(suite.suite)}"
        )


def _check_record(run: Run, record: Record, path: Path) -> None:
    expected = fingerprint(run.spec)
    if record.fingerprint != expected or fingerprint(record.spec) != expected or record.run_id != run.run_id:
        raise CollectError(
            f"{path}: belongs to another run (fingerprint {record.fingerprint[:8]}, the suite asks for "
            f"{expected[:8]}, run {run.run_id}); move its folder away and train the run again"
        )
    lacking = [m for m in run.spec.milestones if m not in record.milestones]
    if record.status == "finished" and lacking:
        raise CollectError(f"{path}: finished, but without weights for milestones {lacking}; train the run again")


def _check_result(
    result: EvalResult, run: Run, record: Record, milestone: int, name: str, card: Card, path: Path
) -> None:
    def require(what: str, came: object, expected: object) -> None:
        if came != expected:
            raise CollectError(f"{path}: {what} is {came!r}, expected {expected!r}; remove the file and evaluate again")

    require("run_id", result.run_id, run.run_id)
    require("milestone", result.milestone, milestone)
    require("eval_set", result.eval_set, name)
    require("main_metric", result.main_metric, card.metric)
    if result.status == "absent":
        require("value of an absent result", result.value, None)
        return
    weights = record.milestones.get(milestone)
    require("weights_sha256", result.weights_sha256, weights.sha256 if weights else None)
    if card.images is not None:
        require("num_samples", result.num_samples, card.images)
    if result.value is not None and not 0 <= result.value <= 1:
        raise CollectError(f"{path}: value is {result.value}, allowed is [0, 1]; evaluate again")


def _agree(seen: Seen, key: tuple[str, str], sha256: str | None, path: Path) -> None:
    """Refuse to compare runs whose data differ under one name."""
    first, where = seen.setdefault(key, (sha256, path))
    if first != sha256:
        raise CollectError(
            f"{path}: {' '.join(key)} has digest {sha256}, but {where} has {first}: these numbers do not "
            "compare; remove the older of the two and make it again"
        )
