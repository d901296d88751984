"""Cards of training sets, evaluation sets and evaluations: one YAML each, checked when read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from engine.evaluation import EvalCard, Evaluation
from engine.spec import ID_PATTERN, CaptionSource, Frozen, ModelT, explain_validation_error, unknown_name

FOLDER = Path(__file__).resolve().parent


class DatasetCard(Frozen):
    """A training set: what it is and where its shards lie, relative to the working directory."""

    name: str = Field(pattern=ID_PATTERN)
    title: str
    revision: str
    pairs: int = Field(ge=2)
    shards: str
    captions: CaptionSource = CaptionSource()
    licence: str
    source: str
    build: str | None = None
    """Command that makes or fetches it; None when it must be fetched by hand."""
    ready: str | None = None
    """File that exists once `build` has succeeded."""


class EvaluationList(Frozen):
    """Which sets an evaluation has, and which of them make which average."""

    sets: tuple[str, ...] = Field(min_length=1)
    averages: dict[str, tuple[str, ...]]


def names(kind: str) -> list[str]:
    """Return the names of all cards of a kind (a folder below `experiments/`), sorted."""
    return sorted(path.stem for path in (FOLDER / kind).glob("*.yaml"))


def read_yaml(path: Path, model: type[ModelT]) -> ModelT:
    """Read and check a YAML file.

    Raises:
        ValueError: If it is not valid; the message names the file and every wrong key.
    """
    try:
        data: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        return model.model_validate(data)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from None
    except ValidationError as error:
        raise ValueError(explain_validation_error(str(path), error, model)) from None


def _read_card(kind: str, name: str, model: type[ModelT], noun: str) -> ModelT:
    if name not in names(kind):
        raise ValueError(unknown_name(noun, name, names(kind)))
    return read_yaml(FOLDER / kind / f"{name}.yaml", model)


def dataset(name: str) -> DatasetCard:
    """Return the card of a training set."""
    card = _read_card("datasets", name, DatasetCard, "data set")
    return _named(card, card.name, name)


def eval_set(name: str) -> EvalCard:
    """Return the card of an evaluation set."""
    card = _read_card("evals", name, EvalCard, "evaluation set")
    return _named(card, card.name, name)


def evaluation(name: str) -> Evaluation:
    """Return an evaluation with the cards of its sets.

    Raises:
        ValueError: If a set or an average names something unknown.
    """
    listed = _read_card("evaluations", name, EvaluationList, "evaluation")
    sets = {key: eval_set(key) for key in listed.sets}
    try:
        return Evaluation(name=name, sets=sets, averages=listed.averages)
    except ValidationError as error:
        raise ValueError(explain_validation_error(f"evaluation {name!r}", error, Evaluation)) from None


def _named(card: ModelT, found: str, wanted: str) -> ModelT:
    if found != wanted:
        raise ValueError(f"the card {wanted}.yaml calls itself {found!r}: make file name and 'name' equal")
    return card
