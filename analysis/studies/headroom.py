"""Share of the gap between a small and a large batch that each method closes."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.figure import Figure

from analysis import cells, drawing, headroom, stats, style
from analysis import frame as tidy
from analysis.table import Cell, Row, Table

KINDS = ("average",)


def table(frame: pd.DataFrame) -> Table | None:
    """One row per setting and method or variant, two columns per average: its score, and its share of the gap."""
    gaps = headroom.gaps(frame)
    settings = list(dict.fromkeys(gap.setting for gap in gaps))
    scores = list(dict.fromkeys(gap.score.title for gap in gaps))
    keys = ("Setting", "Method") if len(settings) > 1 else ("Method",)
    rows: list[Row] = []
    for setting in settings:
        parts = {gap.score.title: gap.contenders for gap in gaps if gap.setting == setting}
        for contenders in zip(*parts.values(), strict=True):
            shown = [cell for one in contenders for cell in (_score(one.scores), cells.percent(one.closed, of="gap"))]
            rows.append((*(setting, contenders[0].label)[-len(keys) :], *shown, Cell(contenders[0].closed.n, form="d")))
    baseline = style.method(headroom.BASELINE).name
    nothing = () if gaps else (f"No run of {baseline} at a larger batch with as many samples.",)
    return Table(
        title="Headroom: scores in %, mean ± half-width of the 95 % interval over seeds, and the share that is closed "
        f"of {baseline}'s gap to the large batch, in % (95 % interval)",
        header=(*keys, *(title for score in scores for title in (score, f"{score}, closed")), "Seeds"),
        rows=tuple(rows),
        num_keys=len(keys),
        notes=(
            *nothing,
            f"{tidy.describe(tidy.main_runs(frame))}. Closed: (method - small batch) / (large batch - small batch), "
            "paired by seed; Fieller's intervals, lopsided. Where the gap itself is within noise there is no share.",
        ),
    )


def _score(values: pd.Series) -> Cell:
    n = int(values.count())
    remark = "" if n == len(values) else f"(n = {n})"
    return Cell(100 * float(values.mean()), 100 * stats.half_width(values.dropna()), n, remark=remark)


ROW_IN = 0.2


def figure(frame: pd.DataFrame, width: float) -> Figure | None:
    """Draw one panel per setting and average, one row per method or variant; lines mark no gain and the large batch."""
    panels = headroom.gaps(frame)
    baseline = style.method(headroom.BASELINE).name
    if not panels:
        return None
    height = 0.6 + ROW_IN * max(len(gap.contenders) for gap in panels)
    shown = drawing.arrange(panels, width, panel_in=2.6, line_in=height, what="settings and averages")
    figure, all_axes = shown.draw()
    for axes, gap in zip(all_axes, shown.panels, strict=True):
        drawing.title(axes, ", ".join(filter(None, [gap.score.title, gap.setting])), shown.panel_in)
        # Bottom to top.
        contenders = gap.contenders[::-1]
        values = []
        for y, one in enumerate(contenders):
            low, value, high = (100 * bound for bound in (one.closed.low, one.closed.value, one.closed.high))
            if math.isnan(value) or math.isinf(low):
                drawing.row_number(axes, y, "?", one.method)
                continue
            drawing.interval(axes, y, value, math.nan, one.method)
            look = style.method(one.method)
            axes.plot([low, high], [y, y], color=look.color, alpha=0.25, linewidth=4.5, solid_capstyle="butt")
            drawing.row_number(axes, y, f"{value:z.0f} %", one.method)
            values.append(value)
        for mark in (0, 100):
            axes.axvline(mark, color=style.INK, linewidth=0.8, zorder=1)
        labels = drawing.wrapped([one.label for one in contenders], shown.panel_in)
        ours = [y for y, one in enumerate(contenders) if one.method == style.OURS and not one.variant]
        drawing.label_rows(axes, labels, pd.Series([*values, 0.0, 100.0]), ours)
    drawing.caption(
        figure,
        tidy.main_runs(frame),
        f"Share of {baseline}'s gap from the batch (0) to the large batch (100 %), at equal samples.",
        shown.left_out,
        over_seeds="Marker: ratio of means, paired by seed; bar: its 95 % interval (Fieller, cut at the edge); "
        "?: no share, as the gap itself is within noise or there is no score.",
    )
    return figure
