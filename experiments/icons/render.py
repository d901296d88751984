"""From a drawing to a 32 x 32 picture, and to its look: a small upright copy by which look-alikes are found.

Everything is drawn as ink: 0 where the paper shows, 255 where it is fully covered (per colour for emoji). So whatever
lies outside the drawing is paper without further care. A shift draws the same icon as no training picture is drawn.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from typing import Literal

import numpy as np
import resvg_py
from PIL import Image, ImageChops, ImageDraw, ImageFont, ImageTransform

from experiments.icons.captions import draw
from experiments.icons.catalogue import Icon

SIDE_PX = 32
CANVAS_PX = 96
LOOK_PX = 16
LOOK_LEVELS = 16

INVERTED_SHARE = 0.25
"""Share of the one-coloured icons drawn white on black."""
MAX_ROTATION_DEG = 8.0
INK_SIDE_PX = (22.0, 28.0)
"""Range of the longer side of what is drawn: leaves room for shifting a training picture by two pixels."""
MAX_ENLARGEMENT = 1.5
"""A dot must stay smaller than a disc."""
TURN_DEG = (20.0, 40.0)
"""Range of the turn, to either side, of the shift ``turned``: beyond training's, and below what makes up of left."""
SKETCH_CELLS = 5
"""Cells along a side of the grid whose corners the shift ``sketched`` moves."""
SKETCH_SHARE = 0.22
"""Largest move of a corner in each direction, as a share of a cell."""
COLOURS = ("#b3261e", "#1f5fbf", "#1b7a3d", "#7a3fb0", "#0b7285", "#a8480a")
"""Dark colours of the shift ``coloured``; ink and paper are two of them, the paper made pale or the reverse."""
PALE = 0.8
"""Share of white in the pale one."""
MIN_INK = 64
"""Ink below this counts as paper where the extent of a drawing is measured."""

Shift = Literal["", "coloured", "sketched", "turned"]
"""A difference from training's pictures other than the icon; empty for none."""
SHIFTS: tuple[Shift, ...] = ("coloured", "sketched", "turned")

_fonts: Mapping[str, bytes] = {}


def render_all(
    icons: Sequence[Icon], shifts: Sequence[Shift], fonts: Mapping[str, bytes], *, jobs: int
) -> Iterator[tuple[bytes, bytes] | None]:
    """Render icons in `jobs` processes; results come in the order of the icons.

    Args:
        icons: What to draw.
        shifts: How, for each icon.
        fonts: Font files by the name the icons use.
        jobs: Processes, at least 1. The results do not depend on it.

    Yields:
        What `render` returns, for each icon.
    """
    if jobs == 1:
        _use(fonts)
        yield from map(render, icons, shifts)
        return
    # Fresh processes instead of forks: the parent has a thread when it shows a progress bar.
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_use, initargs=(fonts,)) as pool:
        yield from pool.map(render, icons, shifts, chunksize=64)


def render(icon: Icon, shift: Shift = "") -> tuple[bytes, bytes] | None:
    """Draw one icon, turned, scaled and perhaps inverted as its key decides, and shifted.

    Returns:
        The pixels, (SIDE_PX, SIDE_PX, 3) uint8 in C order, and the look, (LOOK_PX, LOOK_PX, 3) uint8 below
        LOOK_LEVELS. The look is the ink of the upright drawing cut out at its edges: neither place, size, turn,
        inversion nor a shift enters it. None if nothing is drawn.
    """
    ink, native_px = _ink_of(icon)
    upright = _cut_out(ink)
    if upright is None:
        return None
    look = np.asarray(upright.resize((LOOK_PX, LOOK_PX), Image.Resampling.BOX).convert("RGB")) // (256 // LOOK_LEVELS)

    angle_deg = (2 * draw("rotation", icon.key) - 1) * MAX_ROTATION_DEG
    if shift == "turned":
        angle_deg = _turn_deg(icon.key)
    if shift == "sketched":
        ink = _wobbled(ink, icon.key)
    smallest, largest = INK_SIDE_PX
    side_px = smallest + draw("side", icon.key) * (largest - smallest)
    turned = _cut_out(
        ink.rotate(angle_deg, Image.Resampling.BICUBIC, expand=True),
        enlarge=SIDE_PX / side_px,
        min_side_px=native_px / MAX_ENLARGEMENT,
    )
    assert turned is not None, "what shows upright shows when turned"
    small = turned.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC).convert("RGB")
    if shift == "coloured":
        return _coloured(small.getchannel(0), icon.key).tobytes(), look.tobytes()
    if icon.style == "colour" or draw("inverted", icon.key) >= INVERTED_SHARE:
        small = ImageChops.invert(small)
    return small.tobytes(), look.tobytes()


