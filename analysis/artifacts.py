"""Tables and figures by name, and what was drawn of a suite. Snakemake reads this: it imports no pandas.

A study is ``studies/<name>.py``: with ``def table(frame)`` there is a table of its name, with ``def figure(frame,
width)`` a figure, the width in inches.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Literal

from engine import files, paths
from engine.schema.base import Frozen, parse

Form = Literal["table", "figure"]

HERE = Path(__file__).parent
TABLE_SUFFIXES = (".csv", ".md", ".tex", ".json")
IN_COLUMN = "_column"
"""End of the file name of a figure that is as wide as one of a page's two columns; the other is as wide as the page."""
FIGURE_FORMATS = ("pdf", "svg", "png")
FIGURE_SUFFIXES = (*(f"{end}.{form}" for end in ("", IN_COLUMN) for form in FIGURE_FORMATS), ".json")


class Drawn(Frozen):
    """The tables and figures that a suite's frame has something for; written when all of them are there."""

    tables: tuple[str, ...]
    figures: dict[str, str]
    """Titles by name."""


def tables() -> tuple[str, ...]:
    """Return the names of all tables."""
    return _studies("table")


def figures() -> tuple[str, ...]:
    """Return the names of all figures."""
    return _studies("figure")


def drawn(suite: str) -> Drawn:
    """Read what was drawn of a suite.

    Raises:
        FileNotFoundError: If it was never drawn.
        ValueError: If the file is damaged.
    """
    file = paths.drawn(suite)
    return parse(Drawn, files.read_text(file), str(file))


def lost(suite: str) -> dict[Path, list[str]]:
    """Return the names of the files that tables and figures lack which were drawn, by their path without suffix."""
    said = drawn(suite)
    places: list[tuple[Path, tuple[str, ...]]] = [(paths.tables(suite) / name, TABLE_SUFFIXES) for name in said.tables]
    places += [(paths.figures(suite) / name, FIGURE_SUFFIXES) for name in said.figures]
    lacking = {
        place: [f"{place.name}{end}" for end in suffixes if not place.with_name(f"{place.name}{end}").exists()]
        for place, suffixes in places
    }
    return {place: names for place, names in lacking.items() if names}


@functools.cache
def collecting_sha256() -> str:
    """Return the digest of this package's own modules: when it changes, collect again."""
    return _digest(_files(HERE))


@functools.cache
def drawing_sha256() -> str:
    """Return the digest of the code that draws, which is that and all studies: when it changes, draw again."""
    return _digest([*_files(HERE), *_files(HERE / "studies")])


@functools.cache
def report_sha256() -> str:
    """Return the digest of the code that writes reports; tables and figures have their own."""
    folders = [HERE, *sorted(path for path in (HERE / "report").rglob("*") if path.is_dir()), HERE / "report"]
    return _digest([file for folder in folders for file in _files(folder)])


@functools.cache
def _studies(form: Form) -> tuple[str, ...]:
    start = f"\ndef {form}("
    found = sorted((HERE / "studies").glob("[a-z]*.py"))
    return tuple(path.stem for path in found if start in path.read_text(encoding="utf-8"))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and path.suffix != ".pyc")


def _digest(read: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in read:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def refuse_unprintable(text: str) -> None:
    """Refuse a label or a title that tables could not show.

    Raises:
        ValueError: If it has a character that LaTeX cannot show.
    """
    from analysis import latex  # here: reading rules needs no tables

    latex.escape(text)
