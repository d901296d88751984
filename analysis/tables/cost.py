"""What a step costs, where the time goes, and how much memory it takes. Measured, so never twice the same."""

from __future__ import annotations

import pandas as pd

from analysis import frame as tidy
from analysis import reference, stats, style
from analysis.rendering import Cell, Row, Table

KINDS = ("cost",)
# The smoke suite is there to compare bytes, and says nothing about methods.
SUITES = ("!smoke",)
CLOCK = "clock_sec/"
PHASES = ("data", "encoder", "method", "optimizer")
"""Phases of a step. What happens between steps (checkpoints, diagnostics) is the suite's choice, not the method's."""


def build(frame: pd.DataFrame) -> Table:
    """One row per setting, method and device; runs on different devices are never averaged."""
    frame = tidy.main_runs(frame[~frame["name"].str.startswith("time/")])
    settings = tidy.settings(frame)
    keys = ("Setting", "Method", "Device") if len(settings) > 1 else ("Method", "Device")
    clocks = [CLOCK + phase for phase in PHASES]
    rows: list[Row] = []
    for label, part in settings:
        for method in tidy.methods(part):
            for device, one in part[part["method"] == method].groupby("device", sort=False):
                runs = one.pivot(index="run_id", columns="name", values="value").reindex(columns=frame["name"].unique())
                shares = 100 * runs[clocks].div(runs[clocks].sum(axis=1), axis=0)
                rows.append(
                    (
                        *(label, style.method(method).name, str(device))[-len(keys) :],
                        _cell(1e3 * runs["median_step_sec"]),
                        *(_cell(shares[clock]) for clock in clocks),
                        _cell(runs["peak_memory_bytes"] / 2**30, ".2f"),
                        Cell(len(runs), form="d"),
                    )
                )
    titles = [f"{clock.removeprefix(CLOCK).capitalize()}, %" for clock in clocks]
    return Table(
        title="Cost of training, mean ± half-width of the 95 % interval over runs",
        header=(*keys, "Median step, ms", *titles, "Peak memory, GiB", "Runs"),
        rows=tuple(rows),
        num_keys=len(keys),
        notes=("Percentages are shares of a training step. Compare rows of one device only.",),
        reference=reference.npn_share(),
    )


def _cell(values: pd.Series, form: str = ".1f") -> Cell:
    return Cell(float(values.mean()), stats.half_width(values), int(values.count()), form)
