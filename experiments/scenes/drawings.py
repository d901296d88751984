"""The drawings of each concept: those that are trained on, those of unseen families, and both drawn otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from zipfile import ZipFile

import numpy as np

from experiments.icons import catalogue, render
from experiments.icons.catalogue import UNSEEN_SOURCES, Icon
from experiments.icons.draws import share
from experiments.scenes.paint import SIDES_PX, Drawing, Stencils, steps_of
from experiments.scenes.scenes import Level

SAME_OUTLINE, LOOK_ALIKE = 0.06, 0.10
"""Root mean square difference of two looks, as a share of full ink. Judged by eye: below 0.06 two drawings are hard to
tell apart at half the size of a picture, from 0.10 on they mostly differ in a detail."""
UNSEEN_STYLE_OF = {"filled": "filled", "outline": "outline", "regular": "outline"}
"""Styles of unseen families by what the trained ones call them; the other weights are left out."""


def stencils(wheels: Mapping[str, ZipFile], level: Level) -> dict[str, Stencils]:
    """Draw what the scenes of a level are made of.

    Args:
        wheels: Opened wheels by project.
        level: Which concepts, and how many drawings of each.

    Returns:
        The drawings that are trained on under ``trained``, the same shifted under ``sketched`` and ``turned``, and
        under ``unseen`` those of families that are never trained on, none of which looks like a trained one.
    """
    fonts = catalogue.read_fonts(wheels)
    icons = catalogue.read_icons(wheels, level.concepts)
    looks = {icon: look for icon in icons if (look := render.look(icon, fonts)) is not None}
    trained: dict[str, list[Icon]] = {}
    unseen: dict[str, list[Icon]] = {}
    for concept in level.concepts:
        mine = [icon for icon in looks if icon.concept == concept]
        seen = [icon for icon in mine if icon.source not in UNSEEN_SOURCES]
        some = [icon for icon in seen if icon.style in level.styles]
        distinct: list[Icon] = []
        for icon in sorted(some, key=lambda icon: share("drawing", icon.key)):
            if not _resembles(icon, distinct, SAME_OUTLINE, looks):
                distinct.append(icon)
        trained[concept] = distinct[: level.drawings]
        others = [icon for icon in mine if icon.source in UNSEEN_SOURCES]
        others = [icon for icon in others if UNSEEN_STYLE_OF.get(icon.style) in level.styles]
        unseen[concept] = [icon for icon in others if not _resembles(icon, seen, LOOK_ALIKE, looks)]
        assert trained[concept], f"{concept} is drawn"
        assert unseen[concept], f"{concept} is drawn in other families"
    shifted: dict[str, render.Shift] = {"trained": "", "sketched": "sketched", "turned": "turned"}
    made = {name: _drawn(trained, shift, fonts) for name, shift in shifted.items()}
    return {**made, "unseen": _drawn(unseen, "", fonts)}


def _resembles(icon: Icon, others: Sequence[Icon], limit: float, looks: Mapping[Icon, render.Ink]) -> bool:
    """Tell whether the look of an icon differs by at most `limit` from that of any other."""
    look = looks[icon].astype(np.int64)
    squares = (np.square(look - looks[other]).sum() for other in others)
    largest = (limit * (render.LOOK_LEVELS - 1)) ** 2 * look.size
    return any(square <= largest for square in squares)


def _drawn(icons: Mapping[str, Sequence[Icon]], shift: render.Shift, fonts: Mapping[str, bytes]) -> Stencils:
    """Return the stencils of icons by concept."""

    def drawing(icon: Icon) -> Drawing:
        return Drawing(icon.key, [steps_of(ink) for ink in render.stencils(icon, SIDES_PX, shift, fonts)])

    return {concept: list(map(drawing, some)) for concept, some in icons.items()}
