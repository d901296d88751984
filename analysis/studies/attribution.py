"""Scores by normalizer and temperature, and the share that each has in NeuCLIP's gain over OpenCLIP."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import attribution, cells, drawing, stats, style
from analysis import frame as tidy
from analysis.table import Cell, Row, Table

KINDS = ("average", "option", "train")


def table(frame: pd.DataFrame) -> Table | None:
    """One row per setting, score and source of the log-normalizer, one column per rule of the temperature."""
    found = attribution.attributions(frame)
    rows: list[Row] = []
    for setting in dict.fromkeys(one.setting for one in found):
        of_setting = [one for one in found if one.setting == setting]
        for one in of_setting:
            rows += _block(setting, one.score.title, {cell: _score(values) for cell, values in one.scores.items()})
        last = {cell: cells.mean(values, ".3f") for cell, values in of_setting[0].temperatures.items()}
        rows += _block(setting, "Final temperature", last)
    ours = frame[frame["method"] == style.OURS]
    said = (
        f"{tidy.describe(ours)}. Columns: what moves the temperature. Own pair: the anchor's own pair is in the "
        f"denominator. {attribution.CORNERS} A dash: not run.",
        *dict.fromkeys(text for one in found for text in one.doubles),
    )
    return Table(
        title="Attribution: scores in % and final temperatures, mean ± half-width of the 95 % interval over seeds",
        header=("Setting", "Score", "Normalizer", *attribution.RULES.values()),
        rows=tuple(rows),
        num_keys=3,
        notes=said if found else (attribution.NOTHING,),
    )


def _block(setting: str, score: str, shown: dict[attribution.Cell, Cell]) -> list[Row]:
    """Arrange the cells of one score: sources below each other, rules of the temperature side by side."""
    by_place = {(cell.row, cell.rule): item for cell, item in shown.items()}
    return [
        (setting, score, row, *(by_place.get((row, rule), Cell(None)) for rule in attribution.RULES))
        for row in dict.fromkeys(cell.row for cell in shown)
    ]


def _score(values: pd.Series) -> Cell:
    """Show the mean over seeds, and how many runs it is of where some diverged."""
    n = int(values.count())
    remark = "" if n == len(values) else f"(n = {n})" if n else "diverged"
    return dataclasses.replace(cells.mean(100 * values), remark=remark)


LINE_IN = 0.12
"""Height of one interval, inches; several stand in a row."""

MAX_NOTES = 3
"""On cells that are missing; the tables have all."""


class Look(NamedTuple):
    """Colour and marker of a rule of the temperature."""

    color: str
    marker: str


LOOKS = {
    "infonce": Look(style.method("openclip").color, "s"),
    "rho": Look(style.method(style.OURS).color, "o"),
    "fixed": Look(style.MUTED, "D"),
}


def figure(frame: pd.DataFrame, width: float) -> Figure | None:
    """Draw two panels per setting, of the suite's first average: scores of all cells, and shares of the gains."""
    found = attribution.attributions(frame)
    if not found:
        return None
    found = [one for one in found if one.score.name == found[0].score.name]
    panels = [(draw, one) for one in found for draw in (_draw_scores, _draw_shares)]
    most = max(len(attribution.RULES) * len({cell.row for cell in one.scores}) for one in found)
    shown = drawing.arrange(panels, width, panel_in=2.8, line_in=0.45 + LINE_IN * most, what="panels")
    figure, all_axes = shown.draw()
    for axes, (draw, one) in zip(all_axes, shown.panels, strict=True):
        title = f"{one.score.title}, %" if draw is _draw_scores else "Gain over OpenCLIP, points"
        drawing.title(axes, ", ".join(filter(None, [title, one.setting])), shown.panel_in)
        draw(axes, one)
    drawing.legend(figure, _handles())
    missing = dict.fromkeys(text for one in found for text in (*one.missing, *one.doubles))
    notes, more = drawing.fit(list(missing), MAX_NOTES, "notes on what is missing")
    drawing.caption(
        figure,
        frame[frame["method"] == style.OURS],
        "Scores by where the log-normalizer is from; own pair: it is in the denominator. Circled: OpenCLIP (with "
        "NeuCLIP's learning rate) and NeuCLIP. Gains: all together, and the Shapley value of each difference; filled "
        "with the network, hollow with the exact normalizer.",
        *notes,
        more,
        shown.left_out,
        over_seeds="Marker: mean; bar: its 95 % interval (t; gains paired by seed).",
    )
    return figure


