"""Share of the gap between a small and a large batch that each method closes."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.figure import Figure

from analysis import drawing, headroom, style
from analysis import frame as tidy

SUITES = (
    "quickstart", "laptop", "laptop_hard", "*_ten_seeds", "*_confirmation", "!laptop_third*", "one_gpu",
    "*headroom*",
)  # fmt: skip
KINDS = ("average",)
ROW_IN = 0.2


def build(frame: pd.DataFrame, width: float) -> Figure:
    """Draw one panel per setting and average, one row per method or variant; lines mark no gain and the large batch."""
    panels = headroom.gaps(frame)
    baseline = style.method(headroom.BASELINE).name
    if not panels:
        return drawing.nothing(
            f"No headroom: {baseline} was not trained at a larger batch with as many samples.", width
        )
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
