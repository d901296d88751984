"""Divide NeuCLIP's gain over OpenCLIP among what differs between them: normalizer, temperature, own pair.

The ablation `attribution` has runs of all combinations. With the batch's own normalizer, InfoNCE's temperature and the
own pair in the denominator, NeuCLIP is OpenCLIP: so each difference can be changed alone, and in any order. A run's
options tell which combination it is, not its label.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import comb

from analysis import frame as tidy
from analysis import style

SOURCES = {"batch": "batch", "average": "moving average", "queue": "queue", "prototypes": "network", "exact": "exact"}
"""Where the log-normalizer is from, by the option `architecture`, in the order to show."""
RULES = {"infonce": "InfoNCE", "rho": "rho", "fixed": "fixed"}
"""What moves the temperature, in the order to show."""
FACTORS = ("Normalizer", "Temperature", "Own pair")
OPTIONS = ("architecture", "temperature_gradient", "temperature.learnable", "positive")
"""Of NeuCLIP: they tell a run's cell."""
NOTHING = "No run of NeuCLIP says where its log-normalizer is from and what moves its temperature."


class Cell(NamedTuple):
    """A combination of the three factors."""

    source: str
    """A key of `SOURCES`, or another value of the option."""
    rule: str
    """A key of `RULES`."""
    own_pair: bool
    """The anchor's own pair is in the denominator."""

    @property
    def row(self) -> str:
        """Name the source, and the own pair if it is in the denominator."""
        return f"{SOURCES.get(self.source, self.source)}{', own pair' if self.own_pair else ''}"

    def __str__(self) -> str:
        return f"{self.row}, {RULES[self.rule]}"

    @property
    def title(self) -> str:
        """Name the cell as a method or a variant of one."""
        if self == OPENCLIP:
            return style.method("openclip").name
        return style.variant(style.OURS, "" if self == NEUCLIP else str(self))


OPENCLIP = Cell("batch", "infonce", own_pair=True)
NEUCLIP = Cell("prototypes", "rho", own_pair=False)
ENDS = tuple(Cell(source, rule, own_pair=False) for source in (NEUCLIP.source, "exact") for rule in ("rho", "fixed"))
"""What OpenCLIP is turned into; NeuCLIP first."""
CORNERS = (
    f"{OPENCLIP.title} is '{OPENCLIP}', with NeuCLIP's learning rate and first temperature, and {NEUCLIP.title} is "
    f"'{NEUCLIP}'."
)


class Share(NamedTuple):
    """What one factor changes on the way from OpenCLIP to another cell: fractions, by seed."""

    factor: str
    level: str
    """What it is changed to."""
    share: pd.Series
    """The mean over all orders in which the factors can be changed."""
    first: pd.Series
    """Changed first, and so alone: nothing else differs from OpenCLIP."""
    last: pd.Series
    """Changed last: everything else is changed already."""


class Decomposition(NamedTuple):
    """The gain of one cell over OpenCLIP, and its parts; by the seeds that all eight corners have."""

    end: Cell
    start: pd.Series
    gain: pd.Series
    shares: list[Share]
    """One of each factor; they sum to the gain."""


class Attribution(NamedTuple):
    """One score in one setting."""

    setting: str
    score: tidy.Score
    scores: dict[Cell, pd.Series]
    """Fractions, by seed; NaN where a run diverged."""
    temperatures: dict[Cell, pd.Series]
    """At the end of the training, by seed; NaN where a run diverged."""
    decompositions: list[Decomposition]
    missing: list[str]
    """Sentences: cells without which there is no decomposition, and seeds that were left out of one."""
    doubles: list[str]
    """Sentences: variants that were left out, as others are the same cell."""


def attributions(frame: pd.DataFrame) -> list[Attribution]:
    """Find the cells of every setting and average, and decompose the gains whose corners are there.

    Args:
        frame: A tidy frame with averages, options and training curves.
    """
    frame = frame[frame["method"] == style.OURS]
    cells = _cells(frame)
    finals = tidy.without_diverged(tidy.final_scores(frame))
    found = []
    for setting, rows in tidy.settings(finals[(finals["kind"] == "average") & finals["run_id"].isin(cells)]):
        runs, doubles = {}, []
        for cell in sorted({cells[run_id] for run_id in rows["run_id"]}, key=_place):
            alike = rows[[cells[run_id] == cell for run_id in rows["run_id"]]]
            first, *others = tidy.variants(alike)
            runs[cell] = alike[alike["variant"] == first]
            first = style.variant(style.OURS, first)
            doubles += [
                f"Left out: {style.variant(style.OURS, other)}; its factors are those of {first}." for other in others
            ]
        if any(len({cell[factor] for cell in runs}) < 2 for factor in (0, 1)):
            continue  # a setting in which nothing is to be divided
        temperatures = {cell: _final_temperatures(frame, of_cell) for cell, of_cell in runs.items()}
        for score in tidy.scores(rows):
            scores = {
                cell: of_cell[of_cell["name"] == score.name].set_index("seed")["value"].sort_index()
                for cell, of_cell in runs.items()
            }
            decompositions, missing = _decompose_all(scores)
            missing = [f"Setting {setting}: {text}" if setting else text for text in missing]
            found.append(Attribution(setting, score, scores, temperatures, decompositions, missing, doubles))
    return found


