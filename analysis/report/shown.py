"""Gathers the tables and figures of a suite, with their files, their state and the commands that make them."""

from __future__ import annotations

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


def gather(suite: str, frame: pd.DataFrame, stale: Mapping[Path, str]) -> Artifacts:
    """Gather a suite's tables and figures, the main ones first.

    Args:
        suite: Its full name.
        frame: Its collected frame.
        stale: Why files are out of date, by path without suffix; see `analysis.staleness.of_suite`.
    """
    found = Artifacts()
    if not paths.drawn(suite).exists():
        return found
    drawn = artifacts.drawn(suite)
    command = f"python -m analysis {{form}} {paths.collected(suite)} {{name}} --out {{folder}}"
    for name in sorted(drawn.tables, key=lambda name: name not in FIRST):
        folder = paths.tables(suite)
        again = command.format(form="table", name=name, folder=folder)
        table = rendering.build_table(frame, name) if name in artifacts.tables() else None
        if table is not None:
            found.tables.append(ShownTable(name, str(folder / name), again, stale.get(folder / name, ""), table))
    for name in sorted(drawn.figures, key=lambda name: name not in FIRST):
        place = paths.figures(suite) / name
        again = command.format(form="figure", name=name, folder=place.parent)
        if place.with_suffix(".svg").exists():
            found.figures.append(_figure(name, drawn.figures[name], place, again, stale.get(place, "")))
    return found


def _figure(name: str, title: str, place: Path, command: str, stale: str) -> ShownFigure:
    svg = place.with_suffix(".svg").read_text(encoding="utf-8")
    narrow = place.with_name(f"{name}{artifacts.IN_COLUMN}.svg")
    return ShownFigure(
        name,
        str(place),
        command,
        stale,
        title=title,
        alt=_alt(title, svg),
        image=_data_uri(svg),
        narrow_image=_data_uri(narrow.read_text(encoding="utf-8")) if narrow.exists() else "",
    )


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
