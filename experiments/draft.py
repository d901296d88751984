"""Write the card of a folder: `python -m experiments card FOLDER`.

A folder with ``*.tar`` is a training set, one with ``SPLIT/nshards.txt`` an evaluation set in clip_benchmark's layout.
All that the card says is read off the folder; a person adds licence and source.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from pathlib import Path
from textwrap import shorten
from typing import Any

import yaml

from engine import files
from engine.data.index import caption_places, count_pairs
from engine.evaluation import card_files, reading
from engine.evaluation.reading import EvalData, Instance
from engine.schema.base import located
from engine.schema.evaluation import TASK_METRICS, EvalCard
from engine.schema.run import CaptionSource
from experiments.design import cards

CAPTION_FIELDS = ("caption", "captions", "text")
"""Fields of a JSON that are taken for the caption where several hold texts."""
EXAMPLE_LETTERS = 80
_HEADER = "# Written by `python -m experiments card`: state licence and source.\n"

Lines = dict[str, Any]


def write(
    folder: Path, out: Path | None = None, *, captions: str | None = None, task: str | None = None, split: str = "test"
) -> list[str]:
    """Write the card of a folder, and return what to tell of it, a line each.

    Args:
        folder: The folder.
        out: File to write, ``NAME.yaml``; None takes the folder's name, in the working directory.
        captions: Of a training set, ``MEMBER`` or ``MEMBER:FIELD``; None finds them.
        task: Of an evaluation set; None finds it.
        split: Of an evaluation set.

    Raises:
        ValueError: If the folder is neither, if something in it cannot be told or is wrong, or if there is such a file.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: name the one that holds the data")
    is_training, is_evaluation = any(folder.glob("*.tar")), (folder / split / "nshards.txt").exists()
    if is_training == is_evaluation:
        has = f"both *.tar and {split}" if is_training else f"neither *.tar nor {split}"
        raise ValueError(
            f"{folder} has {has}/nshards.txt: allowed is a training set, with the first (docs/data.md), or an "
            "evaluation set, with the second (docs/evaluation.md)"
        )
    if out is None:
        out = Path(re.sub(r"[^a-z0-9_.-]+", "_", folder.resolve().name.lower()).strip("_.-") + card_files.SUFFIX)
    if out.suffix != card_files.SUFFIX:
        raise ValueError(f"--out {out}: allowed is a file NAME{card_files.SUFFIX}")
    if out.exists():
        raise ValueError(f"{out} is there already: remove it, or name another file with --out")
    place = cards.FOLDER / ("datasets" if is_training else "evals")
    card_files.check_own_name(place, out, "card")
    if is_training:
        said, told = _training(folder, out, captions)
        told.append(f"in a suite beside it: `dataset: {out.name}`")
    else:
        said, told = _evaluation(folder, out, task, split)
        told.append(f"in a suite beside it: `evaluation: {out.name}`, or among the `sets` of a list")
    home, where = out.absolute().parent.resolve(), folder.resolve()
    # Below the card, both can be moved together.
    said["shards" if is_training else "path"] = str(where.relative_to(home) if where.is_relative_to(home) else where)
    said |= {"licence": "not stated", "source": str(where)}
    files.write_text(out, _HEADER + yaml.safe_dump(said, sort_keys=False, allow_unicode=True, width=110))
    return [f"wrote {out}: {told[0]}", *told[1:]]


def _training(folder: Path, out: Path, asked: str | None) -> tuple[Lines, list[str]]:
    """Return the card of a training set but for the place, and what to tell of it."""
    captions, example = _captions(folder, asked)
    shards = sorted(folder.glob("*.tar"))
    pairs, rejected = count_pairs(folder, captions, jobs=os.cpu_count() or 1)
    if pairs < 2:
        reasons = ", ".join(sorted({each.reason for each in rejected})) or "the shards are empty"
        raise ValueError(f"{folder}: {pairs} usable pairs ({reasons}): a training set has two or more")
    field = "" if captions.field is None else f", field {captions.field!r}"
    such_as = f", such as {shorten(example, EXAMPLE_LETTERS)!r}" if example else ""
    told = [f"{pairs:,} pairs in {len(shards)} shards", f"captions: .{captions.member}{field}{such_as}"]
    left_out = Counter(each.reason for each in rejected)
    told += [f"left out, {count:,} times: {reason}" for reason, count in left_out.most_common()]
    of = captions.model_dump(exclude_none=True)
    return {"name": out.stem, "title": out.stem, "revision": "1", "pairs": pairs, "captions": of}, told


