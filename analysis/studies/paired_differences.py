"""NeuCLIP minus each baseline on the averages, paired by seed: both share data order and initialisation."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis import cells, drawing, headroom, stats, style
from analysis import frame as tidy
from analysis.table import Row, Table

KINDS = ("average", "eval")


def table(frame: pd.DataFrame) -> Table | None:
    """Build one row per setting, score and pair of methods."""
    frame = tidy.main_runs(tidy.final_scores(frame))
    main_method = tidy.main_method(frame)
    rows: list[Row] = []
    for label, part in tidy.settings(frame):
        for score in tidy.scores(part):
            one = part[(part["kind"] == score.kind) & (part["name"] == score.name)]
            rows += [
                (label, score.title, style.method(method).name, style.method(baseline).name, *cells.difference(test))
                for method, baseline, test in _differences(one, main_method)
            ]
    return Table(
        title="Differences of methods in points, mean ± half-width of the 95 % interval over paired seeds",
        header=("Setting", "Score", "Method", "Minus", "Difference", "p", "p (Holm)", "Pairs"),
        rows=tuple(rows),
        num_keys=4,
        notes=(
            "Paired by seed: same data order and initialisation. Two-sided paired t test, from "
            f"{stats.MIN_PAIRS_TO_TEST} pairs on; Holm's correction runs over the differences of "
            f"{style.method(main_method).name} in one score, and over those of the other methods. The uncertainty from "
            "the finite evaluation sets is not in it.",
            *cells.guessed(frame),
        ),
    )


def _differences(rows: pd.DataFrame, main_method: str) -> Iterator[tuple[str, str, dict[Hashable, Any]]]:
    """Yield method, baseline and test: the main method minus each other, then the others minus OpenCLIP."""
    tests = stats.paired_differences(rows, first=main_method).to_dict("index")
    for baseline in style.ordered(map(str, tests)):
        yield main_method, baseline, tests[baseline]
    others = rows[rows["method"] != main_method]
    tests = stats.paired_differences(others, first=headroom.BASELINE).to_dict("index")
    for method in style.ordered(map(str, tests)):
        yield method, headroom.BASELINE, tests[method] | {"mean": -tests[method]["mean"]}


def figure(frame: pd.DataFrame, width: float) -> Figure | None:
    """Draw one panel per setting and average, one row per baseline."""
    frame = tidy.main_runs(tidy.final_scores(frame))
    main_method = tidy.main_method(frame)
    panels = []
    for label, rows in tidy.settings(frame):
        for score in tidy.scores(frame[frame["kind"] == "average"]):
            tests = stats.paired_differences(rows[rows["name"] == score.name], first=main_method)
            if tests["n"].sum():
                panels.append((", ".join(filter(None, [score.title, label])), score, tests))
    ours = style.method(main_method).name
    if not panels:
        return None
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
