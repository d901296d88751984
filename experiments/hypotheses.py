"""Hypotheses of a suite: what is claimed before its first run is trained, and tested together once all are there.

``neuclip > openclip`` says that NeuCLIP's first average is the higher one at the suite's batch size, and
``neuclip@64 > openclip@256`` that it is with 64 pairs in a batch, where OpenCLIP has 256. Main runs count, by seed.
The table `hypotheses` has a verdict on each.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from engine.schema.base import located
from engine.schema.run import RunSpec
from engine.schema.suite import Hypothesis, Side, SuiteRun
from experiments.suite_file import Suite

MIN_SEEDS = 3
"""That both sides have: with two, a t test has one degree of freedom and almost no power."""
SUFFIX = "_confirmation"
"""End of the names of suites that have a table of hypotheses."""
_SIDE = r"([\w.-]+)(?:@([1-9]\d{0,8}))?"
_FORM = re.compile(rf"{_SIDE} > {_SIDE}")


def resolve(suite: Suite, name: str, runs: Collection[SuiteRun]) -> tuple[Hypothesis, ...]:
    """Find the runs that a suite's hypotheses are about.

    Args:
        suite: Its file.
        name: What it is called.
        runs: Its runs.

    Raises:
        ValueError: If the suite has another kind of name, if a hypothesis has another form, occurs twice, or if a side
            of it has no runs, runs on several data sets or models, or too few seeds in common with the other side.
    """
    if suite.hypotheses and not name.endswith(SUFFIX):
        raise ValueError(f"hypotheses: they belong to a suite whose name ends with {SUFFIX}: rename its file")
    batch = int(str(suite.training["global_batch_size"]))
    found: list[Hypothesis] = []
    for text in suite.hypotheses:
        with located(f"hypothesis {text!r}"):
            one = _parse(text, batch)
            if one in found or one.higher == one.lower:
                raise ValueError("it occurs twice, or compares runs with themselves: leave it out")
            sides = [_main_runs(side, runs) for side in (one.higher, one.lower)]
            places = sorted({f"{spec.dataset.name} with {spec.model.name}" for side in sides for spec in side})
            if len(places) > 1:
                raise ValueError(f"its runs are on {', '.join(places)}: allowed is one data set and one model")
            seeds = set.intersection(*({spec.seed for spec in side} for side in sides))
            if len(seeds) < MIN_SEEDS:
                raise ValueError(f"its sides have {len(seeds)} seeds in common: a test needs {MIN_SEEDS}")
            found.append(one)
    return tuple(found)


def _parse(text: str, batch: int) -> Hypothesis:
    parts = _FORM.fullmatch(text)
    if parts is None:
        raise ValueError("allowed is METHOD > METHOD, each with @BATCH behind it if that is not the suite's batch")
    higher, at, lower, below = parts.groups()
    return Hypothesis(
        higher=Side(method=higher, global_batch_size=int(at or batch)),
        lower=Side(method=lower, global_batch_size=int(below or batch)),
    )


def _main_runs(side: Side, runs: Collection[SuiteRun]) -> list[RunSpec]:
    main = [run.spec for run in runs if not run.variant]
    place = (side.method, side.global_batch_size)
    found = [spec for spec in main if (spec.method.name, spec.global_batch_size) == place]
    if not found:
        known = sorted({f"{spec.method.name}@{spec.global_batch_size}" for spec in main})
        raise ValueError(
            f"there is no main run of {side.method}@{side.global_batch_size}: allowed are {', '.join(known)}"
        )
    return found
