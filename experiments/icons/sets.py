"""Split icons by concept, leave look-alikes out, and make the evaluation sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.fetch import shards
from experiments.icons.captions import EMOJI_TEMPLATES, ICON_TEMPLATES, caption_of, draw, singular
from experiments.icons.catalogue import UNSEEN_SOURCES, WEIGHTS, Icon
from experiments.icons.eval_set import EvalSet
from experiments.icons.render import LOOK_LEVELS, SHIFTS, SIDE_PX, Shift

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

MIN_PER_CLASS, MIN_PER_CHARACTER = 5, 3
MAX_SHIFTED = 300
"""Pictures that are drawn again in other ways: as many as there are in other weights."""
MIN_PER_FAMILY, MAX_PER_FAMILY = 20, 80
"""Of a set whose families are compared: with fewer pictures, chance would decide which family is the worst."""
CANDIDATES, ASSOCIATED = 10, 3
"""Of an association task: pictures to choose from, and how many of them are right (WinoGAViL's larger tasks)."""
MAX_TASKS_PER_TAG = 2
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
    """Limits a frequent class, which would decide the accuracy."""
    max_tasks: int = 200


FULL = Size("icons")
TINY = Size(
    "icons_tiny", train_share=0.14, held_out_share=0.4, max_images=200, max_classes=40, max_per_class=6, max_tasks=40
)


@dataclass(frozen=True, slots=True)
class Picture:
    """An icon as drawn; see `experiments.icons.render.render` for `pixels` and `look`."""

    icon: Icon
    pixels: bytes
    look: bytes

    @property
    def png(self) -> bytes:
        """The picture as a PNG file."""
        return shards.png(self.pixels, SIDE_PX, SIDE_PX)


@dataclass(frozen=True)
class Parts:
    """Icons by what they are for. No concept is in two of `train`, `validation` and `test`."""

    train: list[Icon]
    validation: list[Icon]
    test: list[Icon]
    unseen_styles: list[Icon]
    """Icons of sources that are never trained on, of concepts that are."""
    all_unseen: list[Icon]
    """Icons of such sources, of concepts that occur in no source's training and validation part."""

    def drawings(self) -> Iterator[tuple[Icon, Shift]]:
        """Yield everything that is to be drawn."""
        for icon in chain(self.train, self.validation, self.test, self.unseen_styles, self.all_unseen):
            yield icon, ""
        for icon in filter(is_plain, self.unseen_styles):
            yield from ((icon, shift) for shift in SHIFTS)


def split(icons: Iterable[Icon], size: Size) -> Parts:
    """Split icons into parts by concept; those with long names or rare words are left out."""
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
    unseen = [icon for icon in short if icon.source in UNSEEN_SOURCES and icon.style != "light"]  # it looks regular
    known = {icon.concept for icon in chain(parts["train"], parts["validation"])}
    all_unseen = [
        icon
        for icon in filter(is_plain, unseen)
        if icon.concept not in known
        and all(taught[word] >= MIN_ICONS_PER_WORD for word in icon.words)
        and draw("size", icon.concept) < size.held_out_share
    ]
    styled = [icon for icon in unseen if icon.concept in concepts]
    return Parts(kept["train"], kept["validation"], kept["test"], styled, all_unseen)


def is_plain(icon: Icon) -> bool:
    """Tell whether this is no other weight of another icon's drawing: each drawing counts once."""
    return icon.source != "phosphor" or icon.style not in WEIGHTS.values()


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


def retrieval(pictures: Sequence[Picture], size: Size) -> EvalSet[Picture]:
    """Return one picture per concept, none like another: each caption has one right picture and the reverse."""
    first: dict[str, Picture] = {}
    for picture in shuffled(pictures):
        first.setdefault(picture.icon.concept, picture)
    chosen = distinct(list(first.values()), LOOK_ALIKE)[: size.max_images]
    icons = [picture.icon for picture in chosen]
    captions = [[caption_of(icon.phrase, f"test {icon.key}", templates=_templates(icon))] for icon in icons]
    return EvalSet(chosen, captions)


def styles(
    pictures: Sequence[Picture], shifted: Mapping[tuple[str, Shift], Picture], train: Sequence[Picture], size: Size
) -> dict[str, EvalSet[Picture]]:
    """Return the main set, drawings of trained concepts by other hands, and its variants; all share their classes.

    A class is called as training captions call it most often. A variant lacks classes of which it has no pictures.

    Args:
        pictures: Of sources that are never trained on, in all weights.
        shifted: The plain ones by key and shift.
        train: The training set.
        size: Which data set.
    """
    phrases: dict[str, Counter[str]] = {}
    for picture in train:
        phrases.setdefault(picture.icon.concept, Counter())[picture.icon.phrase] += 1

    def by_concept(chosen: Iterable[Picture], concepts: Container[str]) -> EvalSet[Picture]:
        kept = [(picture, picture.icon.concept) for picture in chosen if picture.icon.concept in concepts]
        return _classification(kept, phrases, size)

    plain = shuffled(picture for picture in pictures if is_plain(picture.icon))
    main = by_concept(distinct(plain, LOOK_ALIKE), phrases)
    classes = {picture.icon.concept for picture in main.pictures}
    made = {"unseen_styles": main}
    for weight in ("thin", "bold", "filled"):
        of_weight = [p for p in pictures if p.icon.style == weight and not is_plain(p.icon)]
        made[weight] = by_concept(of_weight, classes)
    some = by_concept(main.pictures[:MAX_SHIFTED], classes)
    for shift in SHIFTS:
        made[shift] = replace(some, pictures=[shifted[picture.icon.key, shift] for picture in some.pictures])
    return made


def unseen_concepts(pictures: Sequence[Picture], size: Size) -> EvalSet[Picture]:
    """Return icons of held-out concepts labelled by their head, the first word ("file" for "file check")."""
    return _classification(*_labelled_by_word(pictures, 0), size)


def modifiers(pictures: Sequence[Picture], size: Size) -> EvalSet[Picture]:
    """Return icons of held-out concepts labelled by their last word ("check" for "file check")."""
    longer = [picture for picture in pictures if len(picture.icon.words) > 1]
    return _classification(*_labelled_by_word(longer, -1), size)


def families(pictures: Sequence[Picture], size: Size) -> EvalSet[Picture]:
    """Return icons of held-out concepts labelled by their head, from all families that have enough, about evenly."""
    labelled, phrases = _labelled_by_word(pictures, 0)
    head_of = {picture.icon.key: head for picture, head in labelled}
    by_family: dict[str, list[Picture]] = {}
    for picture in shuffled(picture for picture, _ in labelled):
        by_family.setdefault(picture.icon.source, []).append(picture)
    while True:  # The limits of the set may leave too few of a family, and then others take its place.
        some = [picture for part in by_family.values() for picture in part[:MAX_PER_FAMILY]]
        chosen = _classification([(picture, head_of[picture.icon.key]) for picture in some], phrases, size)
        counts = Counter(picture.icon.source for picture in chosen.pictures)
        enough = {source: part for source, part in by_family.items() if counts[source] >= MIN_PER_FAMILY}
        if len(enough) == len(by_family):
            break
        by_family = enough
    names = sorted(by_family)
    return replace(chosen, families=[names.index(picture.icon.source) for picture in chosen.pictures])


def characters(pictures: Sequence[Picture], size: Size) -> EvalSet[Picture]:
    """Return held-out icons that show one letter or digit, alone or framed, labelled by it ("letter b")."""
    labelled: list[tuple[Picture, str]] = []
    for picture in pictures:
        words = picture.icon.words
        for kind, character in pairwise(words):
            if kind in ("letter", "number") and len(character) == 1:
                labelled.append((picture, f"{kind} {character}"))
    counts = Counter(key for _, key in labelled)
    enough = [(picture, key) for picture, key in labelled if counts[key] >= MIN_PER_CHARACTER]
    return _classification(enough, {key: Counter([key]) for key in counts}, size)


def tags(pictures: Sequence[Picture], train: Sequence[Picture], size: Size) -> EvalSet[Picture]:
    """Return association tasks: which of the pictures go with a tag that stands in none of their names.

    Tags are Tabler's, and so are the pictures. Only tags that training captions have often enough count.
    """
    taught = Counter(word for picture in train for word in set(training_caption(picture.icon).split()))
    tagged = [picture for picture in pictures if picture.icon.tags and picture.icon.style == "outline"]
    right: dict[str, list[Picture]] = {}
    for picture in tagged:
        for tag in picture.icon.tags:
            if taught[tag] >= MIN_ICONS_PER_WORD:
                right.setdefault(tag, []).append(picture)
    chosen: list[tuple[str, list[Picture], list[Picture]]] = []
    for tag, having in sorted(right.items()):
        others = [p for p in tagged if tag not in p.icon.tags and tag not in map(singular, p.icon.words)]
        having = _drawn(having, f"right {tag}")
        for number in range(min(MAX_TASKS_PER_TAG, len(having) // ASSOCIATED)):
            goes = having[number * ASSOCIATED : (number + 1) * ASSOCIATED]
            goes_not = _drawn(others, f"wrong {tag} {number}")[: CANDIDATES - ASSOCIATED]
            chosen.append((tag, goes, goes_not))
    chosen.sort(key=lambda task: draw("task", task[0], task[1][0].icon.key))
    chosen = chosen[: size.max_tasks]
    shown = shuffled({picture.icon.key: picture for _, *both in chosen for picture in chain(*both)}.values())
    key_of = {picture.icon.key: f"{number:06d}" for number, picture in enumerate(shown)}
    tasks: list[dict[str, Any]] = [
        {
            "cue": tag,
            "candidates": sorted(key_of[picture.icon.key] for picture in goes + goes_not),
            "associations": sorted(key_of[picture.icon.key] for picture in goes),
        }
        for tag, goes, goes_not in chosen
    ]
    return EvalSet(shown, tasks=tasks)


def _drawn(pictures: Iterable[Picture], key: str) -> list[Picture]:
    return sorted(pictures, key=lambda picture: draw(key, picture.icon.key))


def _labelled_by_word(
    pictures: Sequence[Picture], at: int
) -> tuple[list[tuple[Picture, str]], dict[str, Counter[str]]]:
    """Label icons by one word of their names, and say how the words of each class are written.

    Icons that also name another class are left out ("account lock" when there is a class "lock"), and emoji, whose
    names are not built like that ("green heart").

    Args:
        pictures: What to label.
        at: Which word: 0 or -1.
    """
    icons = [picture for picture in pictures if picture.icon.style != "colour"]
    phrases: dict[str, Counter[str]] = {}
    for picture in icons:
        phrases.setdefault(singular(picture.icon.words[at]), Counter())[picture.icon.words[at]] += 1
    classes: set[str] = set()
    left, kept = set(phrases), icons
    while classes != left:  # Leaving a class out brings back icons that also named it, and the reverse.
        classes = left
        kept = [picture for picture in icons if _names_only(picture, classes, singular(picture.icon.words[at]))]
        counts = Counter(singular(picture.icon.words[at]) for picture in kept)
        left = {key for key in classes if counts[key] >= MIN_PER_CLASS}
    return [(picture, singular(picture.icon.words[at])) for picture in kept], phrases


def _names_only(picture: Picture, classes: set[str], own: str) -> bool:
    return classes.intersection(singular(word) for word in picture.icon.words) == {own}


def _classification(
    labelled: list[tuple[Picture, str]], phrases: dict[str, Counter[str]], size: Size
) -> EvalSet[Picture]:
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
    return EvalSet(order, labels=labels, classes=names, templates=ICON_TEMPLATES)


def shuffled(pictures: Iterable[Picture]) -> list[Picture]:
    """Return the pictures in an order that has nothing to do with their names and sources."""
    return sorted(pictures, key=lambda picture: (draw("order", picture.icon.key), picture.icon.key))
