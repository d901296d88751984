"""Collects the engine's JSON files into one tidy frame. Refuses results that are missing or contradict each other."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.numpy

from analysis import bootstrap
from analysis.frame import COLUMNS, VALIDATION
from engine import files, paths
from engine.schema.base import ModelT, canonical_json, fingerprint, parse
from engine.schema.evaluation import WORST_GROUP, EvalResult, Evaluation
from engine.schema.record import GradientError, NormalizerError, Provenance, Record
from engine.schema.suite import ExpandedSuite, SuiteRun

MAX_CURVE_POINTS = 400
"""Longer logs are averaged in bins. A figure shows no more points, and every n-th step would alias with restarts."""
MAX_ROUNDING = 1e-6
"""Largest difference between a score and the one computed from its outcomes; scores are means in float32."""
MAX_ANCHORS = 512
"""Anchors of a run and side that a figure of log-normalizers shows."""

Row = dict[str, Any]
Seen = dict[tuple[str, str], tuple[str | None, Path]]
"""Digests that all runs must share, each with the file that named it first."""


class CollectError(ValueError):
    """Results are missing or contradict each other."""


def collect(of: Path | ExpandedSuite) -> pd.DataFrame:
    """Collect all results of an expanded suite.

    Args:
        of: The suite, or its file. Results lie where `engine.paths` says.

    Returns:
        The tidy frame, columns as in `analysis.frame.COLUMNS`.

    Raises:
        CollectError: If a result is missing or does not fit; the message names the file.
    """
    suite = _load(ExpandedSuite, of) if isinstance(of, Path) else of
    _refuse_doubles(suite)
    _refuse_holes(suite)
    rows: list[Row] = []
    seen: Seen = {}
    # Sets that were not on disk when some run was evaluated: averages leave them out for all runs or for none.
    missing = frozenset(
        name
        for run in suite.runs
        for milestone in run.milestones
        for name in suite.evaluation.sets
        if _result(run, milestone, name).status == "missing"
    )
    num_seeds = Counter(_place(run) for run in suite.runs)
    for run in suite.runs:
        path = paths.record(run.spec.run_id)
        record = _load(Record, path)
        _check_record(run, record, path)
        _agree(seen, ("training set", run.spec.dataset.name), record.provenance.dataset_sha256, path)
        shared = _shared(suite.name, run, record)
        for row in (
            *_score_rows(suite.evaluation, run, record, seen, missing),
            *(_sampling_rows(suite.evaluation, run) if not run.variant and num_seeds[_place(run)] == 1 else ()),
            *_error_rows("normalizer", record.normalizer_error),
            *_log_normalizer_rows(record),
            *_error_rows("gradient", record.gradient_error),
            *_train_rows(record),
            *_cost_rows(record),
            *_option_rows(run),
            *_setting_rows(run),
            *_hypothesis_rows(suite, run),
            *_signature_rows(record),
        ):
            rows.append({**shared, "is_final": row["samples_seen"] == run.spec.samples_seen, **row})
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def _shared(suite: str, run: SuiteRun, record: Record) -> Row:
    # A run that went on elsewhere names all its commits and devices: its times are a mixture.
    origins = [attempt.provenance for attempt in record.attempts]
    # Times compare only with the same number of processes and threads, so these belong to the device.
    devices = (
        (f"{o.world_size} x " if o.world_size > 1 else "")
        + o.device
        + (f" ({o.threads} threads)" if o.threads > 1 else "")
        for o in origins
    )
    return {
        "suite": suite,
        "run_id": run.spec.run_id,
        "method": run.method,
        "variant": run.variant,
        "dataset": run.spec.dataset.name,
        "dataset_pairs": run.spec.dataset.pairs,
        "model": run.spec.model.name,
        "global_batch_size": run.spec.global_batch_size,
        "seed": run.spec.seed,
        "commit": ", ".join(dict.fromkeys(map(commit, origins))),
        "device": ", ".join(dict.fromkeys(devices)),
        "title": "",
        "metric": "",
        "chance": math.nan,
        "num_samples": None,
        "is_main": False,
        "status": record.status,
    }


def _score_rows(
    evaluation: Evaluation, run: SuiteRun, record: Record, seen: Seen, missing: frozenset[str]
) -> Iterator[Row]:
    for milestone in run.milestones:
        results = {}
        for name in evaluation.sets:
            path = paths.eval_result(run.spec.run_id, milestone, name)
            results[name] = result = _result(run, milestone, name)
            _check_result(result, run, record, milestone, name, evaluation, path)
            _agree(seen, ("evaluator of", name), canonical_json(dict(result.evaluator)), path)
            if result.data_sha256 is not None:
                _agree(seen, ("content of", name), result.data_sha256, path)
        is_diverged = "diverged" in (record.status, *(result.status for result in results.values()))
        absent = "diverged" if is_diverged else "absent"
        lost = {name for name, result in results.items() if result.status in ("absent", "diverged")}
        values = {name: result.value for name, result in results.items()}
        for kind, of_kind in (("average", evaluation), ("validation", _of_validation(evaluation))):
            for key, average in of_kind.averaged(values, missing).items():
                why = absent if lost.intersection(of_kind.averages[key]) else "missing"
                yield {
                    "kind": kind,
                    "samples_seen": milestone,
                    "name": average.name,
                    "title": average.name,
                    "metric": "mean",
                    "value": math.nan if average.value is None else average.value,
                    "chance": average.chance,
                    "num_samples": average.num_sets,
                    "is_main": True,
                    "status": why if average.value is None else "evaluated",
                }
        for name, result in results.items():
            card = evaluation.sets[name]
            metrics = {result.main_metric: result.value, **result.metrics, result.main_metric: result.value}
            for metric, value in metrics.items():
                is_main = metric == result.main_metric
                yield {
                    "kind": "eval",
                    "samples_seen": milestone,
                    "name": name,
                    "title": card.title,
                    "metric": metric,
                    "value": math.nan if value is None else value,
                    "chance": card.chance if is_main else math.nan,
                    "num_samples": result.num_samples,
                    "is_main": is_main,
                    "status": absent if result.status == "absent" else result.status,
                }


def _of_validation(evaluation: Evaluation) -> Evaluation:
    """Return an evaluation whose one average is that of the sets that no average has; without any, it has none."""
    averaged = {name for members in evaluation.averages.values() for name in members}
    others = tuple(name for name in evaluation.sets if name not in averaged)
    is_given = bool(averaged and others)
    return evaluation.model_copy(update={"averages": {VALIDATION: others} if is_given else {}})


def _place(run: SuiteRun) -> tuple[object, ...]:
    """Return what runs have in common that differ in their seed only."""
    spec = run.spec
    return run.method, run.variant, spec.dataset, spec.model.name, spec.global_batch_size


def _sampling_rows(evaluation: Evaluation, run: SuiteRun) -> Iterator[Row]:
    """Resample the final model's sets: the only interval that a run without further seeds can have.

    Averages have none. Sets that show the same pictures would have to be resampled together, and results do not say
    which sets do.
    """
    end = run.spec.samples_seen
    for name, card in evaluation.sets.items():
        result = _result(run, end, name)
        if result.outcomes is None or card.metric in WORST_GROUP:
            continue  # A resample's lowest group is lower than the set's, by more than the interval.
        # The same resamples for a run, whatever other runs the suite has.
        seed = int.from_bytes(hashlib.sha256(f"{run.spec.run_id}/{name}".encode()).digest()[:8], "big")
        draws = bootstrap.draw(result.outcomes, card.metric, np.random.default_rng(seed))
        value = bootstrap.half_width(draws)
        yield {"kind": "sampling", "samples_seen": end, "name": name, "metric": "half_width", "value": value}


def _rows(kind: str, samples_seen: int, values: Mapping[str, Any]) -> Iterator[Row]:
    for name, value in values.items():
        yield {"kind": kind, "samples_seen": samples_seen, "name": name, "value": value}


def _error_rows(kind: str, errors: Sequence[NormalizerError | GradientError]) -> Iterator[Row]:
    for entry in errors:
        yield from _rows(kind, entry.samples_seen, entry.model_dump(exclude={"samples_seen", "sample_sha256"}))


def _log_normalizer_rows(record: Record) -> Iterator[Row]:
    """Give estimates and exact values for the first anchors of the final model; `metric` numbers the anchors."""
    for entry in record.normalizer_error:
        if entry.samples_seen != record.spec.samples_seen or entry.sample_sha256 is None:
            continue
        path = paths.log_normalizers(record.run_id, entry.samples_seen)
        content = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(content).hexdigest() != entry.sample_sha256:
            what = "its digest is not the one in the record" if content else "is missing"
            raise CollectError(
                f"{path}: {what}; put the file back, or remove {paths.run(record.run_id)} and run snakemake again"
            )
        for name, values in sorted(safetensors.numpy.load(content).items()):
            for side, of_side in zip(("image", "text"), values.astype(float), strict=True):
                for anchor, value in enumerate(of_side[:MAX_ANCHORS]):
                    yield {
                        "kind": "log_normalizer",
                        "samples_seen": entry.samples_seen,
                        "name": f"{side}_{name}",
                        "metric": str(anchor),
                        "value": value if math.isfinite(value) else math.nan,
                    }


def _train_rows(record: Record) -> Iterator[Row]:
    path = paths.metrics(record.run_id)
    content = path.read_bytes()
    steps: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        shown = line[:80].decode(errors="replace")
        try:
            entry = json.loads(line.decode())
            # A resumed run repeats steps: the last line counts.
            steps[int(entry["step"])] = {**entry, "samples_seen": int(entry["samples_seen"])}
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise CollectError(
                f"{path}, line {number}: {shown!r} is no JSON object with 'step' and 'samples_seen' ({error}); "
                "mend the line, or remove the run's folder to train it again"
            ) from None
    if record.log_sha256 not in (None, hashlib.sha256(content).hexdigest()):
        raise CollectError(
            f"{path}: its digest is not the one in the record; put the file back, or remove {paths.run(record.run_id)} "
            "and run snakemake again"
        )
    if not steps:
        return  # Diverged before the first line was due.
    table = pd.DataFrame([steps[step] for step in sorted(steps)]).select_dtypes("number")
    table = table.drop(columns=["step", "epoch", "unix_sec"], errors="ignore")
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
    costs["num_processes"] = record.provenance.world_size
    return _rows("cost", record.samples_seen, costs)


def _option_rows(run: SuiteRun) -> Iterator[Row]:
    """Give the method's options: numbers in `value` ("never" is an infinite period), texts and switches in `title`.

    Lists and options that are not set have no row.
    """
    end = run.spec.samples_seen
    for name, option in _leaves(run.spec.method.config):
        if option == "never":
            option = math.inf
        if type(option) in (int, float):
            yield {"kind": "option", "samples_seen": end, "name": name, "value": option}
        elif isinstance(option, (str, bool)):
            title = option if isinstance(option, str) else canonical_json(option)
            yield {"kind": "option", "samples_seen": end, "name": name, "title": title, "value": math.nan}


def _leaves(options: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield options with their dotted names."""
    for name, option in options.items():
        if isinstance(option, Mapping):
            yield from _leaves(option, f"{above}{name}.")
        else:
            yield f"{above}{name}", option


