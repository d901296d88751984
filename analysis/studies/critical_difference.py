"""Mean ranks of the methods over all evaluation sets; bars join methods that do not differ significantly."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import drawing, stats, style
from analysis import frame as tidy

KINDS = ("eval",)
NAME_IN = 1.0
"""Width for names and ranks on either side of the axis, inches."""


def figure(frame: pd.DataFrame, width: float) -> Figure | None:
    """Draw one panel per setting, with the best method on the left."""
    frame = tidy.main_runs(tidy.final_scores(frame))
    panels = []
    for label, part in tidy.settings(frame):
        ranks = stats.rank(stats.by_set(part))
        if not math.isnan(ranks.critical_difference):
            panels.append((label, ranks))
    if not panels:
        return None
    height = 0.9 + 0.18 * math.ceil(max(len(ranks.mean) for _, ranks in panels) / 2)
    shown = drawing.arrange(panels, width, panel_in=3.2, line_in=height, what="settings")
    figure, all_axes = shown.draw()
    for axes, (label, ranks) in zip(all_axes, shown.panels, strict=True):
        _draw(axes, label, ranks, shown.panel_in)
    text = (
        "Rank 1 is the best. A bar joins methods whose ranks differ by less than the critical difference (CD): "
        f"Nemenyi's test at {stats.SIGNIFICANCE}. p: Friedman's test."
    )
    scored = set(frame.dropna(subset=["value"])["method"])
    lacking = ", ".join(style.method(name).name for name in tidy.methods(frame) if name not in scored)
    unranked = f"Without scores, and not ranked: {lacking}." if lacking else ""
    drawing.caption(figure, frame, text, unranked, shown.left_out, over_seeds="Scores are means over seeds.")
    return figure


def _draw(axes: Axes, label: str, ranks: stats.Ranks, axes_width: float) -> None:
    order = ranks.mean.sort_values(kind="stable")
    worst, half = len(order), math.ceil(len(order) / 2)
    room = NAME_IN * (worst - 1) / (axes_width - 2 * NAME_IN)
    axes.set_title(", ".join(filter(None, [label, f"{ranks.num_sets} sets, {style.p_value(ranks.p)}"])))
    axes.set(xlim=(1 - room, worst + room), ylim=(-1.6 - half, 2.4))
    axes.set_axis_off()
    axes.plot([1, worst], [0, 0], color=style.MUTED, linewidth=0.8, zorder=1)
    for place in range(1, worst + 1):
        axes.plot([place, place], [0, 0.25], color=style.MUTED, linewidth=0.8)
        axes.text(place, 0.4, f"{place}", ha="center", va="bottom", fontsize=7)
    for number, group in enumerate(stats.alike(ranks)):
        ends = [order[group[0]] - 0.04, order[group[-1]] + 0.04]
        y = -0.35 - 0.3 * number
        axes.plot(ends, [y, y], color=style.INK, linewidth=2.2, solid_capstyle="butt", label="alike", zorder=4)
    for number, (method, value) in enumerate(order.items()):
        look, is_left = style.method(str(method)), number < half
        # The outermost name is the highest, so that no line crosses another.
        y = -1.5 - (number if is_left else worst - 1 - number)
        end = 1 - 0.1 * room if is_left else worst + 0.1 * room
        axes.plot([value, value, end], [0, y, y], color=look.color, linewidth=1.0, solid_joinstyle="miter")
        axes.plot(value, 0, look.marker, color=look.color, label=look.name, zorder=5)
        axes.text(
            end - 0.08 * room if is_left else end + 0.08 * room,
            y,
            f"{look.name}  {value:.2f}",
            ha="right" if is_left else "left",
            va="center_baseline",
            fontsize=7,
            color=look.color if method == style.OURS else style.INK,
            fontweight="bold" if method == style.OURS else "normal",
        )
    axes.plot([1, 1 + ranks.critical_difference], [1.9, 1.9], "|-", color=style.INK, linewidth=0.8, label="CD")
    axes.text(
        1 - 0.1 * room, 1.9, f"CD = {ranks.critical_difference:.2f}", ha="right", va="center_baseline", fontsize=7
    )
