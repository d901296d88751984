"""Hypotheses of a suite: what is claimed before its first run is trained, and tested together once all are there.

``neuclip > openclip`` says that NeuCLIP's first average is the higher one at the suite's batch size, and
``neuclip@64 > openclip@256`` that it is with 64 pairs in a batch, where OpenCLIP has 256. Main runs count, by seed.
The table `hypotheses` has a verdict on each.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import partial

from engine.schema.base import gathered, located
from engine.schema.suite import Hypothesis, Side, SuiteRun

MIN_SEEDS = 3
"""That both sides have: with two, a t test has one degree of freedom and almost no power."""
SUFFIX = "_confirmation"
"""End of the names of suites that have a table of hypotheses."""
_SIDE = r"([\w.-]+)(?:@([1-9]\d{0,8}))?"
_FORM = re.compile(rf"{_SIDE}\s*>\s*{_SIDE}")


def resolve(said: Collection[str], name: str, batch: int | None, runs: Collection[SuiteRun]) -> tuple[Hypothesis, ...]:
    """Find the runs that the hypotheses of a suite are about.

    Args:
        said: The hypotheses, as the suite's file says them.
        name: The suite's name.
        batch: Pairs in its batch; None where each method says that for itself.
        runs: Its runs.

    Raises:
        ValueError: If the suite has another kind of name, or if one is said twice. Naming all that are wrong: of
            another form, without runs on a side, on several data sets or models, with too few common seeds.
    """
    if said and not name.endswith(SUFFIX):
        raise ValueError(f"hypotheses: they belong to a suite whose name ends with {SUFFIX}: rename its file")
    found = gathered(partial(_resolve, text, batch, runs) for text in said)
    pairs: set[frozenset[Side]] = set()
    for one in found:
        if (pair := frozenset((one.higher, one.lower))) in pairs:
            raise ValueError(f"hypothesis '{one}' or its opposite is said twice: one test answers both, leave one out")
        pairs.add(pair)
    return tuple(found)


def _resolve(text: str, batch: int | None, runs: Collection[SuiteRun]) -> Hypothesis:
    with located(f"hypothesis {text!r}"):
        one = _parse(text, batch)
        if one.higher == one.lower:
            raise ValueError("it compares runs with themselves: name another method, or another batch")
        sides = [_main_runs(side, runs) for side in (one.higher, one.lower)]
        specs = [run.spec for side in sides for run in side]
        places = sorted({f"{spec.dataset.name} with {spec.model.name}" for spec in specs})
        if len(places) > 1:
            raise ValueError(f"its runs are on {', '.join(places)}: allowed is one data set and one model")
        seeds = set.intersection(*({run.spec.seed for run in side} for side in sides))
        if len(seeds) < MIN_SEEDS:
            raise ValueError(f"its sides have {len(seeds)} seeds in common: a test needs {MIN_SEEDS}")
        return one


def _parse(text: str, batch: int | None) -> Hypothesis:
    parts = _FORM.fullmatch(text.strip())
    if parts is None:
        raise ValueError("allowed is METHOD > METHOD, each with @BATCH behind it if that is not the suite's batch")
    higher, at, lower, below = parts.groups()
    if batch is None and not (at and below):
        raise ValueError("the suite's training has no global_batch_size: write METHOD@BATCH on both sides")
    return Hypothesis(
        higher=Side(method=higher, global_batch_size=int(at or batch or 0)),
        lower=Side(method=lower, global_batch_size=int(below or batch or 0)),
    )


def _main_runs(side: Side, runs: Collection[SuiteRun]) -> list[SuiteRun]:
    found = [run for run in runs if side.has(run)]
    if not found:
        main = (run.spec for run in runs if not run.variant)
        known = sorted({f"{spec.method.name}@{spec.global_batch_size}" for spec in main})
        raise ValueError(f"there is no main run of {side}: allowed are {', '.join(known)}")
    return found
