"""The training pairs and the evaluation sets of a level, as scenes with their captions and pictures."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from experiments.icons.draws import Draws
from experiments.scenes.eval_set import EvalSet, Picture
from experiments.scenes.language import (
    COUNTS,
    PAIRS,
    PLACES,
    Scene,
    Thing,
    Wording,
    caption_of,
    wordings,
)
from experiments.scenes.paint import Grounds, Stencils, other_grounds, paint, trained_grounds
from experiments.scenes.scenes import Level, Part

ONE, MANY, TWO = (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0)
"""Weights of `Level.scenes` for scenes with one thing, one kind counted, two things."""
NUM_TEMPLATES = 24
MOST_DRAWN = 4
"""Scenes drawn at random for each one wanted: some come twice."""


class Painter:
    """Paints the scenes of a level.

    Args:
        level: Which level.
        stencils: By name, as `experiments.scenes.drawings.stencils` returns them.
    """

    def __init__(self, level: Level, stencils: Mapping[str, Stencils]) -> None:
        self.level, self._stencils = level, stencils
        self._grounds = {"trained": trained_grounds(), "other": other_grounds()}

    def paint(
        self, scenes: Iterable[Scene], key: str, *, stencils: str = "trained", grounds: str = "trained"
    ) -> Iterator[Picture]:
        """Yield pictures of the scenes; `key` decides how they turn out."""
        draws = Draws(self.level.name, "paint", key)
        drawn: Stencils = self._stencils[stencils]
        behind: Grounds = self._grounds[grounds]
        for scene in scenes:
            png, drawings = paint(scene, drawn, behind, draws)
            yield Picture(scene, png, tuple(drawings))


def training_pairs(painter: Painter) -> Iterator[tuple[Picture, str]]:
    """Yield the pairs that are trained on."""
    level = painter.level
    scenes = itertools.islice(level.some("train", level.name, "train"), level.pairs)
    draws = Draws(level.name, "train captions")
    for picture in painter.paint(scenes, "train"):
        yield picture, caption_of(picture.scene, draws, free_order=level.free_order)


def eval_sets(painter: Painter) -> dict[str, EvalSet]:
    """Return the evaluation sets by kind."""
    level = painter.level
    several = (0, 0, level.weights[2], level.weights[3])
    main = _different(level, "test", "retrieval", level.retrieval, several)
    some = main[: level.others]
    new_colours = _different(level, "new colours", "new colours", level.others, several)
    validation = _different(level, "validation", "validation", level.others, several)
    swapped = {what: _different(level, "test", f"swapped {what}", level.others, TWO) for what in SWAPS}
    return {
        "retrieval": _retrieval(painter, main, "retrieval"),
        "new_colours": _retrieval(painter, new_colours, "new colours"),
        "unseen_drawings": _retrieval(painter, some, "unseen drawings", stencils="unseen"),
        "other_grounds": _retrieval(painter, some, "other grounds", grounds="other"),
        "sketched": _retrieval(painter, some, "sketched", stencils="sketched"),
        "turned": _retrieval(painter, some, "turned", stencils="turned"),
        **{f"swapped_{what}": _selection(painter, scenes, what) for what, scenes in swapped.items()},
        **{key: _zeroshot(painter, key, question) for key, question in QUESTIONS.items()},
        "validation": _retrieval(painter, validation, "validation"),
        "validation_swapped": _selection(
            painter, _different(level, "validation", "validation swapped", level.others, TWO), *SWAPS
        ),
    }


def _different(level: Level, part: Part, key: str, count: int, layouts: tuple[int, int, int, int]) -> list[Scene]:
    """Return different scenes of a part."""
    drawn = itertools.islice(level.some(part, level.name, key, layouts=layouts), MOST_DRAWN * count)
    found = dict.fromkeys(drawn)
    assert len(found) >= count, f"{level.name} has {count} different {part} scenes"
    return list(found)[:count]


def _retrieval(
    painter: Painter, scenes: Sequence[Scene], key: str, *, stencils: str = "trained", grounds: str = "trained"
) -> EvalSet:
    """Return one picture and one caption of each scene; no two are of the same, so that each has one right answer."""
    level = painter.level
    draws = Draws(level.name, "captions", key)
    captions = [[caption_of(scene, draws, free_order=level.free_order)] for scene in scenes]
    return EvalSet(list(painter.paint(scenes, key, stencils=stencils, grounds=grounds)), captions)


def _swapped_colours(level: Level, scene: Scene, draws: Draws) -> list[Scene]:
    """Exchange the colours of the two things, and give either another one."""
    (one, first), (other, second) = scene.things
    new = draws.one_of([colour for colour in level.colours if colour not in (one, other)])
    pairs = ((other, one), (new, other), (one, new))
    return [Scene(scene.layout, (Thing(a, first), Thing(b, second))) for a, b in pairs]


def _swapped_concepts(level: Level, scene: Scene, draws: Draws) -> list[Scene]:
    """Exchange the concepts of the two things, and make either another one."""
    (one, first), (other, second) = scene.things
    new = draws.one_of([concept for concept in level.concepts if concept not in (first, second)])
    pairs = ((second, first), (new, second), (first, new))
    return [Scene(scene.layout, (Thing(one, a), Thing(other, b))) for a, b in pairs]


def _swapped_places(level: Level, scene: Scene, draws: Draws) -> list[Scene]:
    """Exchange the two things, and put them the other way in both orders."""
    first, second = scene.things
    (turned,) = (layout for layout in PAIRS if layout != scene.layout)
    return [Scene(scene.layout, (second, first)), Scene(turned, (first, second)), Scene(turned, (second, first))]


SWAPS = {"colours": _swapped_colours, "concepts": _swapped_concepts, "places": _swapped_places}
"""Functions from a scene of two things to three others, which the wrong captions describe."""


def _selection(painter: Painter, scenes: Sequence[Scene], *swaps: str) -> EvalSet:
    """Return pictures with their caption and with wrong ones, all in the same wording where the layout is the same."""
    level = painter.level
    draws = Draws(level.name, "choices", *swaps)
    captions: list[list[str]] = []
    for number, scene in enumerate(scenes):
        number_of: dict[str, int] = {}
        options = [scene, *SWAPS[swaps[number % len(swaps)]](level, scene, draws)]
        said: list[str] = []
        for option in options:
            known: tuple[Wording, ...] = wordings(option.layout, free_order=level.free_order)
            chosen = number_of.setdefault(option.layout, draws.below(len(known)))
            said.append(known[chosen].of(option))
        captions.append(said)
    return EvalSet(list(painter.paint(scenes, f"swapped {' '.join(swaps)}")), captions)


class Question(NamedTuple):
    """A question about a scene with one kind of thing in it."""

    layouts: tuple[int, int, int, int]
    answers: Callable[[Level], Sequence[str]]
    answer: Callable[[Scene], str]
    prompt: Callable[[Scene], str]
    """A caption with {c} in the place of the answer."""


QUESTIONS = {
    "colour": Question(
        ONE,
        lambda level: [_in_colour(colour) for colour in level.colours],
        lambda scene: _in_colour(scene.things[0].colour),
        lambda scene: f"{{c}} {scene.things[0].concept} at the {scene.layout}",
    ),
    "concept": Question(
        ONE,
        lambda level: level.concepts,
        lambda scene: scene.things[0].concept,
        lambda scene: f"{Thing(scene.things[0].colour, '{c}')} at the {scene.layout}",
    ),
    "place": Question(
        ONE,
        lambda _: PLACES,
        lambda scene: scene.layout,
        lambda scene: f"{scene.things[0]} at the {{c}}",
    ),
    "count": Question(
        MANY,
        lambda _: COUNTS,
        lambda scene: scene.layout,
        lambda scene: f"{{c}} {scene.things[0].bare}s",
    ),
}


def _in_colour(colour: str) -> str:
    """Return what a class of colours is called: with its article, "an orange"."""
    return str(Thing(colour, "")).strip()


def _zeroshot(painter: Painter, key: str, question: Question) -> EvalSet:
    """Return held-out scenes, about as many of each class, labelled with the answer to a question."""
    level = painter.level
    classes = list(question.answers(level))
    most = -(-level.others // len(classes))
    counts: Counter[str] = Counter()
    scenes: list[Scene] = []
    for scene in level.some("test", level.name, key, layouts=question.layouts):
        answer = question.answer(scene)
        if counts[answer] < most:
            counts[answer] += 1
            scenes.append(scene)
        if len(scenes) == level.others:
            break
    prompts = level.some("train", level.name, f"prompts {key}", layouts=question.layouts)
    return EvalSet(
        list(painter.paint(scenes, key)),
        labels=[classes.index(question.answer(scene)) for scene in scenes],
        classes=classes,
        templates=tuple(question.prompt(scene) for scene in itertools.islice(prompts, NUM_TEMPLATES)),
    )