def _setting_rows(run: SuiteRun) -> Iterator[Row]:
    """Give what a trial of a tuning tries: the value in `title`, its range in `metric`, its place there in `value`."""
    for name, setting in run.settings.items():
        yield {
            "kind": "setting",
            "samples_seen": run.spec.samples_seen,
            "name": name,
            "title": canonical_json(setting.value),
            "metric": setting.range,
            "value": math.nan if setting.place is None else setting.place,
        }


def _hypothesis_rows(suite: ExpandedSuite, run: SuiteRun) -> Iterator[Row]:
    """Give the sign that a run has in the difference of each hypothesis, numbered in the suite's order."""
    for number, hypothesis in enumerate(suite.hypotheses, start=1):
        for side, sign in ((hypothesis.higher, 1), (hypothesis.lower, -1)):
            if side.has(run):
                yield from _rows("hypothesis", run.spec.samples_seen, {str(number): sign})


def _signature_rows(record: Record) -> Iterator[Row]:
    for signature in record.signatures:
        for metric in ("first_step", "last_step"):
            step = getattr(signature, metric)
            seen = step * record.spec.global_batch_size
            yield {"kind": "signature", "samples_seen": seen, "name": signature.name, "metric": metric, "value": step}


def commit(origin: Provenance) -> str:
    """Name a commit, with a digest of changes that were not committed."""
    return f"{origin.commit}+{origin.dirty_sha256[:8]}" if origin.dirty_sha256 else origin.commit


