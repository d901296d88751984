"""Read evaluations and the cards of their sets: one YAML each, in the folders `evaluations` and `evals`, or anywhere.

A reference is a name in one of those folders, or the path of a file, which ends with `SUFFIX`. A file names others
relative to its own place.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from engine import files
from engine.schema.base import ID_PATTERN, Frozen, ModelT, explain_validation_error, gathered, located, unknown_name
from engine.schema.evaluation import EvalCard, Evaluation, Precision, WhenMissing
from engine.schema.written import load_yaml, read_yaml

SUFFIX = ".yaml"


class EvaluationList(Frozen):
    """The sets of an evaluation, its averages, and its options."""

    sets: tuple[str, ...] = Field(min_length=1)
    """By name, or by file."""
    averages: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """None at all stands for one over all sets."""
    precision: Precision = "fp32"
    when_missing: WhenMissing = "refuse"


def names(folder: Path) -> list[str]:
    """Return the names of all cards in a folder, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def has(folder: Path, name: str) -> bool:
    """Tell if a folder has a card of that name."""
    return "/" not in name and os.path.isfile(folder / f"{name}{SUFFIX}")


def placed(reference: str, folder: Path, suffix: str = SUFFIX) -> str:
    """Return a reference that a file in `folder` gives as one that holds everywhere: a path absolute, a name as it is.

    Args:
        reference: The reference.
        folder: Where a relative path starts.
        suffix: What a path ends with.
    """
    return os.path.abspath(folder / files.user_path(reference)) if reference.endswith(suffix) else reference


def own_file(folder: Path, reference: str, noun: str, suffix: str = SUFFIX, pattern: str = ID_PATTERN) -> Path | None:
    """Return the file that a reference names if it is none of `folder`, which has this repository's; None if it is.

    Raises:
        ValueError: If there is no such file, or if its name is one that results would not be told apart by.
    """
    if not reference.endswith(suffix):
        return None
    file = Path(placed(reference, Path(), suffix))
    if not file.is_file():
        raise ValueError(f"{noun} {reference}: there is no file {file}")
    if file.parent.resolve() == folder.resolve():
        return None
    check_own_name(folder, file, noun, pattern)
    return file


def check_own_name(folder: Path, file: Path, noun: str, pattern: str = ID_PATTERN) -> None:
    """Refuse a file whose name results would not be told apart by; `folder` has this repository's.

    Raises:
        ValueError: If it is wrong, or taken.
    """
    if (folder / file.name).exists() or not re.fullmatch(pattern, file.stem):
        raise ValueError(
            f"{noun} {file}: it is called {file.stem!r}; allowed are names of {pattern} that none of this repository "
            "has: name the file otherwise"
        )


def read_card(folder: Path, reference: str, model: type[ModelT], noun: str) -> ModelT:
    """Read a card that is called so in a folder, or any other one by its file.

    Raises:
        ValueError: If there is none, or it calls itself something else.
    """
    file = own_file(folder, reference, noun)
    if file is None:
        name = Path(reference).stem if reference.endswith(SUFFIX) else reference
        file = folder / f"{name}{SUFFIX}"
        if not has(folder, name):
            raise ValueError(unknown_name(noun, name, names(folder)) + f" One of your own: path/to/NAME{SUFFIX}")
    card = read_yaml(file, model)
    calls_itself = getattr(card, "name", file.stem)
    if calls_itself != file.stem:
        raise ValueError(f"the card {file.name} calls itself {calls_itself!r}: make file name and 'name' equal")
    return card


def rewrite(path: Path, values: dict[str, Any]) -> None:
    """Write the values of some keys into a YAML file; its other lines stay as they are."""
    text = files.read_text(path)
    for key, value in values.items():
        lines = yaml.safe_dump({key: value}, allow_unicode=True, width=110)
        # The value may go on in lines that are indented, or be a list.
        escaped = lines.replace("\\", r"\\")
        text, found = re.subn(rf"^{key}:.*\n(?:[ -].*\n)*", escaped, text, flags=re.MULTILINE)
        if not found:
            text = f"{text.rstrip()}\n{lines}"
    files.write_text(path, text)


