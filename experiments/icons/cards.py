"""Write what was counted of a build into its cards, or compare a build with them.

The words of a card are written by hand, as those of any other set.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import features
from scipy.stats import binom, hypergeom

from engine.evaluation import card_files
from experiments.icons.sets import ASSOCIATED, CANDIDATES

FOLDER = Path(__file__).resolve().parent.parent


MEASURED = ("revision", "pairs", "images", "classes", "captions", "chance", "sha256")
"""Keys that must be equal in a card and a build."""
DRAWN_WITH = "; drawn with "
"""Before the versions in the source of a training set."""

Card = dict[str, Any]


class CardError(ValueError):
    """A build differs from its cards."""


def drawn_with() -> str:
    """Return the versions of the libraries that decide the pixels."""
    return f"resvg-py {version('resvg-py')}, Pillow {version('pillow')} with FreeType {features.version('freetype2')}"


def _digest(manifest: dict[str, Any]) -> str:
    """Digest of the training set alone: its runs stay what they are when evaluation sets are added."""
    lines = [f"{name} {digest}\n" for name, digest in manifest["files"].items() if name.startswith("train/")]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def jaccard_by_chance(candidates: int, associated: int) -> float:
    """Return the mean Jaccard index of as many candidates as are associated, chosen at random.

    >>> round(jaccard_by_chance(4, 4), 12), round(jaccard_by_chance(2, 1), 12)
    (1.0, 0.5)
    """
    hits = np.arange(associated + 1)
    return float(hypergeom.pmf(hits, candidates, associated, associated) @ (hits / (2 * associated - hits)))


def worst_group_by_chance(sizes: Sequence[int], p: float) -> float:
    """Return the mean of the lowest accuracy over groups of images, each of which is guessed rightly with `p`.

    >>> round(worst_group_by_chance([3], 0.25), 12), round(worst_group_by_chance([1, 1], 0.5), 12)
    (0.25, 0.25)
    """
    shares = sorted({Fraction(hits, size) for size in sizes for hits in range(size + 1)})
    # The lowest reaches a share if every group does.
    reached = [math.prod(binom.sf(math.ceil(share * size) - 1, size, p) for size in sizes) for share in shares[1:]]
    return float(np.diff(np.array(shares, dtype=float)) @ reached)


def cards(manifest: dict[str, Any]) -> dict[Path, Card]:
    """Return the cards of a build by path, with what was built in them: the training set's, then the evaluation sets'.

    Raises:
        CardError: If one is not there.
    """
    path = FOLDER / "datasets" / f"{manifest['name']}.yaml"
    card = _written(path)
    revision = f"{manifest['recipe']}-{_digest(manifest)[:12]}"
    source = card["source"].split(DRAWN_WITH)[0] + DRAWN_WITH + drawn_with()
    made = {path: {**card, "revision": revision, "pairs": manifest["train"]["pairs"], "source": source}}
    for key, found in manifest["evals"].items():
        path = FOLDER / "evals" / f"{key}.yaml"
        card = _written(path)
        counts = {count: found[count] for count in ("images", "classes", "captions") if count in found}
        if card["task"] == "association":
            counts = {"images": found["tasks"]}  # as WinoGAViL's are counted
            chance = jaccard_by_chance(CANDIDATES, ASSOCIATED)
        elif card["task"] == "image_caption_selection":
            chance = 1 / found["choices"]
        else:
            chance = 1 / (counts["classes"] if "classes" in counts else counts["images"])
        if "families" in found:
            chance = worst_group_by_chance(found["families"], chance)
        made[path] = {**card, **counts, "chance": round(chance, 5), "sha256": found["sha256"]}
    return made


def _written(path: Path) -> Card:
    if not path.exists():
        raise CardError(f"{path} is not there: write it like those of the other sets; this command adds what it counts")
    card: Card = yaml.safe_load(path.read_text(encoding="utf-8"))
    return card


def check(made: dict[Path, Card]) -> None:
    """Compare a build's cards with those in the repository.

    Raises:
        CardError: Listing every difference, with the library versions then and now.
    """
    differences, drawn_then = [], "unknown versions"
    for path, card in made.items():
        written = _written(path)
        if DRAWN_WITH in written["source"]:
            drawn_then = written["source"].split(DRAWN_WITH)[1]
        for key in MEASURED:
            then, now = written.get(key), card.get(key)
            if then != now:
                differences.append(f"  {path.parent.name}/{path.name}: {key}: the card says {then}, built was {now}")
    if differences:
        listed = "\n".join(differences)
        raise CardError(
            f"the build differs from its cards, so it was thrown away:\n{listed}\n"
            f"The cards were made with {drawn_then}; here: {drawn_with()}.\n"
            "Other versions may draw other pixels: install those and build again. To go on with what is here (results "
            "then belong to another revision of the data and compare with no others), build with --update-cards."
        )


def write(made: dict[Path, Card]) -> None:
    """Write what differs into the cards in the repository."""
    for path, card in made.items():
        written = _written(path)
        card_files.rewrite(path, {key: value for key, value in card.items() if value != written.get(key)})
