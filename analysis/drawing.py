"""Parts that several figures share: layout, curves with bands over seeds, intervals, axes, legends, captions."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import ArrayLike

from analysis import frame as tidy
from analysis import stats, style
from analysis.rendering import short

DASHED = (0, (3, 2))
LETTERS_PER_IN = 17.5
"""Letters of 7 points per inch, a cautious estimate."""
LINE_IN = 0.125
"""Height of a line of text of 7 points, inches."""
MAX_IN = 8.0
"""Height of all panels together, inches; leaves room for legend and caption on a page."""
MAX_PLAIN_RATIO = 1e3
"""Largest ratio of the ends of a logarithmic axis at which its numbers are written out, without powers of ten."""
ANY = (-math.inf, math.inf)
SCORES = (0.0, 100.0)
"""What a score in percent can be: intervals are drawn no further."""
MEAN_AND_INTERVAL = "Marker: mean; bar: its 95 % interval (t, cut at the edge); dots: seeds."
CROSS = "Cross: a run that diverged."
MEAN_AND_BAND = "Line: mean over seeds; band: lowest to highest seed."

Item = TypeVar("Item")


class Arrangement(NamedTuple, Generic[Item]):
    """Panels of a figure, laid out line by line."""

    panels: list[Item]
    columns: int
    panel_in: float
    """Width of a panel with its labels, inches."""
    height_in: float
    left_out: str
    """A sentence for the caption; empty if all panels have room."""

    def draw(self, *, sharey: bool = False, ylabel: str = "") -> tuple[Figure, list[Axes]]:
        """Return an empty figure and the axes of all panels; `ylabel` stands at the first of each line."""
        figure = Figure(figsize=(self.panel_in * self.columns, self.height_in))
        all_axes = grid(figure, len(self.panels), self.columns, sharey=sharey)
        for axes in all_axes[:: self.columns]:
            axes.set_ylabel(ylabel)
        return figure, all_axes


def arrange(
    panels: Sequence[Item], width: float, *, panel_in: float, line_in: float, what: str, in_tables: bool = True
) -> Arrangement[Item]:
    """Lay out panels that are at least `panel_in` wide, in lines of `line_in`, and leave out those beyond a page."""
    columns = max(1, min(int(width / panel_in), len(panels)))
    kept, left_out = fit(panels, columns * max(1, int(MAX_IN / line_in)), what, in_tables=in_tables)
    return Arrangement(kept, columns, width / columns, line_in * math.ceil(len(kept) / columns), left_out)


def arrange_scores(
    panels: list[tuple[str, tidy.Score, pd.DataFrame]], width: float, *, line_in: float
) -> Arrangement[tuple[str, tidy.Score, pd.DataFrame]]:
    """Arrange panels of one score each; if not all fit, keep those of the first score."""
    shown = arrange(panels, width, panel_in=2.2, line_in=line_in, what="settings")
    if shown.left_out:
        panels = [panel for panel in panels if panel[1].name == panels[0][1].name]
        shown = arrange(panels, width, panel_in=2.2, line_in=line_in, what="settings")
    return shown


def grid(part: Figure | SubFigure, count: int, columns: int, *, sharey: bool = False) -> list[Axes]:
    """Divide a figure into panels, line by line; the last line may have fewer."""
    axes: np.ndarray = part.subplots(math.ceil(count / columns), columns, squeeze=False, sharey=sharey)
    for unused in axes.flat[count:]:
        unused.remove()
    return list(axes.flat[:count])


def fit(items: Sequence[Item], most: int, what: str, *, in_tables: bool = True) -> tuple[list[Item], str]:
    """Keep the first `most` items; returns them, and a sentence for the caption if some are left out.

    `in_tables` says that a table has the numbers of all items.
    """
    left_out = len(items) - most
    elsewhere = ", but in the tables" if in_tables else ""
    note = f"Not drawn for want of room{elsewhere}: {left_out} of the {what}." if left_out > 0 else ""
    return list(items[:most]), note


def curve(axes: Axes, rows: pd.DataFrame, method: str, *, x: str = "samples_seen", marked: bool = False) -> None:
    """Draw the mean of `value` over seeds, and a band from the lowest to the highest seed.

    The mean would jump where a diverged run ends. Such runs are left out of it, and drawn as thin lines up to a cross.
    """
    look, lines = style.method(method), style.lines(method)
    diverged = rows["run_id"].isin(rows.loc[rows["status"] == "diverged", "run_id"])
    seeds = rows[~diverged].groupby(x)["value"].agg(["mean", "min", "max"]).dropna()
    axes.plot(seeds.index, seeds["mean"], marker=look.marker if marked else "", label=look.name, **lines)
    if (seeds["max"] > seeds["min"]).any():
        axes.fill_between(seeds.index, seeds["min"], seeds["max"], color=look.color, alpha=0.15, linewidth=0)
    for _, run in rows[diverged].dropna(subset=["value"]).groupby("run_id"):
        axes.plot(run[x], run["value"], color=look.color, linewidth=0.7, alpha=0.7)
        axes.plot(run[x].iloc[-1], run["value"].iloc[-1], "x", color=look.color, markeredgewidth=1.2, zorder=4)


def interval(
    axes: Axes, y: float, mean: float, half_width: float, method: str, *, within: tuple[float, float] = ANY
) -> None:
    """Draw a mean with a bar for its interval, in a row of a dot plot; the bar ends where values `within` do."""
    look, zorder = style.method(method), style.lines(method)["zorder"]
    if not math.isnan(half_width):
        ends = np.clip([mean - half_width, mean + half_width], *within)
        axes.plot(ends, [y, y], color=look.color, alpha=0.25, linewidth=4.5, solid_capstyle="butt", zorder=zorder)
    markers(axes, mean, y, method, size=5.5 if method == style.OURS else 4.5, edge=0.6, zorder=zorder + 1)


def markers(axes: Axes, x: ArrayLike, y: ArrayLike, method: str, *, size: float, edge: float, zorder: float) -> None:
    """Draw a method's markers, with a white edge."""
    look = style.method(method)
    edges: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": edge}
    axes.plot(x, y, look.marker, color=look.color, markersize=size, label=look.name, zorder=zorder, **edges)


