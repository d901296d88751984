"""An expanded suite: its runs and their evaluation, as the workflow and the analysis read it."""

from __future__ import annotations

from pydantic import Field

from engine.schema.base import Frozen
from engine.schema.evaluation import Evaluation
from engine.schema.run import RunSpec


class SuiteRun(Frozen):
    """A run with its name in the suite. The run does not know either: it may serve several suites."""

    variant: str
    """Empty for a main run."""
    spec: RunSpec


class ExpandedSuite(Frozen):
    """A suite with its runs, sorted by id."""

    name: str
    title: str
    runs: tuple[SuiteRun, ...] = Field(min_length=1)
    evaluation: Evaluation
    file: str | None = None
    """The suite's file as it was named, where that is none of this repository."""
