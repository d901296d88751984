"""Averages of every variant beside those of the same method's main run."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis import cells, drawing, reference, stats, style
from analysis import frame as tidy
from analysis.table import Cell, Row, Table

KINDS = ("average",)


def table(frame: pd.DataFrame) -> Table | None:
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
            *cells.guessed(frame),
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


MAX_SCORES = 3
"""Averages that are drawn, the first of the suite; more would leave no room for intervals."""


def figure(frame: pd.DataFrame, width: float) -> Figure | None:
    """Draw one panel per average, one row per setting, method and variant; a line shows each main run's mean."""
    frame = tidy.final_scores(frame)
    varied = frame.loc[frame["variant"] != "", "method"].unique()
    frame = frame[frame["method"].isin(varied)]
    if frame.empty:
        return None

    # Rows are drawn from the bottom up: reversed, so that NeuCLIP and main runs end on top. Main runs carry the names.
    rows = []
    for label, part in reversed(tidy.settings(frame)):
        for method in tidy.methods(part):
            first, *others = tidy.variants(part[part["method"] == method])
            rows += [(variant, method, variant, part) for variant in reversed(others)]
            rows.append((", ".join(filter(None, [style.variant(method, first), label])), method, first, part))
    labels = drawing.wrapped([label for label, *_ in rows], width)
    row_in = 0.05 + drawing.LINE_IN * max(1 + label.count("\n") for label in labels)
    most = int(drawing.MAX_IN / row_in)
    left_out = drawing.fit(rows, most, "rows")[1]
    rows, labels = rows[-most:], labels[-most:]
    scores = tidy.scores(frame)[: MAX_SCORES if width > style.COLUMN_IN else 1]
    figure = Figure(figsize=(width, 0.35 + row_in * len(rows)))
    for axes, score in zip(drawing.grid(figure, len(scores), len(scores), sharey=True), scores, strict=True):
        drawing.title(axes, score.title, 0.65 * width / len(scores))
        shown = []
        for y, (_, method, variant, part) in enumerate(rows):
            one = part[(part["method"] == method) & (part["name"] == score.name)]
            runs = one[one["variant"] == variant]
            values = 100 * runs["value"]
            main = 100 * one.loc[one["variant"] == "", "value"].mean()
            axes.plot([main, main], [y - 0.5, y + 0.5], color=style.method(method).color, linewidth=0.8, alpha=0.6)
            drawing.seeds_and_interval(axes, y, values, method, within=drawing.SCORES)
            drawing.row_number(
                axes, y, runs["status"].iloc[0] if values.isna().all() else f"{values.mean():.1f}", method
            )
            shown.append(values)
        ours = [y for y, row in enumerate(rows) if row[1] == style.OURS and not row[2]]
        drawing.label_rows(axes, labels, pd.concat(shown), ours)
    text = "Score in %. Vertical line: main run of the same method."
    drawing.caption(figure, frame, text, left_out, over_seeds=drawing.MEAN_AND_INTERVAL)
    return figure