def seeds_and_interval(
    axes: Axes, y: float, values: pd.Series, method: str, *, within: tuple[float, float] = ANY
) -> None:
    """Draw the mean of `values`, its 95 % interval, and a dot below for each value if there are several."""
    values = values.dropna()
    if len(values):
        interval(axes, y, float(values.mean()), stats.half_width(values), method, within=within)
    if len(values) > 1:
        axes.scatter(values, [y - 0.33] * len(values), s=3.5, color=style.method(method).color, linewidths=0, zorder=3)


def label_rows(axes: Axes, labels: list[str], values: pd.Series, ours: list[int]) -> None:
    """Set up a dot plot with one labelled row per method, bottom to top; the rows in `ours` stand out.

    The axis extends the range of `values` by 1.2 times on both sides. Intervals over three or more seeds fit. Those
    over two seeds are many times wider: they are cut, so that they squeeze nothing else.
    """
    name_rows(axes, labels)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(-1.05, len(labels) - 0.4)
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10]))
    for y in ours:
        axes.axhspan(y - 0.5, y + 0.5, color=style.method(style.OURS).color, alpha=0.07, linewidth=0, zorder=0)
    mark_labels(axes, ours)
    low, high = values.min(), values.max()
    reach = 1.2 * (high - low) or 1.0
    left, right = axes.get_xlim() if low != high else (-math.inf, math.inf)
    axes.set_xlim(max(left, low - reach), min(right, high + reach))


def name_rows(axes: Axes, labels: list[str]) -> None:
    """Label rows at 0, 1, ... of the y axis, without ticks and lines."""
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def mark_labels(axes: Axes, ours: list[int]) -> None:
    """Print the labels of our rows bold and in our colour."""
    for tick in axes.get_yticklabels():
        if tick.get_position()[1] in ours:
            tick.set(fontweight="bold", color=style.method(style.OURS).color)


def wrapped(labels: Sequence[str], width: float) -> list[str]:
    """Break labels of rows into lines that take less than half of the figure's width."""
    return [_balanced(label, int(0.45 * width * LETTERS_PER_IN)) for label in labels]


def title(axes: Axes, text: str, panel_in: float) -> None:
    """Put a title above a panel, broken into lines that are no wider than it."""
    axes.set_title(_balanced(text, max(10, int(0.75 * panel_in * LETTERS_PER_IN))))


def _balanced(text: str, longest: int) -> str:
    """Break a text into as few lines as `longest` allows, all about as long."""
    is_too_long = any(len(word) > longest for word in text.split())  # a name without spaces is broken anywhere
    count = len(textwrap.wrap(text, longest, break_long_words=is_too_long))
    tries = (textwrap.wrap(text, length, break_long_words=is_too_long) for length in range(1, longest + 1))
    return "\n".join(next(lines for lines in tries if len(lines) <= count))


def chance(axes: Axes, level: float) -> None:
    """Mark the score of guessing: a line, or its value at the edge if it is far from the data."""
    if math.isnan(level):
        return
    low, high = axes.get_xlim()
    room = 0.5 * (high - low)
    is_right = level > low + room
    if low - room < level < high + room:
        text, x = "chance", level
        axes.axvline(level, color=style.MUTED, linestyle=DASHED, linewidth=0.8, label="chance", zorder=1)
        margin = 0.04 * (high - low)
        axes.set_xlim(min(low, level - margin), max(high, level + margin))
    else:
        to_right, to_left = f"chance {level:.1f} \N{RIGHTWARDS ARROW}", f"\N{LEFTWARDS ARROW} chance {level:.1f}"
        text, x = (to_right, high) if is_right else (to_left, low)
    # Towards the middle, where there is room.
    axes.annotate(
        text,
        (x, 0.02),
        xycoords=("data", "axes fraction"),
        xytext=(-2 if is_right else 2, 0),
        textcoords="offset points",
        ha="right" if is_right else "left",
        color=style.MUTED,
    )