def _place(cell: Cell) -> tuple[int, str, bool, int]:
    """Return the key by which cells are sorted: sources first, rules last."""
    place = list(SOURCES).index(cell.source) if cell.source in SOURCES else len(SOURCES)
    return place, cell.source, not cell.own_pair, list(RULES).index(cell.rule)


def _cells(frame: pd.DataFrame) -> dict[str, Cell]:
    """Return the cell of every run that says all `OPTIONS`, by run id."""
    options = frame[(frame["kind"] == "option") & frame["name"].isin(OPTIONS)]
    options = options.pivot(index="run_id", columns="name", values="title").reindex(columns=OPTIONS).dropna()
    return {str(run_id): _cell(*texts) for run_id, *texts in options.itertuples(name=None)}


def _cell(source: str, gradient: str, learnable: str, positive: str) -> Cell:
    """Return the cell that these `OPTIONS` make; rho pulls with every gradient but InfoNCE's."""
    rule = "fixed" if learnable == "false" else "infonce" if gradient == "infonce" else "rho"
    return Cell(source, rule, positive == "counted")


def _final_temperatures(frame: pd.DataFrame, runs: pd.DataFrame) -> pd.Series:
    """Return the last logged temperature by seed; NaN where the run diverged."""
    logged = frame[
        (frame["kind"] == "train") & (frame["name"] == "temperature/value") & frame["run_id"].isin(runs["run_id"])
    ]
    last = logged.sort_values("samples_seen").groupby("seed").tail(1).set_index("seed").sort_index()
    return last["value"].where(last["status"] == "finished")


def _decompose_all(scores: dict[Cell, pd.Series]) -> tuple[list[Decomposition], list[str]]:
    decompositions, missing = [], []
    for end in ENDS:
        levels = zip(OPENCLIP, end, strict=True)
        corners = [Cell(str(source), str(rule), bool(own)) for source, rule, own in itertools.product(*levels)]
        lacking = [str(corner) for corner in corners if corner not in scores]
        if lacking:
            missing.append(f"No shares from OpenCLIP to {end}: there is no run of {'; '.join(lacking)}.")
            continue
        by_seed = pd.concat([scores[corner] for corner in corners], axis=1, keys=range(len(corners)))
        for seed, values in by_seed[by_seed.isna().any(axis=1)].iterrows():
            without = "; ".join(str(corner) for corner, value in zip(corners, values, strict=True) if np.isnan(value))
            missing.append(f"Seed {seed} is left out from OpenCLIP to {end}: no score of {without}.")
        decompositions.append(_decompose(end, by_seed.dropna()))
    return decompositions, missing


def _decompose(end: Cell, by_seed: pd.DataFrame) -> Decomposition:
    """Decompose a gain, given the scores of its corners, one column each, in the order of `itertools.product`."""
    corners = by_seed.to_numpy().T.reshape(*(2 for _ in FACTORS), len(by_seed))

    def series(values: np.ndarray) -> pd.Series:
        return pd.Series(values, index=by_seed.index)

    levels = (SOURCES[end.source], RULES[end.rule], "left out")
    parts = [
        Share(factor, level, series(share), series(first), series(last))
        for factor, level, share, (first, *_, last) in zip(
            FACTORS, levels, shapley(corners), _changes(corners), strict=True
        )
    ]
    start, gain = corners[0, 0, 0], corners[1, 1, 1] - corners[0, 0, 0]
    return Decomposition(end, series(start), series(gain), parts)


def _changes(corners: np.ndarray) -> list[np.ndarray]:
    """Return for each factor what changing it adds, by which others are changed already: (2**(n - 1), S)."""
    factors = range(corners.ndim - 1)
    return [(corners.take(1, i) - corners.take(0, i)).reshape(-1, corners.shape[-1]) for i in factors]


def shapley(corners: np.ndarray) -> np.ndarray:
    """Divide v(1, ..., 1) - v(0, ..., 0) among n factors, so that the parts sum to it and no order is preferred.

    The part of a factor is what changing it adds to v, averaged over all n! orders in which the factors can be changed.

    Args:
        corners: v where factor i is changed (index 1 of axis i) or not (index 0), shape (2,) * n + (S,), for S seeds.

    Returns:
        The parts, shape (n, S), in the unit of v.

    Source: Shapley, "A value for n-person games", Contributions to the Theory of Games II (1953); for decomposing a
    change among its causes Shorrocks, J. Econ. Inequal. 11 (2013).
    """
    n = corners.ndim - 1
    num_changed = np.indices((2,) * (n - 1)).sum(axis=0).reshape(-1)
    # Of all orders, the share in which exactly these others are changed before.
    weights = 1 / (n * comb(n - 1, num_changed))
    return np.stack([weights @ change for change in _changes(corners)])
