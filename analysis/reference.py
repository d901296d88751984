"""The paper's numbers (`paper.yaml`), as tables to print below ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

from analysis import style
from analysis.table import Cell, Table

PAPER: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("paper.yaml").read_text(encoding="utf-8"))


class PaperScores(NamedTuple):
    """Scores of the paper's methods on the data that a suite reproduces."""

    score: str
    """Name of the average; it has this name only if it is over all its sets."""
    values: dict[str, float]
    """By method, in percent."""


def of_suite(frame: pd.DataFrame) -> PaperScores | None:
    """Return the paper's scores if all rows are of a suite that reproduces one of its columns."""
    suites = [style.DATASETS.get(suite, "") for suite in frame["suite"].unique()]
    if len(suites) != 1 or suites[0] not in PAPER["results"]["columns"]:
        return None
    return PaperScores(PAPER["results"]["score"], column("results", suites[0]))


def column(section: str, name: str) -> dict[str, float]:
    """Return one column of a section of `paper.yaml`, by method."""
    place = PAPER[section]["columns"].index(name)
    return {method: values[place] for method, values in PAPER[section]["rows"].items()}


def table(section: str) -> Table:
    """Return a section of `paper.yaml`."""
    part = PAPER[section]
    return Table(
        title=part["title"],
        header=(part.get("key", "Method"), *part["columns"]),
        rows=tuple(
            (style.method(name).name, *(Cell(value, form=part.get("form", ".2f")) for value in values))
            for name, values in part["rows"].items()
        ),
        notes=tuple(note.format(source=PAPER["source"]) for note in part["notes"]),
    )
