"""Best score to expect from k random trials of each method, for every k."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis import drawing, stats, style
from analysis import frame as tidy
from analysis.table import Cell, Row, Table
from engine.schema.suite import DEFAULTS

KINDS = ("average", "setting")
EDGE = 0.1
"""Of a range, at each of its ends: what lies there may be better still beyond."""


def table(frame: pd.DataFrame) -> Table | None:
    """One row per method and setting, with the trial whose mean score is the best; of equal ones the first."""
    scores = tidy.without_diverged(tidy.final_scores(frame))
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


def figure(frame: pd.DataFrame, width: float) -> Figure | None:
    """Draw a curve per method, and its own defaults as a hollow marker at one trial."""
    scores = tidy.without_diverged(tidy.final_scores(frame))
    if not (frame["kind"] == "setting").any():
        return None
    figure = Figure(figsize=(width, 2.4))
    axes = figure.subplots()
    has_diverged = False
    for method in tidy.methods(frame[frame["kind"] == "setting"]):
        look, one = style.method(method), scores[scores["method"] == method]
        trials = tidy.trials(one)
        has_diverged |= bool(trials.isna().any())
        # A run that diverges leaves a model that can do no better than guess.
        best = 100 * expected_best(trials.fillna(one["chance"].iloc[0]).to_numpy())
        axes.plot(np.arange(1, len(best) + 1), best, label=look.name, **style.lines(method))
        defaults = 100 * one.loc[one["variant"] == DEFAULTS, "value"].mean(skipna=False)
        axes.plot(1, defaults, look.marker, color=look.color, markerfacecolor="none", clip_on=False, zorder=4)
    axes.set(xlabel="Random trials", ylabel=f"{tidy.scores(scores)[0].title}, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    drawing.legend(figure, drawing.method_handles(scores))
    drawing.caption(
        figure,
        scores,
        "Line: best score to expect from so many trials, drawn from those that were run.",
        "Hollow marker: the method's own defaults.",
        "Trials that diverged count as guessing." if has_diverged else "",
        over_seeds="Scores of trials are means over seeds.",
    )
    return figure


def expected_best(scores: np.ndarray) -> np.ndarray:
    """Return the best score to expect from k random trials, for k = 1 to n.

    With the n scores sorted, v_1 to v_n, and draws with replacement, E_k = sum_i v_i ((i / n)^k - ((i - 1) / n)^k).

    Args:
        scores: One score per trial that was run, shape (n,).

    Source: Dodge et al., "Show Your Work", arXiv:1909.03004, Section 3.
    """
    n = len(scores)
    none_above = (np.arange(n + 1) / n) ** np.arange(1, n + 1)[:, None]  # of k draws: one row per k
    expected: np.ndarray = np.diff(none_above, axis=1) @ np.sort(scores)
    return expected
