"""The figure of `neuclip.check`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from neuclip.check import Convergence, Objective, Prediction

COLORS = {
    "NeuCLIP": "#D55E00",
    "full batch": "#222222",
    "batch's own": "#0072B2",
    "moving average": "#009E73",
    "M fresh embeddings": "#8a8a8a",
    "untrained prototypes": "#E69F00",
}
INK, MUTED = "#222222", "#8a8a8a"
STYLE: Any = {
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 6.5,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "neuclip",
}


def draw(objective: Objective, convergence: Convergence, prediction: Prediction) -> Figure:
    """Draw the three checks side by side."""
    figure = Figure(figsize=(7.2, 2.55), dpi=150, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _draw_objective(left, objective)
    _draw_convergence(middle, convergence)
    _draw_prediction(right, prediction)
    return figure


def _draw_objective(axes: Axes, found: Objective) -> None:
    curve = [found.temperature * (math.exp(-shift) + shift - 1) for shift in found.shift]
    axes.plot(found.shift, curve, color=MUTED, linewidth=1, label=r"$\tau\,(e^{-\delta} + \delta - 1)$")
    axes.plot(found.shift, found.excess, "o", color=COLORS["NeuCLIP"], markersize=2.5, label="measured")
    axes.annotate(
        f"equal within {max(measure.value for measure in found.measures):.0e},\nvalue and gradients",
        (0, 0),
        xytext=(8, 48),
        textcoords="offset points",
        ha="center",
        fontsize=6.5,
        arrowprops={"arrowstyle": "->", "color": INK, "linewidth": 0.6},
    )
    axes.set_title("1  Objective")
    axes.set_xlabel(r"$\delta$ = alpha $-$ alpha*, nats")
    axes.set_ylabel("UNIFIED \N{MINUS SIGN} RGCL")
    axes.legend(loc="upper right")


def _draw_convergence(axes: Axes, found: Convergence) -> None:
    axes.plot(
        *zip(*found.unified, strict=True), color=COLORS["NeuCLIP"], alpha=0.4, linewidth=1, label="UNIFIED, NeuCLIP"
    )
    for name, curve in found.rgcl.items():
        width = 1.6 if name == "NeuCLIP" else 1
        axes.plot(*zip(*curve, strict=True), color=COLORS[name], linewidth=width, label=f"RGCL, {name}")
    optimum = found.rgcl["full batch"][-1][1]
    axes.axhline(optimum, color=COLORS["full batch"], linewidth=0.6, linestyle=(0, (3, 2)), zorder=1)
    start = max(curve[0][1] for curve in found.rgcl.values())
    # Cut the early peaks of UNIFIED, so that the ends have room.
    axes.set_ylim(optimum - 0.05 * (start - optimum), optimum + 0.7 * (start - optimum))
    axes.set_xlim(0, found.unified[-1][0])
    axes.set_title("2  Convergence")
    axes.set_xlabel("step")
    axes.set_ylabel("objective over the whole set")
    axes.legend(loc="upper right")


def _draw_prediction(axes: Axes, found: Prediction) -> None:
    for row, (name, error) in enumerate(found.errors.items()):
        low, lower, median, upper, high = error.quantile(torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])).tolist()
        color, mse = COLORS[name], float(error.square().mean())
        axes.plot([low, high], [row, row], color=color, linewidth=1)
        axes.plot([lower, upper], [row, row], color=color, linewidth=4, solid_capstyle="butt")
        axes.plot(median, row, "o", color="white", markeredgecolor=color, markersize=4)
        weight = "bold" if name == "NeuCLIP" else "normal"
        beside = axes.get_yaxis_transform()
        axes.text(1.02, row, f"{mse:.2f}", transform=beside, va="center", color=color, fontweight=weight)
    axes.annotate("MSE", (1, 1), xycoords="axes fraction", xytext=(3, 2), textcoords="offset points", color=INK)
    axes.axvline(0, color=INK, linewidth=0.6, zorder=1)
    axes.set_yticks(range(len(found.errors)), list(found.errors))
    axes.set_ylim(-0.5, len(found.errors) - 0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_title("3  Prediction")
    axes.set_xlabel("estimate \N{MINUS SIGN} exact log-normalizer, nats")
