"""Every variant beside the main run of the same method."""

from __future__ import annotations

import pandas as pd

from analysis import cells, reference, stats, style
from analysis import frame as tidy
from analysis.table import Cell, Row, Table

SUITES = ("ablation_*", "icons", "laptop", "one_gpu")
KINDS = ("average",)


def build(frame: pd.DataFrame) -> Table:
    """Build one row per setting, method and variant; only methods that have variants."""
    frame = tidy.final_scores(frame)
    scores = tidy.scores(frame)
    rows: list[Row] = []
    for label, part in tidy.settings(frame):
        curves = tidy.curves(part)
        varied = {method for method, variant in curves if variant}
        for method, variant in [curve for curve in curves if curve[0] in varied]:
            one = part[part["method"] == method]
            shown: list[Cell] = []
            for score in scores:
                values = one[one["name"] == score.name]
                of_variant = values.loc[values["variant"] == variant, "value"]
                shown.append(Cell(100 * of_variant.mean(), 100 * stats.half_width(of_variant), int(of_variant.count())))
                shown.append(_difference(values, variant))
            runs = one[one["variant"] == variant]
            diverged = runs.loc[runs["status"] == "diverged", "run_id"].nunique()
            counts = (Cell(runs["run_id"].nunique(), form="d"), Cell(diverged, form="d"))
            rows.append((label, style.variant(method, variant), *shown, *counts))
    titles = [title for score in scores for title in (score.title, f"{score.title}, change")]
    return Table(
        title="Variants in %, mean ± half-width of the 95 % interval over seeds",
        header=("Setting", "Variant", *titles, "Runs", "Diverged"),
        rows=tuple(rows),
        num_keys=2,
        notes=("Change: variant minus main run of the same method in points, paired by seed.",),
        reference=reference.table("ablation"),
    )


def _difference(values: pd.DataFrame, variant: str) -> Cell:
    """Compare a variant with the main run of its method, seed by seed."""
    if not variant:
        return Cell(None)
    by_seed = values.pivot(index="seed", columns="variant", values="value").reindex(columns=["", variant])
    change = 100 * (by_seed[variant] - by_seed[""]).dropna()
    return cells.mean(change, "+.1f")
