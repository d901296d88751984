"""Gathers the runs of a report, each once, and the environments they were made in."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis import frame as tidy
from analysis import rendering, style
from analysis.collect import commit
from analysis.report import curves
from analysis.table import NO_VALUE, three_digits
from engine import files, paths
from engine.schema.base import parse, settings
from engine.schema.record import Attempt, Provenance, Record
from engine.schema.suite import ExpandedSuite, SuiteRun

FIRST_CURVES = ("loss/total", "temperature/value", "grad_norm", "lr")


@dataclass(frozen=True)
class RunSection:
    """A run's part of the report; a run of several suites has one."""

    run_id: str
    title: str
    color: str
    status: str
    """finished, diverged, or no record."""
    dates: str
    compared_with: str
    """The run that `settings` are compared with; empty if all settings are listed."""
    settings: tuple[tuple[str, str, str], ...]
    """Name, value here, value of the other run."""
    curves: tuple[curves.Curve, ...]
    warnings: tuple[str, ...]
    starts: tuple[tuple[str, int], ...]
    """Step, host, job and commit of each start in words, and the number of its environment in the report, from 1."""
    facts: dict[str, str]
    command: str

    @property
    def short(self) -> str:
        """The last part of the id, which is unique."""
        return self.run_id.rpartition("-")[2]


class Runs:
    """The records of all runs of a report, and their sections.

    `sections` holds them by id, sorted by method, then setting, main runs before variants, and seed.
    """

    def __init__(self, suites: list[ExpandedSuite], frame: pd.DataFrame) -> None:
        self.environments: list[dict[str, str]] = []
        # A run of several suites belongs to the first.
        runs = {run.spec.run_id: (suite.name, run) for suite in reversed(suites) for run in suite.runs}
        records = {run_id: paths.record(run_id) for run_id in runs}
        self.records = {
            run_id: parse(Record, files.read_text(path), str(path)) for run_id, path in records.items() if path.exists()
        }
        self.dates = {run_id: dates for run_id in runs if (dates := _dates(paths.metrics(run_id)))}
        self.settings = {run_id: settings(run.spec) for run_id, (_, run) in runs.items()}
        point = ["run_id", "name", "samples_seen"]
        logged = dict(list(frame[frame["kind"] == "train"].drop_duplicates(point).groupby("run_id", sort=False)))
        places = {variant: place for place, variant in enumerate(tidy.variants(frame))}
        self.sections: dict[str, RunSection] = {}
        for method in style.ordered({run.method for _, run in runs.values()}):
            of_method = [(suite, run) for suite, run in runs.values() if run.method == method]
            of_method.sort(key=lambda item: _order(item[1], places))
            main = [run for _, run in of_method if not run.variant] or [run for _, run in of_method]
            for suite, run in of_method:
                run_id = run.spec.run_id
                others = [other.spec.run_id for other in main if other is not run and run is not main[0]]
                # Compare with the main run that differs in the fewest settings.
                other = min(others, key=lambda other: len(self._differing(run_id, other)), default="")
                self.sections[run_id] = self._section(suite, run, other, logged.get(run_id))

    def _differing(self, run_id: str, other: str) -> tuple[tuple[str, str, str], ...]:
        """List the settings that differ: name, value here, value there."""
        ours, theirs = self.settings[run_id], self.settings.get(other, {})
        names = dict.fromkeys([*ours, *theirs])
        values = ((name, ours.get(name, ""), theirs.get(name, "")) for name in names)
        return tuple((name, here, there) for name, here, there in values if here != there)

    def _section(self, suite: str, run: SuiteRun, other: str, logged: pd.DataFrame | None) -> RunSection:
        spec = run.spec
        record, dates = self.records.get(spec.run_id), self.dates.get(spec.run_id)
        where = f"{style.dataset(spec.dataset.name)}, {spec.model.name}, batch {spec.global_batch_size}"
        return RunSection(
            run_id=spec.run_id,
            title=f"{style.variant(run.method, run.variant)}, seed {spec.seed} ({where})",
            color=style.method(run.method).color,
            status=_status(record),
            dates=f"{day(dates[0])} to {day(dates[1])} (UTC)" if dates else "",
            compared_with=other,
            settings=self._differing(spec.run_id, other),
            curves=tuple(_curves(logged)) if logged is not None else (),
            warnings=tuple(_warnings(record)) if record else (),
            starts=tuple(self._start(attempt) for attempt in record.attempts) if record else (),
            facts=_run_facts(record) if record else {},
            command=f"snakemake --config suites={suite} -- {paths.record(spec.run_id)}",
        )

    def _start(self, attempt: Attempt) -> tuple[str, int]:
        origin = attempt.provenance
        told = origin.model_dump(exclude={"commit", "dirty_sha256", "dataset_sha256", "packages", "libraries"})
        told |= {name: version or "none" for name, version in (origin.packages | origin.libraries).items()}
        environment = {name: str(value) for name, value in told.items()}
        if environment not in self.environments:
            self.environments.append(environment)
        job = f", job {attempt.job_id}" if attempt.job_id else ""
        where = f"from step {attempt.first_step} on {attempt.host}{job}, commit {rendering.short(commit(origin))}"
        return where, self.environments.index(environment) + 1