def _result(run: SuiteRun, milestone: int, name: str) -> EvalResult:
    return _load(EvalResult, paths.eval_result(run.spec.run_id, milestone, name))


def _load(model: type[ModelT], path: Path) -> ModelT:
    try:
        return parse(model, files.read_text(path), str(path))
    except FileNotFoundError:
        raise CollectError(f"{path} is missing; run snakemake again") from None
    except ValueError as error:
        raise CollectError(str(error)) from None


def _refuse_doubles(suite: ExpandedSuite) -> None:
    """Refuse runs that a table cannot tell apart: it would take them for seeds."""
    seen: dict[tuple[object, ...], str] = {}
    for run in suite.runs:
        place = (*_place(run), run.spec.seed)
        if place in seen:
            raise CollectError(
                f"suite {suite.name!r}: runs {seen[place]} and {run.spec.run_id} have the same method, data set, "
                f"model, batch size, seed and variant {run.variant!r}; give one of them a variant label of its own"
            )
        seen[place] = run.spec.run_id


def _refuse_holes(suite: ExpandedSuite) -> None:
    needed = []
    for run in suite.runs:
        needed += [paths.record(run.spec.run_id), paths.metrics(run.spec.run_id)]
        for milestone in run.milestones:
            needed += [paths.eval_result(run.spec.run_id, milestone, name) for name in suite.evaluation.sets]
    missing = [str(path) for path in needed if not path.exists()]
    if missing:
        shown = "\n  ".join(missing[:10]) + ("\n  ..." if len(missing) > 10 else "")
        raise CollectError(
            f"suite {suite.name!r}: {len(missing)} of {len(needed)} result files are missing:\n  {shown}\n"
            f"Make them: snakemake --config suites={suite.name}"
        )


