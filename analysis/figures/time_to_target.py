"""Performance profile: share of targets that each method reaches within so many times of the fastest one's time."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from analysis import drawing, headroom, style, time_to_target
from analysis import frame as tidy

SUITES = ("laptop", "laptop_hard", "*_ten_seeds", "*headroom*")
KINDS = ("validation", "cost")
LINE_IN = 2.0


def build(frame: pd.DataFrame, width: float) -> Figure:
    """Draw one line per method, over samples and, where all runs are of one device and commit, over seconds."""
    found = time_to_target.workloads(frame)
    baseline = style.method(headroom.BASELINE).name
    if not found:
        what = f"{baseline} at a larger batch has no validation score above chance"
        return drawing.nothing(f"No time to target: {what}.", width)
    measures = time_to_target.measures(found)
    shown = drawing.arrange(measures, width, panel_in=2.4, line_in=LINE_IN, what="panels")
    figure, all_axes = shown.draw(sharey=True, ylabel="Targets reached")
    for axes, measure in zip(all_axes, shown.panels, strict=True):
        _draw(axes, time_to_target.to_fastest(found, measure))
        drawing.title(axes, measure.capitalize(), shown.panel_in)
    main = tidy.main_runs(frame)
    drawn = {one.method for workload in found for one in workload.contenders}
    drawing.legend(figure, drawing.method_handles(main[main["method"].isin(drawn)]))
    settings = len({workload.setting for workload in found})
    shares = ", ".join(f"{100 * share:.0f}" for share in time_to_target.TARGETS)
    drawing.caption(
        figure,
        main,
        f"{len(found)} targets: {shares} % of what {baseline} at the large batch ends with above chance, "
        f"on validation sets{f', in {settings} settings' if settings > 1 else ''}.",
        *(time_to_target.in_words(found, measure) for measure in shown.panels),
        "" if len(measures) > 1 else "No profile of seconds: devices or commits differ.",
        shown.left_out,
        over_seeds="Times are medians over seeds; a seed that never gets there counts as infinite.",
    )
    return figure


def _draw(axes: Axes, ratios: pd.DataFrame) -> None:
    for method in map(str, ratios):
        reached = np.sort(ratios[method].to_numpy())
        reached = reached[reached <= time_to_target.MAX_RATIO]
        x = np.array([1.0, *reached, time_to_target.MAX_RATIO])
        y = np.array([*range(len(reached) + 1), len(reached)]) / len(ratios)
        axes.step(x, y, where="post", label=style.method(method).name, **style.lines(method))
    axes.set(xlim=(1, time_to_target.MAX_RATIO), ylim=(0, 1.04), xlabel="Times the fastest method's")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
