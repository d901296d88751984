"""NeuCLIP minus each baseline, seed by seed: the size of the effect behind the main table's marks."""

from __future__ import annotations

import pandas as pd

from analysis import frame as tidy
from analysis import stats, style
from analysis.table import Cell, Row, Table

KINDS = ("average", "eval")


def build(frame: pd.DataFrame) -> Table:
    """One row per setting, score and baseline."""
    frame = tidy.main_runs(tidy.final_scores(frame))
    settings = tidy.settings(frame)
    keys = ("Setting", "Score", "Baseline") if len(settings) > 1 else ("Score", "Baseline")
    rows: list[Row] = []
    for label, part in settings:
        for score in tidy.scores(part):
            one = part[(part["kind"] == score.kind) & (part["name"] == score.name)]
            tests = stats.paired_differences(one, ["name"], first=style.OURS).set_index("baseline")
            for baseline in style.ordered(tests.index):
                test = tests.loc[[baseline]].to_dict("records")[0]
                rows.append(
                    (
                        *(label, score.title, style.method(baseline).name)[-len(keys) :],
                        Cell(100 * test["mean"], 100 * test["half_width"], form="+.1f"),
                        *(Cell(test[name], form=style.p_form(test[name])) for name in ("p", "p_holm")),
                        Cell(test["n"], form="d"),
                    )
                )
    return Table(
        title=f"{style.method(style.OURS).name} minus each baseline in points, mean ± half-width of the 95 % interval "
        "over paired seeds",
        header=(*keys, "Difference", "p", "p (Holm)", "Pairs"),
        rows=tuple(rows),
        num_keys=len(keys),
        notes=(
            "Paired by seed: same data order and initialisation. Two-sided paired t test, from "
            f"{stats.MIN_PAIRS_TO_TEST} pairs on; Holm's correction runs over the baselines of one score. The "
            "uncertainty from the finite evaluation sets is not in it.",
        ),
    )
