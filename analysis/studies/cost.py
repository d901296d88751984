"""Cost of a step: time by phase, and memory. It is measured, so never twice the same."""

from __future__ import annotations

import pandas as pd

from analysis import cells, reference, style
from analysis import frame as tidy
from analysis.rendering import short
from analysis.table import Cell, Row, Table

KINDS = ("cost",)
CLOCK = "clock_sec/"
PHASES = ("data", "encoder", "method", "optimizer")
"""Phases of a step. The time between steps (checkpoints, diagnostics) depends on the suite, not on the method."""
EXTRA = "clock_sec/extra"
"""Of runs whose method asks for pairs beyond the batch: their encoding."""


def table(frame: pd.DataFrame) -> Table | None:
    """Build one row per setting, device, commit and method: times of different devices or code are never averaged.

    A variant has a row only if its method asks for pairs beyond the batch. A run that moved between devices or commits
    has no times: they are a mixture.
    """
    frame = frame[~frame["name"].str.startswith("time/")]
    with_extra = frame.loc[frame["name"] == EXTRA, "run_id"]
    frame = frame[(frame["variant"] == "") | frame["run_id"].isin(with_extra)]
    is_one_commit = frame["commit"].nunique() < 2
    clocks = [*(CLOCK + phase for phase in PHASES), *([EXTRA] if len(with_extra) else [])]
    rows: list[Row] = []
    for label, part in tidy.settings(frame):
        for (device, commit), alike in part.groupby(["device", "commit"]):
            for (method, variant), one in tidy.curves(alike).items():
                runs = one.pivot(index="run_id", columns="name", values="value").reindex(columns=frame["name"].unique())
                if tidy.moved(one).any():
                    runs = runs * float("nan")
                shares = 100 * runs[clocks].div(runs[clocks].sum(axis=1), axis=0)
                rows.append(
                    (
                        label,
                        str(device),
                        "" if is_one_commit else short(str(commit)),
                        style.variant(method, variant),
                        cells.mean(1e3 * runs["median_step_sec"]),
                        *(cells.mean(shares[clock]) for clock in clocks),
                        cells.mean(runs["peak_memory_bytes"] / 2**30, ".2f"),
                        Cell(len(runs), form="d"),
                    )
                )
    mixed = []
    if not is_one_commit or frame["device"].nunique() > 1:
        mixed.append("These runs are not of one device and commit: rows that differ in either do not compare.")
    if tidy.moved(frame).any():
        mixed.append("A row that names several devices or commits is of runs that moved, and has no times.")
    titles = [f"{clock.removeprefix(CLOCK).capitalize()}, %" for clock in clocks]
    return Table(
        title="Cost of training, mean ± half-width of the 95 % interval over runs",
        header=("Setting", "Device", "Commit", "Method", "Median step, ms", *titles, "Peak memory, GiB", "Runs"),
        rows=tuple(rows),
        num_keys=4,
        notes=(
            "Percentages are shares of a training step.",
            *(("Extra: random pairs beyond the batch, encoded without gradient.",) if len(with_extra) else ()),
            *mixed,
        ),
        reference=reference.table("cost"),
    )
