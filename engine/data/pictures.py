"""Open pictures of other people: only some formats, and none that is too large."""

from __future__ import annotations

import io
import struct
import warnings
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""Formats that are decoded. GIF and BMP occur under other extensions; some of Pillow's other decoders run programs."""
MAX_PIXELS = 89_478_485
"""Pillow warns from here on. Decoding and resizing takes about twelve bytes a pixel, 1.1 GB for this many."""

DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error)
"""What Pillow's decoders raise for damaged files."""

MAX_RATIO = 1000
"""Of the sides: the shorter one is made as long as the model's picture, and the longer one with it."""

# `open_picture` refuses these pictures itself.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def open_picture(data: bytes, formats: tuple[str, ...] = IMAGE_FORMATS) -> Image.Image:
    """Open a picture, whose pixels are not decoded yet.

    Args:
        data: Content of its file.
        formats: What it may be, by Pillow's names.

    Raises:
        ValueError: If it has more than `MAX_PIXELS`, sides beyond `MAX_RATIO`, or no format of these.
        OSError, SyntaxError: If its header is damaged.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError:
        # Pillow's own message names an object in memory.
        raise ValueError("unknown format") from None
    except Image.DecompressionBombError:
        raise ValueError(f"more than {MAX_PIXELS:,} pixels: make it smaller") from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels, at most {MAX_PIXELS:,} are decoded: make it smaller")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ValueError(f"{width} x {height} pixels, one side may have {MAX_RATIO:,} times the other's: cut it")
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a picture in RGB: without alpha, and with the upper 8 of 16 bits of grey, where Pillow clips to 255."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def resized(
    image: Image.Image, box: tuple[int, int, int, int], size: tuple[int, int], by: Literal["pillow", "torch"]
) -> NDArray[np.uint8]:
    """Cut out a part of an RGB picture and resize it: bicubic, with antialiasing.

    Args:
        image: The picture.
        box: Its part: left, top, right, bottom.
        size: Width and height to give it.
        by: Whose resizing; the two round differently.

    Returns:
        Pixels, (height, width, 3).
    """
    if by == "pillow":
        part = image if box == (0, 0, *image.size) else image.crop(box)
        return np.asarray(part if part.size == size else part.resize(size, Image.Resampling.BICUBIC))
    left, top, right, bottom = box
    part_HWC = torch.from_numpy(np.array(image)[top:bottom, left:right])
    part_1CHW = part_HWC.permute(2, 0, 1)[None].contiguous(memory_format=torch.channels_last)
    if (right - left, bottom - top) != size:
        # Without going through floats, and its fast way wants channels innermost.
        part_1CHW = torch.nn.functional.interpolate(part_1CHW, size[::-1], mode="bicubic", antialias=True)
    pixels: NDArray[np.uint8] = part_1CHW[0].permute(1, 2, 0).numpy()
    return pixels
