"""The cards of what is built here: what they should say, and how a build differs from what they say."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from PIL import features

from experiments.icons.licences import SUMMARY

FOLDER = Path(__file__).resolve().parent.parent

EVAL_WORDING = {
    "unseen_styles": ("Unseen styles", "zero-shot by concept in two icon families that are never trained on"),
    "unseen_concepts": ("Unseen concepts", "zero-shot by head word, of concepts that are never trained on"),
    "retrieval": ("Retrieval", "pictures and captions of concepts that are never trained on"),
    "validation": ("Validation", "retrieval on the validation concepts: the only set that tuning may look at"),
}
"""Title and description of each evaluation set."""
SOURCES = "icons and emoji of the wheels pinned in experiments/icons/wheels.txt"
MEASURED = ("revision", "pairs", "task", "metric", "images", "classes", "captions", "chance", "sha256")
"""What must be equal in a card and a build; the rest is wording."""

Card = dict[str, Any]


class CardError(ValueError):
    """A build differs from its cards."""


def drawn_with() -> str:
    """Return the versions of the libraries that decide the pixels."""
    return f"resvg-py {version('resvg-py')}, Pillow {version('pillow')} with FreeType {features.version('freetype2')}"


def cards(manifest: dict[str, Any], manifest_bytes: bytes) -> dict[Path, Card]:
    """Return the cards of a build by path: first the training set's, then those of its evaluation sets."""
    name, tiny = manifest["name"], manifest["name"].endswith("_tiny")
    home = f"data/{name}"
    build = f"python -m experiments.icons --out {home}" + (" --tiny" if tiny else "")
    ready = f"{home}/manifest.json"
    suffix = " (a small part, for tests)" if tiny else ""
    made: dict[Path, Card] = {
        FOLDER / "datasets" / f"{name}.yaml": {
            "name": name,
            "title": "Icons and emoji with captions made of their names" + suffix,
            "revision": f"{manifest['recipe']}-{hashlib.sha256(manifest_bytes).hexdigest()[:12]}",
            "pairs": manifest["train"]["pairs"],
            "shards": f"{home}/train",
            "captions": {"member": "txt"},
            "licence": SUMMARY,
            "source": f"{SOURCES}; drawn with {drawn_with()}",
            "build": build,
            "ready": ready,
        }
    }
    for key, found in manifest["evals"].items():
        title, description = EVAL_WORDING[key.removeprefix(f"{name}_")]
        classification = "classes" in found
        chance = 1 / (found["classes"] if classification else found["images"])
        counts = {count: found[count] for count in ("images", "classes", "captions") if count in found}
        made[FOLDER / "evals" / f"{key}.yaml"] = {
            "name": key,
            "title": title,
            "description": description + suffix,
            "task": "zeroshot_classification" if classification else "zeroshot_retrieval",
            "metric": "acc1" if classification else "mean_recall@1",
            "path": f"{home}/evals/{key}",
            "split": "test",
            **counts,
            "chance": round(chance, 5),
            "sha256": found["sha256"],
            "licence": SUMMARY,
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


def write(made: dict[Path, Card]) -> None:
    """Write the cards into the repository."""
    for path, card in made.items():
        text = yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=110)
        path.write_bytes(f"# Written by python -m experiments.icons --update-cards.\n{text}".encode())
