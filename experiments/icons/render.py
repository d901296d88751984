"""From an icon to its ink, 0 where the paper shows and 255 where it is fully covered, cut out at its edges."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import resvg_py
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageTransform

from experiments.icons.catalogue import Icon
from experiments.icons.draws import share

CANVAS_PX = 96
LOOK_PX = 16
LOOK_LEVELS = 16
TURN_DEG = (20.0, 40.0)
"""Range of the turn, to either side, of the shift ``turned``: below what makes up of left."""
SKETCH_CELLS = 5
"""Cells along a side of the grid whose corners the shift ``sketched`` moves."""
SKETCH_SHARE = 0.22
"""Largest move of a corner in each direction, as a share of a cell."""
MIN_INK = 64
"""Ink below this counts as paper where the extent of a drawing is measured."""

Shift = Literal["", "sketched", "turned"]
"""A way to draw an icon that no training picture has; empty for none."""
Ink = NDArray[np.uint8]


def look(icon: Icon, fonts: Mapping[str, bytes]) -> Ink | None:
    """Return a small copy by which look-alikes are found: place and size do not enter it.

    Returns:
        (LOOK_PX, LOOK_PX) below LOOK_LEVELS; None if nothing is drawn.
    """
    cut = _cut_out(_ink_of(icon, fonts))
    if cut is None:
        return None
    return np.asarray(cut.resize((LOOK_PX, LOOK_PX), Image.Resampling.BOX)) // (256 // LOOK_LEVELS)


def stencils(icon: Icon, sides_px: Sequence[int], shift: Shift, fonts: Mapping[str, bytes]) -> list[Ink]:
    """Draw an icon that shows something, upright unless the shift turns it.

    Args:
        icon: Which.
        sides_px: Sides of the squares to draw it in.
        shift: How.
        fonts: Font files by the name the icons use.

    Returns:
        Its ink in every side, (side, side).
    """
    ink = _ink_of(icon, fonts)
    if shift == "sketched":
        ink = _wobbled(ink, icon.key)
    if shift == "turned":
        ink = ink.rotate(_turn_deg(icon.key), Image.Resampling.BICUBIC, expand=True)
    cut = _cut_out(ink)
    assert cut is not None, "what shows upright shows when shifted"
    return [np.asarray(cut.resize((side, side), Image.Resampling.BOX)) for side in sides_px]


def _turn_deg(key: str) -> float:
    least, most = TURN_DEG
    return (least + share("turn", key) * (most - least)) * (1 if share("rotation", key) > 0.5 else -1)


@lru_cache
def _font(file: bytes) -> ImageFont.FreeTypeFont:
    # The basic layout: what the other one draws depends on libraries of the machine.
    return ImageFont.truetype(io.BytesIO(file), CANVAS_PX, layout_engine=ImageFont.Layout.BASIC)


def _ink_of(icon: Icon, fonts: Mapping[str, bytes]) -> Image.Image:
    if icon.font:
        ink = Image.new("L", (2 * CANVAS_PX, 2 * CANVAS_PX))
        font = _font(fonts[icon.font])
        ImageDraw.Draw(ink).text((CANVAS_PX // 2, CANVAS_PX // 2), icon.drawing, fill=255, font=font)
        return ink
    png = resvg_py.svg_to_bytes(svg_string=icon.drawing, width=CANVAS_PX, skip_system_fonts=True)
    return Image.open(io.BytesIO(png)).getchannel("A")


def _wobbled(ink: Image.Image, key: str) -> Image.Image:
    """Move the corners of a grid over what is drawn, as an unsteady hand would."""
    left, top, right, bottom = ink.getbbox() or (0, 0, *ink.size)
    side_px = max(right - left, bottom - top) / SKETCH_CELLS

    def corner(column: int, row: int) -> tuple[float, float]:
        moves = [(2 * share(axis, str(column), str(row), key) - 1) * SKETCH_SHARE * side_px for axis in "xy"]
        return left + column * side_px + moves[0], top + row * side_px + moves[1]

    pieces = []
    cells = range(-1, SKETCH_CELLS + 1)  # one more all around, into which the edges may move
    for column, row in itertools.product(cells, cells):
        box = tuple(round((place + 1) * side_px) for place in (column, row, column + 1, row + 1))
        corners = [corner(column, row), corner(column, row + 1), corner(column + 1, row + 1), corner(column + 1, row)]
        pieces.append((box, tuple(itertools.chain.from_iterable(corners))))
    side = round((SKETCH_CELLS + 2) * side_px)
    return ink.transform((side, side), ImageTransform.MeshTransform(pieces), resample=Image.Resampling.BICUBIC)


def _cut_out(ink: Image.Image) -> Image.Image | None:
    """Return the smallest square around what is drawn; None if nothing is."""
    box = ink.point(lambda value: 255 if value >= MIN_INK else 0).getbbox()
    if box is None:
        return None
    left, top, right, bottom = box
    half_px = max(round(max(right - left, bottom - top) / 2), 1)
    center_x, center_y = (left + right) // 2, (top + bottom) // 2
    return ink.crop((center_x - half_px, center_y - half_px, center_x + half_px, center_y + half_px))
