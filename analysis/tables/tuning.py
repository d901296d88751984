"""Settings that a tuning has chosen for each method, their ranges, and which ranges to widen."""

from __future__ import annotations

import pandas as pd

from analysis import frame as tidy
from analysis import stats, style
from analysis.table import Cell, Row, Table
from engine.schema.suite import DEFAULTS

KINDS = ("average", "setting")
SUITES = ("tuning@*",)
EDGE = 0.1
"""Of a range, at each of its ends: what lies there may be better still beyond."""


def build(frame: pd.DataFrame) -> Table:
    """One row per method and setting, with the trial whose mean score is the best; of equal ones the first."""
    scores = tidy.final_scores(frame)
    rows: list[Row] = []
    told = []
    for method in tidy.methods(frame[frame["kind"] == "setting"]):
        one = scores[scores["method"] == method]
        trials = tidy.trials(one)
        if trials.isna().all():
            told.append(f"{style.method(method).name}: all of {len(trials)} diverged.")
            continue
        best = str(trials.idxmax())
        chosen = frame[(frame["kind"] == "setting") & (frame["method"] == method) & (frame["variant"] == best)]
        shown = [_score(one, best), _score(one, DEFAULTS)]
        for setting in chosen.drop_duplicates("name").to_dict("records"):
            key = (style.method(method).name, setting["name"])
            rows.append((*key, setting["title"], setting["metric"], _edge(setting["value"]), *shown))
            shown = [Cell(None), Cell(None)]
        diverged = int(trials.isna().sum())
        told.append(
            f"{style.method(method).name}: {best} of {len(trials)}" + (f" ({diverged} diverged)." if diverged else ".")
        )
    title = next((score.title for score in tidy.scores(scores)), "")
    return Table(
        title="Chosen settings",
        header=("Method", "Setting", "Chosen", "Range", "Edge", f"{title}, %", "Its defaults, %"),
        rows=tuple(rows),
        num_keys=2,
        notes=(
            f"{tidy.describe(scores)}. Scores: mean ± half-width of the 95 % interval over seeds, of the chosen trial "
            "and of the method's own defaults, which are no trial and never chosen. The best of many trials scores "
            "higher than it would with other seeds: compare methods in the suite's own tables.",
            f"Edge: within {100 * EDGE:.0f} % of an end of the range, on its scale: widen the range there, tune again.",
            " ".join(told),
        ),
    )


def _score(scores: pd.DataFrame, variant: str) -> Cell:
    values = 100 * scores.loc[scores["variant"] == variant, "value"]
    return Cell(values.mean(skipna=False), stats.half_width(values), int(values.count()))


def _edge(place: float) -> str:
    return "low" if place < EDGE else "high" if place > 1 - EDGE else ""
