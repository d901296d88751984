"""Error of each method's log-normalizers against the exact ones: over training, by batch size, by data size."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import cells, drawing, reference, style
from analysis import frame as tidy
from analysis.table import Cell, Row, Table, three_digits

KINDS = ("normalizer",)
COLUMNS = {
    "mse": "MSE",
    "control_mse": "MSE of control",
    "image_bias": "Bias, image",
    "text_bias": "Bias, text",
    "temperature": "Temperature",
    "num_anchors": "Anchors",
    "num_without_estimate": "Without estimate",
}


def table(frame: pd.DataFrame) -> Table | None:
    """Build one row per setting, method and variant."""
    frame = tidy.with_mean_error(frame[frame["is_final"]])
    rows: list[Row] = []
    for label, part in tidy.settings(frame):
        for (method, variant), one in tidy.curves(part).items():
            values = {name: one.loc[one["name"] == name, "value"] for name in COLUMNS}
            rows.append((label, style.variant(method, variant), *(_cell(name, values[name]) for name in COLUMNS)))
    sizes = " or ".join(f"{size:.0f}" for size in frame.loc[frame["name"] == "control_size", "value"].unique())
    return Table(
        title="Error of the log-normalizers at the end of training, mean ± half-width of the 95 % interval over seeds",
        header=("Setting", "Method", *COLUMNS.values()),
        rows=tuple(rows),
        num_keys=2,
        notes=(
            "Against the exact log-normalizer over the whole training set; MSE is the mean of the image and the text "
            f"side. Control: the plain mean over {sizes or 'some'} fresh random embeddings, with the row's own "
            "encoders and temperature. Anchors are counted on each side; those without an estimate yet, on both sides "
            "together, are left out of the error.",
            "The error depends on the temperature: only rows of equal temperature compare.",
        ),
        reference=reference.table("normalizer_error"),
    )


def _cell(name: str, values: pd.Series) -> Cell:
    mean = float(values.mean())
    if name.startswith("num_"):
        return Cell(mean, n=int(values.count()), form=".0f")
    form = ".3f" if name.endswith("_bias") else three_digits(mean)
    return cells.mean(values, form)


GRIDS = {"global_batch_size": "Global batch size", "dataset_pairs": "Pairs in the data set"}
LINE_IN = 2.0
SAME_TEMPERATURE = 0.02
"""Largest relative difference of temperatures that count as equal."""
CONTROL: dict[str, Any] = {"color": style.MUTED, "linestyle": (0, (1, 2.5)), "linewidth": 1.0, "marker": "_"}


def figure(frame: pd.DataFrame, width: float) -> Figure | None:
    """Draw the main runs and each variant of several methods; panels of one temperature, which compare, come first."""
    frame = tidy.with_mean_error(frame)
    if frame.loc[frame["name"] == "mse", "value"].isna().all():
        return None
    models = sorted(frame["model"].unique())
    parts = {
        ", ".join(filter(None, [variant.capitalize() or "Main runs", model if len(models) > 1 else ""])): rows
        for variant in tidy.variants(frame)
        for model in models
        if len(rows := frame[(frame["variant"] == variant) & (frame["model"] == model)])
        and (variant == "" or rows["method"].nunique() > 1)
    }
    panels = []
    for name, rows in sorted(parts.items(), key=lambda item: not _has_one_temperature(item[1])):
        largest = max(tidy.settings(rows), key=lambda setting: len(setting.rows)).rows
        panels.append((_title(name, largest), "samples_seen", largest))
        final = rows[rows["is_final"]]
        panels += [(_title(name, final), c, _slice(final, c)) for c in GRIDS if rows[c].nunique() > 1]
    is_many = len(panels) > 4 or any(x in GRIDS for _, x, _ in panels)
    panel_in = 2.2 if is_many else 2.4
    shown = drawing.arrange(panels, width, panel_in=panel_in, line_in=LINE_IN, what="panels", in_tables=False)
    figure, all_axes = shown.draw(sharey=True, ylabel="MSE of the log-normalizer")
    for axes, (title, x, rows) in zip(all_axes, shown.panels, strict=True):
        drawing.title(axes, title, shown.panel_in)
        _draw(axes, rows, x)
    control = Line2D([], [], label="Fresh embeddings", **CONTROL)
    drawing.legend(figure, [*drawing.method_handles(frame), control])
    text = "Errors compare at equal temperature \N{GREEK SMALL LETTER TAU} only."
    drawing.caption(figure, frame, text, shown.left_out, over_seeds=drawing.MEAN_AND_BAND)
    return figure


def _draw(axes: Axes, rows: pd.DataFrame, x: str) -> None:
    for method in tidy.methods(rows):
        drawing.curve(axes, rows[(rows["method"] == method) & (rows["name"] == "mse")], method, x=x, marked=True)
    control = rows[rows["name"] == "control_mse"].groupby(x)["value"].mean().dropna()
    axes.plot(control.index, control, label="control", **CONTROL)
    drawing.log_axis(axes, "y")
    if x == "samples_seen":
        drawing.samples_axis(axes)
    else:
        drawing.log_axis(axes, "x")
        drawing.size_axis(axes, rows[x], GRIDS[x])


def _temperatures(rows: pd.DataFrame) -> pd.Series:
    return rows.loc[(rows["name"] == "temperature") & rows["is_final"], "value"]


def _has_one_temperature(rows: pd.DataFrame) -> bool:
    values = _temperatures(rows)
    return bool(values.max() <= (1 + SAME_TEMPERATURE) * values.min())


def _title(name: str, rows: pd.DataFrame) -> str:
    values = _temperatures(rows)
    given = f"{values.min():.2g}" if _has_one_temperature(rows) else f"{values.min():.2g} to {values.max():.2g}"
    return f"{name} (\N{GREEK SMALL LETTER TAU} = {given})"


def _slice(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """Keep runs that differ in `column` only, in the setting where it has the most values."""
    others = [name for name in ("dataset_pairs", "model", "global_batch_size") if name != column]
    _, rows = max(frame.groupby(others), key=lambda item: item[1][column].nunique())
    return rows