def _captions(folder: Path, asked: str | None) -> tuple[CaptionSource, str]:
    """Return where captions lie, and one of them; empty where nobody looked."""
    shard = min(folder.glob("*.tar"))
    found = caption_places(shard)
    if asked is not None:
        member, _, field = asked.partition(":")
        chosen = CaptionSource(member=member.removeprefix("."), field=field or None)
        return chosen, found.get(chosen, "")
    named = {each: text for each, text in found.items() if each.field is None or each.field in CAPTION_FIELDS}
    texts = [each for each in named if each.field is None]
    likely = texts or list(named) or list(found)
    if len(likely) != 1:
        known = ", ".join(_spelled(each) for each in found) or "none"
        raise ValueError(f"{shard}: which are the captions? Texts beside pictures: {known}. Choose with --captions")
    return likely[0], found[likely[0]]


def _spelled(captions: CaptionSource) -> str:
    return captions.member if captions.field is None else f"{captions.member}:{captions.field}"


def _evaluation(folder: Path, out: Path, task: str | None, split: str) -> tuple[Lines, list[str]]:
    """Return the card of an evaluation set but for the place, and what to tell of it."""
    is_said = task is not None
    if task is None:
        task = "zeroshot_retrieval"
        for file, of in {"instances.jsonl": "association", "classnames.txt": "zeroshot_classification"}.items():
            task = of if (folder / file).exists() else task
    said: Lines = {"name": out.stem, "title": out.stem, "task": task, "metric": TASK_METRICS[task][0], "split": split}
    with located(str(folder)):
        card = EvalCard.model_validate(
            {**said, "path": str(folder), "file": str(out), "images": 1, "chance": 0, "licence": "", "source": ""}
        )
        data = reading.survey(card)
    counts = {field: count for field, count in data.counts.items() if count}
    told = [f"{task}, " + ", ".join(f"{count:,} {field}" for field, count in counts.items())]
    chance = float(f"{_chance(data):.6g}")
    told.append(f"metric: {card.metric}; a guess has {100 * chance:.3g} %")
    if not is_said and task == "zeroshot_retrieval" and len(set(map(len, data.captions))) == 1 < len(data.captions[0]):
        told.append("if only the first caption of a picture is right: --task image_caption_selection")
    return {**said, **counts, "chance": chance}, told


def _chance(data: EvalData) -> float:
    """Return the score of a model that guesses, a mean over guesses."""
    task = data.card.task
    if task == "zeroshot_classification":
        return 1 / len(data.classes)
    if task == "zeroshot_retrieval":  # either recall: one of N pictures is right, and on average 1/N of the captions
        return 1 / len(data.locations)
    if task == "image_caption_selection":
        return 1 / len(data.captions[0])
    judged = [_jaccard(each) for each in data.instances if len(each.candidates) in (10, 12)]
    if not judged:
        raise ValueError(f"{data.card.path}: no instance has 10 or 12 candidates, over which the metric is a mean")
    return math.fsum(judged) / len(judged)


def _jaccard(instance: Instance) -> float:
    """Return the mean Jaccard index when as many candidates as are associated are chosen at random."""
    n, k = len(instance.candidates), len(instance.associations)
    ways = [math.comb(k, hits) * math.comb(n - k, k - hits) for hits in range(k + 1)]
    return sum(way * hits / (2 * k - hits) for hits, way in enumerate(ways)) / math.comb(n, k)
