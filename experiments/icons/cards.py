"""Write the cards of what is built here, or compare a build with them."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from PIL import features

from engine.schema.evaluation import TASK_METRICS
from experiments.icons.licences import SUMMARY
from experiments.icons.sets import ASSOCIATED, CANDIDATES

FOLDER = Path(__file__).resolve().parent.parent


class Kind(NamedTuple):
    """The text of an evaluation set's card."""

    title: str
    description: str
    metric: str = "acc1"


class Family(NamedTuple):
    """The text of the cards of an embedded data set."""

    module: str
    """Module of the command that builds it."""
    options: dict[str, str]
    """Options of that command, by data set."""
    title: str
    kinds: dict[str, Kind]
    """By the end of an evaluation set's name."""
    licence: str


KINDS = {
    "unseen_styles": Kind("Unseen styles", "zero-shot by concept in icon families that are never trained on"),
    "thin": Kind("Thin", "unseen styles, drawn in thin lines by their designers"),
    "bold": Kind("Bold", "unseen styles, drawn in bold lines by their designers"),
    "filled": Kind("Filled", "unseen styles, drawn as filled shapes by their designers"),
    "coloured": Kind("Coloured", "the pictures of unseen styles in one colour on another"),
    "sketched": Kind("Sketched", "the pictures of unseen styles as drawn by an unsteady hand"),
    "turned": Kind("Turned", "the pictures of unseen styles turned by 20 to 40 degrees"),
    "unseen_concepts": Kind("Unseen concepts", "zero-shot by head word, of concepts that are never trained on"),
    "modifiers": Kind("Modifiers", "zero-shot by last word (off, plus, check), of concepts that are never trained on"),
    "characters": Kind(
        "Characters", "letters and digits, in concepts (a letter and its frame) that are never trained on"
    ),
    "families": Kind(
        "Families", "head words of concepts that are never trained on: the icon family that is seen worst", "acc_wg"
    ),
    "retrieval": Kind("Icon retrieval", "pictures and captions of concepts that are never trained on", "mean_recall@1"),
    "unseen_styles_retrieval": Kind(
        "Unseen styles retrieval", "the same in icon families that are never trained on", "mean_recall@1"
    ),
    "tags": Kind("Tags", "which pictures go with a word that is not in their names", "jaccard_score_10-12"),
    "validation": Kind(
        "Validation", "retrieval on the validation concepts: the only set that tuning may look at", "mean_recall@1"
    ),
}
ICONS = Family(
    "experiments.icons",
    {"icons": "", "icons_tiny": " --tiny"},
    "Icons and emoji with captions made of their names",
    KINDS,
    SUMMARY,
)
SOURCES = "icons and emoji of the wheels pinned in experiments/icons/wheels.txt"
MEASURED = (
    "revision",
    "pairs",
    "task",
    "metric",
    "images",
    "classes",
    "captions",
    "metadata",
    "group_by",
    "chance",
    "sha256",
)
"""Keys that must be equal in a card and a build; the rest is wording."""

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

    >>> jaccard_by_chance(4, 4), jaccard_by_chance(2, 1)
    (1.0, 0.5)
    """
    ways = [
        math.comb(associated, h) * math.comb(candidates - associated, associated - h) for h in range(associated + 1)
    ]
    return sum(way * h / (2 * associated - h) for h, way in enumerate(ways)) / math.comb(candidates, associated)


def worst_group_by_chance(sizes: Sequence[int], p: float) -> float:
    """Return the mean of the lowest accuracy over groups of images, each of which is guessed rightly with `p`.

    >>> round(worst_group_by_chance([3], 0.25), 12), worst_group_by_chance([1, 1], 0.5)
    (0.25, 0.25)
    """
    shares = sorted({hits / size for size in sizes for hits in range(size + 1)})
    mean = 0.0
    for lower, share in itertools.pairwise(shares):
        # The lowest reaches `share` if every group does.
        tails = []
        for size in sizes:
            enough = [hits for hits in range(size + 1) if hits / size >= share]
            tails.append(math.fsum(math.comb(size, h) * p**h * (1 - p) ** (size - h) for h in enough))
        mean += (share - lower) * math.prod(tails)
    return mean


def cards(manifest: dict[str, Any], family: Family = ICONS) -> dict[Path, Card]:
    """Return the cards of a build by path: first the training set's, then those of its evaluation sets."""
    name, tiny = manifest["name"], manifest["name"].endswith("_tiny")
    home = f"data/{name}"
    build = f"python -m {family.module} --out {home}{family.options[name]}"
    ready = f"{home}/manifest.json"
    suffix = " (a small part, for tests)" if tiny else ""
    made: dict[Path, Card] = {
        FOLDER / "datasets" / f"{name}.yaml": {
            "name": name,
            "title": family.title + suffix,
            "revision": f"{manifest['recipe']}-{_digest(manifest)[:12]}",
            "pairs": manifest["train"]["pairs"],
            "shards": f"{home}/train",
            "captions": {"member": "txt"},
            "licence": family.licence,
            "source": f"{SOURCES}; drawn with {drawn_with()}",
            "build": build,
            "ready": ready,
        }
    }
    for key, found in manifest["evals"].items():
        kind = family.kinds[key.removeprefix(f"{name}_")]
        task = next(task for task, metrics in TASK_METRICS.items() if kind.metric in metrics)
        counts = {count: found[count] for count in ("images", "classes", "captions") if count in found}
        if task == "association":
            counts = {"images": found["tasks"]}  # as WinoGAViL's are counted
            chance = jaccard_by_chance(CANDIDATES, ASSOCIATED)
        elif task == "image_caption_selection":
            chance = 1 / found["choices"]
        else:
            chance = 1 / (counts["classes"] if "classes" in counts else counts["images"])
        if "families" in found:
            chance = worst_group_by_chance(found["families"], chance)
        made[FOLDER / "evals" / f"{key}.yaml"] = {
            "name": key,
            "title": kind.title,
            "description": kind.description + suffix,
            "task": task,
            "metric": kind.metric,
            "path": f"{home}/evals/{key}",
            "split": "test",
            **counts,
            **({"metadata": ["family"], "group_by": "family"} if "families" in found else {}),
            "chance": round(chance, 5),
            "sha256": found["sha256"],
            "licence": family.licence,
            "source": SOURCES,
            "build": build,
            "ready": ready,
        }
    return made


def check(made: dict[Path, Card]) -> None:
    """Compare a build's cards with those in the repository.

    Raises:
        CardError: Listing every difference, with the library versions then and now.
    """
    differences, drawn_then = [], "unknown versions"
    for path, card in made.items():
        written: Card = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
        if "; drawn with " in written.get("source", ""):
            drawn_then = written["source"].split("; drawn with ")[1]
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


def write(made: dict[Path, Card], family: Family = ICONS) -> None:
    """Write the cards into the repository."""
    for path, card in made.items():
        text = yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=110)
        path.write_bytes(f"# Written by python -m {family.module} --update-cards.\n{text}".encode())
