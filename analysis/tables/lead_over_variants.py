"""NeuCLIP's main run minus every variant of the other methods: is one of them as good?"""

from __future__ import annotations

import pandas as pd

from analysis import cells, stats, style
from analysis import frame as tidy
from analysis.table import Row, Table

SUITES = ("laptop", "laptop_best_rates")
KINDS = ("average",)


def build(frame: pd.DataFrame) -> Table:
    """Build one row per setting, score and variant of another method."""
    frame = tidy.final_scores(frame)
    ours = tidy.main_method(frame)
    rows: list[Row] = []
    for label, part in tidy.settings(frame):
        compared = part[(part["method"] == ours) == (part["variant"] == "")]
        curves = [style.variant(*curve) for curve in tidy.curves(compared)]
        named = compared.assign(method=list(map(style.variant, compared["method"], compared["variant"])))
        for score in tidy.scores(part):
            of_score = named[named["name"] == score.name]
            tests = stats.paired_differences(of_score, first=style.variant(ours, "")).to_dict("index")
            rows += [(label, score.title, name, *cells.difference(tests[name])) for name in curves if name in tests]
    name = style.method(ours).name
    return Table(
        title=f"{name} minus each variant of the other methods in points, mean ± half-width of the 95 % interval over "
        "paired seeds",
        header=("Setting", "Score", "Minus", "Difference", "p", "p (Holm)", "Pairs"),
        rows=tuple(rows),
        num_keys=3,
        notes=(
            f"{name} is the main run. Paired by seed: same data order and initialisation. Two-sided paired t test, "
            f"from {stats.MIN_PAIRS_TO_TEST} pairs on; Holm's correction runs over the variants in one score.",
        ),
    )
