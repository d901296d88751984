"""The main table: final scores on every average and evaluation set, beside the paper's where it has one."""

from __future__ import annotations

import pandas as pd

from analysis import cells, reference, style
from analysis import frame as tidy
from analysis.table import Cell, Row, Table

KINDS = ("average", "eval")
MAX_SETS = 12
"""Suites with more sets show averages here, and each set in the table per_task."""


def table(frame: pd.DataFrame) -> Table | None:
    """Build one row per setting and method, one column per average and set, in percent."""
    frame = tidy.main_runs(tidy.final_scores(frame))
    scores = tidy.scores(frame)
    if sum(score.kind == "eval" for score in scores) > MAX_SETS:
        scores = [score for score in scores if score.kind == "average"]
    paper, main_method = reference.of_suite(frame), tidy.main_method(frame)
    rows: list[Row] = []
    for label, part in tidy.settings(frame):
        columns = [
            cells.by_method(part[(part["kind"] == s.kind) & (part["name"] == s.name)], main_method) for s in scores
        ]
        runs = part.groupby("method")["run_id"].nunique()
        diverged = part[part["status"] == "diverged"].groupby("method")["run_id"].nunique()
        for method in tidy.methods(part):
            shown: list[Cell] = []
            for score, column in zip(scores, columns, strict=True):
                shown.append(column[method])
                if paper and score.name == paper.score:
                    shown += _beside_paper(column[method], paper.values.get(method))
            counts = (Cell(runs[method], form="d"), Cell(diverged.get(method, 0), form="d"))
            rows.append((label, style.method(method).name, *shown, *counts))
    titles = []
    for score in scores:
        titles += [score.title, "Paper", "Minus paper"] if paper and score.name == paper.score else [score.title]
    return Table(
        title="Results in %, mean ± half-width of the 95 % interval over seeds",
        header=("Setting", "Method", *titles, "Runs", "Diverged"),
        rows=tuple(rows),
        num_keys=2,
        notes=cells.notes(frame, "column"),
        reference=reference.table("results"),
    )


def _beside_paper(ours: Cell, paper: float | None) -> list[Cell]:
    if paper is None or ours.value is None:
        return [Cell(paper, form=".2f"), Cell(None)]
    return [Cell(paper, form=".2f"), Cell(ours.value - paper, form="+.2f")]
