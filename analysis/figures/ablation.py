"""What each change to a method does: the averages of every variant beside the main run of the same method."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis import drawing, style
from analysis import frame as tidy

SUITES = ("ablation_*", "quickstart")
KINDS = ("average",)
MAX_ROWS = 45
MAX_SCORES = 3
"""The first averages of a suite; more leave no room for intervals."""


@style.paper
def build(frame: pd.DataFrame) -> Figure:
    """Draw one panel per average, one row per setting, method and variant; a line shows each main run's mean."""
    frame = tidy.final_scores(frame)
    varied = frame.loc[frame["variant"] != "", "method"].unique()
    frame = frame[frame["method"].isin(varied)]
    if frame.empty:
        return drawing.nothing("No ablation: this suite has no variants.")

    def name(method: str, variant: str, setting: str) -> str:
        variant = variant if variant and len(varied) == 1 else style.variant(method, variant)
        return ", ".join(filter(None, [variant, setting]))

    # Bottom to top, so that ours and the main runs come first.
    rows = [
        (name(method, variant, label), method, variant, part)
        for label, part in reversed(tidy.settings(frame))
        for method in tidy.methods(part)
        for variant in reversed(tidy.variants(part[part["method"] == method]))
    ]
    left_out = drawing.fit(rows, MAX_ROWS, "rows")[1]
    rows = rows[-MAX_ROWS:]
    scores = tidy.scores(frame)[:MAX_SCORES]
    figure = Figure(figsize=(style.PAGE_IN, 0.65 + 0.17 * len(rows)))
    for axes, score in zip(figure.subplots(1, len(scores), squeeze=False, sharey=True)[0], scores, strict=True):
        axes.set_title(f"{score.title}, %")
        shown = []
        for y, (_, method, variant, part) in enumerate(rows):
            one = part[(part["method"] == method) & (part["name"] == score.name)]
            runs = one[one["variant"] == variant]
            values = 100 * runs["value"]
            main = 100 * one.loc[one["variant"] == "", "value"].mean()
            axes.plot([main, main], [y - 0.5, y + 0.5], color=style.method(method).color, linewidth=0.8, alpha=0.6)
            drawing.seeds_and_interval(axes, y, values, method)
            drawing.row_number(
                axes, y, runs["status"].iloc[0] if values.isna().all() else f"{values.mean():.1f}", method
            )
            shown.append(values)
        ours = [y for y, row in enumerate(rows) if row[1] == style.OURS and not row[2]]
        drawing.label_rows(axes, [label for label, *_ in rows], pd.concat(shown), ours)
    text = f"Vertical line: main run of the same method.{left_out}"
    drawing.caption(figure, frame, text, over_seeds=drawing.MEAN_AND_INTERVAL)
    return figure
