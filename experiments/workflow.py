"""Answer what the Snakefile asks: which files a command is about, and how each job is started.

Reads cards and expanded suites, no data, and imports no torch. A `Workflow` is made while the Snakefile is read, and
never changes.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import Field, JsonValue

from analysis import artifacts
from engine import paths
from engine.jobs import cluster
from engine.schema import results
from engine.schema.base import Frozen, canonical_json, parse, unknown_name
from engine.schema.evaluation import EvalCard
from engine.schema.suite import ExpandedSuite, SuiteRun
from engine.schema.written import parse_yaml
from experiments.design import cards, expansion, names

ABLATIONS = ("ablations", *(names.ABLATION + what for what in cards.names("ablations")))
"""Targets, each for the suites that `--config suites=` names; without it for `names.BASE`."""

DEFAULT = "quickstart"
"""The suite that a command is about when it names none."""

TUNE = "tune"
"""Target that runs the trials of the suites that are asked for, and writes what they have chosen."""

_PREFIXES = (names.ABLATION, "fetch_", "crawl_")
"""Of targets: a word that begins so is no option's value."""

T = TypeVar("T")


class Config(Frozen):
    """Values of `--config`; `train` and the following lie over the cluster's settings."""

    suites: str | None = None
    """Names, separated by commas; None is `DEFAULT`."""
    cluster: str = cluster.LOCAL
    on_interrupt: Literal["leave", "cancel"] = "cancel"
    """What becomes of running jobs on Ctrl-C."""
    train: dict[str, JsonValue] = Field(default_factory=dict)
    evaluate: dict[str, JsonValue] = Field(default_factory=dict)
    prepare: dict[str, JsonValue] | None = None
    execution: dict[str, JsonValue] = Field(default_factory=dict)


class Known(dict[str, T]):
    """Values by name. An unknown name raises a `ValueError` that says which there are."""

    def __init__(self, kind: str, values: Mapping[str, T]) -> None:
        super().__init__(values)
        self._kind = kind

    def __missing__(self, name: str) -> T:
        raise ValueError(unknown_name(self._kind, name, self) + " Name its suite with --config suites=...")


class Build(NamedTuple):
    """A command that makes data."""

    command: str
    ready: str
    """File that exists once it has succeeded."""
    revisions: list[str]
    """Names and revisions of all that it makes, sorted: it runs again when one changes."""

    @property
    def name(self) -> str:
        """Name of its rule."""
        return f"build_{Path(self.ready).parent.name}"


class JobStart(NamedTuple):
    """Start of a run's jobs."""

    threads: int
    """Cores taken on this machine: none by a job that runs elsewhere and is only waited for."""
    arguments: str
    """Options of `engine.launch`, and the module that it starts with how that is carried out."""


def place_of(config: Mapping[str, Any]) -> tuple[Config, cluster.Cluster]:
    """Return what Snakemake's `--config` says, and the cluster with what it lays over that.

    Raises:
        ValueError: If a key or value is not allowed.
    """
    said = {key: _read_as_yaml(value) if isinstance(value, Mapping) else value for key, value in config.items()}
    settings = parse(Config, json.dumps(said), "--config")
    if settings.suites is None and "suites" in settings.model_fields_set:
        raise ValueError("--config suites= names no suite: allowed are names, separated by commas")
    for key, said in settings.model_dump(exclude={"suites", "cluster", "on_interrupt"}, exclude_none=True).items():
        if glued := next((word for word in said if re.search(":.", word)), None):
            raise ValueError(
                f"--config {key}: {glued!r} is one word in YAML: write a space after the colon, "
                f"'{key}={{{glued.replace(':', ': ', 1)}}}'"
            )
    return settings, cluster.configure(cluster.load(settings.cluster), settings.model_dump(), "--config")


def _read_as_yaml(said: Any) -> Any:
    """Return what stands in braces after `--config KEY=` as a cluster file says it: Snakemake leaves texts there."""
    if isinstance(said, Mapping):
        return {key: _read_as_yaml(value) for key, value in said.items()}
    if isinstance(said, list):
        return [_read_as_yaml(value) for value in said]
    if isinstance(said, str):
        with contextlib.suppress(ValueError):
            value = parse_yaml(said, "--config")
            return said if isinstance(value, dict | list) else value
    return said


