"""What a suite may be called. Standard library and cards only: the workflow reads this without importing torch.

- ``NAME`` is a file of `experiments/suites/`;
- ``ablation_WHAT@NAME`` is a file of `experiments/ablations/`, applied to that suite; without ``@NAME`` to `laptop`;
- ``ablations@NAME`` or ``ablations`` is all of these.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

from pydantic import BaseModel

from engine.spec import unknown_name
from experiments import cards

BASE = "laptop"
"""What an ablation is applied to when nothing is said: small enough for one machine."""
PREFIX = "ablation_"


class _Bundle(BaseModel):
    """The one field of a suite that says what is asked for along with it."""

    ablations: tuple[str, ...] = ()


def suites() -> list[str]:
    """Names of the suites, sorted."""
    return cards.names("suites")


def ablations(base: str = BASE) -> list[str]:
    """Names of all ablations of a suite, sorted."""
    return [f"{PREFIX}{what}@{base}" for what in cards.names("ablations")]


def split(name: str) -> tuple[str | None, str]:
    """Take a suite's name apart.

    Returns:
        The ablation, or None, and the suite that is a file.

    Raises:
        ValueError: If there is no such suite or no such ablation.
    """
    first, at, second = name.partition("@")
    if not first.startswith(PREFIX):
        if at or name not in suites():
            known = [*suites(), *(PREFIX + what for what in cards.names("ablations"))]
            raise ValueError(unknown_name("suite", name, known))
        return None, name
    what, base = first.removeprefix(PREFIX), second or BASE
    if what not in cards.names("ablations"):
        raise ValueError(unknown_name("ablation", what, cards.names("ablations")))
    if base not in suites():
        raise ValueError(f"{name}: " + unknown_name("suite", base, suites()))
    return what, base


def resolve(asked: Iterable[str]) -> list[str]:
    """Return the full names of all suites that are asked for, each once, in order.

    Raises:
        ValueError: If a name is unknown.
    """
    found: dict[str, None] = {}
    for name in asked:
        group, _, base = name.partition("@")
        if group == "ablations":
            _, base = split(base or BASE)
            found |= dict.fromkeys(ablations(base))
            continue
        what, base = split(name)
        if what is not None:
            found[f"{PREFIX}{what}@{base}"] = None
            continue
        found[name] = None
        patterns = _bundle(name)
        wanted = [a for a in ablations(name) if any(fnmatch.fnmatch(a, f"{PREFIX}{p}@{name}") for p in patterns)]
        found |= dict.fromkeys(wanted)
    return list(found)


def _bundle(name: str) -> tuple[str, ...]:
    return cards.read_yaml(cards.FOLDER / "suites" / f"{name}.yaml", _Bundle).ablations
