"""Cards of training sets, evaluation sets and evaluations: one YAML each, checked when read.

They lie in this repository, or anywhere: then a reference is the path of a file. Places in such a card are relative to
it. A suite that names the card of a training set has a copy of it kept, by which the set is then known by its name.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable
from decimal import Decimal
from functools import partial
from pathlib import Path

from pydantic import Field

from engine import files, paths
from engine.evaluation import card_files
from engine.evaluation.digest import remembered
from engine.schema.base import ID_PATTERN, Frozen, fingerprint, parse
from engine.schema.evaluation import EvalCard, Evaluation
from engine.schema.run import CaptionSource, Digest
from engine.schema.written import read_yaml as read_yaml  # for suites, which are read like cards

FOLDER = Path(__file__).resolve().parents[1]
COUNTED_BYTES = 4 * 2**30
"""Size of a training set that is counted before a run asks for it: some seconds of reading."""
_PART = r".+-0\.\d+"
UNFINISHED = ".crawl/unfinished"
"""In a folder of shards: the download of its links has begun and has not come to its end."""


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
    """Command by which the workflow makes it; None when it must be fetched."""
    ready: str | None = None
    """File that exists once `build` has succeeded."""
    fetch: str | None = None
    """Command that fetches it; run again, it goes on. Only ever run by name: it may take terabytes or days."""
    crawl: str | None = None
    """Command that downloads its pictures from their links, likewise."""
    gigabytes: float | None = Field(default=None, gt=0)
    """Room that it takes, about: said, and compared with what is free, before it is fetched."""
    file: str | None = None
    """The card's own file, where that is none of this repository; `shards` is then absolute."""

    @property
    def place(self) -> str:
        """The card's file."""
        return self.file or f"experiments/datasets/{self.name}.yaml"

    @property
    def ways(self) -> dict[str, str]:
        """Targets of the workflow that fetch it, with their commands."""
        commands = {f"fetch_{self.name}": self.fetch, f"crawl_{self.name}": self.crawl}
        return {target: command for target, command in commands.items() if command}


def names(kind: str) -> list[str]:
    """Return the names of all cards of a kind (a folder below `experiments/`), sorted."""
    return card_files.names(FOLDER / kind)


def dataset(name: str, pairs: int | None = None) -> DatasetCard:
    """Return the card of a training set, or of a part of one: ``cc3m-0.1`` has a tenth of the pairs of ``cc3m``.

    Args:
        name: A name of this repository, or that of a card which `keep` has kept in this folder.
        pairs: How many a part has, where that is known; counting takes seconds for a billion.
    """
    whole, _, fraction = name.rpartition("-")
    if not _has_card(name) and _has_card(whole) and re.fullmatch(_PART, name):
        return subset(dataset(whole), float(fraction), pairs)
    copy = paths.dataset(name)
    if not card_files.has(FOLDER / "datasets", name) and copy.exists():
        return parse(DatasetCard, files.read_text(copy), str(copy))
    return card_files.read_card(FOLDER / "datasets", name, DatasetCard, "data set")


def is_known(name: str) -> bool:
    """Tell if `dataset` knows a name."""
    return _has_card(name) or _has_card(name.rpartition("-")[0])


def _has_card(name: str) -> bool:
    return card_files.has(FOLDER / "datasets", name) or os.path.isfile(paths.dataset(name))


def keep(reference: str) -> str:
    """Return the name of a training set; of a card that is a file, a copy is kept for `dataset`.

    Raises:
        ValueError: If the card is wrong, or if another one of the same name is kept already.
    """
    file = card_files.own_file(FOLDER / "datasets", reference, "data set")
    card = card_files.read_card(FOLDER / "datasets", reference, DatasetCard, "data set")
    if file is None:
        return card.name
    card_files.refuse_build(file, card.build, card.ready)
    if re.fullmatch(_PART, card.name):
        raise ValueError(f"data set {file}: {card.name!r} is what a part of another would be called: rename it")
    card = card.model_copy(update={"file": str(file), "shards": os.path.abspath(file.parent / card.shards)})
    if paths.dataset(card.name).exists():
        known = dataset(card.name)
        is_same = known.model_copy(update={"file": card.file}) == card
        if not is_same and known.file not in (None, card.file) and Path(str(known.file)).is_file():
            raise ValueError(
                f"two data sets are called {card.name!r} in this folder: {known.file} and {file}; rename one of them"
            )
    files.write_text(paths.dataset(card.name), card.model_dump_json(indent=1) + "\n")
    return card.name


def subset(card: DatasetCard, fraction: float, pairs: int | None = None) -> DatasetCard:
    """Return the card of a part of a training set; its name is one that `dataset` knows.

    Raises:
        ValueError: If the set is a part already.
    """
    if card.fraction < 1:
        raise ValueError(f"data set {card.name!r} is a part of another already (fraction {card.fraction}): use that")
    written = f"{Decimal(str(fraction)):f}"  # 0.00001, where str says 1e-05
    part = {"name": f"{card.name}-{written}", "title": f"{card.title}: a part of {written}", "fraction": fraction}
    return card.model_copy(update={**part, "pairs": pairs or subset_size(card.pairs, fraction)})