def _draw_scores(axes: Axes, one: attribution.Attribution) -> None:
    rows = list(dict.fromkeys(cell.row for cell in one.scores))[::-1]
    means = []
    for cell, values in one.scores.items():
        y = rows.index(cell.row) + _offset(list(attribution.RULES).index(cell.rule), len(attribution.RULES))
        means.append(_interval(axes, y, 100 * values, cell, is_hollow=False))
        if cell in (attribution.OPENCLIP, attribution.NEUCLIP):
            axes.plot(means[-1], y, "o", markersize=10, markerfacecolor="none", markeredgecolor=style.INK, zorder=5)
    _finish(axes, rows, means)


def _draw_shares(axes: Axes, one: attribution.Attribution) -> None:
    rows = ["all three", *(factor.lower() for factor in attribution.FACTORS[::-1])]
    means = [0.0]
    for number, parts in enumerate(one.decompositions):
        all_parts = [parts.gain, *(share.share for share in parts.shares[::-1])]
        for row, points in enumerate(all_parts):
            y = row + _offset(number, len(one.decompositions))
            mean = _interval(axes, y, 100 * points, parts.end, is_hollow=parts.end.source == "exact")
            means.append(mean)
            if not np.isnan(mean):
                drawing.row_number(axes, y, f"{mean:+z.1f}", style.OURS if parts.end == attribution.NEUCLIP else "")
    axes.axvline(0, color=style.INK, linewidth=0.8, zorder=1)
    _finish(axes, rows, means)


def _offset(number: int, count: int) -> float:
    """Return how far above a row's middle one of several intervals in it stands; the first is on top."""
    return 0.8 * ((count - 1) / 2 - number) / count


def _interval(axes: Axes, y: float, values: pd.Series, cell: attribution.Cell, *, is_hollow: bool) -> float:
    """Draw the mean over seeds, with a bar for its interval; return the mean, NaN where there is none."""
    look, mean, half_width = LOOKS[cell.rule], float(values.mean()), stats.half_width(values)
    if not np.isnan(half_width):
        ends = [mean - half_width, mean + half_width]
        axes.plot(ends, [y, y], color=look.color, alpha=0.25, linewidth=4, solid_capstyle="butt", zorder=3)
    axes.plot(mean, y, label=str(cell), linestyle="", zorder=4, **_marker(cell.rule, is_hollow=is_hollow))
    return mean


def _marker(rule: str, *, is_hollow: bool) -> dict[str, Any]:
    color, marker = LOOKS[rule]
    face, edge = ("white", color) if is_hollow else (color, "white")
    return {"marker": marker, "color": face, "markeredgecolor": edge, "markeredgewidth": 0.9 if is_hollow else 0.6}


def _finish(axes: Axes, rows: list[str], means: list[float]) -> None:
    """Name the rows, bottom to top, and set every other one off."""
    drawing.label_rows(axes, rows, pd.Series(means), [])
    axes.set_ylim(-0.5, len(rows) - 0.5)
    axes.locator_params(axis="x", nbins=5)
    for y in range(len(rows) - 1, -1, -2):
        axes.axhspan(y - 0.5, y + 0.5, color=style.INK, alpha=0.04, linewidth=0, zorder=0)


def _handles() -> list[Artist]:
    """Return the legend's entries: rules of the temperature, and the normalizer whose gains are hollow."""
    names = {"infonce": "InfoNCE's temperature", "rho": "rho's temperature", "fixed": "fixed temperature"}
    rules = [Line2D([], [], linestyle="", label=names[rule], **_marker(rule, is_hollow=False)) for rule in LOOKS]
    return [*rules, Line2D([], [], linestyle="", label="gain with exact", **_marker("rho", is_hollow=True))]
