"""Equal tuning: the settings that every method tries, and the file of those that were chosen; see docs/tuning.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, JsonValue, model_validator

from engine import files, paths
from engine.schema.base import Frozen, ModelT, canonical_json, check_known, parse
from engine.schema.evaluation import EvalResult
from engine.schema.record import Record
from engine.schema.suite import DEFAULTS, ExpandedSuite, SuiteRun, TriedValue

SCORE = "Validation"
"""What the average that trials are judged by is called."""
SEED = 0
"""Of the points: all methods take the first ones of one sequence."""
DIGITS = 3
"""Significant digits of a value: files are to be readable."""
MAX_DRAWS = 16
"""Points that are drawn for a trial, at most, until one is found that differs from all before."""

Settings = dict[str, JsonValue]
"""Values by dotted name: ``training.optimizer.lr``, ``options.rho``."""


class Range(Frozen):
    """Values that a setting may take: numbers from `low` to `high`, or one of `choices`."""

    low: float | None = None
    high: float | None = None
    scale: Literal["linear", "log"] = "linear"
    integer: bool = False
    choices: tuple[JsonValue, ...] = ()
    when: Settings = Field(default_factory=dict)
    """Values of other settings of the space with which this one matters; it is left out of all other trials."""

    @model_validator(mode="after")
    def _check(self) -> Range:
        given = (self.low is not None) + (self.high is not None)
        if given != (0 if self.choices else 2):
            raise ValueError("give either low and high, or choices")
        if self.choices:
            if len({canonical_json(choice) for choice in self.choices}) < max(2, len(self.choices)):
                raise ValueError(f"choices = {canonical_json(list(self.choices))}: give at least two, each once")
            if self.integer or self.scale != "linear":
                raise ValueError("choices have neither scale nor integer: leave them out")
            return self
        low, high = self._ends
        if not low < high or (self.scale == "log" and low <= 0):
            raise ValueError(f"low = {low:g}, high = {high:g}: allowed is low < high, with scale log also 0 < low")
        if not math.isfinite(high / low if self.scale == "log" else high - low):
            raise ValueError(
                f"low = {low:g}, high = {high:g}: too far apart to be divided into shares: narrow the range"
            )
        if self.integer and not (low.is_integer() and high.is_integer()):
            raise ValueError(f"low = {low:g}, high = {high:g}: make both whole numbers, as integer asks")
        return self

    @property
    def _ends(self) -> tuple[float, float]:
        assert self.low is not None
        assert self.high is not None
        return self.low, self.high

    def at(self, share: float) -> JsonValue:
        """Return the value that lies at a share of the range, in [0, 1): equal shares have equal weight."""
        if self.choices:
            return self.choices[int(share * len(self.choices))]
        low, high = self._ends
        top = high + self.integer  # the last whole number has a share of its own
        value = low * (top / low) ** share if self.scale == "log" else low + (top - low) * share
        return min(int(value), int(high)) if self.integer else min(max(float(f"{value:.{DIGITS}g}"), low), high)

    def place(self, value: Any) -> float | None:
        """Return where a value lies, from 0 at one end to 1 at the other; None among choices without an order."""
        if self.choices:
            return self.choices.index(value) / (len(self.choices) - 1) if self._is_ordered else None
        low, high = self._ends
        return math.log(value / low, high / low) if self.scale == "log" else (value - low) / (high - low)

    @property
    def _is_ordered(self) -> bool:
        """True if choices are three or more numbers, or lists of them, that rise or fall."""
        rows: list[Any] = [choice if isinstance(choice, list) else [choice] for choice in self.choices]
        if len(rows) < 3 or any(isinstance(x, bool) or not isinstance(x, int | float) for row in rows for x in row):
            return False
        return rows in (sorted(rows), sorted(rows, reverse=True))

    def __str__(self) -> str:
        if self.choices:
            written = [canonical_json(choice) for choice in self.choices]
            return f"{written[0]} to {written[-1]}, {len(written)} choices" if self._is_ordered else ", ".join(written)
        low, high = self._ends
        return f"{low:g} to {high:g}" + (", log" if self.scale == "log" else "")


Space = dict[str, Range]
"""Ranges by dotted name."""


class Tuning(Frozen):
    """Tuning of a suite's methods: as many trials for each, judged by sets that no average has."""

    trials: int = Field(ge=1, le=1000)
    """Of every method."""
    seeds: tuple[int, ...] = Field(min_length=1)
    """With which every trial is run; none of the suite's."""
    score: tuple[str, ...] = Field(min_length=1)
    """Evaluation sets that no average of the suite has; the mean of their main metrics judges a trial."""
    training: dict[str, JsonValue] = Field(default_factory=dict)
    """Where the training of trials differs from the suite's."""
    space: Space = Field(default_factory=dict)
    """What all methods try."""
    methods: dict[str, Space] = Field(default_factory=dict)
    """What one of them tries besides, or in another range."""

    @model_validator(mode="after")
    def _check(self) -> Tuning:
        for name in {*self.space, *(name for space in self.methods.values() for name in space)}:
            if name.split(".")[0] not in ("training", "options") or not all(name.split(".")[1:]) or "." not in name:
                raise ValueError(f"setting {name!r}: write training.NAME or options.NAME, as training.optimizer.lr")
        for space in (self.space, *map(self.of, self.methods)):
            for name in space:
                if within := [other for other in space if other.startswith(f"{name}.")]:
                    raise ValueError(f"setting {name!r} holds {within[0]!r}, which is tried as well: try one of them")
        for method in self.methods:
            self._check_conditions(self.of(method))
        self._check_conditions(self.space)
        return self

    @staticmethod
    def _check_conditions(space: Space) -> None:
        for name, each in space.items():
            for other, value in each.when.items():
                check_known("setting", other, space, f"when of {name!r}")
                if value not in space[other].choices:
                    allowed = str(space[other]) if space[other].choices else "none, it has no choices"
                    raise ValueError(f"when of {name!r}: {other} = {value!r}, allowed is {allowed}")

    def of(self, method: str) -> Space:
        """Return a method's space. What all share comes first: then the points have the same values of it."""
        own = self.methods.get(method, {})
        shared = {name: own.get(name, self.space[name]) for name in sorted(self.space)}
        return shared | {name: own[name] for name in sorted(own) if name not in shared}


