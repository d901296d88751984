"""NeuCLIP's gain over OpenCLIP, divided among normalizer, temperature and own pair."""

from __future__ import annotations

import pandas as pd

from analysis import attribution, cells, headroom, style
from analysis import frame as tidy
from analysis.table import Cell, Row, Table

KINDS = ("average", "option", "train")


def table(frame: pd.DataFrame) -> Table | None:
    """One row per setting, score, end and factor: its share of the gain, and what it adds as the first and the last."""
    found = attribution.attributions(frame)
    rows: list[Row] = []
    for one in found:
        for parts in one.decompositions:
            keys = (one.setting, one.score.title, parts.end.title)
            rows += [
                (*keys, f"{share.factor}: {share.level}", *_row(parts, share.share, share.first, share.last))
                for share in parts.shares
            ]
            rows.append((*keys, "All three", *_row(parts, parts.gain, None, None)))
    said = (
        f"{tidy.describe(frame[frame['method'] == style.OURS])}. Share: Shapley value, the mean over all orders of "
        "changing the three; shares sum to the gain. First: nothing else is changed. Last: all else is. Where these "
        "differ, factors act together. In %: of the gain, with Fieller's intervals, lopsided.",
        attribution.CORNERS,
        *dict.fromkeys(text for one in found for text in (*one.missing, *one.doubles)),
    )
    return Table(
        title=f"Gain over {attribution.OPENCLIP.title} and the share of each difference in points, mean ± half-width "
        "of the 95 % interval over seeds",
        header=("Setting", "Score", "From OpenCLIP to", "Changed", "Share", "Share, %", "First", "Last", "Seeds"),
        rows=tuple(rows),
        num_keys=4,
        notes=said if found else (attribution.NOTHING,),
    )


def _row(
    parts: attribution.Decomposition, share: pd.Series, first: pd.Series | None, last: pd.Series | None
) -> tuple[Cell, ...]:
    percent = cells.percent(headroom.share(parts.start + share, parts.start, parts.start + parts.gain), of="gain")
    alone = (Cell(None) if change is None else cells.mean(100 * change, "+.1f") for change in (first, last))
    return (cells.mean(100 * share, "+.1f"), percent, *alone, Cell(len(share), form="d"))
