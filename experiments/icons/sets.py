"""Which icon goes where: the split by concept, look-alikes, and the evaluation sets made of each part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from experiments.icons.captions import EMOJI_TEMPLATES, ICON_TEMPLATES, caption_of, draw, singular
from experiments.icons.catalogue import UNSEEN_SOURCES, Icon
from experiments.icons.render import LOOK_LEVELS

MAX_WORDS = 4
MIN_ICONS_PER_WORD = 3
"""A word in fewer icons than this cannot be learned: its icons are left out."""
MIN_CONCEPTS_PER_WORD = 6
"""Only concepts whose words occur in this many concepts are held out, so that training still meets the words."""
VALIDATION_SHARE, TEST_SHARE = 0.14, 0.32
"""Shares of those concepts."""

SAME_DRAWING = 0.02
LOOK_ALIKE = 0.10
"""Root mean square difference of two looks, as a share of full ink. Judged by eye: below 0.02 pairs are one drawing
under two names, below 0.06 they are hard to tell apart at 32 pixels, from 0.10 on they mostly differ in a detail."""

MIN_PER_CLASS = 5
BLOCK = 1024


@dataclass(frozen=True)
class Size:
    """A data set of the family: its name, the share of concepts it draws, and the limits of its evaluation sets."""

    name: str
    train_share: float = 1.0
    held_out_share: float = 1.0
    max_images: int | None = None
    max_classes: int | None = None
    max_per_class: int = 20
    """So that no frequent class decides the accuracy."""


FULL = Size("icons")
TINY = Size("icons_tiny", train_share=0.14, held_out_share=0.4, max_images=200, max_classes=40, max_per_class=6)


@dataclass(frozen=True, slots=True)
class Picture:
    """An icon as drawn; see `experiments.icons.render.render` for `pixels` and `look`."""

    icon: Icon
    pixels: bytes
    look: bytes


@dataclass(frozen=True)
class EvalSet:
    """Pictures and what they are tested with: labels into `classes`, or one caption each if there are no classes."""

    pictures: list[Picture]
    captions: list[str]
    labels: list[int]
    classes: list[str]
    templates: tuple[str, ...] = ()


@dataclass(frozen=True)
class Parts:
    """Icons by what they are for. No concept is in two of `train`, `validation` and `test`."""

    train: list[Icon]
    validation: list[Icon]
    test: list[Icon]
    unseen_styles: list[Icon]
    """Icons of sources that are never trained on, of concepts that are."""

    def __iter__(self) -> Iterator[Icon]:
        return chain(self.train, self.validation, self.test, self.unseen_styles)

    def __len__(self) -> int:
        return len(self.train) + len(self.validation) + len(self.test) + len(self.unseen_styles)


def split(icons: Iterable[Icon], size: Size) -> Parts:
    """Deal icons to the parts by concept; those with long names or rare words go nowhere."""
    short = [icon for icon in icons if len(icon.words) <= MAX_WORDS]
    seen = [icon for icon in short if icon.source not in UNSEEN_SOURCES]
    frequency = Counter(word for icon in seen for word in set(icon.words))
    common = [icon for icon in seen if all(frequency[word] >= MIN_ICONS_PER_WORD for word in icon.words)]

    spread = Counter(word for concept in {icon.concept for icon in common} for word in concept.split())
    parts: dict[str, list[Icon]] = {"train": [], "validation": [], "test": []}
    for icon in common:
        parts[_part_of(icon.concept, spread)].append(icon)

    taught = Counter(word for icon in parts["train"] for word in set(icon.words))
    for name in ("validation", "test"):
        parts[name] = [icon for icon in parts[name] if all(taught[word] >= MIN_ICONS_PER_WORD for word in icon.words)]
    kept = {
        name: [icon for icon in part if draw("size", icon.concept) < share]
        for (name, part), share in zip(
            parts.items(), (size.train_share, size.held_out_share, size.held_out_share), strict=True
        )
    }
    concepts = {icon.concept for icon in kept["train"]}
    unseen = [icon for icon in short if icon.source in UNSEEN_SOURCES and icon.concept in concepts]
    return Parts(kept["train"], kept["validation"], kept["test"], unseen)


def _part_of(concept: str, spread: Counter[str]) -> str:
    if min(spread[word] for word in concept.split()) < MIN_CONCEPTS_PER_WORD:
        return "train"
    place = draw("split", concept)
    return "validation" if place < VALIDATION_SHARE else "test" if place < VALIDATION_SHARE + TEST_SHARE else "train"


def distinct(pictures: Sequence[Picture], limit: float, against: Sequence[Picture] = ()) -> list[Picture]:
    """Return the pictures that differ by more than `limit` from `against` and from those kept before them.

    Args:
        pictures: What to choose from, in order of preference.
        limit: Root mean square difference of the looks, a share of full ink.
        against: Pictures that are kept in any case, and not returned.
    """
    looks = _looks([*against, *pictures])
    kept = np.arange(len(looks)) < len(against)
    for row, near in _near_before(looks, len(against), limit):
        kept[row] = not kept[near].any()
    return [picture for picture, keep in zip(pictures, kept[len(against) :], strict=True) if keep]


def unlike(pictures: Sequence[Picture], limit: float, against: Sequence[Picture]) -> list[Picture]:
    """Return the pictures that differ by more than `limit` from `against`; they may resemble each other."""
    looks = _looks([*against, *pictures])
    rows = _near_before(looks, len(against), limit)
    return [pictures[row - len(against)] for row, near in rows if not (near < len(against)).any()]


def _looks(pictures: Sequence[Picture]) -> NDArray[np.float32]:
    raw = np.frombuffer(b"".join(picture.look for picture in pictures), np.uint8)
    return raw.reshape(len(pictures), -1).astype(np.float32)


def _near_before(looks: NDArray[np.float32], start: int, limit: float) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Yield each row from `start` on with the earlier rows it looks like."""
    # Sums of small integers: exact in float32, so the same on every machine and with any number of threads.
    norms = np.square(looks).sum(axis=1)
    largest = (limit * (LOOK_LEVELS - 1)) ** 2 * looks.shape[1]
    for first in range(start, len(looks), BLOCK):
        last = min(first + BLOCK, len(looks))
        squares = norms[first:last, None] + norms[None, :last] - 2 * looks[first:last] @ looks[:last].T
        for row in range(first, last):
            yield row, np.flatnonzero(squares[row - first, :row] <= largest)


