"""Known signs of failure, with the runs and the steps at which they show (`docs/failure-signatures.md`)."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from analysis import drawing, style
from analysis import frame as tidy

# Averages give the length of every run, also of those without a sign.
KINDS = ("average", "signature")


def figure(frame: pd.DataFrame, width: float) -> Figure | None:
    """Draw one row per setting, method, variant and sign, with a bar per seed from first to last step."""
    length = frame[frame["kind"] == "average"].groupby("run_id")["samples_seen"].max()
    found = frame[frame["kind"] == "signature"]
    if found.empty:
        return None
    share = found["samples_seen"] / found["run_id"].map(length)
    found = found.assign(share=share)
    rows = []
    for label, part in tidy.settings(frame):
        for (method, variant), of_curve in tidy.curves(part).items():
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
            first, last = run.set_index("metric")["share"][["first_step", "last_step"]]
            bottom, color = y - 0.35 + number * height, style.method(method).color
            axes.barh(bottom, max(last - first, 0.004), 0.85 * height, first, align="edge", color=color, linewidth=0)
        drawing.row_number(axes, y, f"{signs['run_id'].nunique()} of {seeds} runs", method)
    drawing.name_rows(axes, labels[: len(rows)])
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlim=(0, 1), xlabel="Share of training")
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    text, over_seeds = "Rows without a sign are left out.", "One bar per seed that shows the sign."
    drawing.caption(figure, frame, text, left_out, over_seeds=over_seeds)
    return figure