def points(space: Space, trials: int) -> list[Settings]:
    """Return the settings of each trial: more trials go on where fewer end.

    They are the first distinct points of a scrambled Halton sequence, which fills a space evenly with any number of
    points. Source: Bousquet et al., arXiv:1706.03200; AlgoPerf tunes so too.

    Raises:
        ValueError: If the space has too few.
    """
    from scipy.stats import qmc  # here: it takes half a second, and few suites are tuned

    if not space:
        raise ValueError("nothing to try: name settings under `space`, or under `methods`")
    found: list[Settings] = []
    for shares in qmc.Halton(len(space), seed=SEED).random(MAX_DRAWS * trials):
        drawn = {name: space[name].at(share) for name, share in zip(space, shares.tolist(), strict=True)}
        point: Settings = {}
        while point != drawn:  # what is left out takes with it what depends on it
            point, drawn = drawn, {name: drawn[name] for name in drawn if space[name].when.items() <= drawn.items()}
        if point not in found:
            found.append(point)
        if len(found) == trials:
            return found
    raise ValueError(f"{len(found)} different settings, {trials} trials: widen the space, or ask for fewer trials")


def nested(settings: Mapping[str, JsonValue]) -> dict[str, Any]:
    """Return dotted settings as what they change: ``{"training": {...}, "options": {...}}``."""
    tree: dict[str, Any] = {}
    for name, value in settings.items():
        *parents, last = name.split(".")
        branch = tree
        for part in parents:
            branch = branch.setdefault(part, {})
        branch[last] = value
    return tree


def described(point: Settings, space: Space) -> dict[str, TriedValue]:
    """Return a trial's settings, each with its range."""
    return {
        name: TriedValue(value=value, range=str(space[name]), place=space[name].place(value))
        for name, value in point.items()
    }


class Chosen(Frozen):
    """Settings that were chosen for a method."""

    settings: Settings
    trial: int
    """Its number, from 1."""
    score: float
    """Mean over the seeds."""
    seed_scores: tuple[float, ...]
    """In the order of the seeds."""
    defaults_score: float | None
    """With the method's own defaults, which are never chosen; None if a run of them diverged, or if a trial is that."""
    diverged: int
    """Trials without a score, since a run of theirs diverged."""
    digest: str
    """Of what the suite said of the trials: of another suite's method, or of another space, this is not the outcome."""


