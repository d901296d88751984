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
from types import ModuleType
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


def study(form: artifacts.Form, name: str) -> ModuleType:
    """Import the study that draws a table or a figure.

    Raises:
        ValueError: If there is none.
    """
    known = artifacts.tables() if form == "table" else artifacts.figures()
    if name not in known:
        where = artifacts.HERE / "studies" / f"{name}.py"
        raise ValueError(f"unknown {form} {name!r}; known: {', '.join(known)}; to add it, write {where}")
    return importlib.import_module(f"analysis.studies.{name}")


def select(form: artifacts.Form, name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Select the kinds of rows that a table or figure is drawn from; its sidecar has their digest.

    Trials of a tuning are no results: a study that does not ask for their settings gets nothing of them.
    """
    kinds = getattr(study(form, name), "KINDS", DEFAULT_KINDS)
    is_tuning = (frame["kind"] == "setting").any() and "setting" not in kinds
    return frame[:0] if is_tuning else frame[frame["kind"].isin(kinds)]


def build_table(frame: pd.DataFrame, name: str) -> Table | None:
    """Build a table from its kinds of rows, and note at its end which runs they are of; None if it has nothing."""
    rows = select("table", name, frame)
    table: Table | None = study("table", name).table(rows) if len(rows) else None
    if table is None or not table.rows:
        return None
    suites, num_runs = ", ".join(rows["suite"].unique()), rows["run_id"].nunique()
    origin = f"Suite {suites}; {num_runs} runs; commit {commits_of(rows)}."
    return dataclasses.replace(without_empty_keys(table), notes=(*table.notes, origin))


@style.paper
def build_figure(frame: pd.DataFrame, name: str, width: float = style.PAGE_IN) -> Figure | None:
    """Build a figure from its kinds of rows; `width` is in inches. None if it has nothing to show."""
    rows = select("figure", name, frame)
    figure: Figure | None = study("figure", name).figure(rows, width) if len(rows) else None
    return figure


def figure_title(name: str) -> str:
    """Return the first line of the docstring of a figure's study."""
    text = (study("figure", name).__doc__ or name).splitlines()[0]
    return text.split(" (`docs/")[0].rstrip(".") + "."


def write(form: artifacts.Form, frame: pd.DataFrame, name: str, folder: Path) -> bool:
    """Write a table or a figure in all formats, with its sidecar ``<name>.json``; tell whether it has anything to show.

    A table is ``<name>.csv``, ``.md``, ``.tex``; a figure ``<name>.pdf``, ``.svg``, ``.png`` as wide as a page, and
    ``<name>_column.pdf``, ... as wide as one of two columns.
    """
    is_written = _write_table(frame, name, folder) if form == "table" else _write_figure(frame, name, folder)
    if is_written:
        files.write_text(folder / f"{name}.json", _sidecar(form, name, frame))
    return is_written


def _write_table(frame: pd.DataFrame, name: str, folder: Path) -> bool:
    table = build_table(frame, name)
    if table is not None:
        for suffix, text in {"csv": to_csv(table), "md": to_markdown(table), "tex": to_latex(table)}.items():
            files.write_text(folder / f"{name}.{suffix}", text)
    return table is not None


@style.paper
def _write_figure(frame: pd.DataFrame, name: str, folder: Path) -> bool:
    for end, width in {"": style.PAGE_IN, artifacts.IN_COLUMN: style.COLUMN_IN}.items():
        figure = build_figure(frame, name, width)
        if figure is None:
            return False
        for form in artifacts.FIGURE_FORMATS:
            _save(figure, folder / f"{name}{end}.{form}")
    return True


def is_current(form: artifacts.Form, frame: pd.DataFrame, name: str, folder: Path) -> bool:
    """Tell whether a table or figure lies in a folder, drawn from these rows by this code."""
    suffixes = artifacts.TABLE_SUFFIXES if form == "table" else artifacts.FIGURE_SUFFIXES
    if not all((folder / f"{name}{end}").exists() for end in suffixes):
        return False
    return files.read_text(folder / f"{name}.json") == _sidecar(form, name, frame)


@style.paper
def publish(frame: pd.DataFrame, names: Sequence[str], folder: Path) -> pd.DataFrame:
    """Write tables as ``<name>.md`` and figures as ``<name>.svg``, to be committed; some names are both.

    Returns:
        The rows that they are drawn from.

    Raises:
        ValueError: If a name is unknown, or the frame has nothing for it.
    """
    # A name that neither has is refused as a table, before anything is written.
    forms: list[tuple[artifacts.Form, str]] = [
        ("table", name) for name in names if name in artifacts.tables() or name not in artifacts.figures()
    ]
    forms += [("figure", name) for name in names if name in artifacts.figures()]
    drawn = [select(form, name, frame) for form, name in forms]
    written = set()
    for form, name in forms:
        if form == "table" and (table := build_table(frame, name)) is not None:
            files.write_text(folder / f"{name}.md", to_markdown(table))
            written.add(name)
        elif form == "figure" and (figure := build_figure(frame, name)) is not None:
            _save(figure, folder / f"{name}.svg")
            written.add(name)
    if lacking := [name for name in names if name not in written]:
        raise ValueError(f"{', '.join(lacking)}: this frame has nothing for it")
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


def _sidecar(form: artifacts.Form, name: str, frame: pd.DataFrame) -> str:
    rows = select(form, name, frame)
    origin = {
        "id": name,
        "form": form,
        **{f"{column}s": sorted(rows[column].unique()) for column in ("suite", "kind", "commit", "device", "run_id")},
        "num_rows": len(rows),
        "rows_sha256": digest(rows),
        "code_sha256": artifacts.drawing_sha256(),
    }
    return json.dumps(origin, indent=2) + "\n"


def _plain(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.6g}"


def _markdown(item: str | Cell) -> str:
    return show(item, best="**{}**", second="_{}_", escape=_escape_markdown)


def _escape_markdown(text: str) -> str:
    """Write text so that Markdown shows it; of ``<`` what could begin an element."""
    return re.sub(r"([\\`|*_]|<(?=[A-Za-z/!?]))", r"\\\1", text)
