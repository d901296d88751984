"""Open pictures of other people: only some formats, and none that is too large."""

from __future__ import annotations

import io
import warnings

from PIL import Image, UnidentifiedImageError

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""Formats that are decoded. GIF and BMP occur under other extensions; some of Pillow's other decoders run programs."""
MAX_PIXELS = 89_478_485
"""Pillow warns from here on. Decoding and resizing takes about twelve bytes a pixel, 1.1 GB for this many."""

# `open_picture` refuses these pictures itself.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def open_picture(data: bytes, formats: tuple[str, ...] = IMAGE_FORMATS) -> Image.Image:
    """Open a picture, whose pixels are not decoded yet.

    Args:
        data: Content of its file.
        formats: What it may be, by Pillow's names.

    Raises:
        ValueError: If it has more than `MAX_PIXELS`, or no format of these.
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
    return image
