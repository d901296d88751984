"""Gathers a report from the frames, records, tables and figures of its suites. No HTML here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis import claims, rendering, staleness, style
from analysis import frame as tidy
from analysis.collect import commit
from analysis.report import shown
from analysis.report.runs import Runs, RunSection, day, device
from analysis.table import Cell, Table
from engine import files, paths
from engine.schema.base import parse, settings
from engine.schema.run import RunSpec
from engine.schema.suite import ExpandedSuite


@dataclass(frozen=True)
class MethodSection:
    """A method of a suite, with the settings of its main runs."""

    name: str
    color: str
    num_runs: int
    settings: dict[str, str]


@dataclass(frozen=True)
class SuiteSection:
    """A suite's part of the report."""

    name: str
    title: str
    command: str
    claims: tuple[str, ...]
    facts: dict[str, tuple[str, ...]]
    methods: tuple[MethodSection, ...]
    stale: str
    """Reason why the collected frame is out of date; empty if it is not."""
    problems: tuple[tuple[str, str], ...]
    """Results that diverged, are missing or out of date: (sentence, id of its run or empty)."""
    artifacts: shown.Artifacts
    sets: Table
    runs: Table
    run_ids: tuple[str, ...]
    """Ids of the rows of `runs`."""


@dataclass(frozen=True)
class Report:
    """All that the page shows."""

    title: str
    suites: tuple[SuiteSection, ...]
    runs: tuple[RunSection, ...]
    environments: tuple[dict[str, str], ...]


def gather(names: Iterable[str]) -> Report:
    """Gather the report of collected suites.

    Args:
        names: Full names of the suites, as in ``results/collected``.

    Raises:
        FileNotFoundError: If a suite is not collected.
        ValueError: If a file does not fit its schema; the message names it.
    """
    names = tuple(dict.fromkeys(names))
    lost = [str(path) for name in names for path in (paths.collected(name), paths.suite(name)) if not path.exists()]
    if lost:
        known = ", ".join(sorted(path.stem for path in paths.collected("*").parent.glob("*.parquet"))) or "none"
        raise FileNotFoundError(
            f"{', '.join(lost)}: not there. Run: snakemake --config suites={','.join(names)}. Collected here: {known}"
        )
    suites = [parse(ExpandedSuite, files.read_text(paths.suite(n)), str(paths.suite(n))) for n in names]
    frames = {name: tidy.read(paths.collected(name)) for name in names}
    runs = Runs(suites, pd.concat(frames.values(), ignore_index=True))
    parts = tuple(_suite(suite, frames[suite.name], runs) for suite in suites)
    title = names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
    return Report(title, parts, tuple(runs.sections.values()), tuple(runs.environments))


def _suite(suite: ExpandedSuite, frame: pd.DataFrame, runs: Runs) -> SuiteSection:
    stale = staleness.of_suite(suite.name)
    old_frame = stale.pop(paths.collected(suite.name), "")
    artifacts = shown.gather(suite.name, frame, stale)
    known = {item.place for item in (*artifacts.tables, *artifacts.figures)}
    again = f"make it again: snakemake --config suites={suite.name}"
    problems = [(f"{path}: {why}; {again}", "") for path, why in staleness.incomplete(suite.name).items()]
    problems += [(f"{path}: {why}", "") for path, why in stale.items() if str(path) not in known]
    for run in (runs.sections[run.spec.run_id] for run in suite.runs):
        if run.status != "finished":
            problems.append((f"{run.title}: {run.status}", run.run_id))
    table, ids = _runs(suite, frame, runs)
    averaged = next(iter(suite.evaluation.averages.values()), ())
    return SuiteSection(
        name=suite.name,
        title=suite.title,
        command=f"snakemake --config suites={suite.name}",
        # Over sets methods are compared where the suite has that table: elsewhere sets are few or share pictures.
        claims=claims.claims(frame, averaged if "across_sets" in (table.name for table in artifacts.tables) else ()),
        facts=_facts(suite, runs),
        methods=_methods(suite),
        stale=old_frame,
        problems=(*problems, *_missing_results(frame)),
        artifacts=artifacts,
        sets=_sets(suite),
        runs=table,
        run_ids=ids,
    )


def _facts(suite: ExpandedSuite, runs: Runs) -> dict[str, tuple[str, ...]]:
    specs = [run.spec for run in suite.runs]
    records = [runs.records[spec.run_id] for spec in specs if spec.run_id in runs.records]
    ends = [record.status for record in records]
    seeds = sorted({spec.seed for spec in specs})
    devices = dict.fromkeys(device(a.provenance) for record in records for a in record.attempts)
    commits = dict.fromkeys(rendering.short(commit(a.provenance)) for record in records for a in record.attempts)
    starts = [date for spec in specs for date in runs.dates.get(spec.run_id, ())]
    facts = {
        "Suite": (suite.file,) if suite.file else (),
        "Runs": (
            f"{len(specs)}: {ends.count('finished')} finished, {ends.count('diverged')} diverged"
            + (f", {len(specs) - len(ends)} without a record" if len(ends) < len(specs) else ""),
        ),
        "Training data": tuple(dict.fromkeys(_dataset(suite, spec) for spec in specs)),
        "Model": tuple(dict.fromkeys(f"{spec.model.name}, {spec.precision}" for spec in specs)),
        "Global batch size": _sorted(spec.global_batch_size for spec in specs),
        "Samples seen": _sorted(spec.samples_seen for spec in specs),
        "Seeds": (", ".join(map(str, seeds)),),
        "Evaluated on": (
            f"{len(suite.evaluation.sets)} sets ({suite.evaluation.name}); averages: "
            + (", ".join(f"{name} ({len(sets)})" for name, sets in suite.evaluation.averages.items()) or "none"),
        ),
        "Code": tuple(f"commit {commit}" for commit in commits),
        "Devices": tuple(devices),
        "Trained": (f"{day(min(starts))} to {day(max(starts))} (UTC)",) if starts else (),
    }
    return {name: values for name, values in facts.items() if values}


