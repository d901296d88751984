"""The paper's own numbers (`paper.yaml`), as tables to print below ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from analysis import style
from analysis.rendering import Cell, Table

PAPER: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("paper.yaml").read_text(encoding="utf-8"))


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
    """What the paper's variants of NeuCLIP reach."""
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
