"""Writes tables as CSV, Markdown and LaTeX, and figures as PDF, SVG and PNG, each with a sidecar on its origin.

The same rows give the same bytes: no file has a time, a host or a version of a program in it.
"""

from __future__ import annotations

import csv
import dataclasses
import importlib
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from analysis import artifacts, style
from analysis.frame import digest
from analysis.latex import to_latex
from analysis.table import MAX_COLUMNS, Cell, Table, panels, show, without_empty_keys
from engine import files

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # not for tables, which do without it in half the time

DEFAULT_KINDS = ("eval", "average", "train", "normalizer")
"""Scores, logs and errors; not measured times, which never repeat."""


def short(commits: str) -> str:
    """Shorten each commit to twelve digits."""
    return re.sub(r"\b(\w{12})\w*", r"\1", commits)


def commits_of(rows: pd.DataFrame) -> str:
    """List the commits that runs were trained at, each once: a run that was resumed may have several."""
    return ", ".join(map(short, sorted({commit for each in rows["commit"].unique() for commit in each.split(", ")})))


def build_table(frame: pd.DataFrame, name: str) -> Table:
    """Build a table from its kinds of rows, and note at its end which runs they are of."""
    rows = select("table", name, frame)
    table = without_empty_keys(importlib.import_module(f"analysis.tables.{name}").build(rows))
    suites, num_runs = ", ".join(rows["suite"].unique()), rows["run_id"].nunique()
    origin = f"Suite {suites}; {num_runs} runs; commit {commits_of(rows)}."
    missing = () if table.rows else ("Nothing to show: this suite has no rows for this table.",)
    return dataclasses.replace(table, notes=(*missing, *table.notes, *((origin,) if len(rows) else ())))


def write_table(frame: pd.DataFrame, name: str, folder: Path) -> None:
    """Write a table as ``<name>.csv``, ``.md``, ``.tex``, with its sidecar ``<name>.json``."""
    table = build_table(frame, name)
    texts = {"csv": to_csv(table), "md": to_markdown(table), "tex": to_latex(table)}
    for suffix, text in {**texts, "json": _sidecar("table", name, frame)}.items():
        files.write_text(folder / f"{name}.{suffix}", text)


@style.paper
def build_figure(frame: pd.DataFrame, name: str, width: float = style.PAGE_IN) -> Figure:
    """Build a figure from its kinds of rows; `width` is in inches."""
    figure: Figure = importlib.import_module(f"analysis.figures.{name}").build(select("figure", name, frame), width)
    return figure


@style.paper
def write_figure(frame: pd.DataFrame, name: str, folder: Path) -> None:
    """Write a figure in two widths, with its sidecar ``<name>.json``.

    As wide as a page: ``<name>.pdf``, ``.svg``, ``.png``. As wide as one of two columns: ``<name>_column.pdf``, ...
    """
    for end, width in {"": style.PAGE_IN, artifacts.IN_COLUMN: style.COLUMN_IN}.items():
        figure = build_figure(frame, name, width)
        for form in artifacts.FIGURE_FORMATS:
            _save(figure, folder / f"{name}{end}.{form}")
    files.write_text(folder / f"{name}.json", _sidecar("figure", name, frame))


@style.paper
def publish(frame: pd.DataFrame, names: Sequence[str], folder: Path) -> pd.DataFrame:
    """Write tables as ``<name>.md`` and figures as ``<name>.svg``, to be committed; some names are both.

    Returns:
        The rows that they are drawn from.
    """
    # A name that neither has is refused as a table, before anything is written.
    tables = [name for name in names if name in artifacts.tables() or name not in artifacts.figures()]
    figures = [name for name in names if name in artifacts.figures()]
    drawn = [*(select("table", name, frame) for name in tables), *(select("figure", name, frame) for name in figures)]
    for name in tables:
        files.write_text(folder / f"{name}.md", to_markdown(build_table(frame, name)))
    for name in figures:
        _save(build_figure(frame, name), folder / f"{name}.svg")
    return frame.loc[sorted(set[int]().union(*(rows.index for rows in drawn)))]


def _save(figure: Figure, path: Path) -> None:
    # Metadata that would hold a time or a version of a program.
    stamps = {".pdf": ("CreationDate", "Creator", "Producer"), ".svg": ("Date", "Creator"), ".png": ("Software",)}
    with files.atomic_write(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], metadata=dict.fromkeys(stamps[path.suffix]))


def to_csv(table: Table) -> str:
    """Write the table as CSV: interval, n and mark are columns of their own; the reference is left out."""
    extras: dict[str, Callable[[Cell], str]] = {
        "half_width": lambda c: _plain(c.half_width),
        "n": lambda c: _plain(c.n),
        "mark": lambda c: c.mark,
    }
    columns = list(zip(*table.rows, strict=True))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    titles, texts = [], []
    for title, column in zip(table.header, columns, strict=False):
        titles.append(title)
        texts.append([item if isinstance(item, str) else _plain(item.value) for item in column])
        for extra, write in extras.items():
            shown = ["" if isinstance(item, str) else write(item) for item in column]
            if any(shown):
                titles.append(f"{title} {extra}")
                texts.append(shown)
    writer.writerow(titles or table.header)
    writer.writerows(zip(*texts, strict=True))
    return out.getvalue()


def to_markdown(table: Table, level: int = 3, columns: int = MAX_COLUMNS) -> str:
    """Write the table as Markdown, with at most so many columns of numbers beside each other."""
    parts = [f"{'#' * level} {_escape_markdown(table.title)}"]
    for panel in panels(table, columns):
        head = [_escape_markdown(table.header[i]) for i in panel]
        rule = [":--" if i < table.num_keys else "--:" for i in panel]
        body = [[_markdown(row[i]) for i in panel] for row in table.rows]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *body]))
    parts += [_escape_markdown(note) for note in table.notes]
    text = "\n\n".join(parts) + "\n"
    return text + ("\n" + to_markdown(table.reference, level + 1) if table.reference else "")


def select(form: artifacts.Form, name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Select the kinds of rows that a table or figure is drawn from; its sidecar has their digest."""
    known = artifacts.tables() if form == "table" else artifacts.figures()
    if name not in known:
        where = artifacts.source(form, name)
        raise ValueError(f"unknown {form} {name!r}; known: {', '.join(known)}; to add it, write {where}")
    return frame[frame["kind"].isin(artifacts.literal(form, name, "KINDS", DEFAULT_KINDS))]


def _sidecar(form: artifacts.Form, name: str, frame: pd.DataFrame) -> str:
    rows = select(form, name, frame)
    origin = {
        "id": name,
        "form": form,
        **{f"{column}s": sorted(rows[column].unique()) for column in ("suite", "kind", "commit", "device", "run_id")},
        "num_rows": len(rows),
        "rows_sha256": digest(rows),
        "code_sha256": artifacts.sources_sha256(form, name),
    }
    return json.dumps(origin, indent=2) + "\n"


def _plain(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.6g}"


def _markdown(item: str | Cell) -> str:
    return show(item, best="**{}**", second="_{}_", escape=_escape_markdown)


def _escape_markdown(text: str) -> str:
    """Write text so that Markdown shows it; of ``<`` what could begin an element."""
    return re.sub(r"([\\`|*_]|<(?=[A-Za-z/!?]))", r"\\\1", text)
