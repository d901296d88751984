"""The paper's own numbers (`paper.yaml`), as tables to print below ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

from analysis import style
from analysis.table import Cell, Table

PAPER: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("paper.yaml").read_text(encoding="utf-8"))


class PaperScores(NamedTuple):
    """Hold the scores of the paper's methods on the data that a suite reproduces."""

    score: str
    """The average they belong to; only an average over all its sets has this name."""
    values: dict[str, float]
    """By method, in percent."""


def of_suite(frame: pd.DataFrame) -> PaperScores | None:
    """Return the paper's scores if all rows are of a suite that reproduces one of its columns."""
    part = PAPER["results"]
    suites = [style.DATASETS.get(suite) for suite in frame["suite"].unique()]
    if len(suites) != 1 or suites[0] not in part["datasets"]:
        return None
    column = part["datasets"].index(suites[0])
    return PaperScores(part["score"], {method: values[column] for method, values in part["methods"].items()})


def increase(change: str) -> dict[str, float]:
    """Return by method how much the paper's error of the log-normalizers grows by a change of the setting."""
    part = PAPER["normalizer_error"]
    column = part["changes"].index(change)
    return {method: values[column] for method, values in part["methods"].items()}


def by_method(section: str, columns: str) -> Table:
    """Return a section of `paper.yaml` that gives each method one number per column."""
    part = PAPER[section]
    form = ".2f" if section == "results" else ".1f"
    return Table(
        title=part["title"],
        header=("Method", *part[columns]),
        rows=tuple(
            (style.method(name).name, *(Cell(value, form=form) for value in part["methods"][name]))
            for name in style.ordered(part["methods"])
        ),
        notes=tuple(filter(None, [f"Source: {PAPER['source']}.", part.get("note")])),
    )


def ablation() -> Table:
    """Return the scores of the paper's variants of NeuCLIP."""
    part = PAPER["ablation"]
    return Table(
        title=part["title"],
        header=("Variant", "Average"),
        rows=tuple((name, Cell(value, form=".2f")) for name, value in part["rows"]),
        notes=(f"Source: {PAPER['source']}. {part['note']}",),
    )


def npn_share() -> Table:
    """The time that the paper's normalizer network takes."""
    part = PAPER["cost"]
    low, high = (Cell(value, form=".2f") for value in part["range"])
    return Table(
        title=part["title"],
        header=("Method", "Lowest", "Highest"),
        rows=((style.method(style.OURS).name, low, high),),
        notes=(f"Source: {PAPER['source']}. {part['note']}",),
    )
