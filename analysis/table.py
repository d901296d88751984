"""Define a table, before any format."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

MAX_COLUMNS = 6
"""Number columns side by side; further ones follow in a panel below."""
NO_VALUE = "\N{EN DASH}"


@dataclass(frozen=True)
class Cell:
    """A number in the unit of its column, with what is to be said about it."""

    value: float | None
    half_width: float | None = None
    """Of the 95 % interval; None or NaN where there is none."""
    n: int | None = None
    """Runs behind the number; in the CSV only."""
    form: str = ".1f"
    """Format of both numbers in Markdown and LaTeX; CSV has six digits."""
    emphasis: Literal["", "best", "second"] = ""
    mark: Literal["", "*", "†"] = ""
    remark: str = ""
    """Shown behind the number, or in place of a missing one."""

    def but(self, **changes: Any) -> Cell:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def text(self, plus_minus: str = " ± ") -> str:
        """The number and its interval, empty if there is none."""
        if self.value is None or math.isnan(self.value):
            return ""
        text = format(self.value, self.form)
        if self.half_width is None or math.isnan(self.half_width):
            return text
        return f"{text}{plus_minus}{format(self.half_width, self.form.lstrip('+'))}"


Row = tuple[str | Cell, ...]


@dataclass(frozen=True)
class Table:
    """A table, before any format: first the key columns (text), then numbers or text."""

    title: str
    header: tuple[str, ...]
    rows: tuple[Row, ...]
    num_keys: int = 1
    notes: tuple[str, ...] = ()
    reference: Table | None = None
    """Numbers of others, printed below and apart; not in the CSV."""


def three_digits(value: float) -> str:
    """Return the format that shows three significant digits of `value`; below 0.001 with an exponent."""
    if not math.isfinite(value) or value == 0:
        return ".2f"
    return f".{max(0, 2 - math.floor(math.log10(abs(value))))}f" if abs(value) >= 1e-3 else ".2e"


def panels(table: Table, max_columns: int = MAX_COLUMNS) -> Iterator[list[int]]:
    """Split the columns into panels of like width, each with all keys; yields the positions of columns."""
    keys, others = range(table.num_keys), range(table.num_keys, len(table.header))
    count = max(1, math.ceil(len(others) / max_columns))
    width = max(1, math.ceil(len(others) / count))
    for panel in range(count):
        yield [*keys, *others[panel * width : (panel + 1) * width]]
