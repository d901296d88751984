"""Error of each method's log-normalizers against the exact ones, at the end of training."""

from __future__ import annotations

import pandas as pd

from analysis import cells, reference, style
from analysis import frame as tidy
from analysis.table import Cell, Row, Table, three_digits

KINDS = ("normalizer",)
COLUMNS = {
    "mse": "MSE",
    "control_mse": "MSE of control",
    "image_bias": "Bias, image",
    "text_bias": "Bias, text",
    "temperature": "Temperature",
    "num_anchors": "Anchors",
    "num_without_estimate": "Without estimate",
}


def build(frame: pd.DataFrame) -> Table:
    """Build one row per setting, method and variant."""
    frame = tidy.with_mean_error(frame[frame["is_final"]])
    rows: list[Row] = []
    for label, part in tidy.settings(frame):
        for (method, variant), one in tidy.curves(part).items():
            values = {name: one.loc[one["name"] == name, "value"] for name in COLUMNS}
            rows.append((label, style.variant(method, variant), *(_cell(name, values[name]) for name in COLUMNS)))
    sizes = " or ".join(f"{size:.0f}" for size in frame.loc[frame["name"] == "control_size", "value"].unique())
    return Table(
        title="Error of the log-normalizers at the end of training, mean ± half-width of the 95 % interval over seeds",
        header=("Setting", "Method", *COLUMNS.values()),
        rows=tuple(rows),
        num_keys=2,
        notes=(
            "Against the exact log-normalizer over the whole training set; MSE is the mean of the image and the text "
            f"side. Control: the plain mean over {sizes or 'some'} fresh random embeddings, with the row's own "
            "encoders and temperature. Anchors are counted on each side; those without an estimate yet, on both sides "
            "together, are left out of the error.",
            "The error depends on the temperature: only rows of equal temperature compare.",
        ),
        reference=reference.table("normalizer_error"),
    )


def _cell(name: str, values: pd.Series) -> Cell:
    mean = float(values.mean())
    if name.startswith("num_"):
        return Cell(mean, n=int(values.count()), form=".0f")
    form = ".3f" if name.endswith("_bias") else three_digits(mean)
    return cells.mean(values, form)
