"""Performance profile: share of targets that each method reaches within so many times of the fastest one's time."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from analysis import cells, drawing, headroom, style, time_to_target
from analysis import frame as tidy
from analysis.table import Cell, Row, Table, three_digits
from analysis.time_to_target import Contender, Times, Workload

KINDS = ("validation", "cost")


def table(frame: pd.DataFrame) -> Table | None:
    """One row per setting, target and method or variant: what it takes, relative to the baseline at the small batch."""
    found = time_to_target.workloads(frame)
    rows = [row for workload in found for row in _rows(workload)]
    baseline = style.method(headroom.BASELINE).name
    return Table(
        title=f"Time to target: what {baseline} at the large batch reaches on validation sets at its end, and "
        f"shares of it; ratio to {baseline} at the same batch (95 % interval)",
        header=("Setting", "Target", "Method", "Reached", "Samples", "Ratio", "Seconds", "Ratio, seconds"),
        rows=tuple(rows),
        num_keys=3,
        notes=notes(frame, found),
    )


def notes(frame: pd.DataFrame, found: list[Workload]) -> tuple[str, ...]:
    """Explain the numbers, or say why there are none."""
    baseline = style.method(headroom.BASELINE).name
    if not found:
        if not (frame["kind"] == "validation").any():
            return ("No validation scores: every set is in an average, or the frame is of an earlier version.",)
        large = f"{baseline} at a larger batch with as many samples"
        return (f"No target: no run of {large} that is above chance on validation sets.",)
    return (
        f"{tidy.describe(tidy.main_runs(frame))}. Target: a share of what the large batch scores above chance, and "
        "that score in %. Reached: seeds that get there. Samples and seconds: medians over seeds; a seed that never "
        "gets there counts as infinite.",
        "Ratio: geometric mean over seeds, paired, with a t interval of its logarithm, where all seeds of both get "
        "there; elsewhere the ratio of medians, or a bound (>, <) where one of the medians is infinite. Without a "
        "number: neither gets there.",
        "Scores between milestones are interpolated in straight lines, from chance at the start. Learning rates fall "
        "to zero over the run: a score within it is not what a run of that length would end with.",
        "Seconds: the run's median step times its steps to the target, so without evaluation and waiting. No ratio of "
        "seconds where devices or commits differ.",
        " ".join(time_to_target.in_words(found, measure) for measure in time_to_target.measures(found))
        + f" Share of targets reached within r times the fastest method's time, averaged over r from 1 to "
        f"{time_to_target.MAX_RATIO:g}; 1 is the best.",
    )


def _rows(workload: Workload) -> list[Row]:
    baseline = workload.contenders[0]
    target = f"{100 * workload.share:.0f} % ({100 * workload.score:.1f})"
    return [
        (
            workload.setting,
            target,
            one.label,
            f"{one.samples.reached} of {len(one.samples.taken)}",
            _median(one.samples),
            cells.ratio(time_to_target.ratio(one.samples, baseline.samples)),
            _median(one.seconds),
            _ratio_of_seconds(one, baseline),
        )
        for one in workload.contenders
    ]


def _median(times: Times) -> Cell:
    median = float(times.taken.median(skipna=False))
    end = float(times.end.median(skipna=False))
    if math.isinf(median):
        return Cell(None, remark=f"> {end:{three_digits(end)}}" if math.isfinite(end) else "never")
    return Cell(median, form=three_digits(median))


def _ratio_of_seconds(one: Contender, baseline: Contender) -> Cell:
    if not time_to_target.is_timed_alike([one, baseline]):
        return Cell(None)
    return cells.ratio(time_to_target.ratio(one.seconds, baseline.seconds))


LINE_IN = 2.0


def figure(frame: pd.DataFrame, width: float) -> Figure | None:
    """Draw one line per method, over samples and, where all runs are of one device and commit, over seconds."""
    found = time_to_target.workloads(frame)
    baseline = style.method(headroom.BASELINE).name
    if not found:
        return None
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
