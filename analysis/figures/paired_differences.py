"""NeuCLIP minus each baseline on the averages: what is left when both share a seed's data order and initialisation."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.figure import Figure

from analysis import drawing, stats, style
from analysis import frame as tidy

KINDS = ("average",)


@style.paper
def build(frame: pd.DataFrame) -> Figure:
    """Draw one panel per setting and average, one row per baseline."""
    frame = tidy.main_runs(tidy.final_scores(frame))
    panels, settings = [], tidy.settings(frame)
    scores = tidy.scores(frame)
    if len(settings) * len(scores) > drawing.MAX_PANELS:
        scores = scores[:1]
    for label, rows in settings:
        for score in scores:
            tests = stats.paired_differences(rows[rows["name"] == score.name], ["name"], first=style.OURS)
            if tests["n"].sum():
                panels.append((", ".join(filter(None, [score.title, label])), tests.set_index("baseline")))
    ours = style.method(style.OURS).name
    if not panels:
        return drawing.nothing(f"No paired differences: {ours} and a baseline share no seed in this suite.")
    panels, left_out = drawing.fit(panels, drawing.MAX_PANELS, "settings")
    columns = min(3, len(panels))
    lines = math.ceil(len(panels) / columns)
    height = lines * (0.45 + 0.2 * max(len(tests) for _, tests in panels)) + 0.2
    figure = Figure(figsize=(style.PAGE_IN, height))
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes, (title, tests) in zip(grid.flat, panels, strict=False):
        axes.set_title(title)
        baselines = style.ordered(str(name) for name in tests.index)
        for y, baseline in enumerate(baselines):
            mean, half_width, p = (float(tests[name][baseline]) for name in ("mean", "half_width", "p_holm"))
            drawing.interval(axes, y, 100 * mean, 100 * half_width, baseline)
            test = "" if math.isnan(p) else "  p < 0.001" if p < 0.001 else f"  p = {p:.2g}"
            drawing.row_number(axes, y, f"{100 * mean:+.1f}{test}", baseline)
        names = [f"minus {style.method(name).name}" for name in baselines]
        axes.axvline(0, color=style.INK, linewidth=0.8, zorder=1)
        drawing.label_rows(axes, names, pd.concat([100 * tests["mean"], pd.Series([0.0])]), ours=[])
    drawing.caption(
        figure,
        frame,
        f"{ours} minus each baseline in points, seed by seed.{left_out}",
        over_seeds=" Marker: mean; bar: its 95 % interval (t, cut at the edge); p: paired t test, Holm-corrected.",
    )
    return figure
