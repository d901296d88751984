"""Gain of a larger batch, and the share of it that each method gets at the small one."""

from __future__ import annotations

import pandas as pd

from analysis import cells, headroom, stats, style
from analysis import frame as tidy
from analysis.table import Cell, Row, Table

SUITES = (
    "quickstart", "laptop", "laptop_hard", "*_ten_seeds", "*_confirmation", "!laptop_third*", "one_gpu",
    "*headroom*",
)  # fmt: skip
KINDS = ("average",)


def build(frame: pd.DataFrame) -> Table:
    """One row per setting and method or variant, two columns per average: its score, and its share of the gap."""
    gaps = headroom.gaps(frame)
    settings = list(dict.fromkeys(gap.setting for gap in gaps))
    scores = list(dict.fromkeys(gap.score.title for gap in gaps))
    keys = ("Setting", "Method") if len(settings) > 1 else ("Method",)
    rows: list[Row] = []
    for setting in settings:
        parts = {gap.score.title: gap.contenders for gap in gaps if gap.setting == setting}
        for contenders in zip(*parts.values(), strict=True):
            shown = [cell for one in contenders for cell in (_score(one.scores), cells.percent(one.closed, of="gap"))]
            rows.append((*(setting, contenders[0].label)[-len(keys) :], *shown, Cell(contenders[0].closed.n, form="d")))
    baseline = style.method(headroom.BASELINE).name
    nothing = () if gaps else (f"No run of {baseline} at a larger batch with as many samples.",)
    return Table(
        title="Headroom: scores in %, mean ± half-width of the 95 % interval over seeds, and the share that is closed "
        f"of {baseline}'s gap to the large batch, in % (95 % interval)",
        header=(*keys, *(title for score in scores for title in (score, f"{score}, closed")), "Seeds"),
        rows=tuple(rows),
        num_keys=len(keys),
        notes=(
            *nothing,
            f"{tidy.describe(tidy.main_runs(frame))}. Closed: (method - small batch) / (large batch - small batch), "
            "paired by seed; Fieller's intervals, lopsided. Where the gap itself is within noise there is no share.",
        ),
    )


def _score(values: pd.Series) -> Cell:
    n = int(values.count())
    remark = "" if n == len(values) else f"(n = {n})"
    return Cell(100 * float(values.mean()), 100 * stats.half_width(values.dropna()), n, remark=remark)