def stencils(
    icons: Sequence[Icon], sides_px: Sequence[int], shift: Shift, fonts: Mapping[str, bytes]
) -> Iterator[list[bytes]]:
    """Draw the ink of icons alone, upright unless the shift turns them, cut out at its edges; in this process.

    Args:
        icons: Icons in one colour that show something.
        sides_px: Sides of the squares to draw each of them in.
        shift: One that moves ink.
        fonts: Font files by the name the icons use.

    Yields:
        Of each icon its ink in every side, (side, side) uint8 in C order.
    """
    _use(fonts)
    for icon in icons:
        ink, _ = _ink_of(icon)
        if shift == "sketched":
            ink = _wobbled(ink, icon.key)
        if shift == "turned":
            ink = ink.rotate(_turn_deg(icon.key), Image.Resampling.BICUBIC, expand=True)
        cut = _cut_out(ink)
        assert cut is not None, "what shows upright shows when shifted"
        yield [cut.resize((side, side), Image.Resampling.BOX).tobytes() for side in sides_px]


def _use(fonts: Mapping[str, bytes]) -> None:
    global _fonts
    _fonts = fonts


def _turn_deg(key: str) -> float:
    """Return the turn of the shift ``turned``, to the side to which the icon leans by itself."""
    least, most = TURN_DEG
    return (least + draw("turn", key) * (most - least)) * (1 if draw("rotation", key) > 0.5 else -1)


@lru_cache
def _font(name: str) -> ImageFont.FreeTypeFont:
    # The basic layout: what the other one draws depends on libraries of the machine.
    return ImageFont.truetype(io.BytesIO(_fonts[name]), CANVAS_PX, layout_engine=ImageFont.Layout.BASIC)


def _ink_of(icon: Icon) -> tuple[Image.Image, int]:
    """Return the drawing's ink and the side (pixels) of the square it was designed in."""
    if icon.font:
        ink = Image.new("L", (2 * CANVAS_PX, 2 * CANVAS_PX))
        ImageDraw.Draw(ink).text((CANVAS_PX // 2, CANVAS_PX // 2), icon.drawing, fill=255, font=_font(icon.font))
        return ink, CANVAS_PX
    png = resvg_py.svg_to_bytes(svg_string=icon.drawing, width=CANVAS_PX, skip_system_fonts=True)
    picture = Image.open(io.BytesIO(png))
    if icon.style != "colour":
        return picture.getchannel("A"), max(picture.size)
    paper = Image.new("RGBA", picture.size, "white")
    return ImageChops.invert(Image.alpha_composite(paper, picture).convert("RGB")), max(picture.size)


def _wobbled(ink: Image.Image, key: str) -> Image.Image:
    """Move the corners of a grid over what is drawn, as an unsteady hand would."""
    left, top, right, bottom = ink.getbbox() or (0, 0, *ink.size)
    side_px = max(right - left, bottom - top) / SKETCH_CELLS

    def corner(column: int, row: int) -> tuple[float, float]:
        moves = [(2 * draw(axis, str(column), str(row), key) - 1) * SKETCH_SHARE * side_px for axis in "xy"]
        return left + column * side_px + moves[0], top + row * side_px + moves[1]

    pieces = []
    cells = range(-1, SKETCH_CELLS + 1)  # one more all around, into which the edges may move
    for column, row in itertools.product(cells, cells):
        box = tuple(round((place + 1) * side_px) for place in (column, row, column + 1, row + 1))
        corners = [corner(column, row), corner(column, row + 1), corner(column + 1, row + 1), corner(column + 1, row)]
        pieces.append((box, tuple(itertools.chain.from_iterable(corners))))
    side = round((SKETCH_CELLS + 2) * side_px)
    return ink.transform((side, side), ImageTransform.MeshTransform(pieces), resample=Image.Resampling.BICUBIC)


def _coloured(ink: Image.Image, key: str) -> Image.Image:
    """Draw in one colour on another: dark on pale, or pale on dark."""
    first = int(draw("ink", key) * len(COLOURS))
    second = (first + 1 + int(draw("paper", key) * (len(COLOURS) - 1))) % len(COLOURS)
    dark, pale = Image.new("RGB", ink.size, COLOURS[first]), Image.new("RGB", ink.size, COLOURS[second])
    pale = Image.blend(pale, Image.new("RGB", ink.size, "white"), PALE)
    return Image.composite(dark, pale, ink if draw("dark", key) < 0.5 else ImageChops.invert(ink))


def _cut_out(ink: Image.Image, *, enlarge: float = 1.0, min_side_px: float = 0.0) -> Image.Image | None:
    """Return the smallest square around what is drawn, `enlarge` times as wide, and at least `min_side_px`."""
    # One band: the strongest ink of the colours.
    bands = ink.split()
    strongest = bands[0]
    for band in bands[1:]:
        strongest = ImageChops.lighter(strongest, band)
    box = strongest.point(lambda value: 255 if value >= MIN_INK else 0).getbbox()
    if box is None:
        return None
    left, top, right, bottom = box
    half_px = round(max((right - left) * enlarge, (bottom - top) * enlarge, min_side_px) / 2)
    half_px = max(half_px, 1)
    center_x, center_y = (left + right) // 2, (top + bottom) // 2
    return ink.crop((center_x - half_px, center_y - half_px, center_x + half_px, center_y + half_px))
