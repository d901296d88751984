"""Compare each method's log-normalizers with the exact ones at the end of training."""

from __future__ import annotations

import pandas as pd

from analysis import frame as tidy
from analysis import reference, stats, style
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
    """One row per setting, method and variant."""
    frame = tidy.with_mean_error(frame[frame["is_final"]])
    settings = tidy.settings(frame)
    keys = ("Setting", "Method") if len(settings) > 1 else ("Method",)
    rows: list[Row] = []
    for label, part in settings:
        for method, variant in tidy.curves(part):
            one = part[(part["method"] == method) & (part["variant"] == variant)]
            values = {name: one.loc[one["name"] == name, "value"] for name in COLUMNS}
            key = (label, style.variant(method, variant))[-len(keys) :]
            rows.append((*key, *(_cell(name, values[name]) for name in COLUMNS)))
    sizes = " or ".join(f"{size:.0f}" for size in frame.loc[frame["name"] == "control_size", "value"].unique())
    return Table(
        title="Error of the log-normalizers at the end of training, mean ± half-width of the 95 % interval over seeds",
        header=(*keys, *COLUMNS.values()),
        rows=tuple(rows),
        num_keys=len(keys),
        notes=(
            "Against the exact log-normalizer over the whole training set; MSE is the mean of the image and the text "
            f"side. Control: the plain mean over {sizes or 'some'} fresh random embeddings, with the row's own "
            "encoders and temperature. Anchors are counted on each side; those without an estimate yet, on both sides "
            "together, are left out of the error.",
            "The error depends on the temperature: only rows of equal temperature compare.",
        ),
        reference=reference.by_method("normalizer_error", "changes"),
    )


def _cell(name: str, values: pd.Series) -> Cell:
    mean = float(values.mean())
    if name.startswith("num_"):
        return Cell(mean, n=int(values.count()), form=".0f")
    form = ".3f" if name.endswith("_bias") else three_digits(mean)
    return Cell(mean, stats.half_width(values), int(values.count()), form)
