"""Every run of a report once, whatever suites it belongs to, and the environments that runs were made in."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis import frame as tidy
from analysis import rendering, style
from analysis.report import curves
from analysis.table import NO_VALUE, three_digits
from engine import files, paths
from engine.schema.base import parse, settings
from engine.schema.record import Attempt, Provenance, Record
from engine.schema.suite import ExpandedSuite, SuiteRun

FIRST_CURVES = ("loss/total", "temperature/value", "grad_norm", "lr")


@dataclass(frozen=True)
class Environment:
    """What runs were made on: distinct over the report, so that each is said once."""

    number: int
    facts: dict[str, str]


@dataclass(frozen=True)
class Start:
    """One start of a run."""

    first_step: int
    host: str
    job: str
    commit: str
    environment: int


@dataclass(frozen=True)
class Run:
    """One run, whatever suites it belongs to."""

    run_id: str
    title: str
    color: str
    status: str
    """finished, diverged, or that its record is not there."""
    dates: str
    compared_with: str
    """The run that `settings` are compared with; empty if they are all there are."""
    settings: tuple[tuple[str, str, str], ...]
    """Name, value here, value of the other run."""
    curves: tuple[curves.Curve, ...]
    warnings: tuple[str, ...]
    starts: tuple[Start, ...]
    facts: dict[str, str]
    command: str

    @property
    def short(self) -> str:
        """The last part of the id, which is unique."""
        return self.run_id.rpartition("-")[2]


class Runs:
    """Reads the records of all runs, and makes them ready to show.

    They are in `shown` by id: by method, then setting, main runs before variants, and seed.
    """

    def __init__(self, suites: list[ExpandedSuite], frame: pd.DataFrame) -> None:
        self.environments: list[Environment] = []
        self.records: dict[str, Record] = {}
        self.dates: dict[str, tuple[float, float]] = {}
        runs: dict[str, tuple[str, SuiteRun]] = {}
        for suite in suites:
            for run in suite.runs:
                runs.setdefault(run.spec.run_id, (suite.name, run))
        for run_id in runs:
            path = paths.record(run_id)
            if path.exists():
                self.records[run_id] = parse(Record, files.read_text(path), str(path))
            if dates := _dates(paths.metrics(run_id)):
                self.dates[run_id] = dates
        self.settings = {run_id: settings(run.spec) for run_id, (_, run) in runs.items()}
        logged = dict(list(frame[frame["kind"] == "train"].drop_duplicates(_POINT).groupby("run_id", sort=False)))
        places = {variant: place for place, variant in enumerate(tidy.variants(frame))}
        runs = dict(sorted(runs.items(), key=lambda item: _order(item[1][1], places)))
        self.shown: dict[str, Run] = {}
        for method in style.ordered({run.spec.method.name for _, run in runs.values()}):
            of_method = {run_id: run for run_id, (_, run) in runs.items() if run.spec.method.name == method}
            main = [run_id for run_id, run in of_method.items() if not run.variant] or list(of_method)
            for run_id, run in of_method.items():
                other = "" if run_id == main[0] else self._nearest(run_id, main)
                self.shown[run_id] = self._show(runs[run_id][0], run, other, logged.get(run_id))

    def _nearest(self, run_id: str, others: list[str]) -> str:
        """The run that has most settings in common with this one."""
        ours = self.settings[run_id].items()
        return min(
            (other for other in others if other != run_id), key=lambda other: len(ours ^ self.settings[other].items())
        )

    def _show(self, suite: str, run: SuiteRun, other: str, logged: pd.DataFrame | None) -> Run:
        spec = run.spec
        record = self.records.get(spec.run_id)
        look = style.method(spec.method.name)
        ours, theirs = self.settings[spec.run_id], self.settings.get(other, {})
        told = tuple(
            (key, ours.get(key, ""), theirs.get(key, ""))
            for key in dict.fromkeys([*ours, *theirs])
            if ours.get(key) != theirs.get(key)
        )
        where = f"{style.dataset(spec.dataset.name)}, {spec.model.name}, batch {spec.global_batch_size}"
        dates = self.dates.get(spec.run_id)
        return Run(
            run_id=spec.run_id,
            title=f"{style.variant(spec.method.name, run.variant)}, seed {spec.seed} ({where})",
            color=look.color,
            status=_status(record),
            dates=f"{day(dates[0])} to {day(dates[1])} (UTC)" if dates else "",
            compared_with=other,
            settings=told,
            curves=tuple(_curves(logged)) if logged is not None else (),
            warnings=tuple(_warnings(record)) if record else (),
            starts=tuple(self._start(attempt) for attempt in record.attempts) if record else (),
            facts=_run_facts(record) if record else {},
            command=f"snakemake --config suites={suite} -- {paths.record(spec.run_id)}",
        )

    def _start(self, attempt: Attempt) -> Start:
        origin = attempt.provenance
        versions = {"packages", "libraries"}
        facts = origin.model_dump(exclude={"commit", "dirty_sha256", "dataset_sha256", *versions})
        facts |= {name: version or "none" for name, version in (origin.packages | origin.libraries).items()}
        facts = {key: str(value) for key, value in facts.items()}
        known = next((e for e in self.environments if e.facts == facts), None)
        if known is None:
            known = Environment(len(self.environments) + 1, facts)
            self.environments.append(known)
        return Start(
            attempt.first_step, attempt.host, attempt.job_id or "", rendering.short(commit(origin)), known.number
        )


def _order(run: SuiteRun, places: Mapping[str, int]) -> tuple[str | int, ...]:
    """What the runs of a method are sorted by; variants that nothing is collected of come last."""
    spec = run.spec
    setting = (spec.dataset.name, spec.dataset.pairs, spec.model.name, spec.global_batch_size)
    return (*setting, places.get(run.variant, len(places)), run.variant, spec.seed, spec.run_id)


_POINT = ["run_id", "name", "samples_seen"]


def _dates(path: Path) -> tuple[float, float] | None:
    """When a run logged its first and its last line."""
    if not path.exists():
        return None
    seconds = []
    for line in files.read_text(path).splitlines():
        found = re.search(r'"unix_sec": ?([0-9.e+]+)', line)
        if found:
            seconds.append(float(found[1]))
    return (min(seconds), max(seconds)) if seconds else None


def _status(record: Record | None) -> str:
    if record is None:
        return "no record"
    if record.divergence is None:
        return record.status
    end = record.divergence
    return f"diverged at step {end.step}: {end.reason} (temperature {end.temperature:.4g})"


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


def commit(origin: Provenance) -> str:
    """The commit, with a digest of what was not committed."""
    return f"{origin.commit}+{origin.dirty_sha256[:8]}" if origin.dirty_sha256 else origin.commit


def device(origin: Provenance) -> str:
    """The device, and how many processes and threads used it."""
    processes = f"{origin.world_size} processes" if origin.world_size > 1 else "1 process"
    return f"{origin.device} ({processes}, {origin.threads} thread{'s' if origin.threads > 1 else ''} each)"


def day(unix_sec: float) -> str:
    """Date and time in UTC."""
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(unix_sec))
