"""Scores and final temperatures by where the log-normalizer is from and by what moves the temperature."""

from __future__ import annotations

import dataclasses

import pandas as pd

from analysis import attribution, cells, style
from analysis import frame as tidy
from analysis.table import Cell, Row, Table

SUITES = ("ablation_attribution*",)
KINDS = ("average", "option", "train")


def build(frame: pd.DataFrame) -> Table:
    """One row per setting, score and source of the log-normalizer, one column per rule of the temperature."""
    found = attribution.attributions(frame)
    rows: list[Row] = []
    for setting in dict.fromkeys(one.setting for one in found):
        of_setting = [one for one in found if one.setting == setting]
        for one in of_setting:
            rows += _block(setting, one.score.title, {cell: _score(values) for cell, values in one.scores.items()})
        last = {cell: cells.mean(values, ".3f") for cell, values in of_setting[0].temperatures.items()}
        rows += _block(setting, "Final temperature", last)
    ours = frame[frame["method"] == style.OURS]
    said = (
        f"{tidy.describe(ours)}. Columns: what moves the temperature. Own pair: the anchor's own pair is in the "
        f"denominator. {attribution.CORNERS} A dash: not run.",
        *dict.fromkeys(text for one in found for text in one.doubles),
    )
    return Table(
        title="Attribution: scores in % and final temperatures, mean ± half-width of the 95 % interval over seeds",
        header=("Setting", "Score", "Normalizer", *attribution.RULES.values()),
        rows=tuple(rows),
        num_keys=3,
        notes=said if found else (attribution.NOTHING,),
    )


def _block(setting: str, score: str, shown: dict[attribution.Cell, Cell]) -> list[Row]:
    """Arrange the cells of one score: sources below each other, rules of the temperature side by side."""
    by_place = {(cell.row, cell.rule): item for cell, item in shown.items()}
    return [
        (setting, score, row, *(by_place.get((row, rule), Cell(None)) for rule in attribution.RULES))
        for row in dict.fromkeys(cell.row for cell in shown)
    ]


def _score(values: pd.Series) -> Cell:
    """Show the mean over seeds, and how many runs it is of where some diverged."""
    n = int(values.count())
    remark = "" if n == len(values) else f"(n = {n})" if n else "diverged"
    return dataclasses.replace(cells.mean(100 * values), remark=remark)