class Workflow:
    """Files and jobs that one command is about.

    Args:
        config: Snakemake's, see `Config`.
        argv: The command line. Ablations and `TUNE` are looked up in it: while Snakemake reads the Snakefile, it tells
            the targets in no other way.
        cores: Of this machine, that Snakemake may use.

    Raises:
        ValueError: If a name or a setting is wrong, or if a run cannot be carried out where it is to be.
    """

    def __init__(self, config: Mapping[str, Any], argv: Sequence[str] = (), cores: int = 1) -> None:
        settings, self._cluster = place_of(config)
        self._on_interrupt = settings.on_interrupt
        chosen, bases = (
            _listed(default if settings.suites is None else settings.suites) for default in (DEFAULT, names.BASE)
        )
        if TUNE in argv:
            chosen = [f"{names.TUNING}@{name}" for name in chosen]
        self.choosing = shlex.join(chosen)
        """What `TUNE` writes the files of."""
        ablations = {target: [f"{target}@{base}" for base in bases] for target in ABLATIONS if target in argv}
        asked = [*chosen, *(name for applied in ablations.values() for name in applied)]
        self.suites = Known("suite", expansion.load(asked))
        self.reports = Known("report", {names.called(name): _full_names(name) for name in asked})
        """The suites that each report shows."""
        self.targets = self._files(chosen)
        """Files of the targets `runs`, `tables`, `figures` and `report`."""
        self.files = [path for files in self.targets.values() for path in files]
        """All of them."""
        self._ablations = {
            target: [path for files in self._files(applied).values() for path in files]
            for target, applied in ablations.items()
        }
        runs = {run.spec.run_id: run for suite in self.suites.values() for run in suite.runs}
        self.runs = Known("run", {run_id: run.spec for run_id, run in runs.items()})
        self.evaluations = Known(
            "evaluation", {suite.evaluation.key: suite.evaluation for suite in self.suites.values()}
        )
        self.datasets = Known("data set", {name: cards.dataset(name) for name in cards.names("datasets")})
        _refuse_unknown_targets(argv, [*self.targets, *ABLATIONS, *self.fetches(), TUNE, "all", "evaluation_data"])
        for spec in self.runs.values():
            if spec.dataset.name not in self.datasets:  # a part of one
                self.datasets[spec.dataset.name] = cards.dataset(spec.dataset.name, spec.dataset.pairs)
        built = {
            key: sorted({card.ready for card in evaluation.sets.values() if card.ready})
            for key, evaluation in self.evaluations.items()
        }
        self.built_for = Known("evaluation", built)
        """What the workflow makes for each evaluation."""
        self.is_elsewhere = self._cluster.scheduler != "local"
        """Whether jobs run on other machines than this one."""
        self.prepares_in_jobs = self._cluster.prepare is not None
        """Whether data are prepared by jobs as well."""
        self.preparation_threads = 0 if self.prepares_in_jobs and self.is_elsewhere else cores
        """Cores that preparing data takes here."""
        self._broken = [
            path
            for suite in self.suites.values()
            for path, missing in results.lost(suite).items()
            if path not in missing
        ]
        self._broken += [
            paths.drawn(name) for name in self.suites if paths.drawn(name).exists() and artifacts.lost(name)
        ]
        """Results that are there, and have lost a file that they stand for."""
        # What cannot run where it is to be is found now, for every run, before anything is submitted.
        self.prepare = cluster.resolve(self._cluster, "prepare")[0]
        self.train = Known("run", {run_id: self._launch("train", run) for run_id, run in runs.items()})
        self.evaluate = Known("run", {run_id: self._launch("evaluate", run) for run_id, run in runs.items()})

    def ablation(self, target: str) -> list[Path]:
        """Return the files of one of `ABLATIONS`.

        Raises:
            ValueError: If the command line does not name it.
        """
        if target not in self._ablations:
            raise ValueError(f"target {target!r} is no word of the command line: use --config suites={target}@SUITE")
        return self._ablations[target]

    def whole(self, workflow: Any, files: Sequence[Path]) -> Sequence[Path]:
        """Return the files of a target. Of what they are made of, what is there in part is made again.

        Args:
            workflow: Snakemake's, which works out what to run.
            files: Of the target.
        """
        make_again(workflow, self._broken)
        return files

    def builds(self) -> list[Build]:
        """Return the commands that make data."""
        made: dict[tuple[str, str], list[str]] = {}
        # Whatever suites are asked for: parts of a set are no reason to make it again.
        sets: list[cards.DatasetCard | EvalCard] = [self.datasets[name] for name in cards.names("datasets")]
        for card in [*sets, *map(cards.eval_set, cards.names("evals"))]:
            if card.build and card.ready:
                made.setdefault((card.build, card.ready), []).append(f"{card.name} {card.revision}")
        return [Build(command, ready, sorted(revisions)) for (command, ready), revisions in made.items()]

    def fetches(self) -> dict[str, str]:
        """Return the targets that fetch training sets, with their arguments of `experiments training-data`."""
        return {
            target: f"{card.name} --crawl" if target.startswith("crawl") else card.name
            for card in self.datasets.values()
            if card.fraction == 1
            for target in card.ways
        }

    def evaluated(self, suite: str) -> list[Path]:
        """Return what says that all models of a suite are evaluated."""
        expanded = self.suites[suite]
        key = expanded.evaluation.key  # a digest over all its sets
        return [
            paths.evaluated(run.spec.run_id, milestone, key) for run in expanded.runs for milestone in run.milestones
        ]

    def digest(self, suite: str) -> str:
        """Return the digest of all that a suite says: its frame is collected again when that changes."""
        content = canonical_json(self.suites[suite].model_dump(mode="json"))
        return hashlib.sha256(content.encode()).hexdigest()

    def shown_in(self, report: str) -> list[Path]:
        """Return what says which tables and figures were drawn of a report's suites."""
        return [paths.drawn(suite) for suite in self.reports[report]]

    def preparation(self, name: str, output: str | Path) -> str:
        """Return what comes before the module that prepares data: the launcher when that is a job, Python if not."""
        if not self.prepares_in_jobs:
            return "exec python -m"
        place = f"--name {name} --folder {paths.prepare_jobs(name)} --output {output}"
        return f"exec python -m engine.launch {place} {self._options(self.prepare)} --"

    def training(self, run: str) -> str:
        """Return the launcher's arguments for a training."""
        return f"--name {run} --folder {paths.jobs(run) / 'train'} {self.train[run].arguments} {paths.spec(run)}"

    def evaluating(self, run: str, milestone: str, evaluation: str) -> str:
        """Return the launcher's arguments for an evaluation."""
        folder = paths.evaluate_jobs(run, milestone, evaluation)
        place = f"--name eval-{run}-{milestone}-{evaluation} --folder {folder}"
        what = f"--milestone {milestone} {paths.record(run)} {paths.evaluation(evaluation)}"
        return f"{place} {self.evaluate[run].arguments} {what}"

    def start(self, workflow: Any) -> None:
        """Write what the suites are of which something is about to run. A dry run does not come here.

        Args:
            workflow: Snakemake's.

        Raises:
            ValueError: If data are missing: no job is to wait in a queue for what nobody has fetched.
            OSError: If a job could not write its files; Snakemake itself would end with a traceback.
        """
        jobs = jobs_to_run(workflow)
        refuse_read_only(Path(file) for job in jobs for file in (*job.output, *job.log))
        datasets, evaluations = [], []
        for job in jobs:
            if job.rule.name == "index":
                datasets.append(job.wildcards.dataset)
            elif job.rule.name == "train":
                datasets.append(self.runs[job.wildcards.run].dataset.name)
            elif job.rule.name == "evaluate":
                evaluations.append(self.evaluations[job.wildcards.evaluation])
        cards.refuse_missing(datasets, evaluations)
        for suite in self._about(jobs):
            expansion.write(suite)

    def _about(self, jobs: Sequence[Any]) -> list[ExpandedSuite]:
        """Return the suites that jobs draw, and those of the other runs among them."""
        drawn = {job.wildcards.suite for job in jobs if job.rule.name in ("collect", "draw")}
        runs = {job.wildcards.run for job in jobs if job.rule.name in ("train", "evaluate")}
        ids = {name: {run.spec.run_id for run in suite.runs} for name, suite in self.suites.items()}
        others = runs.difference(*(ids[name] for name in ids if name in drawn))
        return [suite for name, suite in self.suites.items() if name in drawn or ids[name] & others]

    def made(self, workflow: Any) -> list[Path]:
        """Return the frames of the suites that were drawn, and the reports that were written.

        Args:
            workflow: Snakemake's.
        """
        jobs = jobs_that_ran(workflow)
        suites = {job.wildcards.suite for job in jobs if job.rule.name == "draw"}
        reports = {job.wildcards.report for job in jobs if job.rule.name == "page"}
        frames = [paths.collected(suite) for suite in self.suites if suite in suites]
        return frames + [paths.report(report) for report in self.reports if report in reports]

    def _files(self, asked: Sequence[str]) -> dict[str, list[Path]]:
        reports = [names.called(name) for name in asked]
        suites = dict.fromkeys(suite for report in reports for suite in self.reports[report])
        drawn = [paths.drawn(suite) for suite in suites]
        # All of it, though most is made of the rest: Snakemake makes what is asked for and is not there.
        return {
            "runs": [path for suite in suites for path in self._runs(suite)],
            "tables": [*(paths.collected(suite) for suite in suites), *drawn],
            "figures": drawn,
            "report": [paths.report(report) for report in reports],
        }

    def _runs(self, suite: str) -> list[Path]:
        specs = [run.spec for run in self.suites[suite].runs]
        indexes = sorted({paths.index(spec.dataset.name) for spec in specs})
        return [*indexes, *(paths.record(spec.run_id) for spec in specs), *self.evaluated(suite)]

    def _launch(self, kind: Literal["train", "evaluate"], run: SuiteRun) -> JobStart:
        request, execution = cluster.resolve(self._cluster, kind, run.spec, run.num_extra_pairs)
        threads = 0 if self.is_elsewhere else request.tasks * execution.threads
        how = shlex.quote(execution.model_dump_json(exclude_defaults=True))
        return JobStart(threads, f"{self._options(request)} -- engine.{kind} --execution {how}")

    def _options(self, request: cluster.Request) -> str:
        return cluster.launch_options(self._cluster, request, self._on_interrupt)


