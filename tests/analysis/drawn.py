"""Tables and figures that a frame has something for, and what can be read in them."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis import rendering, style
from analysis.table import Cell, Table


def build_table(frame: pd.DataFrame, name: str) -> Table:
    table = rendering.build_table(frame, name)
    assert table is not None, f"{name} has nothing to show"
    return table


def build_figure(frame: pd.DataFrame, name: str, width: float = style.PAGE_IN) -> Figure:
    figure = rendering.build_figure(frame, name, width)
    assert figure is not None, f"{name} has nothing to show"
    return figure


def row(table: Table, *keys: str) -> dict[str, Cell]:
    """The cells of the row with these keys, by column."""
    (found,) = [row for row in table.rows if row[: len(keys)] == keys]
    return {name: cell for name, cell in zip(table.header, found, strict=True) if isinstance(cell, Cell)}
