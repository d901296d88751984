"""From a scene to a 32 x 32 picture: stencils of the drawings, inked in few steps over a ground of four shades.

All in whole numbers, so that a picture is the same to the byte wherever the stencils are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.fetch import shards
from experiments.icons.draws import Draws
from experiments.scenes.language import COLOURS, COUNT_OF, PLACES, Scene

SIDE_PX = 32
"""Of a picture."""
SIDES_PX = (13, 14, 15)
"""Sides of the square in which a thing is drawn."""
INK_STEPS = 4
"""Steps of ink from ground to colour: few, so that a picture has few colours and a small file."""
HALF_PX = SIDE_PX // 2
SHADES = 4
SPECKLED_GROUNDS = 64

Pixels = NDArray[np.uint8]


class Drawing(NamedTuple):
    """A drawing by its icon's key: the step of ink of each pixel, (side, side), 0 to INK_STEPS, of every side."""

    key: str
    steps: list[Pixels]


Stencils = Mapping[str, Sequence[Drawing]]
"""Drawings by concept."""
Cell = tuple[int, int, int, int]
"""Left, top, width and height in pixels."""

CORNERS: dict[str, Cell] = {
    place: (HALF_PX * (number % 2), HALF_PX * (number // 2), HALF_PX, HALF_PX) for number, place in enumerate(PLACES)
}
LANE_PX = 19
"""Two things lie in a lane of this width, so that one is either above the other or left of it, never both."""
CELLS: dict[str, tuple[Cell, ...]] = {
    **{place: (cell,) for place, cell in CORNERS.items()},
    "above": ((0, 0, LANE_PX, HALF_PX), (0, HALF_PX, LANE_PX, HALF_PX)),
    "left of": ((0, 0, HALF_PX, LANE_PX), (HALF_PX, 0, HALF_PX, LANE_PX)),
    "two above one": (CORNERS["top left"], CORNERS["top right"], (0, HALF_PX, SIDE_PX, HALF_PX)),
    "one above two": ((0, 0, SIDE_PX, HALF_PX), CORNERS["bottom left"], CORNERS["bottom right"]),
}
"""The cells of a layout's things; a thing may be anywhere in its cell."""
MOVES: dict[str, tuple[int, int]] = {"above": (1, 0), "left of": (0, 1)}
"""Layouts whose cells move together, as far as there is room, and along which axis."""


class Grounds(NamedTuple):
    """Patterns, (SIDE_PX, SIDE_PX) below SHADES, and the shades they may be painted in, (SHADES, 3)."""

    patterns: list[Pixels]
    shades: list[NDArray[np.int64]]


def _shades(light: tuple[int, int, int], step: int) -> NDArray[np.int64]:
    shades: NDArray[np.int64] = np.array(light) - step * np.arange(SHADES)[:, None]
    return shades


def _grid() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    down, across = np.indices((SIDE_PX, SIDE_PX))
    return across, down


def trained_grounds() -> Grounds:
    """Return the grounds of training: pale; plain, speckled, striped, checked, or shaded from one side to the other."""
    x, y = _grid()
    draws = Draws("speckled grounds")
    speckled = [
        np.array([draws.below(SHADES) for _ in range(SIDE_PX**2)]).reshape(SIDE_PX, SIDE_PX)
        for _ in range(SPECKLED_GROUNDS)
    ]
    stripes = [
        ((across + start) // width % 2) for across in (x, y, x + y) for width in (2, 3, 5) for start in range(width)
    ]
    checks = [((x // width + y // width) % 2) for width in (2, 4, 8)]
    sides = (x, y, SIDE_PX - 1 - x, SIDE_PX - 1 - y)
    shaded = [along * SHADES // SIDE_PX for along in sides] * 4
    plain = [np.zeros((SIDE_PX, SIDE_PX))] * 16
    lights = ((250, 250, 250), (250, 246, 232), (234, 244, 252), (236, 250, 236), (250, 236, 240), (242, 238, 252))
    patterns = [pattern.astype(np.uint8) for pattern in (*speckled, *stripes, *checks, *shaded, *plain)]
    return Grounds(patterns, [_shades(light, step) for light in lights for step in (5, 9)])


def other_grounds() -> Grounds:
    """Return grounds that are never trained on: dotted, ringed or waved, in stronger shades."""
    x, y = _grid()
    dots = [np.where((x % width < width // 2) & (y % width < width // 2), 2, 0) for width in (4, 6, 8)]
    rings = [((x - a) ** 2 + (y - b) ** 2) // 48 % SHADES for a in (0, 12, 24) for b in (4, 16, 28)]
    zigzags = [(y + np.abs(x % 8 - 4)) // width % 2 * 2 for width in (2, 4)]
    lights = ((238, 226, 204), (212, 228, 240), (222, 236, 212), (238, 218, 230))
    return Grounds([pattern.astype(np.uint8) for pattern in (*dots, *rings, *zigzags)], [_shades(a, 7) for a in lights])


def steps_of(ink: Pixels) -> Pixels:
    """Return the steps of ink, 0 to INK_STEPS, of a stencil of `experiments.icons.render.stencils`."""
    return ((ink.astype(np.int64) * INK_STEPS + 127) // 255).astype(np.uint8)


def paint(scene: Scene, stencils: Stencils, grounds: Grounds, draws: Draws) -> tuple[bytes, list[str]]:
    """Paint a scene as PNG with a palette: which drawings, how large, where in their cells and on what is drawn.

    Args:
        scene: What to show.
        stencils: Drawings of its concepts.
        grounds: What may lie behind.
        draws: The choices.

    Returns:
        The PNG, and the keys of the drawings in it.
    """
    ground = draws.one_of(grounds.patterns)
    shades = draws.one_of(grounds.shades)
    things, cells = scene.things, CELLS.get(scene.layout)
    if cells is None:
        count = COUNT_OF[scene.layout]
        things, cells = things * count, tuple(draws.some_of(tuple(CORNERS.values()), count))
    across, down = (move * draws.below(SIDE_PX - LANE_PX + 1) for move in MOVES.get(scene.layout, (0, 0)))
    colours = list(dict.fromkeys(thing.colour for thing in things))
    keys: list[str] = []
    code = ground.copy()  # pixels of the same code have the same colour: see `_palette`
    for thing, (left, top, width, height) in zip(things, cells, strict=True):
        size = draws.below(len(SIDES_PX))
        drawing = draws.one_of(stencils[thing.concept])
        keys.append(drawing.key)
        steps = drawing.steps[size]
        side = SIDES_PX[size]
        left += across + draws.below(width - side + 1)
        top += down + draws.below(height - side + 1)
        first = SHADES * INK_STEPS * colours.index(thing.colour)
        part = code[top : top + side, left : left + side]
        part += np.where(steps, first + SHADES * steps, 0).astype(np.uint8)
    return shards.palette_png(code.tobytes(), SIDE_PX, SIDE_PX, _palette(shades, colours)), keys


def _palette(shades: NDArray[np.int64], colours: Sequence[str]) -> bytes:
    """Return the RGB of every code: of shade g under step s of colour k, code g + SHADES (s + INK_STEPS k)."""
    rows = [shades]
    for colour in colours:
        for step in range(1, INK_STEPS + 1):
            mixed = shades * (INK_STEPS - step) + np.array(COLOURS[colour]) * step
            rows.append((mixed + INK_STEPS // 2) // INK_STEPS)
    return np.concatenate(rows).astype(np.uint8).tobytes()
