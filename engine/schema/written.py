"""Read the YAML that people write: what PyYAML would pass over in silence, or choke on, is one error."""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from engine import files
from engine.schema.base import ModelT, located, validated

# The same in C, ten times as fast, where PyYAML was built with it: hundreds of cards are read.
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

MAX_DEPTH, MAX_VALUES = 50, 100_000
"""Values within values, and values in all, each counted wherever an alias repeats it."""
_TURNS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that turn the order in which others are shown."""
_WRONG_VALUES = (ValueError, LookupError, TypeError, AttributeError, OverflowError)
"""What PyYAML raises for values that are not what they look like, or are tagged as: dates, numbers."""


def read_yaml(path: Path, model: type[ModelT]) -> ModelT:
    """Read and check a YAML file.

    Raises:
        ValueError: If it is not valid; the message names the file and every wrong key.
    """
    found: ModelT = _read(files.read_text(path), str(path), model)
    return found


# A card is read for every run that it has a part in.
@functools.lru_cache(maxsize=1024)
def _read(text: str, where: str, model: type[ModelT]) -> ModelT:
    said = parse_yaml(text, where)
    if said is None:
        raise ValueError(f"{where}: it is an empty file: write what docs/bring-your-own.md shows")
    with located(where, model):
        return validated(model, said)


def load_yaml(path: Path) -> Any:
    """Return what a YAML file says, as `parse_yaml`; the message of an error names the file."""
    return parse_yaml(files.read_text(path), str(path))


def parse_yaml(text: str, where: str) -> Any:
    """Return what YAML says: mappings with texts as keys, lists, and plain values, a bounded number of them.

    Args:
        text: The YAML.
        where: What the text is, for the error message.

    Raises:
        ValueError: If it is no YAML, says something else, or the same key of a mapping twice.
    """
    try:
        said = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: not valid YAML: {error}") from None
    except RecursionError:
        raise ValueError(f"{where}: not valid YAML: more than {MAX_DEPTH} values within each other") from None
    except _WRONG_VALUES as error:
        raise ValueError(
            f"{where}: not valid YAML: a value is not what it looks like ({error}): put it in quotes"
        ) from None
    with located(where):
        _refuse_odd(said)
    return said


class _Loader(_SafeLoader):  # type: ignore[misc]
    """Refuses a key that a mapping has twice: PyYAML takes the last one in silence."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    problem = f"key {key.value!r} occurs twice: remove one of them"
                    raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


# A number for YAML 1.2 as well, where YAML 1.1 asks for a point: 1e-3.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _refuse_odd(said: Any) -> None:
    """Refuse keys that are no texts, texts that a terminal obeys, and values that aliases repeat beyond bounds."""
    for count, (place, value) in enumerate(_values(said, ())):
        # Aliases may lead round in circles.
        if count > MAX_VALUES or len(place) > MAX_DEPTH:
            raise ValueError(f"more than {MAX_VALUES:,} values, or {MAX_DEPTH} within each other: write fewer aliases")
        if not isinstance(value, str | int | float | dict | list | None):
            raise ValueError(f"{_called(place)}: {value} is read as a {type(value).__name__}: put it in quotes")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{_called(place)}: {value} is no finite number: write one")
        for c in value if isinstance(value, str) else "":
            if (unicodedata.category(c) == "Cc" and c not in "\n\t") or c in _TURNS:
                raise ValueError(f"{_called(place)}: the text has {c!r}: control characters are not allowed")


def _values(said: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield all keys and values, with their places."""
    yield place, said
    if isinstance(said, dict):
        for key, value in said.items():
            if not isinstance(key, str):
                raise ValueError(f"{_called(place)}: key {key!r:.80} is no text: put it in quotes")
            yield place, key
            yield from _values(value, (*place, key[:40]))
    elif isinstance(said, list):
        for number, value in enumerate(said):
            yield from _values(value, (*place, str(number)))


def _called(place: tuple[str, ...]) -> str:
    return ".".join(place) or "(whole)"
