"""Writes artefacts: a `Table` as CSV, Markdown and LaTeX, a figure as PDF, SVG and PNG, each with its sidecar.

Same rows, same bytes: nothing here writes a time, a host or a version of its own.
"""

from __future__ import annotations

import csv
import dataclasses
import importlib
import io
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from matplotlib.figure import Figure
from rich import markup

from analysis import artifacts, style
from analysis.frame import digest
from engine import paths

MAX_COLUMNS = 6
"""Number columns side by side in Markdown and LaTeX; further ones follow in a panel below."""
MAX_ROWS = 45
"""Rows of one LaTeX float; what does not fit a page goes on in another."""
DEFAULT_KINDS = ("eval", "average", "train", "normalizer")
"""Without costs, which never repeat."""
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


def short(commits: str) -> str:
    """Shorten each commit to twelve digits."""
    return re.sub(r"\b(\w{12})\w*", r"\1", commits)


def build_table(frame: pd.DataFrame, name: str) -> Table:
    """Build a table from the rows it may see, and say at its end what it was made from."""
    rows = select("table", name, frame)
    table: Table = importlib.import_module(f"analysis.tables.{name}").build(rows)
    commits = map(short, sorted(rows["commit"].unique()))
    origin = f"Suite {', '.join(rows['suite'].unique())}; {rows['run_id'].nunique()} runs; commit {', '.join(commits)}."
    missing = () if table.rows else ("Nothing to show: this suite has no rows for this table.",)
    return dataclasses.replace(table, notes=(*missing, *table.notes, *((origin,) if len(rows) else ())))


def write_table(frame: pd.DataFrame, name: str, folder: Path) -> None:
    """Write a table as ``<name>.csv``, ``.md``, ``.tex``, with its sidecar ``<name>.json``."""
    table = build_table(frame, name)
    texts = {"csv": to_csv(table), "md": to_markdown(table), "tex": to_latex(table)}
    for suffix, text in {**texts, "json": _sidecar("table", name, frame)}.items():
        with paths.atomic_write(folder / f"{name}.{suffix}") as temporary:
            temporary.write_text(text, encoding="utf-8")


def build_figure(frame: pd.DataFrame, name: str) -> Figure:
    """Build a figure from the rows it may see."""
    figure: Figure = importlib.import_module(f"analysis.figures.{name}").build(select("figure", name, frame))
    return figure


@style.paper
def write_figure(frame: pd.DataFrame, name: str, folder: Path) -> None:
    """Write a figure as ``<name>.pdf``, ``.svg``, ``.png``, with its sidecar ``<name>.json``."""
    figure = build_figure(frame, name)
    # The keys by which each format would tell the time or the version of the program.
    stamps = {"pdf": ("CreationDate", "Creator", "Producer"), "svg": ("Date", "Creator"), "png": ("Software",)}
    for form, keys in stamps.items():
        with paths.atomic_write(folder / f"{name}.{form}") as temporary:
            figure.savefig(temporary, format=form, metadata=dict.fromkeys(keys))
    with paths.atomic_write(folder / f"{name}.json") as temporary:
        temporary.write_text(_sidecar("figure", name, frame), encoding="utf-8")


def to_csv(table: Table) -> str:
    """Return the table for programs: interval, n and mark in columns of their own, no panels, no reference."""
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
        for extra, show in extras.items():
            shown = ["" if isinstance(item, str) else show(item) for item in column]
            if any(shown):
                titles.append(f"{title} {extra}")
                texts.append(shown)
    writer.writerow(titles or table.header)
    writer.writerows(zip(*texts, strict=True))
    return out.getvalue()


def to_markdown(table: Table, level: int = 3) -> str:
    """Return the table for GitHub and the report."""
    parts = [f"{'#' * level} {_escape_markdown(table.title)}"]
    for columns in panels(table):
        head = [_escape_markdown(table.header[i]) for i in columns]
        rule = [":--" if i < table.num_keys else "--:" for i in columns]
        body = [[_markdown(row[i]) for i in columns] for row in table.rows]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *body]))
    parts += [_escape_markdown(note) for note in table.notes]
    text = "\n\n".join(parts) + "\n"
    return text + ("\n" + to_markdown(table.reference, level + 1) if table.reference else "")


