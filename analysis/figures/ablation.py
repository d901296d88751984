"""Averages of every variant beside those of the same method's main run."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis import drawing, style
from analysis import frame as tidy

SUITES = ("ablation_*", "icons", "laptop", "laptop_best_rates", "laptop_hard_fixed", "one_gpu")
KINDS = ("average",)
MAX_SCORES = 3
"""Averages that are drawn, the first of the suite; more would leave no room for intervals."""


def build(frame: pd.DataFrame, width: float) -> Figure:
    """Draw one panel per average, one row per setting, method and variant; a line shows each main run's mean."""
    frame = tidy.final_scores(frame)
    varied = frame.loc[frame["variant"] != "", "method"].unique()
    frame = frame[frame["method"].isin(varied)]
    if frame.empty:
        return drawing.nothing("No ablation: this suite has no variants.", width)

    # Rows are drawn from the bottom up: reversed, so that NeuCLIP and main runs end on top. Main runs carry the names.
    rows = []
    for label, part in reversed(tidy.settings(frame)):
        for method in tidy.methods(part):
            first, *others = tidy.variants(part[part["method"] == method])
            rows += [(variant, method, variant, part) for variant in reversed(others)]
            rows.append((", ".join(filter(None, [style.variant(method, first), label])), method, first, part))
    labels = drawing.wrapped([label for label, *_ in rows], width)
    row_in = 0.05 + drawing.LINE_IN * max(1 + label.count("\n") for label in labels)
    most = int(drawing.MAX_IN / row_in)
    left_out = drawing.fit(rows, most, "rows")[1]
    rows, labels = rows[-most:], labels[-most:]
    scores = tidy.scores(frame)[: MAX_SCORES if width > style.COLUMN_IN else 1]
    figure = Figure(figsize=(width, 0.35 + row_in * len(rows)))
    for axes, score in zip(drawing.grid(figure, len(scores), len(scores), sharey=True), scores, strict=True):
        drawing.title(axes, score.title, 0.65 * width / len(scores))
        shown = []
        for y, (_, method, variant, part) in enumerate(rows):
            one = part[(part["method"] == method) & (part["name"] == score.name)]
            runs = one[one["variant"] == variant]
            values = 100 * runs["value"]
            main = 100 * one.loc[one["variant"] == "", "value"].mean()
            axes.plot([main, main], [y - 0.5, y + 0.5], color=style.method(method).color, linewidth=0.8, alpha=0.6)
            drawing.seeds_and_interval(axes, y, values, method, within=drawing.SCORES)
            drawing.row_number(
                axes, y, runs["status"].iloc[0] if values.isna().all() else f"{values.mean():.1f}", method
            )
            shown.append(values)
        ours = [y for y, row in enumerate(rows) if row[1] == style.OURS and not row[2]]
        drawing.label_rows(axes, labels, pd.concat(shown), ours)
    text = "Score in %. Vertical line: main run of the same method."
    drawing.caption(figure, frame, text, left_out, over_seeds=drawing.MEAN_AND_INTERVAL)
    return figure