class Tuned(Frozen):
    """The file of what a tuning has chosen."""

    suite: str
    trials: int
    """Of every method."""
    seeds: tuple[int, ...]
    score: tuple[str, ...]
    commit: str
    """Of the trials; with a digest of what was not committed."""
    device: str
    methods: dict[str, Chosen]


def choose(suite: ExpandedSuite) -> Tuned:
    """Choose the trial of each method whose mean score is the best; of equal ones the first.

    Args:
        suite: A tuning whose runs are trained and evaluated.

    Raises:
        ValueError: If it is no tuning, if a result is missing, or if all trials of a method have diverged.
    """
    if not suite.digests:
        raise ValueError(f"{suite.name!r} is no tuning: name one, tuning@SUITE")
    origins = [a.provenance for run in suite.runs for a in _read(Record, paths.record(run.spec.run_id)).attempts]
    commits = {o.commit + (f"+{o.dirty_sha256[:8]}" if o.dirty_sha256 else "") for o in origins}
    return Tuned(
        suite=suite.name.partition("@")[2],
        trials=len({run.variant for run in suite.runs} - {DEFAULTS}),
        seeds=tuple(sorted({run.spec.seed for run in suite.runs})),
        score=tuple(suite.evaluation.sets),
        commit=", ".join(sorted(commits)),
        device=", ".join(sorted({origin.device for origin in origins})),
        methods={method: _choose(suite, method) for method in suite.digests},
    )


def _choose(suite: ExpandedSuite, method: str) -> Chosen:
    runs = sorted((run for run in suite.runs if run.method == method), key=lambda run: run.spec.seed)
    scores: dict[str, list[float | None]] = {}
    for run in runs:
        scores.setdefault(run.variant, []).append(_score(suite, run))
    means = {label: _mean(values) for label, values in scores.items()}
    defaults = means.pop(DEFAULTS, None)
    known = {label: mean for label, mean in means.items() if mean is not None}
    if not known:
        raise ValueError(f"{suite.name}: all trials of {method} have diverged: mend its space, and tune it again")
    best = max(sorted(known, key=_number), key=known.__getitem__)  # the first of equal ones
    return Chosen(
        settings={name: each.value for run in runs if run.variant == best for name, each in run.settings.items()},
        trial=_number(best),
        score=known[best],
        seed_scores=tuple(round(score, 6) for score in scores[best] if score is not None),
        defaults_score=defaults,
        diverged=len(means) - len(known),
        digest=suite.digests[method],
    )


def write(tuned: Tuned, path: Path) -> None:
    """Write the file of what was chosen."""
    head = "# Written by `snakemake tune`, see docs/tuning.md. Commit it; do not edit it.\n"
    files.write_text(path, head + yaml.safe_dump(tuned.model_dump(mode="json"), sort_keys=False))


def trial(number: int) -> str:
    """Return what a trial's variant is called; numbers are from 1."""
    return f"trial {number}"


def _number(label: str) -> int:
    return int(label.rpartition(" ")[2])


def _read(model: type[ModelT], path: Path) -> ModelT:
    if not path.exists():
        raise ValueError(f"{path} is missing: run snakemake tune")
    return parse(model, files.read_text(path), str(path))


def _score(suite: ExpandedSuite, run: SuiteRun) -> float | None:
    spec, evaluation = run.spec, suite.evaluation
    values = {}
    for name, card in evaluation.sets.items():
        path = paths.eval_result(spec.run_id, spec.samples_seen, name)
        result = _read(EvalResult, path)
        # Another suite may have evaluated the same run otherwise.
        came, wanted = (result.card_sha256, result.precision), (card.identity, evaluation.precision)
        if came != wanted:
            raise ValueError(
                f"{path} is the result of card and precision {came}, expected {wanted}; remove {path.parent} and run "
                "snakemake tune again"
            )
        values[name] = result.value
    return evaluation.averaged(values, frozenset())[SCORE].value


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(math.fsum(known) / len(known), 6) if len(known) == len(values) else None