def to_latex(table: Table) -> str:
    """Return a booktabs table (package booktabs); panels are stacked, a long table goes on in another float."""
    if len(table.rows) > MAX_ROWS:
        count = math.ceil(len(table.rows) / MAX_ROWS)
        size = math.ceil(len(table.rows) / count)
        floats = [
            dataclasses.replace(
                table,
                title=f"{table.title} (part {part + 1} of {count})",
                rows=table.rows[part * size : (part + 1) * size],
                notes=table.notes if part == count - 1 else (),
                reference=table.reference if part == count - 1 else None,
            )
            for part in range(count)
        ]
        return "\n".join(map(to_latex, floats))
    parts = [r"\begin{table}[t]", r"\centering", rf"\caption{{{_escape_latex(table.title)}.}}", r"\small"]
    for number, columns in enumerate(panels(table)):
        align = "".join("l" if i < table.num_keys else "r" for i in columns)
        parts += [r"\par\medskip"] if number else []
        parts += [rf"\begin{{tabular}}{{{align}}}", r"\toprule"]
        parts += [" & ".join(_escape_latex(table.header[i]) for i in columns) + r" \\", r"\midrule"]
        parts += [" & ".join(_latex(row[i]) for i in columns) + r" \\" for row in table.rows]
        parts += [r"\bottomrule", r"\end{tabular}"]
    parts += [rf"\par\smallskip{{\footnotesize {_escape_latex(note)}\par}}" for note in table.notes]
    text = "\n".join([*parts, r"\end{table}"]) + "\n"
    return text + ("\n" + to_latex(table.reference) if table.reference else "")


def to_terminal(item: str | Cell) -> str:
    """Return a cell in rich's markup."""
    if isinstance(item, str):
        return markup.escape(item)
    text = item.text()
    text = {"best": f"[bold]{text}[/]", "second": f"[underline]{text}[/]"}.get(item.emphasis, text)
    return f"{text}{item.mark} {item.remark}".strip() or NO_VALUE


def select(form: artifacts.Form, name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Select what an artefact may see, so that its sidecar's digest covers exactly what it was drawn from."""
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


def panels(table: Table, max_columns: int = MAX_COLUMNS) -> Iterator[list[int]]:
    """Split the columns into panels of like width, each with all keys; yields the positions of columns."""
    keys, others = range(table.num_keys), range(table.num_keys, len(table.header))
    count = max(1, math.ceil(len(others) / max_columns))
    width = max(1, math.ceil(len(others) / count))
    for panel in range(count):
        yield [*keys, *others[panel * width : (panel + 1) * width]]


def _plain(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.6g}"


def _markdown(item: str | Cell) -> str:
    if isinstance(item, str):
        return _escape_markdown(item)
    text = item.text()
    text = {"best": f"**{text}**", "second": f"_{text}_"}.get(item.emphasis, text)
    return f"{text}{_escape_markdown(item.mark)} {item.remark}".strip() or NO_VALUE


def _latex(item: str | Cell) -> str:
    if isinstance(item, str):
        return _escape_latex(item)
    text = re.sub(r"e([+-])0*(\d+)", r" \\cdot 10^{\1\2}", item.text(r" \pm ")).replace("{+", "{")
    text = {"best": rf"\mathbf{{{text}}}", "second": rf"\underline{{{text}}}"}.get(item.emphasis, text)
    mark = {"": "", "*": "^{*}", "†": r"^{\dagger}"}[item.mark]
    number = f"${text}{mark}$" if text else ""
    return f"{number} {_escape_latex(item.remark)}".strip() or "--"


def _escape_markdown(text: str) -> str:
    return re.sub(r"([|*_])", r"\\\1", text)


_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "†": r"$\dagger$",
    "·": r"$\cdot$",
    "<": "$<$",
    "|": "$|$",
    ">": "$>$",
    NO_VALUE: "--",
}


def _escape_latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
