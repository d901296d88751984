"""Read evaluations and the cards of their sets: one YAML each, in the folders `evaluations` and `evals`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from engine import files
from engine.schema.base import Frozen, ModelT, explain_validation_error, unknown_name
from engine.schema.evaluation import EvalCard, Evaluation, Precision, WhenMissing

# The same in C, ten times as fast, where PyYAML was built with it: hundreds of cards are read.
_SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class EvaluationList(Frozen):
    """The sets of an evaluation, its averages, and its options."""

    sets: tuple[str, ...] = Field(min_length=1)
    averages: dict[str, tuple[str, ...]]
    precision: Precision = "fp32"
    when_missing: WhenMissing = "refuse"


def names(folder: Path) -> list[str]:
    """Return the names of all cards in a folder, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def read_yaml(path: Path, model: type[ModelT]) -> ModelT:
    """Read and check a YAML file.

    Raises:
        ValueError: If it is not valid; the message names the file and every wrong key.
    """
    try:
        data: Any = yaml.load(files.read_text(path), Loader=_SafeLoader)
        return model.model_validate(data)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from None
    except ValidationError as error:
        raise ValueError(explain_validation_error(str(path), error, model)) from None


def read_card(folder: Path, name: str, model: type[ModelT], noun: str) -> ModelT:
    """Read the card called `name` in a folder.

    Raises:
        ValueError: If there is none, or it calls itself something else.
    """
    if name not in names(folder):
        raise ValueError(unknown_name(noun, name, names(folder)))
    card = read_yaml(folder / f"{name}.yaml", model)
    calls_itself = getattr(card, "name", name)
    if calls_itself != name:
        raise ValueError(f"the card {name}.yaml calls itself {calls_itself!r}: make file name and 'name' equal")
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


def eval_set(folder: Path, name: str) -> EvalCard:
    """Return the card of an evaluation set; `folder` has the cards in ``evals``."""
    return read_card(folder / "evals", name, EvalCard, "evaluation set")


def evaluation(folder: Path, name: str) -> Evaluation:
    """Return an evaluation with the cards of its sets; `folder` has it in ``evaluations`` and them in ``evals``.

    Raises:
        ValueError: If a set or an average names something unknown.
    """
    listed = read_card(folder / "evaluations", name, EvaluationList, "evaluation")
    sets = {key: eval_set(folder, key) for key in listed.sets}
    options = listed.model_dump(exclude={"sets"})
    try:
        return Evaluation(name=name, sets=sets, **options)
    except ValidationError as error:
        raise ValueError(explain_validation_error(f"evaluation {name!r}", error, Evaluation)) from None


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
        return f"`python -m experiments evaluation-data {card.name}` fetches it"
    return f"fetch it: {card.fetch or card.source}"


def missing(cards: Sequence[EvalCard]) -> str:
    """Return a message that names sets that are not there, and how to get each."""
    fetched = [card.name for card in cards if can_be_fetched(card)]
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
