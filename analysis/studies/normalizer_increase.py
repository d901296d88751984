"""Growth of each method's error of log-normalizers with smaller batches and more data, beside the paper's."""

from __future__ import annotations

import pandas as pd

from analysis import cells, reference, style
from analysis import frame as tidy
from analysis.table import Cell, Row, Table, three_digits

KINDS = ("normalizer",)
CHANGES = {
    # Column that varies: its name, whether small values are easy, and the change that the paper reports.
    "global_batch_size": ("Batch", False, "batch 1024 to 512"),
    "dataset_pairs": ("Pairs", True, "1.37 M to 13.7 M pairs"),
}


def table(frame: pd.DataFrame) -> Table | None:
    """Build one row per quantity that varies, variant and method."""
    frame = tidy.with_mean_error(frame[frame["is_final"]])
    frame = frame[frame["name"] == "mse"]
    rows: list[Row] = []
    for column, (name, small_is_easy, change) in CHANGES.items():
        paper = reference.column("normalizer_error", change)
        for variant in tidy.variants(frame):
            part = frame[frame["variant"] == variant]
            sizes = sorted(part[column].unique(), reverse=not small_is_easy)
            if len(sizes) < 2:
                continue
            for method in tidy.methods(part):
                one = part[part["method"] == method].pivot_table(index="seed", columns=column, values="value")
                easy, hard = (one.get(size, pd.Series(dtype=float)) for size in (sizes[0], sizes[-1]))
                rows.append(
                    (
                        f"{name} {sizes[0]} to {sizes[-1]}",
                        style.variant(method, variant),
                        _cell(easy),
                        _cell(hard),
                        _cell(hard - easy, sign="+"),
                        Cell(float((hard / easy).mean()), form=".2f"),
                        Cell(paper.get(method), form="+.1f"),
                    )
                )
    return Table(
        title="Growth of the log-normalizers' squared error, mean ± half-width of the 95 % interval over seeds",
        header=("Change", "Method", "MSE before", "MSE after", "Growth", "Ratio", "Growth in the paper"),
        rows=tuple(rows),
        num_keys=2,
        notes=(
            "At the end of training; growth is paired by seed, ratio is after over before. The paper's growth is that "
            "of its own sizes and temperatures: compare orders of magnitude and the order of methods.",
        ),
        reference=reference.table("normalizer_error"),
    )


def _cell(values: pd.Series, sign: str = "") -> Cell:
    return cells.mean(values, sign + three_digits(float(values.mean())))
