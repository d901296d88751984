"""From the wheels to icons: what each shows, in which style, and how it is drawn."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple
from zipfile import ZipFile

UNSEEN_SOURCES = frozenset({"phosphor", "codicons", "elusive"})
"""Sources that are never trained on."""
WEIGHTS = {"thin": "thin", "light": "light", "bold": "bold", "fill": "filled"}
"""Weights in which Phosphor draws again what it draws in its regular one: the end of a name, and the style."""


@dataclass(frozen=True, slots=True)
class Icon:
    """One drawing and what it shows.

    `drawing` is an SVG document, or a character of the font `font`. `style` is the hand it is drawn in.
    """

    source: str
    style: str
    name: str
    concept: str
    drawing: str
    font: str = ""

    @property
    def key(self) -> str:
        """Unique name, on which all random choices for this icon depend."""
        return f"{self.source}/{self.style}/{self.name}"


class Entry(NamedTuple):
    """A name in a wheel: the style and the words in it, and the member or the character of the font that it names."""

    style: str
    name: str
    words: tuple[str, ...]
    drawing: str


def read_fonts(wheels: Mapping[str, ZipFile]) -> dict[str, bytes]:
    """Return the font files by the name icons use for them."""
    return {font: wheels["qtawesome"].read(f"qtawesome/fonts/{file}") for font, (file, _, _) in FONTS.items()}


def read_icons(wheels: Mapping[str, ZipFile], concepts: Collection[str]) -> list[Icon]:
    """Return the icons that are called by one of the concepts and nothing else, sorted by key.

    Args:
        wheels: Opened wheels by project, as `experiments.icons.sources.open_wheels` returns them.
        concepts: Single words.
    """
    named = {(concept,) for concept in concepts}
    icons: list[Icon] = []
    for source, (project, entries) in SVGS.items():
        found = (entry for entry in entries(wheels[project]) if entry.words in named)
        icons += [Icon(source, *entry[:2], entry.words[0], wheels[project].read(entry[3]).decode()) for entry in found]
    for font in FONTS:
        found = (entry for entry in _glyphs(font, wheels["qtawesome"]) if entry.words in named)
        icons += [Icon(font, *entry[:2], entry.words[0], entry.drawing, font) for entry in found]
    return sorted(icons, key=lambda icon: icon.key)


def _svgs(archive: ZipFile, folder: str) -> dict[str, str]:
    """Return the SVG files of a folder: name to member."""
    members = [member for member in archive.namelist() if member.startswith(folder) and member.endswith(".svg")]
    return {member.removeprefix(folder).removesuffix(".svg"): member for member in members}


def _words(name: str, *without: str) -> tuple[str, ...]:
    return tuple(word for word in re.split(r"[-_ ]+", name.lower()) if word and word not in without)


def _unnumbered(words: tuple[str, ...]) -> tuple[str, ...]:
    """Leave out a number at the end: it tells drawings of one thing apart."""
    return words[:-1] if len(words) > 1 and words[-1].isdigit() else words


def _material(archive: ZipFile) -> Iterator[Entry]:
    for name, member in _svgs(archive, "material/templates/.icons/material/").items():
        style = "outline" if "outline" in name.split("-") else "filled"
        yield Entry(style, name, _words(name, "outline", "variant"), member)


def _fontawesome(archive: ZipFile) -> Iterator[Entry]:
    for folder, style in (("solid", "filled"), ("regular", "outline")):
        for name, member in _svgs(archive, f"material/templates/.icons/fontawesome/{folder}/").items():
            yield Entry(style, name, _words(name, "alt"), member)


def _octicons(archive: ZipFile) -> Iterator[Entry]:
    members = _svgs(archive, "material/templates/.icons/octicons/")
    for name, member in members.items():
        stem, _, size = name.rpartition("-")
        # The small and the large drawing of an icon look the same at 32 pixels.
        if size == "24" or (size == "16" and f"{stem}-24" not in members):
            yield Entry("filled" if stem.endswith("-fill") else "outline", name, _words(stem, "fill"), member)


def _tabler(archive: ZipFile) -> Iterator[Entry]:
    for style in ("outline", "filled"):
        for name, member in _svgs(archive, f"pytablericons/icons/{style}/").items():
            yield Entry(style, name, _unnumbered(_words(name)), member)


def _glyphs(font: str, archive: ZipFile) -> Iterator[Entry]:
    _, charmap, read_name = FONTS[font]
    codes: dict[str, str] = json.loads(archive.read(f"qtawesome/fonts/{charmap}"))
    names_of: dict[str, list[str]] = {}
    for name, code in sorted(codes.items()):
        names_of.setdefault(code, []).append(name)
    for code, names in names_of.items():
        if len(names) == 1:  # With several names, any would be right.
            style, words = read_name(names[0])
            yield Entry(style, names[0], words, chr(int(code, 16)))


def _remix(name: str) -> tuple[str, tuple[str, ...]]:
    words = _words(name)
    style = {"fill": "filled", "line": "outline"}.get(words[-1], "outline")
    words = words[:-1] if words[-1] in ("fill", "line") else words
    words = words[:-1] if len(words) > 1 and words[-1] in ("s", "m", "l") else words  # sizes
    return style, _unnumbered(words)


def _phosphor(name: str) -> tuple[str, tuple[str, ...]]:
    words = _words(name)
    style = WEIGHTS.get(words[-1], "regular")
    words = words[:-1] if style != "regular" else words
    return style, tuple(word for word in words if word != "simple")


def _codicons(name: str) -> tuple[str, tuple[str, ...]]:
    words = _words(name)
    style = "filled" if "filled" in words else "outline"
    return style, tuple(word for word in words if word not in ("filled", "small"))


def _elusive(name: str) -> tuple[str, tuple[str, ...]]:
    return "filled", _words(name, "alt", "sign")


SVGS: dict[str, tuple[str, Callable[[ZipFile], Iterator[Entry]]]] = {
    "material": ("mkdocs-material", _material),
    "fontawesome": ("mkdocs-material", _fontawesome),
    "octicons": ("mkdocs-material", _octicons),
    "tabler": ("pytablericons", _tabler),
}
"""Sources that are SVG files: their wheel, and how its names are read."""
FONTS: dict[str, tuple[str, str, Callable[[str], tuple[str, tuple[str, ...]]]]] = {
    "remix": ("remixicon-2.5.0.ttf", "remixicon-charmap-2.5.0.json", _remix),
    "phosphor": ("phosphor-1.3.0.ttf", "phosphor-charmap-1.3.0.json", _phosphor),
    "codicons": ("codicon-0.0.36.ttf", "codicon-charmap-0.0.36.json", _codicons),
    "elusive": ("elusiveicons-webfont-2.0.ttf", "elusiveicons-webfont-charmap-2.0.json", _elusive),
}
"""Sources that are fonts: the font, the names of its characters, and what reads style and words from a name."""
