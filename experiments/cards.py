"""Cards of training sets, evaluation sets and evaluations: one YAML each, checked when read."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from pathlib import Path

from pydantic import Field

from engine import eval_cards
from engine.eval_cards import read_yaml as read_yaml  # for suites, which are read like cards
from engine.evaluation import EvalCard, Evaluation
from engine.index import Digest, subset_size
from engine.spec import ID_PATTERN, CaptionSource, Frozen

FOLDER = Path(__file__).resolve().parent


class DatasetCard(Frozen):
    """A training set: what it is and where its shards lie, relative to the working directory."""

    name: str = Field(pattern=ID_PATTERN)
    title: str
    revision: str
    pairs: int = Field(ge=2)
    shards: str
    captions: CaptionSource = CaptionSource()
    digest: Digest = "bytes"
    """What the index step reads: ``bytes`` everything, ``members`` headers only (for sets too large to read)."""
    fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of the pairs in the shards; a smaller subset of the same shards lies within a larger one."""
    licence: str
    source: str
    build: str | None = None
    """Command by which the workflow makes it; None when it must be fetched by hand."""
    ready: str | None = None
    """File that exists once `build` has succeeded."""
    fetch: str | None = None
    """What to run or read to fetch it by hand. Never run by the workflow: it may ask for terms, terabytes or days."""


def names(kind: str) -> list[str]:
    """Return the names of all cards of a kind (a folder below `experiments/`), sorted."""
    return eval_cards.names(FOLDER / kind)


def dataset(name: str, pairs: int | None = None) -> DatasetCard:
    """Return the card of a training set, or of a part of one: ``cc3m-0.1`` has a tenth of the pairs of ``cc3m``.

    Args:
        name: The name.
        pairs: How many a part has, where that is known; counting takes seconds for a billion.
    """
    whole, _, fraction = name.rpartition("-")
    if name not in names("datasets") and whole in names("datasets") and re.fullmatch(r"0\.\d+", fraction):
        return subset(dataset(whole), float(fraction), pairs)
    return eval_cards.read_card(FOLDER / "datasets", name, DatasetCard, "data set")


def subset(card: DatasetCard, fraction: float, pairs: int | None = None) -> DatasetCard:
    """Return the card of a part of a training set; its name is one that `dataset` knows.

    Raises:
        ValueError: If the set is a part already.
    """
    if card.fraction < 1:
        raise ValueError(f"data set {card.name!r} is a part of another already (fraction {card.fraction}): use that")
    part = {"name": f"{card.name}-{fraction}", "title": f"{card.title}: a part of {fraction}", "fraction": fraction}
    return card.model_copy(update={**part, "pairs": pairs or _subset_size(card.pairs, fraction)})


_subset_size = functools.cache(subset_size)


def how_to_get(card: DatasetCard) -> str | None:
    """Say how to get a training set that is not there; None if it is, or if the workflow makes it."""
    if card.build or any(Path(card.shards).glob("*.tar")):
        return None
    return card.fetch or card.source


def refuse_missing(datasets: Iterable[str], evaluations: Iterable[Evaluation] = ()) -> None:
    """Check that data are there before anything runs.

    Args:
        datasets: Names of training sets.
        evaluations: Evaluations; what the workflow makes, or may do without, need not be there.

    Raises:
        ValueError: If some are not; the message says how to get each.
    """
    lines = []
    for name in sorted(set(datasets)):
        card = dataset(name, pairs=2)  # the number of a part's pairs does not matter here
        how = how_to_get(card)
        if how is not None:
            lines.append(f"training set {name!r}: no *.tar shards in {card.shards}. Fetch it: {how}")
    needed = {
        card.name: card
        for evaluation in evaluations
        if evaluation.when_missing == "refuse"
        for card in evaluation.sets.values()
    }
    lost = [card for card in needed.values() if not card.build and not eval_cards.is_there(card)]
    if lost:
        lines.append(eval_cards.missing(lost))
    if lines:
        raise ValueError("\n".join(lines))


def eval_set(name: str) -> EvalCard:
    """Return the card of an evaluation set."""
    return eval_cards.eval_set(FOLDER, name)


def evaluation(name: str) -> Evaluation:
    """Return an evaluation with the cards of its sets.

    Raises:
        ValueError: If a set or an average names something unknown.
    """
    return eval_cards.evaluation(FOLDER, name)
