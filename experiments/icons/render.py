"""From a drawing to a 32 x 32 picture, and to its look: a small upright copy by which look-alikes are found.

Everything is drawn as ink: 0 where the paper shows, 255 where it is fully covered (per colour for emoji). So whatever
lies outside the drawing is paper without further care.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context

import numpy as np
import resvg_py
from PIL import Image, ImageChops, ImageDraw, ImageFont

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
"""So that a dot stays smaller than a disc."""
MIN_INK = 64
"""Ink below this counts as paper where the extent of a drawing is measured."""

_fonts: Mapping[str, bytes] = {}


def render_all(icons: list[Icon], fonts: Mapping[str, bytes], *, jobs: int) -> Iterator[tuple[bytes, bytes] | None]:
    """Render icons in `jobs` processes; results come in the order of the icons.

    Args:
        icons: What to draw.
        fonts: Font files by the name the icons use.
        jobs: Processes, at least 1. The results do not depend on it.

    Yields:
        What `render` returns, for each icon.
    """
    if jobs == 1:
        _use(fonts)
        yield from map(render, icons)
        return
    # Fresh processes instead of forks: the parent has a thread when it shows a progress bar.
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_use, initargs=(fonts,)) as pool:
        yield from pool.map(render, icons, chunksize=64)


def render(icon: Icon) -> tuple[bytes, bytes] | None:
    """Draw one icon, turned, scaled and perhaps inverted as its key decides.

    Returns:
        The pixels, (SIDE_PX, SIDE_PX, 3) uint8 in C order, and the look, (LOOK_PX, LOOK_PX, 3) uint8 below
        LOOK_LEVELS. The look is the ink of the upright drawing cut out at its edges: neither place, size, turn nor
        inversion enters it. None if nothing is drawn.
    """
    ink, native_px = _ink_of(icon)
    upright = _cut_out(ink)
    if upright is None:
        return None
    look = np.asarray(upright.resize((LOOK_PX, LOOK_PX), Image.Resampling.BOX).convert("RGB")) // (256 // LOOK_LEVELS)

    angle_deg = (2 * draw("rotation", icon.key) - 1) * MAX_ROTATION_DEG
    smallest, largest = INK_SIDE_PX
    side_px = smallest + draw("side", icon.key) * (largest - smallest)
    turned = _cut_out(
        ink.rotate(angle_deg, Image.Resampling.BICUBIC, expand=True),
        enlarge=SIDE_PX / side_px,
        min_side_px=native_px / MAX_ENLARGEMENT,
    )
    assert turned is not None, "what shows upright shows when turned"
    small = turned.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC).convert("RGB")
    if icon.style == "colour" or draw("inverted", icon.key) >= INVERTED_SHARE:
        small = ImageChops.invert(small)
    return small.tobytes(), look.tobytes()


def _use(fonts: Mapping[str, bytes]) -> None:
    global _fonts
    _fonts = fonts


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
