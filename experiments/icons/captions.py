"""From an icon's name to its caption: words, concept and sentence. Knows nothing of pictures."""

from __future__ import annotations

import hashlib

ICON_TEMPLATES = (
    "{c}",
    "{c} icon",
    "an icon of {c}",
    "a symbol for {c}",
    "a pictogram of {c}",
    "a simple drawing of {c}",
    "a small picture of {c}",
    "an interface icon showing {c}",
)
EMOJI_TEMPLATES = ("{c}", "{c} emoji", "an emoji of {c}", "a colour drawing of {c}", "a colourful picture of {c}")
TAGGED_SHARE = 0.3
"""Share of the icons with tags whose training caption names one of them."""

FILLER_WORDS = frozenset({"and", "of", "the", "with"})
"""Words that tell no two names apart; "in", "on" and "a" (the letter) do."""


def draw(*key: str) -> float:
    """Return a number in [0, 1) that depends on nothing but the key."""
    digest = hashlib.sha256("\0".join(key).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def singular(word: str) -> str:
    """Return the word without its plural s; for comparing words, not for showing them.

    >>> [singular(word) for word in ("arrows", "glass", "bus", "boxes", "batteries")]
    ['arrow', 'glass', 'bus', 'box', 'battery']
    """
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("xes", "ches", "shes", "sses")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is", "as", "os")):
        return word[:-1]
    return word


def concept_of(words: tuple[str, ...]) -> str:
    """Return what a name is about: its words as a set, singular and sorted, without fillers.

    >>> concept_of(("arrows", "left", "of", "box")) == concept_of(("box", "left", "arrow"))
    True
    """
    return " ".join(sorted({singular(word) for word in words if word not in FILLER_WORDS}))


def caption_of(phrase: str, key: str, *, templates: tuple[str, ...], tags: tuple[str, ...] = ()) -> str:
    """Return one caption for a phrase.

    Args:
        phrase: The icon's name in words.
        key: What the random choices depend on.
        templates: Sentences with ``{c}`` to choose from.
        tags: Further words for the picture; one is added to a `TAGGED_SHARE` of those that have any.
    """
    caption = templates[int(draw("template", key) * len(templates))].format(c=phrase)
    if tags and draw("tagged", key) < TAGGED_SHARE:
        caption += ", " + tags[int(draw("tag", key) * len(tags))]
    return caption
