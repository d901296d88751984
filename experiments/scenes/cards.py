"""Compare a build with its cards, or write into them what was counted of it.

The words of a card are written by hand, as those of any other set.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from PIL import features

from engine.evaluation import card_files, reading
from engine.schema.evaluation import EvalCard

FOLDER = Path(__file__).resolve().parent.parent
DRAWN_WITH = "; drawn with "
"""Before the versions in the source of a training set."""

Card = dict[str, Any]


class CardError(ValueError):
    """A build differs from its cards."""


def drawn_with() -> str:
    """Return the versions of the libraries that decide the pixels."""
    return f"resvg-py {version('resvg-py')}, Pillow {version('pillow')} with FreeType {features.version('freetype2')}"


def counted(manifest: dict[str, Any]) -> dict[Path, Card]:
    """Return what the cards of a build must say, by path: the training set's, then the evaluation sets'."""
    # Of the training set alone: its runs stay what they are when evaluation sets are added.
    lines = [f"{name} {digest}\n" for name, digest in manifest["files"].items() if name.startswith("train/")]
    revision = f"{manifest['recipe']}-{hashlib.sha256(''.join(lines).encode()).hexdigest()[:12]}"
    training = {"revision": revision, "pairs": manifest["train"]["pairs"]}
    evals = {FOLDER / "evals" / f"{name}.yaml": found for name, found in manifest["evals"].items()}
    return {FOLDER / "datasets" / f"{manifest['name']}.yaml": training, **evals}


def check_readable(made: dict[Path, Card], folder: Path) -> None:
    """Read the evaluation sets of a build in `folder` as its users do.

    Raises:
        ValueError: If one cannot be read.
    """
    for path, found in made.items():
        written = _written(path)
        if "task" in written:
            reading.count(EvalCard.model_validate({**written, **found, "path": str(folder / "evals" / path.stem)}))


def check(made: dict[Path, Card]) -> None:
    """Compare what was counted with the cards in the repository.

    Raises:
        CardError: Listing every difference, with the library versions then and now.
    """
    differences, drawn_then = [], "unknown versions"
    for path, found in made.items():
        written = _written(path)
        _, mark, versions = written["source"].partition(DRAWN_WITH)
        drawn_then = versions if mark else drawn_then
        for key, now in found.items():
            if written.get(key) != now:
                then = written.get(key)
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
    for path, found in made.items():
        written = _written(path)
        before, mark, _ = written["source"].partition(DRAWN_WITH)
        new = {**found, "source": before + mark + drawn_with() if mark else before}
        card_files.rewrite(path, {key: value for key, value in new.items() if value != written.get(key)})


def _written(path: Path) -> Card:
    if not path.exists():
        raise CardError(f"{path} is not there: write it like those of the other sets; this command adds what it counts")
    card: Card = yaml.safe_load(path.read_text(encoding="utf-8"))
    return card
