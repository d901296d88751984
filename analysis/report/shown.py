"""Gathers the tables and figures of a suite, with their files, their state and the commands that make them."""

from __future__ import annotations

import ast
import html
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from analysis import artifacts, rendering
from analysis.table import Table
from engine import paths

FIRST = ("hypotheses", "main_results", "results_by_method")
"""The tables and the figure that come first."""
MAX_ALT_LETTERS = 700


@dataclass(frozen=True)
class Shown:
    """A table or a figure."""

    name: str
    place: str
    """Path of its files, without suffix."""
    command: str
    """Command that makes it again."""
    stale: str
    """Reason why its files are out of date; empty if they are not."""


@dataclass(frozen=True)
class ShownTable(Shown):
    """A table, built anew from the collected frame."""

    table: Table


@dataclass(frozen=True)
class ShownFigure(Shown):
    """A figure, read from its file, with a description in words."""

    title: str
    alt: str
    image: str
    """Data URI of the SVG."""
    narrow_image: str
    """The same, drawn for a column of a page; empty if it is not there."""


@dataclass
class Artifacts:
    """All tables and figures of a suite."""

    tables: list[ShownTable] = field(default_factory=list)
    figures: list[ShownFigure] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    """Titles of tables that have nothing to show."""


def gather(suite: str, frame: pd.DataFrame, stale: Mapping[Path, str]) -> Artifacts:
    """Gather a suite's tables and figures, the main ones first.

    Args:
        suite: Its full name.
        frame: Its collected frame.
        stale: Why files are out of date, by path without suffix; see `analysis.staleness.of_suite`.
    """
    found = Artifacts()
    for name in sorted(artifacts.tables(suite), key=lambda name: name not in FIRST):
        place = paths.tables(suite) / name
        command = f"snakemake --config suites={suite} --force -- {place}.json"
        table = rendering.build_table(frame, name)
        if table.rows:
            found.tables.append(ShownTable(name, str(place), command, stale.get(place, ""), table))
        else:
            found.empty.append(table.title)
    for name in sorted(artifacts.figures(suite), key=lambda name: name not in FIRST):
        place = paths.figures(suite) / name
        command = f"snakemake --config suites={suite} --force -- {place}.json"
        if place.with_suffix(".svg").exists():
            found.figures.append(_figure(name, place, command, stale.get(place, "")))
    return found


def _figure(name: str, place: Path, command: str, stale: str) -> ShownFigure:
    svg = place.with_suffix(".svg").read_text(encoding="utf-8")
    narrow = place.with_name(f"{name}{artifacts.IN_COLUMN}.svg")
    return ShownFigure(
        name,
        str(place),
        command,
        stale,
        title=_summary(name),
        alt=_alt(_summary(name), svg),
        image=_data_uri(svg),
        narrow_image=_data_uri(narrow.read_text(encoding="utf-8")) if narrow.exists() else "",
    )


def _summary(name: str) -> str:
    """Return a figure's summary: the first line of its module's docstring."""
    text = ast.get_docstring(ast.parse(artifacts.source("figure", name).read_text(encoding="utf-8"))) or name
    return text.splitlines()[0].split(" (`docs/")[0].rstrip(".") + "."


def _alt(title: str, svg: str) -> str:
    """Describe a figure for those who cannot see it, by its texts: matplotlib writes each into the SVG as a comment."""
    drawn = (html.unescape(text).strip() for text in re.findall(r"<!--(.*?)-->", svg, re.DOTALL))
    words = [" ".join(text.split()) for text in drawn if re.search(r"[^\W\d_]{3}", text)]
    said = "; ".join(dict.fromkeys(words))
    if len(said) > MAX_ALT_LETTERS:
        said = said[:MAX_ALT_LETTERS].rsplit(";", 1)[0] + "; and more"
    return f"{title} Its labels: {said}." if said else title


def _data_uri(svg: str) -> str:
    """Encode an SVG as the address of an image, so that its ids cannot clash with those of other figures.

    White space is removed: it would end the address in `srcset`.
    """
    bare = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    text = re.sub(r"\s+", " ", bare).replace("> <", "><")
    return "data:image/svg+xml," + urllib.parse.quote(text, safe="'/:;=,()+-.!?@*$[]{}~_|^")
