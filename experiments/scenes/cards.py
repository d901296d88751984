"""The text of the cards of the compositional data sets."""

from __future__ import annotations

from experiments.icons.cards import Family, Kind
from experiments.scenes.scenes import Level

LICENCE = "Apache-2.0, MIT, CC-BY-4.0 and OFL-1.1 by source; LICENSES.md of the built folder has all"
_RECALL, _CHOICE = "mean_recall@1", "text_acc"

KINDS = {
    "retrieval": Kind("Scene retrieval", "pictures and captions of combinations that are never trained on", _RECALL),
    "new_colours": Kind(
        "New colours", "retrieval of scenes with a thing in a colour that it never has in training", _RECALL
    ),
    "unseen_drawings": Kind(
        "Unseen drawings", "scenes of the main set, drawn by designers whose icons are never trained on", _RECALL
    ),
    "other_grounds": Kind(
        "Other grounds", "scenes of the main set on dotted, ringed and waved grounds that are never trained on", _RECALL
    ),
    "sketched": Kind("Sketched", "scenes of the main set as drawn by an unsteady hand", _RECALL),
    "turned": Kind("Turned", "scenes of the main set with every thing turned by 20 to 40 degrees", _RECALL),
    "swapped_colours": Kind(
        "Swapped colours", "the right one of four captions, the others with colours exchanged or replaced", _CHOICE
    ),
    "swapped_concepts": Kind(
        "Swapped concepts", "the right one of four captions, the others with concepts exchanged or replaced", _CHOICE
    ),
    "swapped_places": Kind(
        "Swapped places", "the right one of four captions, which put the two things in all four ways", _CHOICE
    ),
    "colour": Kind("Colour", "zero-shot by the colour of a single thing"),
    "concept": Kind("Concept", "zero-shot by the concept of a single thing"),
    "place": Kind("Place", "zero-shot by the corner that a single thing is in"),
    "count": Kind("Count", "zero-shot by the number of things of a kind"),
    "validation": Kind(
        "Validation", "retrieval of the validation scenes: with the next one all that tuning may look at", _RECALL
    ),
    "validation_swapped": Kind(
        "Validation, swapped", "the right one of four captions of validation scenes, of all three kinds", _CHOICE
    ),
}
"""By the end of the set's name."""


def family(level: Level) -> Family:
    """Return what the cards of a level say."""
    things = "two or three" if level.weights[3] else "two"
    title = f"Scenes of mostly {things} icons with captions that name all they show"
    return Family("experiments.scenes", {level.name: level.options}, title, KINDS, LICENCE)