def _check_record(run: SuiteRun, record: Record, path: Path) -> None:
    expected = fingerprint(run.spec)
    if record.fingerprint != expected or fingerprint(record.spec) != expected or record.run_id != run.spec.run_id:
        raise CollectError(
            f"{path}: belongs to another run (fingerprint {record.fingerprint[:8]}, the suite asks for "
            f"{expected[:8]}, run {run.spec.run_id}); move its folder away and train the run again"
        )
    lacking = [m for m in run.spec.milestones if str(m) not in record.milestones]
    if record.status == "finished" and lacking:
        raise CollectError(f"{path}: finished, but without weights for milestones {lacking}; train the run again")


def _check_result(
    result: EvalResult, run: SuiteRun, record: Record, milestone: int, name: str, evaluation: Evaluation, path: Path
) -> None:
    card = evaluation.sets[name]

    def require(what: str, came: object, expected: object) -> None:
        if came != expected:
            raise CollectError(
                f"{path}: {what} is {came!r}, expected {expected!r}; remove {path.parent} and run snakemake again"
            )

    require("run_id", result.run_id, run.spec.run_id)
    require("milestone", result.milestone, milestone)
    require("eval_set", result.eval_set, name)
    require("main_metric", result.main_metric, card.metric)
    require("card_sha256", result.card_sha256, card.identity)
    require("precision", result.precision, evaluation.precision)
    if result.status != "evaluated":
        require(f"value of a result that is {result.status}", result.value, None)
        return
    weights = record.milestones.get(str(milestone))
    require("weights_sha256", result.weights_sha256, weights.sha256 if weights else None)
    if card.images is not None:
        require("num_samples", result.num_samples, card.images)
    if result.value is not None and not 0 <= result.value <= 1:
        raise CollectError(f"{path}: value is {result.value}, allowed is [0, 1]; evaluate again")
    if result.value is not None and result.outcomes is not None:
        counted = bootstrap.metric_of(result.outcomes, card.metric, np.array([result.outcomes.count]))[0]
        if not abs(counted - result.value) <= MAX_ROUNDING:
            raise CollectError(
                f"{path}: value of {run.spec.run_id} on {name} is {result.value}, but its outcomes make {counted:.6f}; "
                f"remove {path.parent} and run snakemake again"
            )


def _agree(seen: Seen, key: tuple[str, str], found: str | None, path: Path) -> None:
    """Refuse runs that name the same data or tool and have different digests of it."""
    first, where = seen.setdefault(key, (found, path))
    if first != found:
        raise CollectError(
            f"{path}: {' '.join(key)} is {found}, but {where} has {first}: these numbers do not "
            "compare; remove the wrong one and run snakemake again"
        )
