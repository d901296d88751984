"""Define what a scene may show, and say it in English. Knows nothing of pixels.

A scene is a layout and its things, in reading order. Its captions name all of it: the same scene has several, two
scenes never share one.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from experiments.icons.draws import Draws

COLOURS = {
    "red": (209, 32, 39),
    "yellow": (230, 184, 0),
    "green": (24, 142, 60),
    "blue": (33, 80, 212),
    "purple": (134, 46, 176),
    "brown": (118, 70, 32),
    "black": (28, 28, 28),
    "orange": (240, 120, 16),
    "pink": (242, 120, 182),
    "grey": (134, 138, 142),
}
"""Names and RGB. The first six are those of the easier level."""
CONCEPTS = (
    "anchor", "bell", "bug", "cake", "camera", "car", "clock", "cloud", "crown", "eye", "flag", "flask", "ghost",
    "gift", "heart", "key", "lock", "moon", "robot", "rocket", "star", "sun", "tree", "umbrella",
    "bed", "book", "cat", "cookie", "cube", "dog", "folder", "globe", "horse", "magnet", "medal", "palette", "pencil",
    "phone", "plug", "ruler", "shield", "snowflake", "sword", "ticket", "tag", "train", "truck", "wallet",
)  # fmt: skip
"""Names of icons, each with drawings in families that are trained on and in families that are not. The first 24 are
those of the easier level: they differ most in outline."""

MAX_WORDS = 10
"""Of a caption: with the start and the end it fills the 12 tokens of the tiny models. Every word is one token."""
OPENINGS = ("", "a picture of ", "an image of ", "there is ", "here is ")
"""A caption opens with one of those that leave it short enough."""

Place = Literal["top left", "top right", "bottom left", "bottom right"]
Count = Literal["two", "three", "four"]
Pair = Literal["above", "left of"]
Triple = Literal["two above one", "one above two"]
Layout = Place | Count | Pair | Triple
"""Layouts: one thing at a place; several of a kind; two, the first above or left of the second; three."""
PLACES: tuple[Place, ...] = get_args(Place)
COUNTS: tuple[Count, ...] = get_args(Count)
PAIRS: tuple[Pair, ...] = get_args(Pair)
TRIPLES: tuple[Triple, ...] = get_args(Triple)
COUNT_OF: dict[str, int] = dict(zip(COUNTS, (2, 3, 4), strict=True))

FORWARD: dict[str, tuple[str, ...]] = {
    "above": ("{0} above {1}", "{0} over {1}", "{0} on top of {1}"),
    "left of": ("{0} left of {1}", "{0} to the left of {1}"),
    "two above one": ("{0} and {1.bare} above {2}", "{0} and {1.bare} over {2}"),
    "one above two": ("{0} above {1} and {2.bare}", "{0} over {1} and {2.bare}"),
    **{place: ("{0} at the " + place, "{0} in the " + place + " corner") for place in PLACES},
}
"""Wordings by layout, in reading order."""
BACKWARD: dict[str, tuple[str, ...]] = {
    "above": ("{1} below {0}", "{1} under {0}", "{1} beneath {0}"),
    "left of": ("{1} right of {0}", "{1} to the right of {0}"),
    "two above one": ("{2} below {0} and {1.bare}", "{2} under {0} and {1.bare}"),
    "one above two": ("{1} and {2.bare} below {0}", "{1} and {2.bare} under {0}"),
}
"""Wordings that name the later thing first."""


class Thing(NamedTuple):
    """A concept in a colour."""

    colour: str
    concept: str

    @property
    def bare(self) -> str:
        """The thing without its article."""
        return f"{self.colour} {self.concept}"

    def __str__(self) -> str:
        return f"{'an' if self.colour[0] in 'aeiou' else 'a'} {self.bare}"


class Scene(NamedTuple):
    """The content of a picture. A scene that counts has one thing, shown several times."""

    layout: Layout
    things: tuple[Thing, ...]

    @property
    def key(self) -> str:
        """Unique name, on which it depends whether the scene is held out."""
        return ": ".join((self.layout, *map(str, self.things)))


class Wording(NamedTuple):
    """A way to say scenes of one layout: the same wording makes sentences of equal build."""

    opening: str
    pattern: str

    def of(self, scene: Scene) -> str:
        """Return the caption."""
        if scene.layout in COUNT_OF:
            (thing,) = scene.things
            return f"{self.opening}{scene.layout} {thing.bare}s"
        return self.opening + self.pattern.format(*scene.things)


def wordings(layout: Layout, *, free_order: bool) -> tuple[Wording, ...]:
    """Return all wordings of a layout.

    Args:
        layout: Which.
        free_order: Whether the later thing may be named first.
    """
    if layout in COUNT_OF:
        return tuple(Wording(opening.replace("is", "are"), "") for opening in OPENINGS)
    patterns = FORWARD[layout] + (BACKWARD.get(layout, ()) if free_order else ())
    found = (Wording(opening, pattern) for pattern in patterns for opening in OPENINGS)
    thing = Thing("red", "star")
    return tuple(wording for wording in found if len(wording.of(Scene(layout, (thing,) * 3)).split()) <= MAX_WORDS)


def caption_of(scene: Scene, draws: Draws, *, free_order: bool) -> str:
    """Return one caption of a scene."""
    return draws.one_of(wordings(scene.layout, free_order=free_order)).of(scene)
