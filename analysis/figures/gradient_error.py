"""Bias and spread of each method's gradients on batches, and which way they pull the temperature."""

from __future__ import annotations

import math
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import drawing, style
from analysis import frame as tidy

KINDS = ("gradient",)
ROW_IN, GAP_IN, HEAD_IN, PANEL_IN = 0.2, 0.09, 0.6, 2.2
PANELS = {"bias_squared": "Bias", "variance": "Standard deviation", "pull": "Pull on the temperature, nats"}


class _Row(NamedTuple):
    label: str
    method: str
    is_main: bool
    runs: pd.DataFrame
    """One line a run, one column a number."""


def build(frame: pd.DataFrame, width: float) -> Figure:
    """Draw one panel for each of bias, standard deviation and pull, one row per setting, method and variant."""
    frame = frame[frame["is_final"]]
    if frame.empty:
        return drawing.nothing("No errors of gradients: no run of this suite measures them.", width)
    columns = min(max(1, int(width / PANEL_IN)), len(PANELS))
    # Panels beside each other share the labels of the first.
    label_in = width / columns * (1.5 if columns > 1 else 1.0)
    rows = _rows(frame)
    labels = drawing.wrapped([row.label for row in rows], label_in)
    row_in = max(ROW_IN, GAP_IN + drawing.LINE_IN * max(label.count("\n") + 1 for label in labels))
    # All panels, with as many rows as there is room for.
    most = int((drawing.MAX_IN / math.ceil(len(PANELS) / columns) - HEAD_IN) / row_in)
    rows, left_out = drawing.fit(rows, most, "rows")
    height = HEAD_IN + row_in * len(rows)
    shown = drawing.arrange(list(PANELS), width, panel_in=PANEL_IN, line_in=height, what="panels")
    figure, all_axes = shown.draw(sharey=True)
    for axes, name in zip(all_axes, shown.panels, strict=True):
        drawing.title(axes, PANELS[name], shown.panel_in)
        # Bottom to top.
        _draw(axes, rows[::-1], labels[: len(rows)][::-1], name)
    text = (
        "Bias and standard deviation of the gradient in a pair's embeddings, relative to RGCL's over all pairs, one "
        "factor a run taken out. Pull: positive raises the temperature; upright: that of all pairs."
    )
    drawing.caption(figure, frame, text, left_out, over_seeds=drawing.MEAN_AND_INTERVAL)
    return figure


def _rows(frame: pd.DataFrame) -> list[_Row]:
    rows = []
    for label, part in tidy.settings(frame):
        for (method, variant), one in reversed(tidy.curves(part).items()):
            name = ", ".join(filter(None, [style.variant(method, variant), label]))
            runs = one.pivot(index="run_id", columns="name", values="value")
            rows.append(_Row(name, method, not variant, runs))
    return rows


def _draw(axes: Axes, rows: list[_Row], labels: list[str], name: str) -> None:
    drawn = [0.0]
    for y, row in enumerate(rows):
        values = row.runs[name]
        if name != "pull":
            values = values.clip(lower=0) ** 0.5
        drawing.seeds_and_interval(axes, y, values, row.method)
        drawn.extend(values.dropna())
        if name == "pull":
            exact = row.runs["exact_pull"].mean()
            axes.plot([exact, exact], [y - 0.4, y + 0.4], color=style.INK, linewidth=1.2, label="exact", zorder=5)
            drawn.append(exact)
    axes.axvline(0, color=style.INK, linewidth=0.8, zorder=1)
    ours = [y for y, row in enumerate(rows) if row.method == style.OURS and row.is_main]
    drawing.label_rows(axes, labels, pd.Series(drawn).dropna(), ours)
