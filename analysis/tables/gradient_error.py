"""Error of each method's gradients on batches against that of the loss over all pairs, at the end of training."""

from __future__ import annotations

import dataclasses
import math

import pandas as pd

from analysis import frame as tidy
from analysis import stats, style
from analysis.table import Cell, Row, Table, three_digits

KINDS = ("gradient",)
COLUMNS = {
    "bias_squared": "Squared bias",
    "variance": "Variance",
    "cosine": "Cosine of the mean",
    "exact_bias_squared": "Squared bias, own loss",
    "exact_factor": "Length, own loss",
    "pull": "Pull on the temperature",
    "pull_sd": "sd of the pull",
    "exact_pull": "Pull of all pairs",
    "temperature": "Temperature",
}
WITHIN = {"bias_squared": "bias_squared_se", "variance": "variance_se", "exact_bias_squared": "exact_bias_squared_se"}
"""Standard errors over a run's pairs."""
NORMAL = 1.96


def build(frame: pd.DataFrame) -> Table:
    """One row per setting, method and variant."""
    frame = frame[frame["is_final"]]
    settings = tidy.settings(frame)
    keys = ("Setting", "Method") if len(settings) > 1 else ("Method",)
    rows: list[Row] = []
    for label, part in settings:
        for (method, variant), one in tidy.curves(part).items():
            key = (label, style.variant(method, variant))[-len(keys) :]
            rows.append((*key, *_cells(one.pivot(index="run_id", columns="name", values="value"))))
    sizes = " or ".join(f"{size:,.0f}" for size in sorted(frame.loc[frame["name"] == "population", "value"].unique()))
    nothing = () if rows else ("No run of this suite measures gradients: `gradient_error` in `training` does.",)
    return Table(
        title="Error of gradients at the end of training, mean ± half-width of the 95 % interval over seeds",
        header=(*keys, *COLUMNS.values()),
        rows=tuple(rows),
        num_keys=len(keys),
        notes=(
            *nothing,
            "Of a pair's embeddings, in batches that hold it, relative to the squared norm of RGCL's gradient over "
            f"{sizes or 'many'} pairs; one factor a run is taken out, since AdamW does not see it. Bias and variance "
            "add up; noise is taken off the bias, so that zero comes out on either side of it. Own loss: against what "
            "the method's batches stand in for, the length being the factor that is taken out.",
            "Pull: the derivative of the loss in log(1 / temperature), in nats, on batches and on all pairs. Positive "
            "raises the temperature; 'opposite' is where a batch pulls the other way than all pairs, beyond noise.",
            "A single run's interval is over its pairs or batches.",
        ),
    )


def _cells(runs: pd.DataFrame) -> list[Cell]:
    """One row of a frame is one run."""
    # The factor that is taken out is least squares: what it leaves is perpendicular to RGCL's gradient.
    cosines = (1 + runs["bias_squared"].clip(lower=0)) ** -0.5 * runs["factor"].map(lambda x: math.copysign(1, x))
    runs = runs.assign(cosine=cosines)
    batches = runs["num_batches"].clip(lower=1) ** 0.5
    within = {name: runs[error] for name, error in WITHIN.items()} | {"pull": runs["pull_sd"] / batches}
    cells = {name: _cell(runs[name].dropna(), within.get(name)) for name in COLUMNS}
    pull, exact = cells["pull"], cells["exact_pull"].value
    if pull.value is not None and exact is not None and pull.value * exact < 0:
        # Where there is no interval, nobody knows what noise is.
        is_beyond = abs(pull.value) > (math.inf if pull.half_width is None else pull.half_width)
        cells["pull"] = dataclasses.replace(pull, remark="opposite" if is_beyond else "")
    return list(cells.values())


def _cell(values: pd.Series, errors: pd.Series | None) -> Cell:
    if values.empty:
        return Cell(None)
    mean = float(values.mean())
    half_width = stats.half_width(values)
    if len(values) == 1 and errors is not None:
        half_width = NORMAL * float(errors[values.index[0]])
    return Cell(mean, half_width, len(values), three_digits(mean))
