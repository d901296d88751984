"""Show the cost of a step: time by phase, and memory. It is measured, so never twice the same."""

from __future__ import annotations

import pandas as pd

from analysis import frame as tidy
from analysis import reference, stats, style
from analysis.rendering import short
from analysis.table import Cell, Row, Table

KINDS = ("cost",)
# The smoke suite is there to compare bytes, and says nothing about methods.
SUITES = ("!smoke",)
CLOCK = "clock_sec/"
PHASES = ("data", "encoder", "method", "optimizer")
"""Phases of a step. What happens between steps (checkpoints, diagnostics) is the suite's choice, not the method's."""


def build(frame: pd.DataFrame) -> Table:
    """One row per setting, device, commit and method: times of different devices or code are never averaged.

    A run that moved between them has no times: its own are a mixture.
    """
    frame = tidy.main_runs(frame[~frame["name"].str.startswith("time/")])
    settings = tidy.settings(frame)
    commits = sorted(frame["commit"].unique())
    names = {"Setting": len(settings) > 1, "Device": True, "Commit": len(commits) > 1, "Method": True}
    keys = tuple(name for name, is_shown in names.items() if is_shown)
    clocks = [CLOCK + phase for phase in PHASES]
    rows: list[Row] = []
    for label, part in settings:
        for (device, commit), alike in part.groupby(["device", "commit"]):
            for method in tidy.methods(alike):
                one = alike[alike["method"] == method]
                runs = one.pivot(index="run_id", columns="name", values="value").reindex(columns=frame["name"].unique())
                if tidy.moved(one).any():
                    runs = runs * float("nan")
                shares = 100 * runs[clocks].div(runs[clocks].sum(axis=1), axis=0)
                place = dict(
                    zip(names, (label, str(device), short(str(commit)), style.method(method).name), strict=True)
                )
                rows.append(
                    (
                        *(place[name] for name in keys),
                        _cell(1e3 * runs["median_step_sec"]),
                        *(_cell(shares[clock]) for clock in clocks),
                        _cell(runs["peak_memory_bytes"] / 2**30, ".2f"),
                        Cell(len(runs), form="d"),
                    )
                )
    mixed = []
    if len(commits) > 1 or frame["device"].nunique() > 1:
        mixed.append("These runs are not of one device and commit: rows that differ in either do not compare.")
    if tidy.moved(frame).any():
        mixed.append("A row that names several devices or commits is of runs that moved, and has no times.")
    titles = [f"{clock.removeprefix(CLOCK).capitalize()}, %" for clock in clocks]
    return Table(
        title="Cost of training, mean ± half-width of the 95 % interval over runs",
        header=(*keys, "Median step, ms", *titles, "Peak memory, GiB", "Runs"),
        rows=tuple(rows),
        num_keys=len(keys),
        notes=("Percentages are shares of a training step.", *mixed),
        reference=reference.npn_share(),
    )


def _cell(values: pd.Series, form: str = ".1f") -> Cell:
    return Cell(float(values.mean()), stats.half_width(values), int(values.count()), form)
