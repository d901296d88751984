"""Define the levels: the scenes of each, and those that are held out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from experiments.icons.draws import Draws, share
from experiments.scenes.language import COLOURS, CONCEPTS, COUNTS, PAIRS, PLACES, TRIPLES, Scene, Thing

KINDS = (PLACES, COUNTS, PAIRS, TRIPLES)
"""Layouts with one thing at a place, with one kind counted, with two things and with three."""

Part = Literal["train", "validation", "test", "new colours"]


@dataclass(frozen=True)
class Level:
    """A data set of the family: what its scenes show, how many there are, and how long its evaluation sets are."""

    name: str
    concepts: tuple[str, ...]
    colours: tuple[str, ...]
    drawings: int
    """Drawings of a concept that are trained on, at most."""
    styles: frozenset[str]
    """Of all drawings: filled, outline."""
    weights: tuple[int, int, int, int]
    """Relative frequency of each of `KINDS`."""
    free_order: bool
    """A caption may name the later thing first."""
    pairs: int
    retrieval: int
    """Pictures of the main retrieval set."""
    others: int
    """Pictures of every other evaluation set."""

    def unseen_colour(self, concept: str) -> str:
        """Return the colour in which a concept is never trained on."""
        return self.colours[int(share("unseen colour", concept) * len(self.colours))]

    def scenes(self, draws: Draws, layouts: tuple[int, int, int, int] | None = None) -> Iterator[Scene]:
        """Yield scenes at random, without end.

        Args:
            draws: The choices.
            layouts: Relative frequency of each of `KINDS`; None for training's.
        """
        while True:
            layout = draws.one_of(KINDS[draws.weighted(layouts or self.weights)])
            count = 3 if layout in TRIPLES else 2 if layout in PAIRS else 1
            things = zip(draws.some_of(self.colours, count), draws.some_of(self.concepts, count), strict=True)
            yield Scene(layout, tuple(Thing(*thing) for thing in things))

    def part_of(self, scene: Scene) -> Part | None:
        """Return the part of a scene; None for one that is not used: several things have their unseen colours."""
        new = sum(thing.colour == self.unseen_colour(thing.concept) for thing in scene.things)
        if new:
            return "new colours" if new == 1 else None
        validation, test = (0.05, 0.25)
        place = share("scene", scene.key)
        return "test" if place < test else "validation" if place < test + validation else "train"

    def some(self, part: Part, *key: str, layouts: tuple[int, int, int, int] | None = None) -> Iterator[Scene]:
        """Yield scenes of a part at random, without end."""
        return (scene for scene in self.scenes(Draws(*key), layouts) if self.part_of(scene) == part)


FILLED = frozenset({"filled"})
ALL_STYLES = frozenset({"filled", "outline"})
EASY = Level(
    "scenes",
    concepts=CONCEPTS[:24],
    colours=tuple(COLOURS)[:6],
    drawings=1,
    styles=FILLED,
    weights=(14, 14, 72, 0),
    free_order=False,
    pairs=100_000,
    retrieval=4000,
    others=1000,
)
SIMPLE = replace(EASY, name="scenes_simple", concepts=CONCEPTS[:16], pairs=10_240, retrieval=2000, others=400)
HARD = Level(
    "scenes_hard",
    concepts=CONCEPTS,
    colours=tuple(COLOURS),
    drawings=5,
    styles=ALL_STYLES,
    weights=(10, 10, 60, 20),
    free_order=True,
    pairs=100_000,
    retrieval=4000,
    others=1000,
)
TINY = replace(EASY, name="scenes_tiny", pairs=1500, retrieval=200, others=120)
LEVELS = {"simple": SIMPLE, "easy": EASY, "hard": HARD, "tiny": TINY}
