"""When known signs of failure show in which runs (`docs/failure-signatures.md` explains each)."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from analysis import drawing, style
from analysis import frame as tidy

# Averages tell how long every run is, also those without a sign.
KINDS = ("average", "signature")
SUITES = ("!smoke",)


@style.paper
def build(frame: pd.DataFrame, width: float) -> Figure:
    """Draw one row per setting, method, variant and sign, in it a bar per seed, from its first to its last step."""
    length = frame[frame["kind"] == "average"].groupby("run_id")["samples_seen"].max()
    found = frame[frame["kind"] == "signature"]
    if found.empty:
        return drawing.nothing(f"No signs of failure were found in {frame['run_id'].nunique()} runs.", width)
    share = found["samples_seen"] / found["run_id"].map(length)
    found = found.assign(share=share)
    rows = []
    for label, part in tidy.settings(frame):
        for method, variant in tidy.curves(part):
            of_curve = part[(part["method"] == method) & (part["variant"] == variant)]
            signs = found[found["run_id"].isin(of_curve["run_id"])]
            seeds = of_curve["run_id"].nunique()
            for name in sorted(signs["name"].unique()):
                where = ", ".join(filter(None, [style.variant(method, variant), label]))
                rows.append((where, name.replace("_", " "), method, seeds, signs[signs["name"] == name]))
    labels = drawing.wrapped([f"{where}: {name}" for where, name, *_ in rows], width)
    row_in = 0.07 + drawing.LINE_IN * max(1 + label.count("\n") for label in labels)
    rows, left_out = drawing.fit(rows, int(drawing.MAX_IN / row_in), "rows", in_tables=False)
    figure = Figure(figsize=(width, 0.45 + row_in * len(rows)))
    axes = figure.subplots()
    for y, (_, _, method, seeds, signs) in enumerate(rows):
        height = 0.7 / signs["run_id"].nunique()
        for number, (_, run) in enumerate(signs.groupby("run_id")):
            ends = run.set_index("metric")["share"]
            length_shown = max(ends["last_step"] - ends["first_step"], 0.004)
            bottom = y - 0.35 + number * height
            axes.barh(
                bottom,
                length_shown,
                0.85 * height,
                left=ends["first_step"],
                align="edge",
                color=style.method(method).color,
                linewidth=0,
            )
        drawing.row_number(axes, y, f"{signs['run_id'].nunique()} of {seeds} runs", method)
    axes.set_yticks(range(len(rows)), labels[: len(rows)])
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlim=(0, 1), xlabel="Share of training")
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    drawing.caption(
        figure,
        frame,
        "Rows without a sign are left out.",
        left_out,
        over_seeds="One bar per seed that shows the sign.",
    )
    return figure
