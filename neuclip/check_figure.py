"""The figure of `neuclip.check`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from neuclip.check import Found

INK, MUTED, OURS = "#222222", "#8a8a8a", "#D55E00"
COLORS = {
    "NeuCLIP": OURS,
    "full batch": INK,
    "batch's own": "#0072B2",
    "moving average": "#009E73",
    "M fresh embeddings": MUTED,
    "untrained prototypes": "#E69F00",
}
STYLE: Any = {
    "font.size": 7,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "lines.linewidth": 1,
    "legend.frameon": False,
    "legend.fontsize": 6.5,
    "pdf.fonttype": 42,
    "svg.hashsalt": "neuclip",
}


def save(folder: Path, *found: Found) -> None:
    """Draw the three checks and write `first-checks` as .pdf, .svg and .png: the same numbers give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        figure = draw(*found)
        for suffix, metadata in (("pdf", {"CreationDate": None}), ("svg", {"Date": None}), ("png", {})):
            figure.savefig(folder / f"first-checks.{suffix}", dpi=300, metadata=metadata)


def draw(objective: Found, convergence: Found, prediction: Found) -> Figure:
    """Draw the three checks side by side."""
    figure = Figure(figsize=(7.2, 2.55), dpi=150, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _draw_objective(left, objective)
    _draw_convergence(middle, convergence.drawn)
    _draw_prediction(right, prediction.drawn)
    return figure


def _draw_objective(axes: Axes, found: Found) -> None:
    tau, shifts = found.drawn["temperature"], found.drawn["shift"]
    curve = [tau * (math.exp(-shift) + shift - 1) for shift in shifts]
    axes.plot(shifts, curve, color=MUTED, label=r"$\tau\,(e^{-\delta} + \delta - 1)$")
    axes.plot(shifts, found.drawn["excess"], "o", color=OURS, markersize=2.5, label="measured")
    within = max(measure.value for measure in found.measures)
    axes.set_title(f"1  Objective: to {within:.0e}")
    axes.set_xlabel(r"$\delta$ = alpha $-$ alpha*, nats")
    axes.set_ylabel("UNIFIED \N{MINUS SIGN} RGCL")
    axes.legend(loc="upper right")


def _draw_convergence(axes: Axes, curves: dict[str, list[tuple[int, float]]]) -> None:
    for label, curve in curves.items():
        kind, _, name = label.partition(", ")
        pale = 0.4 if kind == "UNIFIED" else 1.0
        axes.plot(*zip(*curve, strict=True), color=COLORS[name], alpha=pale, label=label)
    optimum = curves["RGCL, full batch"][-1][1]
    axes.axhline(optimum, color=INK, linewidth=0.6, linestyle=(0, (3, 2)), zorder=1)
    # Cut the early peaks of UNIFIED, so that the ends have room.
    height = max(curve[0][1] for label, curve in curves.items() if label.startswith("RGCL")) - optimum
    axes.set_ylim(optimum - 0.05 * height, optimum + 0.7 * height)
    axes.set_xlim(0, curves["RGCL, NeuCLIP"][-1][0])
    axes.set_title("2  Convergence")
    axes.set_xlabel("step")
    axes.set_ylabel("objective over the whole set")
    axes.legend(loc="upper right")


def _draw_prediction(axes: Axes, errors: dict[str, torch.Tensor]) -> None:
    for row, (name, error) in enumerate(errors.items()):
        low, lower, median, upper, high = error.quantile(torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])).tolist()
        axes.plot([low, high], [row, row], color=COLORS[name])
        axes.plot([lower, upper], [row, row], color=COLORS[name], linewidth=4, solid_capstyle="butt")
        axes.plot(median, row, "o", color="white", markeredgecolor=COLORS[name], markersize=4)
        beside = axes.get_yaxis_transform()
        axes.text(1.02, row, f"{float(error.square().mean()):.2f}", transform=beside, va="center", color=COLORS[name])
    axes.annotate("MSE", (1, 1), xycoords="axes fraction", xytext=(3, 2), textcoords="offset points", color=INK)
    axes.axvline(0, color=INK, linewidth=0.6, zorder=1)
    axes.set_yticks(range(len(errors)), list(errors))
    axes.grid(visible=False, axis="y")
    axes.set_title("3  Prediction")
    axes.set_xlabel("estimate \N{MINUS SIGN} exact log-normalizer, nats")
