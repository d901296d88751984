"""Every variant beside the main run of the same method, with the p of the first average's change."""

from __future__ import annotations

import pandas as pd

from analysis import frame as tidy
from analysis import reference, stats, style
from analysis.table import Cell, Row, Table

SUITES = ("ablation_*", "icons", "laptop", "laptop_best_rates", "laptop_hard_fixed", "one_gpu")
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
            for number, score in enumerate(scores):
                values = one[one["name"] == score.name]
                of_variant = values.loc[values["variant"] == variant, "value"]
                shown.append(Cell(100 * of_variant.mean(), 100 * stats.half_width(of_variant), int(of_variant.count())))
                change, p = _changes(values).get(variant, (Cell(None), Cell(None)))
                shown += [change, p] if number == 0 else [change]
            runs = one[one["variant"] == variant]
            diverged = runs.loc[runs["status"] == "diverged", "run_id"].nunique()
            counts = (Cell(runs["run_id"].nunique(), form="d"), Cell(diverged, form="d"))
            rows.append((label, style.variant(method, variant), *shown, *counts))
    titles = [title for score in scores for title in (score.title, f"{score.title}, change")]
    titles[2:2] = ["p (Holm)"] if scores else []
    return Table(
        title="Variants in %, mean ± half-width of the 95 % interval over seeds",
        header=("Setting", "Variant", *titles, "Runs", "Diverged"),
        rows=tuple(rows),
        num_keys=2,
        notes=(
            "Change: variant minus main run of the same method in points, paired by seed. * differs: paired t test "
            f"from {stats.MIN_PAIRS_TO_TEST} seeds on, level {stats.SIGNIFICANCE}, Holm-corrected over the variants of "
            "a method in a column.",
        ),
        reference=reference.table("ablation"),
    )


def _changes(values: pd.DataFrame) -> dict[str, tuple[Cell, Cell]]:
    """Compare every variant of a method with its main run, seed by seed; returns each one's change and its p."""
    tests = stats.paired_differences(values.assign(method=values["variant"]), first="").to_dict("index")
    return {
        str(variant): (
            Cell(
                -100 * test["mean"],
                100 * test["half_width"],
                int(test["n"]),
                "+.1f",
                mark="*" if test["p_holm"] < stats.SIGNIFICANCE else "",
            ),
            Cell(test["p_holm"], form=style.p_form(test["p_holm"])),
        )
        for variant, test in tests.items()
    }
