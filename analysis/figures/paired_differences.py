"""NeuCLIP minus each baseline on the averages, paired by seed: both share data order and initialisation."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.figure import Figure

from analysis import drawing, stats, style
from analysis import frame as tidy

KINDS = ("average",)


def build(frame: pd.DataFrame, width: float) -> Figure:
    """Draw one panel per setting and average, one row per baseline."""
    frame = tidy.main_runs(tidy.final_scores(frame))
    main_method = tidy.main_method(frame)
    panels = []
    for label, rows in tidy.settings(frame):
        for score in tidy.scores(frame):
            tests = stats.paired_differences(rows[rows["name"] == score.name], first=main_method)
            if tests["n"].sum():
                panels.append((", ".join(filter(None, [score.title, label])), score, tests))
    ours = style.method(main_method).name
    if not panels:
        return drawing.nothing(f"No paired differences: {ours} and a baseline share no seed in this suite.", width)
    height = 0.45 + 0.2 * max(len(tests) for *_, tests in panels)
    shown = drawing.arrange_scores(panels, width, line_in=height)
    figure, all_axes = shown.draw(sharey=True)
    for axes, (title, _, tests) in zip(all_axes, shown.panels, strict=True):
        drawing.title(axes, title, shown.panel_in)
        baselines = style.ordered(str(name) for name in tests.index)
        for y, baseline in enumerate(baselines):
            mean, half_width, p = (float(tests[name][baseline]) for name in ("mean", "half_width", "p_holm"))
            drawing.interval(axes, y, 100 * mean, 100 * half_width, baseline)
            test = "" if math.isnan(p) else f"  {style.p_value(p)}"
            drawing.row_number(axes, y, f"{100 * mean:+z.1f}{test}", baseline)
        names = [f"minus {style.method(name).name}" for name in baselines]
        axes.axvline(0, color=style.INK, linewidth=0.8, zorder=1)
        drawing.label_rows(axes, names, pd.concat([100 * tests["mean"], pd.Series([0.0])]), ours=[])
    is_tested = any(tests["p_holm"].notna().any() for *_, tests in shown.panels)
    text = f"{ours} minus each baseline in points, seed by seed."
    test = "p: paired t test, Holm-corrected." if is_tested else ""
    over_seeds = "Marker: mean; bar: its 95 % interval (t, cut at the edge)."
    drawing.caption(figure, frame, text, test, shown.left_out, over_seeds=over_seeds)
    return figure