def _listed(suites: str) -> list[str]:
    listed = [name.strip() for name in suites.split(",") if name.strip()]
    if not listed:
        raise ValueError(f"--config suites={suites!r} names no suite: allowed are names, separated by commas")
    return listed


def _full_names(asked: str) -> list[str]:
    """Return the full names of the suites that one name asks for."""
    return [names.split(name).name for name in names.resolve([asked])]


def _refuse_unknown_targets(argv: Sequence[str], targets: Sequence[str]) -> None:
    for word in argv:
        # What exists is a file or a folder that an option is given; other words may be an option's value.
        close = difflib.get_close_matches(word, targets, 1, 0.8) if word.isidentifier() else []
        if (close or word.startswith(_PREFIXES)) and word not in targets and not Path(word).exists():
            raise ValueError(unknown_name("target", word, targets) + " Name its suite with --config suites=...")


def refuse_read_only(files: Iterable[Path]) -> None:
    """Raise an `OSError` if nothing may be written where one of some files, or a folder for it, has to be made."""
    for folder in {path.parent for path in files}:
        there = next(place for place in (folder, *folder.parents) if place.exists())
        if not os.access(there, os.W_OK | os.X_OK):
            code = errno.EROFS if os.statvfs(there).f_flag & os.ST_RDONLY else errno.EACCES
            raise OSError(code, os.strerror(code), str(there))


# Snakemake has no public way to what follows. Tests hold both to the version that `requirements.lock` pins.


def wait_for_many(workflow: Any) -> None:
    """Let Snakemake wait for many jobs at a time that take no core here.

    It has a thread for each core and five more. How many cores jobs may take is settled before it reads the Snakefile.
    """
    workflow.resource_settings.cores += 1000


def make_again(workflow: Any, outputs: Sequence[Path]) -> None:
    """Let Snakemake make outputs again that are there, where its targets need them.

    To be called from an input function: it knows its targets by then, and not yet what to run.
    """
    workflow.dag.forcefiles.update(map(str, outputs))


def jobs_to_run(workflow: Any) -> list[Any]:
    """Return the jobs that Snakemake is about to run; known from `onstart` on."""
    return list(workflow.dag.needrun_jobs())


def jobs_that_ran(workflow: Any) -> list[Any]:
    """Return the jobs that Snakemake has run; known at its end."""
    return list(workflow.dag.needrun_jobs(exclude_finished=False))
