"""NeuCLIP's scores and step time against the network's updates, restarts and size."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from analysis import drawing, stats, style
from analysis import frame as tidy

KINDS = ("average", "option", "cost")
LINE_IN = 2.2
LEAST_SPAN = 0.02
"""Least span of a heat map's colours, relative to its middle: noise must not look like an effect."""
OPTIONS = {
    "num_updates": "Updates per step, $T_u$",
    "restart_period": "Restart period in steps, $T_r$",
    "num_prototypes": "Prototypes, $m$",
}


def figure(frame: pd.DataFrame, width: float) -> Figure | None:
    """Draw a heat map over two options that vary, or a curve over one; beside it the step time."""
    frame = frame[frame["method"] == style.OURS]
    runs = _runs(frame)
    varied = [name for name in OPTIONS if name in runs and runs[name].nunique() > 1][:2]
    if not varied or runs["score"].isna().all():
        return None
    # Leave out variants that share both options with the main run: they differ in something else.
    main = set(runs.loc[runs["variant"] == "", varied].itertuples(index=False, name=None))
    is_like_main = [place in main for place in runs[varied].itertuples(index=False, name=None)]
    runs = runs[(runs["variant"] == "") | ~pd.Series(is_like_main, runs.index)]
    title = next(score.title for score in tidy.scores(frame) if score.kind == "average")
    panels = {"score": f"{title}, %"}
    is_one_machine = (frame[["device", "commit"]].nunique() == 1).all() and not tidy.moved(frame).any()
    if is_one_machine and runs["step"].notna().all():
        panels["step"] = "Median step, ms"
    shown = drawing.arrange(list(panels.items()), width, panel_in=3.2, line_in=LINE_IN, what="panels")
    figure, all_axes = shown.draw()
    for axes, (column, name) in zip(all_axes, shown.panels, strict=True):
        axes.set_title(name)
        draw = _curve if len(varied) == 1 else _heat_map
        draw(axes, runs, varied, column)
    which = "Outlined: main run." if len(varied) > 1 else "Larger marker: main run."
    untimed = "" if "step" in panels else "No step times: they are of several devices or commits, or missing."
    interval = "Bar: 95 % interval of the mean over seeds." if len(varied) == 1 else "Means over seeds."
    drawing.caption(figure, frame, which if main else "", untimed, shown.left_out, over_seeds=interval)
    return figure


def _runs(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row per run: its options, `score` in percent, `step` in ms, `variant`."""
    averages = [score.name for score in tidy.scores(frame) if score.kind == "average"][:1]
    final = frame[frame["is_final"] & frame["name"].isin(averages) & (frame["kind"] == "average")].set_index("run_id")
    options = frame[frame["kind"] == "option"].pivot(index="run_id", columns="name", values="value")
    step_sec = frame[frame["name"] == "median_step_sec"].set_index("run_id")["value"]
    runs = options.assign(score=100 * final["value"], step=1e3 * step_sec, variant=final["variant"])
    return runs.dropna(subset=["variant"])


def _labels(values: list[float]) -> list[str]:
    return ["never" if math.isinf(value) else f"{value:g}" for value in values]


def _curve(axes: Axes, runs: pd.DataFrame, varied: list[str], column: str) -> None:
    (option,) = varied
    look = style.method(style.OURS)
    groups = runs.groupby(option)[column]
    means, reach = groups.mean(), groups.agg(stats.half_width)
    places = range(len(means))
    axes.plot(places, means, color=look.color, marker=look.marker, label=look.name)
    low, high = drawing.SCORES if column == "score" else drawing.ANY
    ends = [np.minimum(reach, means - low), np.minimum(reach, high - means)]
    axes.errorbar(places, means, ends, color=look.color, linestyle="", alpha=0.4, elinewidth=2.0, label="interval")
    for main in runs.loc[runs["variant"] == "", option].unique():
        axes.plot(list(means.index).index(main), means[main], look.marker, color=look.color, markersize=7.5, zorder=4)
    axes.set_xticks(list(places), _labels(list(means.index)))
    axes.set_xlabel(OPTIONS[option])


def _heat_map(axes: Axes, runs: pd.DataFrame, varied: list[str], column: str) -> None:
    x, y = varied
    table = runs.pivot_table(index=y, columns=x, values=column)
    columns, lines = (axis.astype(float).tolist() for axis in (table.columns, table.index))
    # Values differ in lightness, so that grey prints show them.
    colors = colormaps["cividis"]
    low, high = np.nanmin(table.to_numpy()), np.nanmax(table.to_numpy())
    middle = (low + high) / 2
    reach = max((high - low) / 2, LEAST_SPAN / 2 * middle)
    image = axes.imshow(table, cmap=colors, vmin=middle - reach, vmax=middle + reach, aspect="auto", origin="lower")
    for (row, place), value in np.ndenumerate(table.to_numpy()):
        if not math.isnan(value):
            is_dark = float(np.mean(image.cmap(image.norm(value))[:3])) < 0.5
            axes.text(place, row, f"{value:.1f}", ha="center", va="center", color="white" if is_dark else "black")
    for _, main in runs[runs["variant"] == ""].drop_duplicates([x, y]).iterrows():
        corner = (columns.index(main[x]) - 0.48, lines.index(main[y]) - 0.46)
        outline = Rectangle(corner, 0.96, 0.92, fill=False, edgecolor=style.method(style.OURS).color, linewidth=2)
        outline.set_path_effects([withStroke(linewidth=4, foreground="white")])
        axes.add_patch(outline)
    axes.set_xticks(range(table.shape[1]), _labels(columns))
    axes.set_yticks(range(table.shape[0]), _labels(lines))
    axes.set(xlabel=OPTIONS[x], ylabel=OPTIONS[y])
    axes.grid(visible=False)
    axes.tick_params(length=0)