def row_number(axes: Axes, y: float, text: str, method: str) -> None:
    """Write a number to the right of a row."""
    axes.annotate(
        text,
        (1, y),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        va="center_baseline",
        color=style.method(method).color if method == style.OURS else style.INK,
        fontweight="bold" if method == style.OURS else "normal",
    )


def samples_axis(axes: Axes) -> None:
    """Label an axis of samples seen from 0, in k, M and G."""
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(4, min_n_ticks=2))
    axes.set_xlabel("Samples seen")


def log_axis(axes: Axes, name: str) -> None:
    """Make an axis logarithmic, with plain numbers at 1, 2 and 5 over few decades. Call it after drawing."""
    axes.set(**{f"{name}scale": "log"})
    axis = axes.xaxis if name == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    if high < MAX_PLAIN_RATIO * low:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def against_size(axes: Axes, rows: pd.DataFrame, size: str, label: str) -> None:
    """Draw every method's curve against batch or data size, the column `size`, on a logarithmic axis."""
    for method in tidy.methods(rows):
        # What diverged counts as guessing here, and is no curve that ends.
        curve(axes, rows[rows["method"] == method].assign(status=""), method, x=size, marked=True)
    axes.set_xscale("log", base=2 if size == "global_batch_size" else 10)
    size_axis(axes, rows[size], label)
    axes.minorticks_off()


def size_axis(axes: Axes, values: pd.Series, label: str) -> None:
    """Mark each size on a logarithmic x axis, in k, M and G."""
    sizes = sorted(values.unique())
    axes.set_xticks(sizes, [EngFormatter(sep="", places=1)(size).replace(".0", "") for size in sizes])
    axes.set_xlabel(label)


def method_handles(frame: pd.DataFrame) -> list[Artist]:
    """Return the legend's entries for the methods of the frame, ours first."""
    return [
        Line2D([], [], label=style.method(name).name, marker=style.method(name).marker, **style.lines(name))
        for name in reversed(tidy.methods(frame))
    ]


def legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """Put one legend above all panels, in lines about as long, and make the figure higher for it."""
    widths = [0.6 + len(str(handle.get_label())) / LETTERS_PER_IN for handle in handles]
    is_one_line = sum(widths) <= figure.get_figwidth()
    most = len(handles) if is_one_line else max(1, int(figure.get_figwidth() / max(widths)))
    lines = math.ceil(len(handles) / most)
    columns = math.ceil(len(handles) / lines)
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, handlelength=3.2)
    figure.set_figheight(figure.get_figheight() + 0.1 + 0.16 * lines)


def caption(figure: Figure, frame: pd.DataFrame, *sentences: str, over_seeds: str) -> None:
    """Write the caption below all panels: the runs, those that diverged, then sentences; make the figure higher for it.

    `over_seeds` is written only if there are several seeds. Empty sentences are left out.
    """
    said = [
        f"Runs: {tidy.describe(frame)}.",
        _diverged(frame),
        *sentences,
        over_seeds if frame["seed"].nunique() > 1 else "",
    ]
    text = " ".join(filter(None, said)).replace(" %", "\N{NO-BREAK SPACE}%")
    lines = textwrap.wrap(text, int(figure.get_figwidth() * LETTERS_PER_IN), break_on_hyphens=False)
    figure.supxlabel("\n".join(lines), fontsize=7, fontweight="normal", color=style.MUTED, x=0.01, ha="left")
    figure.set_figheight(figure.get_figheight() + 0.05 + LINE_IN * len(lines))


def _diverged(frame: pd.DataFrame) -> str:
    """Count diverged runs by method, and say how they count where their final scores are compared."""
    counts = []
    for method, rows in frame.groupby("method"):
        diverged = rows.loc[rows["status"] == "diverged", "run_id"].nunique()
        if diverged:
            counts.append(f"{style.method(str(method)).name} {diverged} of {rows['run_id'].nunique()}")
    # A final score that is there although the run diverged is that of guessing; some frames hold no scores at all.
    lost = frame[frame["is_final"] & frame["is_main"] & (frame["status"] == "diverged")]
    how = " (counted as guessing)" if "value" in lost and lost["value"].notna().any() else ""
    return f"Diverged: {', '.join(counts)}{how}." if counts else ""


def timed(frame: pd.DataFrame) -> list[tidy.Setting]:
    """Split a frame into panels by setting, device and commit: times of different devices or code do not compare."""
    mixed = [column for column in ("device", "commit") if frame[column].nunique() > 1]
    return [
        tidy.Setting(", ".join(filter(None, [label, *(short(str(rows[name].iloc[0])) for name in mixed)])), rows)
        for label, of_setting in tidy.settings(frame)
        for _, rows in of_setting.groupby(["device", "commit"], sort=False)
    ]


def where_timed(frame: pd.DataFrame) -> str:
    """Name the device for the caption, or say that the panels of `timed` do not compare."""
    device = f"On {frame['device'].iloc[0]}." if frame["device"].nunique() == 1 else ""
    is_mixed = frame["device"].nunique() > 1 or frame["commit"].nunique() > 1
    return f"{device} {'Panels differ in device or commit and do not compare.' if is_mixed else ''}".strip()