def _sorted(numbers: Iterable[int]) -> tuple[str, ...]:
    return (", ".join(f"{number:,}" for number in sorted(set(numbers))),)


def _dataset(suite: ExpandedSuite, spec: RunSpec) -> str:
    told = f"{style.dataset(spec.dataset.name)}: {spec.dataset.pairs:,} pairs, revision {spec.dataset.revision}."
    card = suite.training_sets.get(spec.dataset.name)
    return told if card is None else f"{told} {card.title}. Licence: {card.licence}. Source: {card.source}."


def _methods(suite: ExpandedSuite) -> tuple[MethodSection, ...]:
    found = []
    for name in style.ordered({run.method for run in suite.runs}):
        runs = [run for run in suite.runs if run.method == name]
        main = [run for run in runs if not run.variant] or runs
        values: dict[str, list[str]] = {}
        for run in main:
            for key, value in settings(run.spec.method.config).items():
                values.setdefault(key, []).append(value)
        told = {key: " or ".join(dict.fromkeys(several)) for key, several in values.items()}
        source = main[0].spec.method.source
        if source is not None:
            told = {"file": f"{source.class_name}, SHA-256 {source.sha256[:12]}", **told}
        look = style.method(name)
        found.append(MethodSection(look.name, look.color, len(runs), told))
    return tuple(found)


def _sets(suite: ExpandedSuite) -> Table:
    sets = suite.evaluation.sets.values()
    rows = tuple(
        (
            card.title,
            card.task.replace("zeroshot_", "zero-shot "),
            card.metric,
            Cell(card.images, form=",d"),
            Cell(100 * card.chance, form=".3g"),
            card.revision[:12],
        )
        for card in sets
    )
    origins: dict[tuple[str, str], list[str]] = {}
    for card in sets:
        origins.setdefault((card.licence, card.source), []).append(card.title)
    notes = tuple(
        f"{', '.join(titles) if len(origins) > 1 else 'All sets'}: licence {licence}; source {source}"
        for (licence, source), titles in origins.items()
    )
    header = ("Set", "Task", "Main metric", "Images", "Chance, %", "Revision")
    return Table(f"Evaluation sets ({suite.evaluation.name})", header, rows, notes=notes)


def _missing_results(frame: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Name missing results: sets that were not on disk, and milestones that a run did not reach."""
    rows = frame[(frame["kind"] == "eval") & frame["is_main"]]
    for title, some in rows[rows["status"] == "missing"].groupby("title", sort=False):
        yield f"{title}: not on disk when {some['run_id'].nunique()} runs were evaluated; in no average", ""
    for run_id, some in rows[rows["status"].isin(["absent", "diverged"])].groupby("run_id", sort=False):
        points = ", ".join(f"{seen:,}" for seen in sorted(some["samples_seen"].unique()))
        yield (
            f"{run_id}: not evaluated at {points} samples: it did not reach them, or its embeddings are not finite",
            str(run_id),
        )


def _runs(suite: ExpandedSuite, frame: pd.DataFrame, runs: Runs) -> tuple[Table, tuple[str, ...]]:
    """List the runs with their first average, or set if there is none; returns the list and the ids of its rows."""
    final = tidy.without_diverged(tidy.final_scores(frame))
    score = next(iter(tidy.scores(final)), None)
    values: dict[Any, float] = {}
    if score is not None:
        of_score = final[(final["kind"] == score.kind) & (final["name"] == score.name)]
        values = of_score.set_index("run_id")["value"].to_dict()
    labels = {str(i): label for label, rows in tidy.settings(frame) for i in rows["run_id"].unique()}
    moved = set(frame.loc[tidy.moved(frame), "run_id"])
    of_run = frame.drop_duplicates("run_id").set_index("run_id")
    of_suite = {run.spec.run_id: run for run in suite.runs}
    is_any_replaced = any(runs.records[i].num_replaced for i in of_suite if i in runs.records)
    rows = []
    ids = tuple(run_id for run_id in runs.sections if run_id in of_suite)
    for run_id in ids:
        run, record = of_suite[run_id], runs.records.get(run_id)
        step = record.median_step_sec if record and run_id not in moved else None
        # Times of different devices or code do not compare.
        timed = {
            name.capitalize(): rendering.short(of_run[name].get(run_id, "")) if of_run[name].nunique() > 1 else ""
            for name in ("device", "commit")
        }
        rows.append(
            {
                "Method": style.method(run.method).name,
                "Setting": labels.get(run_id, ""),
                "Variant": run.variant,
                "Seed": Cell(run.spec.seed, form="d"),
                "Status": record.status if record else "no record",
                f"{score.title}, %" if score else "Score": Cell(100 * values.get(run_id, math.nan)),
                "Step, ms": Cell(None if step is None else 1e3 * step),
                **timed,
                "Replaced samples": Cell(record.num_replaced if record else 0, form=",d") if is_any_replaced else "",
                "Signs of failure": ", ".join(sign.name for sign in record.signatures) if record else "",
                "Run": runs.sections[run_id].short,
            }
        )
    # Leave out columns that are empty for all runs.
    header = [name for name in rows[0] if any(row[name] for row in rows)]
    return Table(f"Runs of {suite.name}", tuple(header), tuple(tuple(row[n] for n in header) for row in rows)), ids
