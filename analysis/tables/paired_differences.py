"""NeuCLIP minus each baseline, paired by seed: the differences behind the main table's marks.

Of averages, the other methods minus OpenCLIP too: a baseline may be what is better.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import pandas as pd

from analysis import cells, headroom, stats, style
from analysis import frame as tidy
from analysis.table import Row, Table

KINDS = ("average", "eval")


def build(frame: pd.DataFrame) -> Table:
    """Build one row per setting, score and pair of methods."""
    frame = tidy.main_runs(tidy.final_scores(frame))
    main_method = tidy.main_method(frame)
    rows: list[Row] = []
    for label, part in tidy.settings(frame):
        for score in tidy.scores(part):
            one = part[(part["kind"] == score.kind) & (part["name"] == score.name)]
            rows += [
                (label, score.title, style.method(method).name, style.method(baseline).name, *cells.difference(test))
                for method, baseline, test in _differences(one, main_method, with_others=score.kind == "average")
            ]
    return Table(
        title="Differences of methods in points, mean ± half-width of the 95 % interval over paired seeds",
        header=("Setting", "Score", "Method", "Minus", "Difference", "p", "p (Holm)", "Pairs"),
        rows=tuple(rows),
        num_keys=4,
        notes=(
            "Paired by seed: same data order and initialisation. Two-sided paired t test, from "
            f"{stats.MIN_PAIRS_TO_TEST} pairs on; Holm's correction runs over the differences of "
            f"{style.method(main_method).name} in one score, and over those of the other methods. The uncertainty from "
            "the finite evaluation sets is not in it.",
        ),
    )


def _differences(
    rows: pd.DataFrame, main_method: str, *, with_others: bool
) -> Iterator[tuple[str, str, dict[Hashable, Any]]]:
    """Yield method, baseline and test: the main method minus each other, and if asked for the others minus OpenCLIP."""
    tests = stats.paired_differences(rows, first=main_method).to_dict("index")
    for baseline in style.ordered(map(str, tests)):
        yield main_method, baseline, tests[baseline]
    if with_others:
        others = rows[rows["method"] != main_method]
        tests = stats.paired_differences(others, first=headroom.BASELINE).to_dict("index")
        for method in style.ordered(map(str, tests)):
            yield method, headroom.BASELINE, tests[method] | {"mean": -tests[method]["mean"]}
