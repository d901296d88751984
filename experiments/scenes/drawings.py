"""The drawings of each concept: those that are trained on, those of unseen families, and both drawn otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from zipfile import ZipFile

from experiments.icons import catalogue, render, sets
from experiments.icons.captions import draw
from experiments.icons.catalogue import UNSEEN_SOURCES, Icon
from experiments.scenes.paint import SIDES_PX, Drawing, Stencils, steps_of
from experiments.scenes.scenes import Level

SAME_OUTLINE = 0.06
"""As `experiments.icons.sets.SAME_DRAWING`, at half the size: what is hard to tell apart counts once."""
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
    named = {(concept,) for concept in level.concepts}
    icons = [icon for icon in catalogue.read_icons(wheels) if icon.words in named and icon.style != "colour"]
    rendered = render.render_all(icons, [""] * len(icons), fonts, jobs=1)
    pictures = [sets.Picture(icon, *drawn) for icon, drawn in zip(icons, rendered, strict=True) if drawn]
    trained: dict[str, list[Icon]] = {}
    unseen: dict[str, list[Icon]] = {}
    for concept in level.concepts:
        mine = [picture for picture in pictures if picture.icon.words == (concept,)]
        seen = [picture for picture in mine if picture.icon.source not in UNSEEN_SOURCES]
        some = [picture for picture in seen if picture.icon.style in level.styles]
        some = sorted(some, key=lambda picture: draw("drawing", picture.icon.key))
        trained[concept] = [picture.icon for picture in sets.distinct(some, SAME_OUTLINE)[: level.drawings]]
        others = [p for p in mine if p.icon.source in UNSEEN_SOURCES]
        others = [picture for picture in others if UNSEEN_STYLE_OF.get(picture.icon.style) in level.styles]
        unseen[concept] = [picture.icon for picture in sets.unlike(others, sets.LOOK_ALIKE, seen)]
        assert trained[concept], f"{concept} is drawn"
        assert unseen[concept], f"{concept} is drawn in other families"
    shifted: dict[str, render.Shift] = {"trained": "", "sketched": "sketched", "turned": "turned"}
    made = {name: _drawn(trained, shift, fonts) for name, shift in shifted.items()}
    return {**made, "unseen": _drawn(unseen, "", fonts)}


def _drawn(icons: Mapping[str, Sequence[Icon]], shift: render.Shift, fonts: Mapping[str, bytes]) -> Stencils:
    """Return the stencils of icons by concept."""

    def of(some: Sequence[Icon]) -> list[Drawing]:
        inks = render.stencils(some, SIDES_PX, shift, fonts)
        return [
            Drawing(icon.key, [steps_of(*sized) for sized in zip(ink, SIDES_PX, strict=True)])
            for icon, ink in zip(some, inks, strict=True)
        ]

    return {concept: of(some) for concept, some in icons.items()}
