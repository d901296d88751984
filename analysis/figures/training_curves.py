"""How training went: score at the milestones, temperature, gradient norm, and each method's own loss."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.figure import Figure, SubFigure

from analysis import drawing, style
from analysis import frame as tidy

KINDS = ("average", "train")
COMPARED = {"temperature/value": "Temperature", "grad_norm": "Gradient norm"}
LOSS = "loss/total"
MAX_SETTINGS, MAX_SETTINGS_WITH_LOSSES = 5, 2


@style.paper
def build(frame: pd.DataFrame) -> Figure:
    """One block per setting: quantities that compare above, losses, which do not, below, where there is room."""
    frame = tidy.main_runs(frame)
    if not (frame["name"] == LOSS).any():
        return drawing.nothing("No training curves: this suite has logged none for its main runs.")
    settings, left_out = drawing.fit(tidy.settings(frame), MAX_SETTINGS, "settings")
    with_losses = len(settings) <= MAX_SETTINGS_WITH_LOSSES
    figure = Figure(figsize=(style.PAGE_IN, (3.1 if with_losses else 1.6) * len(settings) + 0.4))
    blocks = figure.subfigures(len(settings), 1, squeeze=False)[:, 0]
    for block, (label, rows) in zip(blocks, settings, strict=True):
        _draw(block, label, rows, with_losses=with_losses)
    drawing.legend(figure, frame)
    cross = " Cross: a run that diverged." if (frame["status"] == "diverged").any() else ""
    text = "Losses of different methods do not compare." if with_losses else ""
    drawing.caption(figure, frame, f"{text}{cross}{left_out}", over_seeds=drawing.MEAN_AND_BAND)
    return figure


def _draw(block: SubFigure, label: str, rows: pd.DataFrame, *, with_losses: bool) -> None:
    if label:
        block.suptitle(label, fontsize=8, x=0.01, ha="left")
    methods = tidy.methods(rows)
    panels = {title: rows[rows["name"] == name] for name, title in COMPARED.items() if name in set(rows["name"])}
    averages = [score for score in tidy.scores(rows) if score.kind == "average"]
    if averages and rows.loc[rows["kind"] == "average", "samples_seen"].nunique() > 1:
        scores = rows[(rows["kind"] == "average") & (rows["name"] == averages[0].name)]
        panels = {f"{averages[0].title}, %": scores.assign(value=100 * scores["value"])} | panels
    width = math.lcm(len(panels) or 1, len(methods))
    grid = block.add_gridspec(1 + with_losses, width, height_ratios=(1.3, 1)[: 1 + with_losses])
    for number, (title, part) in enumerate(panels.items()):
        span = width // len(panels)
        axes = block.add_subplot(grid[0, number * span : (number + 1) * span])
        axes.set_title(title)
        for method in methods:
            drawing.curve(axes, part[part["method"] == method], method, marked=bool(part["is_main"].all()))
        if title == COMPARED["grad_norm"]:
            drawing.log_axis(axes, "y")
        drawing.samples_axis(axes)
    for number, method in enumerate(reversed(methods) if with_losses else ()):
        span = width // len(methods)
        axes = block.add_subplot(
            grid[1, number * span : (number + 1) * span], title=f"Loss, {style.method(method).name}"
        )
        drawing.curve(axes, rows[(rows["name"] == LOSS) & (rows["method"] == method)], method)
        drawing.samples_axis(axes)
