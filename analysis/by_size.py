"""Scores at every batch or data size, beside OpenCLIP's at the same size and at the largest: the rows of two tables."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import pandas as pd

from analysis import cells, headroom, stats, style
from analysis import frame as tidy
from analysis.table import Cell, Row, Table

SIZES = {
    "global_batch_size": ("batch {}", ["dataset", "model"]),
    "dataset_pairs": ("{:,} pairs", ["global_batch_size", "model"]),
}
"""What varies: how one size is written, and what has to be the same beside it."""


def tabulate(frame: pd.DataFrame, *, which: str = "", notes: tuple[str, ...] = ()) -> Table:
    """Build the table of final scores that have one run for each setting, size, method and seed.

    `which` says in the title which runs they are, `notes` more of them.
    """
    first = tidy.scores(frame)[:1]
    frame = frame[frame["name"].isin([score.name for score in first])]
    rows: list[Row] = []
    for size, (form, fixed) in SIZES.items():
        for setting, part in frame.groupby(fixed):
            shared = [style.setting(*pair) for pair in zip(fixed, setting, strict=True) if frame[pair[0]].nunique() > 1]
            if part[size].nunique() > 1:
                by_seed = part.pivot(index="seed", columns=[size, "method"], values="value")
                of = {(int(column[0]), str(column[1])): by_seed[column] for column in by_seed.columns}
                named = part[[size, "method", "variant"]].itertuples(index=False, name=None)
                variants = {(int(at), str(method)): str(variant) for at, method, variant in named}
                lost = part.groupby([size, "method"])[["value", "status"]].apply(cells.lost).to_dict()
                rows += _rows(of, variants, lost, shared, form)
    score, name = first[0].title if first else "Average", style.method(headroom.BASELINE).name
    found = (
        f"Minus {name}: at the same size. Growth: that difference, less the one at the smallest size. * differs "
        f"from 0: paired t test from {stats.MIN_PAIRS_TO_TEST} seeds on, level {stats.SIGNIFICANCE}, "
        "Holm-corrected over the methods of a size in a column."
    )
    return Table(
        title=f"{score} in % by size{which}, and differences to {name} in points, mean ± half-width of "
        "the 95 % interval over paired seeds",
        header=("Size", "Method", score, f"Minus {name}", "Growth", f"Minus {name} at the largest"),
        rows=tuple(rows),
        num_keys=2,
        notes=(*notes, found, *cells.guessed(frame)),
    )


def _rows(
    of: Mapping[tuple[int, str], pd.Series],
    variants: Mapping[tuple[int, str], str],
    lost: Mapping[Hashable, str],
    setting: list[str],
    form: str,
) -> list[Row]:
    """Build the rows of one setting from its scores by seed, one series per size and method."""
    baseline = headroom.BASELINE
    sizes = sorted(size for size, method in of if method == baseline)
    if len(sizes) < 2:
        return []
    smallest, largest = sizes[0], sizes[-1]
    lead = {(size, method): of[size, method] - of[size, baseline] for size, method in of if size in sizes}
    rows: list[Row] = []
    for size in sorted({size for size, _ in of}):
        methods = style.ordered([method for at, method in of if at == size])
        same = _tests({method: lead[size, method] for method in methods if method != baseline and size in sizes})
        growth = {method: lead[size, method] - lead[smallest, method] for method in same if (smallest, method) in lead}
        to_largest = {method: of[size, method] - of[largest, baseline] for method in methods}
        if size == largest:
            del to_largest[baseline]
        columns = (same, {} if size == smallest else _tests(growth), _tests(to_largest))
        for method in methods:
            scores = of[size, method].dropna()
            mean = Cell(100 * scores.mean(), 100 * stats.half_width(scores), len(scores), remark=lost[size, method])
            tests = [column.get(method, Cell(None)) for column in columns]
            label = style.variant(method, variants[size, method])
            rows.append((", ".join([*setting, form.format(size)]), label, mean, *tests))
    return rows


def _tests(differences: Mapping[str, pd.Series]) -> dict[str, Cell]:
    """Return each method's mean difference in points, marked where it is beyond noise."""
    p = stats.holm(pd.Series({method: stats.paired_t_test(values.dropna()) for method, values in differences.items()}))
    return {
        method: Cell(
            100 * values.mean(),
            100 * stats.half_width(values),
            int(values.count()),
            "+.1f",
            mark="*" if p[method] < stats.SIGNIFICANCE else "",
        )
        for method, values in differences.items()
    }
