"""Tables and their cells, before they are written in some format."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

MAX_COLUMNS = 6
"""Columns of numbers side by side; more follow in panels below."""
OPTIONAL_KEYS = ("Setting", "Commit")
"""Key columns that are left out where no row has a text for them."""
NO_VALUE = "\N{EN DASH}"


def number(value: float, form: str = ".1f") -> str:
    """Write a number; one that is rounded to zero has no minus.

    >>> number(-0.04), number(-0.04, "+.1f"), number(-3, "d")
    ('0.0', '+0.0', '-3')
    """
    return format(value, form if form.endswith("d") else re.sub(r"^(\+?)", r"\1z", form))


@dataclass(frozen=True)
class Cell:
    """A number in the unit of its column, with interval, emphasis, mark and remark."""

    value: float | None
    half_width: float | None = None
    """Of the 95 % interval; None or NaN where there is none."""
    n: int | None = None
    """Runs behind the number; in the CSV only."""
    form: str = ".1f"
    """Format of value and half-width; CSV has six digits instead."""
    emphasis: Literal["", "best", "second"] = ""
    mark: Literal["", "*", "†"] = ""
    remark: str = ""
    """Shown after the number, or in place of a missing one."""

    def text(self, plus_minus: str = " ± ") -> str:
        """Write the number and its interval; empty if there is no number."""
        if self.value is None or math.isnan(self.value):
            return ""
        text = number(self.value, self.form)
        if self.half_width is None or math.isnan(self.half_width):
            return text
        return f"{text}{plus_minus}{format(self.half_width, self.form.lstrip('+'))}"


def show(item: str | Cell, *, best: str = "{}", second: str = "{}", escape: Callable[[str], str] = str) -> str:
    """Write a text or a cell in some markup.

    Args:
        item: The text or the cell.
        best: Template for the number of the best cell.
        second: Template for the number of the second cell.
        escape: Writes text so that the markup shows it as it is.
    """
    if isinstance(item, str):
        return escape(item)
    number = {"best": best, "second": second}.get(item.emphasis, "{}").format(escape(item.text()))
    return f"{number}{escape(item.mark)} {escape(item.remark)}".strip() or NO_VALUE


Row = tuple[str | Cell, ...]


@dataclass(frozen=True)
class Table:
    """A table: first the key columns (text), then numbers or text."""

    title: str
    header: tuple[str, ...]
    rows: tuple[Row, ...]
    num_keys: int = 1
    notes: tuple[str, ...] = ()
    reference: Table | None = None
    """A table of the paper's numbers, printed below; not in the CSV."""


def without_empty_keys(table: Table) -> Table:
    """Leave out the columns of `OPTIONAL_KEYS` in which no row has a text."""
    kept = [i for i, name in enumerate(table.header) if name not in OPTIONAL_KEYS or any(row[i] for row in table.rows)]
    return dataclasses.replace(
        table,
        header=tuple(table.header[i] for i in kept),
        rows=tuple(tuple(row[i] for i in kept) for row in table.rows),
        num_keys=sum(i < table.num_keys for i in kept),
    )


def three_digits(value: float) -> str:
    """Return the format that shows three significant digits of `value`; below 0.001 with an exponent."""
    if not math.isfinite(value) or value == 0:
        return ".2f"
    return f".{max(0, 2 - math.floor(math.log10(abs(value))))}f" if abs(value) >= 1e-3 else ".2e"


def panels(table: Table, max_columns: int = MAX_COLUMNS) -> Iterator[list[int]]:
    """Split the columns into panels of about equal width, each with all keys; yields the positions of columns."""
    keys, others = range(table.num_keys), range(table.num_keys, len(table.header))
    count = max(1, math.ceil(len(others) / max_columns))
    width = max(1, math.ceil(len(others) / count))
    for panel in range(count):
        yield [*keys, *others[panel * width : (panel + 1) * width]]
