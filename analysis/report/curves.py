"""Draws a run's curves as small SVGs: hundreds of them fit one page, and take the page's colours."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

MAX_POINTS = 120
"""Points of a curve at most; a drawing has too few pixels to show more."""
WIDTH, HEIGHT = 240, 56


class Curve(NamedTuple):
    """One logged quantity of a run."""

    name: str
    paths: tuple[str, ...]
    """SVG points of each stretch without a gap, in a box of WIDTH x HEIGHT."""
    low: str
    high: str
    last: str
    end: str
    """Samples seen at the last point."""
    num_left_out: int
    """Number of values that are not finite."""

    @property
    def summary(self) -> str:
        """Describe the drawing in words."""
        if not self.paths:
            return f"{self.name}: no finite value"
        gaps = f", {self.num_left_out} values that are not finite" if self.num_left_out else ""
        return f"{self.name}: between {self.low} and {self.high}, {self.last} at {self.end} samples{gaps}"


def draw(name: str, points: Iterable[tuple[float, float]]) -> Curve:
    """Draw values over samples seen.

    Args:
        name: Name of the quantity.
        points: Samples seen and value, in order. Many are averaged in bins; values that are not finite leave a gap.
    """
    given = list(points)
    size = math.ceil(len(given) / MAX_POINTS) or 1
    bins = [given[start : start + size] for start in range(0, len(given), size)]
    binned = [(part[-1][0], sum(value for _, value in part) / len(part)) for part in bins]
    finite = [value for _, value in binned if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    end = given[-1][0] if given else 0
    stretches: list[list[str]] = [[]]
    for x, value in binned:
        if not math.isfinite(value):
            stretches.append([])
            continue
        y = (high - value) / (high - low) if high > low else 0.5
        stretches[-1].append(f"{x / end * WIDTH if end else 0:.0f},{1 + y * (HEIGHT - 2):.1f}")
    # Draw a single point as a line of length zero: its round ends show.
    lines = tuple(" ".join(s if len(s) > 1 else [s[0], s[0]]) for s in stretches if s)
    return Curve(
        name,
        lines,
        low=f"{low:.3g}",
        high=f"{high:.3g}",
        last=f"{finite[-1]:.3g}" if finite else "",
        end=f"{end:,.0f}",
        num_left_out=sum(not math.isfinite(value) for _, value in given),
    )
