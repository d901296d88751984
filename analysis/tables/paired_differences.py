"""NeuCLIP minus each baseline, paired by seed: the differences behind the main table's marks."""

from __future__ import annotations

import pandas as pd

from analysis import frame as tidy
from analysis import stats, style
from analysis.table import Cell, Row, Table

KINDS = ("average", "eval")


def build(frame: pd.DataFrame) -> Table:
    """Build one row per setting, score and baseline."""
    frame = tidy.main_runs(tidy.final_scores(frame))
    rows: list[Row] = []
    for label, part in tidy.settings(frame):
        for score in tidy.scores(part):
            one = part[(part["kind"] == score.kind) & (part["name"] == score.name)]
            tests = stats.paired_differences(one, first=style.OURS).to_dict("index")
            for baseline in style.ordered(map(str, tests)):
                test = tests[baseline]
                rows.append(
                    (
                        label,
                        score.title,
                        style.method(baseline).name,
                        Cell(100 * test["mean"], 100 * test["half_width"], form="+.1f"),
                        *(Cell(test[name], form=style.p_form(test[name])) for name in ("p", "p_holm")),
                        Cell(test["n"], form="d"),
                    )
                )
    return Table(
        title=f"{style.method(style.OURS).name} minus each baseline in points, mean ± half-width of the 95 % interval "
        "over paired seeds",
        header=("Setting", "Score", "Baseline", "Difference", "p", "p (Holm)", "Pairs"),
        rows=tuple(rows),
        num_keys=3,
        notes=(
            "Paired by seed: same data order and initialisation. Two-sided paired t test, from "
            f"{stats.MIN_PAIRS_TO_TEST} pairs on; Holm's correction runs over the baselines of one score. The "
            "uncertainty from the finite evaluation sets is not in it.",
        ),
    )
