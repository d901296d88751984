"""An expanded suite: its runs and their evaluation, as the workflow and the analysis read it."""

from __future__ import annotations

from pydantic import Field, JsonValue

from engine.schema.base import Frozen, Sealed
from engine.schema.evaluation import Evaluation
from engine.schema.run import RunSpec

DEFAULTS = "defaults"
"""Variant of a tuning's runs in which a method has its own defaults."""
ABLATION, TUNING = "ablation_", "tuning"
"""What the names of ablations begin with, and those of tunings up to the ``@``."""


class TriedValue(Frozen):
    """A value that a trial of a tuning tries."""

    value: JsonValue
    range: str
    """What it was drawn from, in words."""
    place: float | None
    """Where in its range it lies, from 0 at one end to 1 at the other; None among choices without an order."""


class SuiteRun(Frozen):
    """A run with its name in the suite. The run does not know either: it may serve several suites."""

    variant: str
    """Empty for a main run."""
    spec: RunSpec
    control_of: str | None = None
    """The suite's method that the spec's stands in for, as a control."""
    settings: dict[str, TriedValue] = Field(default_factory=dict)
    """Of a trial: what it tries, by dotted name."""
    num_extra_pairs: int = 0
    """Those that its method asks for in every step; see `engine.method.Method`."""
    over_training: bool = True
    """Whether the suite evaluates all milestones of the run, or its end alone."""

    @property
    def method(self) -> str:
        """The suite's method that it is a run of, as tables and figures show it."""
        return self.control_of or self.spec.method.name

    @property
    def milestones(self) -> tuple[int, ...]:
        """The run's milestones that the suite evaluates."""
        return self.spec.milestones if self.over_training else self.spec.milestones[-1:]


class Side(Frozen):
    """The main runs of a method at one batch size: one side of a hypothesis."""

    method: str
    global_batch_size: int = Field(ge=1)

    def has(self, run: SuiteRun) -> bool:
        """Tell whether a run is one of them."""
        here = (run.method, run.spec.global_batch_size)
        return not run.variant and here == (self.method, self.global_batch_size)

    def __str__(self) -> str:
        return f"{self.method}@{self.global_batch_size}"


class Hypothesis(Frozen):
    """What is claimed before a suite is trained: the first average of one side is higher, seed by seed."""

    higher: Side
    lower: Side

    def __str__(self) -> str:
        return f"{self.higher} > {self.lower}"


class Draw(Frozen):
    """Which of the tables and figures that a suite's results have something for are drawn."""

    only: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Names; None: all."""
    leave_out: tuple[str, ...] = ()

    def wants(self, name: str) -> bool:
        """Tell whether a table or figure is drawn."""
        return (self.only is None or name in self.only) and name not in self.leave_out


class TrainingSet(Frozen):
    """What a report says of a training set, from its card."""

    title: str
    licence: str
    source: str


class ExpandedSuite(Sealed):
    """A suite with its runs, sorted by id."""

    name: str
    title: str
    runs: tuple[SuiteRun, ...] = Field(min_length=1)
    evaluation: Evaluation
    file: str | None = None
    """The suite's file as it was named, where that is none of this repository."""
    training_sets: dict[str, TrainingSet] = Field(default_factory=dict)
    """By name."""
    hypotheses: tuple[Hypothesis, ...] = ()
    digests: dict[str, str] = Field(default_factory=dict)
    """Of a tuning: by method, the digest of what the suite says of its trials."""
    draw: Draw = Draw()