def _order(run: SuiteRun, places: Mapping[str, int]) -> tuple[str | int, ...]:
    """Return the sorting key of a method's runs; variants that are not in the frame come last."""
    spec = run.spec
    setting = (spec.dataset.name, spec.dataset.pairs, spec.model.name, spec.global_batch_size)
    return (*setting, places.get(run.variant, len(places)), run.variant, spec.seed, spec.run_id)


def _dates(path: Path) -> tuple[float, float] | None:
    """Return the times of a run's first and last logged line, in Unix seconds."""
    text = files.read_text(path) if path.exists() else ""
    seconds = [float(found) for found in re.findall(r'"unix_sec": ?([0-9.e+]+)', text)]
    return (min(seconds), max(seconds)) if seconds else None


def _status(record: Record | None) -> str:
    if record is None:
        return "no record"
    return record.status if record.divergence is None else str(record.divergence)


def _curves(logged: pd.DataFrame) -> Iterator[curves.Curve]:
    names = list(logged["name"].unique())
    for name in dict.fromkeys([*(name for name in FIRST_CURVES if name in names), *names]):
        rows = logged[logged["name"] == name]
        yield curves.draw(name, zip(rows["samples_seen"], rows["value"], strict=True))


def _warnings(record: Record) -> Iterator[str]:
    if record.divergence is not None:
        pairs = ", ".join(map(str, record.divergence.indices[:8]))
        yield f"{_status(record)}; the batch began with the pairs {pairs}"
    for sign in record.signatures:
        evidence = ", ".join(f"{name} {value:.3g}" for name, value in sign.evidence.items())
        yield f"{sign.name}, steps {sign.first_step} to {sign.last_step}: {sign.advice} ({evidence})"
    if record.num_replaced:
        yield f"{record.num_replaced} samples could not be decoded and were replaced by their neighbours"
    if record.num_skipped:
        yield f"{record.num_skipped} steps were skipped by fp16, whose loss scale ended at {record.loss_scale:g}"


def _run_facts(record: Record) -> dict[str, str]:
    clocks = ", ".join(f"{name} {seconds:,.1f}" for name, seconds in record.clock_sec.items())
    errors = [
        f"at {error.samples_seen:,} samples: image {_number(error.image_mse)}, text {_number(error.text_mse)}"
        + (f", {error.num_without_estimate} anchors without estimate" if error.num_without_estimate else "")
        for error in record.normalizer_error
    ]
    facts = {
        "Samples seen": f"{record.samples_seen:,}",
        "Seconds by phase": clocks,
        "Peak memory": f"{record.peak_memory_bytes / 2**30:.2f} GiB",
        "MSE of log-normalizers": "; ".join(errors),
        "Training set digest": record.provenance.dataset_sha256,
        "Fingerprint": record.fingerprint,
        "Weights (SHA-256)": ", ".join(f"{seen}: {m.sha256[:16]}" for seen, m in record.milestones.items()),
    }
    return {name: value for name, value in facts.items() if value}


def _number(value: float | None) -> str:
    return NO_VALUE if value is None else format(value, three_digits(value))


def device(origin: Provenance) -> str:
    """Name the device, and say how many processes and threads used it."""
    processes = f"{origin.world_size} processes" if origin.world_size > 1 else "1 process"
    return f"{origin.device} ({processes}, {origin.threads} thread{'s' if origin.threads > 1 else ''} each)"


def day(unix_sec: float) -> str:
    """Write a date and time in UTC."""
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(unix_sec))