@functools.cache
def subset_size(pairs: int, fraction: float) -> int:
    """Return how many pairs a part has; it takes seconds for a billion."""
    from engine.data import index  # here: it imports numpy, and most workflows train on no part

    return index.subset_size(pairs, fraction)


def fetching(card: DatasetCard) -> Path:
    """The file, beside the shards, that says that a fetch has begun and has not come to its end."""
    folder = Path(card.shards)
    return folder.with_name(f".{folder.name}.fetching")


def unfinished(card: DatasetCard) -> list[Path]:
    """Return the files that say that a training set's shards are not all there."""
    return [mark for mark in (fetching(card), Path(card.shards) / UNFINISHED) if mark.exists()]


def is_there(card: DatasetCard) -> bool:
    """Tell if a training set has been built, or fetched to its end."""
    return any(Path(card.shards).glob("*.tar")) and not unfinished(card)


def how_to_get(card: DatasetCard) -> str | None:
    """Say how to get a training set that is not there; None if it is, or if the workflow makes it."""
    if card.build or is_there(card):
        return None
    whole = _whole(card.name)
    size = "" if whole.gigabytes is None else f" (about {whole.gigabytes:,.0f} GB)"
    ways = [f"`snakemake {target}`{size} runs: {command}" for target, command in whole.ways.items()]
    return "\nor ".join(ways) or f"put its shards there (the card's source: {card.source})"


def miscounted(name: str) -> str | None:
    """Say how many pairs a training set has and what to edit, if its card says another number.

    Not of a set that the workflow makes, and of none beyond `COUNTED_BYTES`: its index step counts it.
    """
    card = _whole(name)
    size = sum(shard.stat().st_size for shard in Path(card.shards).glob("*.tar"))
    if card.build or not is_there(card) or size > COUNTED_BYTES:
        return None
    from engine.data import index  # here: it imports numpy, and most workflows need it for nothing else

    read_as = fingerprint([card.captions.model_dump(mode="json"), card.digest])[:12]
    count = partial(index.count_pairs, Path(card.shards), card.captions, card.digest, os.cpu_count() or 1)
    pairs = remembered(Path(card.shards), f"pairs-{read_as}", lambda: {"pairs": count()[0]})["pairs"]
    if card.fraction < 1:
        pairs = subset_size(pairs, card.fraction)
    if pairs == card.pairs:
        return None
    return (
        f"training set {card.name!r}: {card.shards} has {pairs:,} usable pairs, its card says {card.pairs:,}: edit the "
        f"card, {card.place} (pairs: {pairs}), or complete the folder"
    )


def _whole(name: str) -> DatasetCard:
    """Return the card of a training set, that of the whole for a part that has none."""
    return dataset(name if _has_card(name) else name.rpartition("-")[0])


def refuse_missing(datasets: Iterable[str], evaluations: Iterable[Evaluation] = ()) -> None:
    """Check before anything runs that data are there, and that evaluation sets hold what their cards say.

    Args:
        datasets: Names of training sets; the index step counts them.
        evaluations: Evaluations; what the workflow makes, or may do without, need not be there.

    Raises:
        ValueError: If some are not; the message names all, and says how to get or mend each.
    """
    evaluations = list(evaluations)
    lines = []
    for name in sorted(set(datasets)):
        card = dataset(name, pairs=2)  # the number of a part's pairs does not matter here
        how = how_to_get(card)
        if how is not None:
            begun = any(Path(card.shards).glob("*.tar"))
            lack = "not all shards are" if begun else "no *.tar shards"
            lines.append(f"training set {name!r}: {lack} in {card.shards}. To fetch it, {how}")
            if begun:
                lines.append(f"or, if they are all there, remove {' and '.join(map(str, unfinished(card)))}")
            elif card.file:
                lines.append(f"or correct 'shards' in {card.file}")
    needed = {
        card.name: card
        for evaluation in evaluations
        if evaluation.when_missing == "refuse"
        for card in evaluation.sets.values()
    }
    lost = [card for card in needed.values() if not card.build and not card_files.is_there(card)]
    if lost:
        lines.append(card_files.missing(lost))
    lines += wrong(evaluations)
    if lines:
        raise ValueError("\n".join(lines))


def wrong(evaluations: Iterable[Evaluation]) -> list[str]:
    """Say what is wrong with evaluation sets that are there, one line each; not of those that the workflow makes."""
    from engine.evaluation import reading  # here: it imports numpy, and most workflows need it for nothing else

    found = {card.name: card for evaluation in evaluations for card in evaluation.sets.values() if not card.build}
    return reading.problems(card for card in found.values() if card_files.is_there(card))


def eval_set(reference: str) -> EvalCard:
    """Return the card of an evaluation set, by name or by file."""
    return card_files.eval_set(FOLDER, reference)


def evaluation(reference: str) -> Evaluation:
    """Return an evaluation with the cards of its sets, by name or by file; the file may be a single set's card.

    Raises:
        ValueError: If a set or an average names something unknown.
    """
    return card_files.evaluation(FOLDER, reference)
