"""Bias and spread of each method's gradients on batches, and which way they pull the temperature."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import drawing, stats, style
from analysis import frame as tidy
from analysis.table import Cell, Row, Table, three_digits

KINDS = ("gradient",)
COLUMNS = {
    "bias_squared": "Squared bias",
    "variance": "Variance",
    "cosine": "Cosine of the mean",
    "exact_bias_squared": "Squared bias, own loss",
    "exact_factor": "Length, own loss",
    "pull": "Pull on the temperature",
    "pull_sd": "sd of the pull",
    "exact_pull": "Pull of all pairs",
    "temperature": "Temperature",
}
WITHIN = {"bias_squared": "bias_squared_se", "variance": "variance_se", "exact_bias_squared": "exact_bias_squared_se"}
"""Standard errors over a run's pairs."""
NORMAL = 1.96


def table(frame: pd.DataFrame) -> Table | None:
    """One row per setting, method and variant."""
    frame = frame[frame["is_final"]]
    settings = tidy.settings(frame)
    keys = ("Setting", "Method") if len(settings) > 1 else ("Method",)
    rows: list[Row] = []
    for label, part in settings:
        for (method, variant), one in tidy.curves(part).items():
            key = (label, style.variant(method, variant))[-len(keys) :]
            rows.append((*key, *_cells(one.pivot(index="run_id", columns="name", values="value"))))
    sizes = " or ".join(f"{size:,.0f}" for size in sorted(frame.loc[frame["name"] == "population", "value"].unique()))
    nothing = () if rows else ("No run of this suite measures gradients: `gradient_error` in `training` does.",)
    return Table(
        title="Error of gradients at the end of training, mean ± half-width of the 95 % interval over seeds",
        header=(*keys, *COLUMNS.values()),
        rows=tuple(rows),
        num_keys=len(keys),
        notes=(
            *nothing,
            "Of a pair's embeddings, in batches that hold it, relative to the squared norm of RGCL's gradient over "
            f"{sizes or 'many'} pairs; one factor a run is taken out, since AdamW does not see it. Bias and variance "
            "add up; noise is taken off the bias, so that zero comes out on either side of it. Own loss: against what "
            "the method's batches stand in for, the length being the factor that is taken out.",
            "Pull: the derivative of the loss in log(1 / temperature), in nats, on batches and on all pairs. Positive "
            "raises the temperature; 'opposite' is where a batch pulls the other way than all pairs, beyond noise.",
            "A single run's interval is over its pairs or batches.",
        ),
    )


def _cells(runs: pd.DataFrame) -> list[Cell]:
    """One row of a frame is one run."""
    # The factor that is taken out is least squares: what it leaves is perpendicular to RGCL's gradient.
    cosines = (1 + runs["bias_squared"].clip(lower=0)) ** -0.5 * runs["factor"].map(lambda x: math.copysign(1, x))
    runs = runs.assign(cosine=cosines)
    batches = runs["num_batches"].clip(lower=1) ** 0.5
    within = {name: runs[error] for name, error in WITHIN.items()} | {"pull": runs["pull_sd"] / batches}
    cells = {name: _cell(runs[name].dropna(), within.get(name)) for name in COLUMNS}
    pull, exact = cells["pull"], cells["exact_pull"].value
    if pull.value is not None and exact is not None and pull.value * exact < 0:
        # Where there is no interval, nobody knows what noise is.
        is_beyond = abs(pull.value) > (math.inf if pull.half_width is None else pull.half_width)
        cells["pull"] = dataclasses.replace(pull, remark="opposite" if is_beyond else "")
    return list(cells.values())


def _cell(values: pd.Series, errors: pd.Series | None) -> Cell:
    if values.empty:
        return Cell(None)
    mean = float(values.mean())
    half_width = stats.half_width(values)
    if len(values) == 1 and errors is not None:
        half_width = NORMAL * float(errors[values.index[0]])
    return Cell(mean, half_width, len(values), three_digits(mean))


ROW_IN, GAP_IN, HEAD_IN, PANEL_IN = 0.2, 0.09, 0.6, 2.2
PANELS = {"bias_squared": "Bias", "variance": "Standard deviation", "pull": "Pull on the temperature, nats"}


class _Row(NamedTuple):
    label: str
    method: str
    is_main: bool
    runs: pd.DataFrame
    """One line a run, one column a number."""


def figure(frame: pd.DataFrame, width: float) -> Figure | None:
    """Draw one panel for each of bias, standard deviation and pull, one row per setting, method and variant."""
    frame = frame[frame["is_final"]]
    if frame.empty:
        return None
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