def training_caption(icon: Icon) -> str:
    """Return the caption of a training pair."""
    return caption_of(icon.phrase, icon.key, templates=_templates(icon), tags=icon.tags)


def _templates(icon: Icon) -> tuple[str, ...]:
    return EMOJI_TEMPLATES if icon.style == "colour" else ICON_TEMPLATES


def retrieval(pictures: Sequence[Picture], size: Size) -> EvalSet:
    """Return one picture per concept, none like another: each caption has one right picture and the reverse."""
    first: dict[str, Picture] = {}
    for picture in shuffled(pictures):
        first.setdefault(picture.icon.concept, picture)
    chosen = distinct(list(first.values()), LOOK_ALIKE)[: size.max_images]
    icons = [picture.icon for picture in chosen]
    captions = [caption_of(icon.phrase, f"test {icon.key}", templates=_templates(icon)) for icon in icons]
    return EvalSet(chosen, captions, [], [])


def unseen_styles(pictures: Sequence[Picture], train: Sequence[Picture], size: Size) -> EvalSet:
    """Return the pictures labelled by concept; a class is called as training captions call it most often."""
    phrases: dict[str, Counter[str]] = {}
    for picture in train:
        phrases.setdefault(picture.icon.concept, Counter())[picture.icon.phrase] += 1
    labelled = [(picture, picture.icon.concept) for picture in pictures if picture.icon.concept in phrases]
    return _classification(labelled, phrases, size)


def unseen_concepts(pictures: Sequence[Picture], size: Size) -> EvalSet:
    """Return icons of held-out concepts labelled by their head, the first word ("file" for "file check").

    Icons that also name another class are left out ("account lock" when there is a class "lock"), and emoji, whose
    first word is no head ("green heart").
    """
    icons = [picture for picture in pictures if picture.icon.style != "colour"]
    phrases: dict[str, Counter[str]] = {}
    for picture in icons:
        phrases.setdefault(_head(picture), Counter())[picture.icon.words[0]] += 1
    heads: set[str] = set()
    left, kept = set(phrases), icons
    while heads != left:  # Leaving a class out brings back icons that also named it, and the reverse.
        heads = left
        kept = [picture for picture in icons if _names_only(picture, heads)]
        counts = Counter(_head(picture) for picture in kept)
        left = {head for head in heads if counts[head] >= MIN_PER_CLASS}
    return _classification([(picture, _head(picture)) for picture in kept], phrases, size)


def _head(picture: Picture) -> str:
    return singular(picture.icon.words[0])


def _names_only(picture: Picture, heads: set[str]) -> bool:
    return heads.intersection(singular(word) for word in picture.icon.words) == {_head(picture)}


def _classification(labelled: list[tuple[Picture, str]], phrases: dict[str, Counter[str]], size: Size) -> EvalSet:
    by_class: dict[str, list[Picture]] = {}
    for picture, key in labelled:
        by_class.setdefault(key, []).append(picture)
    keys = sorted(sorted(by_class, key=lambda key: (draw("class", key), key))[: size.max_classes])
    chosen = {
        picture.icon.key: (picture, label)
        for label, key in enumerate(keys)
        for picture in shuffled(by_class[key])[: size.max_per_class]
    }
    order = shuffled([picture for picture, _ in chosen.values()])[: size.max_images]
    names = [min(phrases[key], key=lambda phrase: (-phrases[key][phrase], phrase)) for key in keys]
    labels = [chosen[picture.icon.key][1] for picture in order]
    return EvalSet(order, [], labels, names, ICON_TEMPLATES)


def shuffled(pictures: Iterable[Picture]) -> list[Picture]:
    """Return the pictures in an order that has nothing to do with their names and sources."""
    return sorted(pictures, key=lambda picture: (draw("order", picture.icon.key), picture.icon.key))