def eval_set(folder: Path, reference: str) -> EvalCard:
    """Return the card of an evaluation set; `folder` has this repository's in ``evals``.

    Raises:
        ValueError: As `read_card`, or if a card from elsewhere asks the workflow to make its set.
    """
    card = read_card(folder / "evals", reference, EvalCard, "evaluation set")
    file = own_file(folder / "evals", reference, "evaluation set")
    if file is None:
        return card
    refuse_build(file, card.build, card.ready)
    return card.model_copy(update={"file": str(file), "path": os.path.abspath(file.parent / card.path)})


def refuse_build(file: Path, build: str | None, ready: str | None) -> None:
    """Refuse a card of one's own that the workflow would have to have a rule for.

    Raises:
        ValueError: If it has a command that makes its data.
    """
    if build or ready:
        raise ValueError(f"{file}: build, ready: only cards of this repository have these: make the data yourself")


def evaluation(folder: Path, reference: str) -> Evaluation:
    """Return an evaluation with the cards of its sets; `folder` has this repository's in ``evaluations`` and ``evals``.

    Args:
        folder: The folder.
        reference: A list's, or the file of a single set's card.

    Raises:
        ValueError: If a set or an average names something unknown. Names all cards that are wrong.
    """
    place = folder / "evaluations"
    file = own_file(place, reference, "evaluation")
    if file is not None and is_eval_card(file):
        listed = EvaluationList(sets=(str(file),))
    else:
        listed = read_card(place, reference, EvaluationList, "evaluation")
    start = (file or place).parent
    name = Path(reference).stem if reference.endswith(SUFFIX) else reference

    def card_of(each: str) -> EvalCard:
        # Of a file the error tells where it is, of a name that it is in this list.
        with contextlib.nullcontext() if each.endswith(SUFFIX) else located(f"evaluation {name!r}"):
            return eval_set(folder, placed(each, start))

    cards = gathered(partial(card_of, each) for each in listed.sets)
    called = dict(zip(listed.sets, (card.name for card in cards), strict=True))
    if len(sets := {card.name: card for card in cards}) < len(cards):
        raise ValueError(f"evaluation {name!r}: two sets have the same name among {', '.join(called.values())}")
    averages = {key: tuple(called.get(each, each) for each in of) for key, of in listed.averages.items()}
    options = listed.model_dump(exclude={"sets", "averages"}) | {"file": file and str(file)}
    try:
        return Evaluation(name=name, sets=sets, averages=averages or {"Average": tuple(sets)}, **options)
    except ValidationError as error:
        raise ValueError(explain_validation_error(f"evaluation {name!r}", error, Evaluation)) from None


def is_eval_card(file: Path) -> bool:
    """Tell if a file is the card of a set, not a list of several."""
    said = load_yaml(file)
    return isinstance(said, dict) and "task" in said


def is_there(card: EvalCard) -> bool:
    """Tell whether the set has been fetched or built."""
    return (Path(card.path) / card.split / "nshards.txt").exists()


def can_be_fetched(card: EvalCard) -> bool:
    """Tell whether `python -m experiments evaluation-data` can fetch the set."""
    return card.build is None and (card.hf_repo is not None or card.original is not None)


def how_to_get(card: EvalCard) -> str:
    """Return how to get a set."""
    if card.build:
        return f"`{card.build}` makes it"
    if can_be_fetched(card):
        return f"`python -m experiments evaluation-data {card.reference}` fetches it"
    return f"fetch it: {card.fetch or card.source}"


def missing(cards: Sequence[EvalCard]) -> str:
    """Return a message that names sets that are not there, and how to get each."""
    fetched = [card.reference for card in cards if can_be_fetched(card)]
    lines = [
        f"evaluation set {card.name!r}: {card.path} is not there"
        + ("" if can_be_fetched(card) else f"; {how_to_get(card)}")
        for card in cards
    ]
    if fetched:
        names = " ".join(fetched) if len(fetched) <= 3 else "NAME..."
        lines.append(
            f"`python -m experiments evaluation-data {names}` fetches them; `snakemake evaluation_data` all that the "
            "suites of its --config need"
        )
    return "\n".join(lines)
