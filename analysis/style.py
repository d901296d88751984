"""The look of tables and figures: names, colours and markers of methods, sizes, matplotlib's style sheet.

Display names are here only. A method has the same colour in every figure.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import matplotlib as mpl

from analysis.stats import SIGNIFICANCE

COLUMN_IN = 3.25
"""Width of one column of a two-column page, inches."""
PAGE_IN = 6.75
"""Width of the text of a page, inches."""

STYLE_SHEET = Path(__file__).with_name("paper.mplstyle")
INK = "#222222"
MUTED = "#707070"
OURS = "neuclip"

Draw = TypeVar("Draw", bound=Callable[..., object])
Dashes = tuple[int, tuple[float, ...]] | Literal["-"]
"""Value of matplotlib's `linestyle`: lengths of dashes and gaps, in line widths."""


@dataclass(frozen=True)
class MethodStyle:
    """Name, colour, marker and dashes of a method; marker and dashes tell methods apart in grey."""

    name: str
    color: str
    marker: str
    dashes: Dashes


# Okabe and Ito's palette, for any colour vision. Tables have this order, with NeuCLIP last.
KNOWN = {
    "openclip": MethodStyle("OpenCLIP", "#0072B2", "s", (0, (5, 1.5))),
    "fastclip": MethodStyle("FastCLIP", "#009E73", "^", (0, (4, 1.2, 1, 1.2))),
    "siglip": MethodStyle("SigLIP", "#56B4E9", "v", (0, (1, 1))),
    "amorlip": MethodStyle("AmorLIP", "#CC79A7", "D", (0, (2.5, 1))),
    "memory_queue": MethodStyle("CLIP + queue", "#E69F00", "P", (0, (4, 1.2, 1, 1.2, 1, 1.2))),
    OURS: MethodStyle("NeuCLIP", "#D55E00", "o", "-"),
}
SPARE_COLORS = ("#7A5C99", "#8C6D31", "#5F6B6D", "#A23B72", "#3B7A57", "#B8860B", "#4B5D8A")
SPARE_MARKERS = ("H", "X", "h", "p", "<", ">", "d", "8")
SPARE_DASHES: tuple[Dashes, ...] = ((0, (8, 1.5)), (0, (6, 1.2, 2, 1.2)), (0, (1, 2.2)), (0, (3, 2.5)))

DATASETS = {"cc3m": "CC3M", "cc12m": "CC12M", "dfn14m": "DFN-14M", "dfn192m": "DFN-192M", "dfn1b": "DFN-1B"}


def method(name: str) -> MethodStyle:
    """Return the method's style; that of an unknown method follows from its name."""
    if name in KNOWN:
        return KNOWN[name]
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    number, color = divmod(number, len(SPARE_COLORS))
    number, marker = divmod(number, len(SPARE_MARKERS))
    return MethodStyle(name, SPARE_COLORS[color], SPARE_MARKERS[marker], SPARE_DASHES[number % len(SPARE_DASHES)])


def ordered(names: Iterable[str]) -> list[str]:
    """Sort methods: known baselines, unknown ones by name, NeuCLIP last."""
    known = list(KNOWN)
    return sorted(names, key=lambda name: (name == OURS, known.index(name) if name in known else len(known), name))


def dataset(name: str) -> str:
    """Return the display name of a training set or of a part of one: ``cc3m-0.1`` is CC3M, 10 %."""
    whole, _, share = name.rpartition("-")
    if whole and re.fullmatch(r"0\.\d+", share):
        return f"{dataset(whole)}, {100 * float(share):g} %"
    return DATASETS.get(name, name)


def setting(column: str, value: object) -> str:
    """Write one column of a setting in words."""
    if column == "global_batch_size":
        return f"batch {value}"
    return dataset(str(value)) if column == "dataset" else str(value)


def variant(name: str, label: str) -> str:
    """Return the display name of a method's variant; the empty label is the main run."""
    return f"{method(name).name}, {label}" if label else method(name).name


def p_form(p: float) -> str:
    """Return the format of a p value: three decimals, or more if rounding would lift it to the level."""
    if p < 0.001:
        return ".1e"
    digits = 3
    while p < SIGNIFICANCE <= round(p, digits):
        digits += 1
    return f".{digits}f"


def p_value(p: float) -> str:
    """Write a p value out."""
    return "p < 0.001" if p < 0.001 else f"p = {p:{p_form(p)}}"


def paper(draw: Draw) -> Draw:
    """Decorate a function that draws or saves: it runs under the style sheet, and settings are restored."""
    return mpl.rc_context(fname=STYLE_SHEET)(draw)


def lines(name: str) -> dict[str, Any]:
    """Return matplotlib's options for a method's lines; ours are thicker and on top."""
    emphasis = {"linewidth": 1.8, "zorder": 3.0} if name == OURS else {"linewidth": 1.1, "zorder": 2.0}
    return {"color": method(name).color, "linestyle": method(name).dashes, **emphasis}
