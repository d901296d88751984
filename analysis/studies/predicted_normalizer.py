"""Log-normalizers of single anchors, estimated by each method, against the exact ones."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from analysis import drawing, style
from analysis import frame as tidy

KINDS = ("log_normalizer",)
LINE_IN = 1.33
SIDES = ("image", "text")
NUM_CELLS = 24
"""Hexagons side by side in a panel."""


def figure(frame: pd.DataFrame, width: float) -> Figure | None:
    """Draw one panel per method and side, for the last setting and the variant with the most methods."""
    pairs = _pairs(frame)
    if pairs.empty:
        return None
    variant = max(
        tidy.variants(pairs), key=lambda name: (pairs[pairs["variant"] == name]["method"].nunique(), name == "")
    )
    settings = tidy.settings(pairs[pairs["variant"] == variant])
    rows = settings[-1].rows
    not_drawn = drawing.fit(settings, 1, "settings", in_tables=False)[1]
    methods = tidy.methods(rows)[::-1]
    # A page has methods side by side; a column has image and text side by side.
    is_page = width > style.COLUMN_IN
    columns = min(len(methods), int(width / 1.05)) if is_page else len(SIDES)
    parts = [methods[start : start + columns] for start in range(0, len(methods), columns)] if is_page else []
    panels = [(method, side) for part in parts for side in SIDES for method in [*part, *[""] * (columns - len(part))]]
    panels = panels or [(method, side) for method in methods for side in SIDES]
    panels, left_out = drawing.fit(panels, columns * int(drawing.MAX_IN / LINE_IN), "panels", in_tables=False)
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(width, LINE_IN * lines))
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    ends = _ends(rows)
    for number, (axes, (method, side)) in enumerate(zip(grid.flat, panels, strict=True)):
        if not method:
            axes.remove()
            continue
        axes.set_title(style.method(method).name)
        _draw(axes, rows[(rows["method"] == method) & (rows["side"] == side)], ends)
        if number % columns == 0:
            axes.set_ylabel(f"Estimate, {side}" if is_page else "Estimate")
        if number >= len(panels) - columns:
            axes.set_xlabel("Exact" if is_page else f"Exact, {side}")
    text = (
        "Log-normalizers of single anchors; on the line they are exact. Darker: more anchors (log scale). Those beyond "
        "the axes are drawn on the edge. MSE and bias are of all anchors drawn."
    )
    named = f"Variant: {variant}." if variant else ""
    drawing.caption(figure, rows, text, named, left_out, not_drawn, over_seeds="Anchors of all seeds.")
    return figure


def _pairs(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row per run, side and anchor, with `estimate` and `exact`; leave out anchors without an estimate."""
    parts = frame["name"].str.rsplit("_", n=1, expand=True)
    rows = frame.assign(side=parts[0] if len(frame) else "", part=parts[1] if len(frame) else "")
    wide = rows.pivot(index=["run_id", "side", "metric"], columns="part", values="value")
    wide = wide.reindex(columns=["estimate", "exact"]).dropna().reset_index()
    return wide.merge(frame.drop_duplicates("run_id").drop(columns=["metric", "name", "value"]), on="run_id")


def _ends(rows: pd.DataFrame) -> tuple[float, float]:
    """Return the ends of both axes: 99.6 % of anchors lie between, and the others are drawn on the edge."""
    values = rows[["estimate", "exact"]].to_numpy()
    low, high = np.quantile(values, [0.002, 0.998])
    room = 0.05 * (high - low) or 0.5
    return float(low - room), float(high + room)


def _draw(axes: Axes, rows: pd.DataFrame, ends: tuple[float, float]) -> None:
    clipped = rows[["exact", "estimate"]].clip(*ends)
    axes.axline((ends[0], ends[0]), slope=1, color=style.INK, linewidth=0.7, zorder=3)
    if len(rows):
        # The colour scale begins below one anchor, so that a single one shows on white.
        axes.hexbin(
            clipped["exact"],
            clipped["estimate"],
            gridsize=NUM_CELLS,
            extent=(*ends, *ends),
            norm=LogNorm(vmin=0.1),
            cmap=colormaps["Blues"],
            mincnt=1,
            linewidths=0,
        )
        error = rows["estimate"] - rows["exact"]
        said = [f"MSE {_digits(error.pow(2).mean())}", f"bias {_digits(error.mean(), '+')}"]
        # Write into the corner that biased estimates leave empty.
        is_high = error.mean() > 0
        corner = (0.97, 0.04, "right", "bottom") if is_high else (0.04, 0.97, "left", "top")
        text = "\n".join(said if is_high else reversed(said)).replace("-", "\N{MINUS SIGN}")
    else:
        text, corner = "no estimates", (0.04, 0.97, "left", "top")
    x, y, ha, va = corner
    axes.text(x, y, text, transform=axes.transAxes, ha=ha, va=va, zorder=4)
    axes.set(xlim=ends, ylim=ends)
    axes.set_aspect("equal")


def _digits(value: float, sign: str = "") -> str:
    """Write a number with as many digits as a panel has room for."""
    return format(value, f"{sign}.{2 if abs(value) >= 0.01 else 1}g")
