"""What a suite may be called. Standard library and cards only: the workflow reads this without importing torch.

- ``NAME`` is a file of `experiments/suites/`;
- ``ablation_WHAT@NAME`` is a file of `experiments/ablations/`, applied to that suite; without ``@NAME`` to `laptop`;
- ``ablations@NAME`` or ``ablations`` is all of these.

In place of ``NAME`` a suite that is not in this repository is named by its file, ``path/to/mine.yaml``; once it has
been asked for in a folder, also as ``mine`` there, which is what its results are called.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel

from engine import files, paths
from engine.schema.base import ID_PATTERN, unknown_name
from experiments import cards

BASE = "laptop"
"""What an ablation is applied to when nothing is said: small enough for one machine."""
PREFIX = "ablation_"
SUFFIX = ".yaml"


class _Bundle(BaseModel):
    """The one field of a suite that says what is asked for along with it."""

    ablations: tuple[str, ...] = ()


def suites() -> list[str]:
    """Names of the suites, sorted."""
    return cards.names("suites")


def ablations(base: str = BASE) -> list[str]:
    """Names of all ablations of a suite, sorted."""
    return [f"{PREFIX}{what}@{base}" for what in cards.names("ablations")]


class Asked(NamedTuple):
    """A suite, or an ablation of one."""

    ablation: str | None
    base: str
    """Name of the suite that is a file."""
    file: Path
    is_ours: bool
    """Whether that file is one of `experiments/suites/`."""

    @property
    def name(self) -> str:
        """What its results are called."""
        return self.base if self.ablation is None else f"{PREFIX}{self.ablation}@{self.base}"

    @property
    def reference(self) -> str:
        """How to ask for it again."""
        base = self.base if self.is_ours else str(self.file)
        return base if self.ablation is None else f"{PREFIX}{self.ablation}@{base}"


def split(name: str) -> Asked:
    """Take a suite's name apart.

    Raises:
        ValueError: If there is no such suite or no such ablation.
    """
    first, at, second = name.partition("@")
    if first.startswith(PREFIX) and (at or not first.endswith(SUFFIX)):
        what, base = first.removeprefix(PREFIX), second or BASE
        if what not in cards.names("ablations"):
            raise ValueError(unknown_name("ablation", what, cards.names("ablations")))
        try:
            return Asked(what, *_find(base))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return Asked(None, *_find(name))


def called(asked: str) -> str:
    """What all that a name asks for is called together: a suite with its ablations as the suite is.

    Raises:
        ValueError: If the name is unknown.
    """
    group, _, base = asked.partition("@")
    return f"ablations@{split(base or BASE).name}" if group == "ablations" else split(asked).name


def _find(base: str) -> tuple[str, Path, bool]:
    """Return the name and the file of a suite, and whether it is one of this repository."""
    folder = cards.FOLDER / "suites"
    if base in suites():
        return base, folder / f"{base}{SUFFIX}", True
    if not base.endswith(SUFFIX):
        remembered = _outside(base)
        if remembered is None:
            known = [*suites(), *(PREFIX + what for what in cards.names("ablations"))]
            raise ValueError(unknown_name("suite", base, known) + f" One of your own: its file, path/to/NAME{SUFFIX}")
        base = remembered
    file = Path(base).expanduser()
    if not file.is_file():
        raise ValueError(f"suite {base}: there is no file {file.absolute()}")
    if file.resolve().parent == folder.resolve():
        return file.stem, folder / file.name, True
    if file.stem in suites() or file.stem.startswith(PREFIX) or not re.fullmatch(ID_PATTERN, file.stem):
        raise ValueError(
            f"suite {base}: its results would be called {file.stem!r}; allowed are names of {ID_PATTERN}, at most 60 "
            f"characters, that none of this repository's suites has and that do not begin with {PREFIX!r}: rename the "
            "file"
        )
    return file.stem, file, False


def _outside(base: str) -> str | None:
    """The file of a suite that has been asked for in this folder by its file."""
    folder = paths.suite(base).parent
    for path in (paths.suite(base), *sorted(folder.glob(f"{PREFIX}*@{base}.json"))):
        if path.exists():
            file: str | None = files.read_json(path).get("file")
            return file
    return None


def resolve(asked: Iterable[str]) -> list[str]:
    """Return how to ask for each of the suites that are asked for, each once, in order: by full name, or by file.

    Raises:
        ValueError: If a name is unknown.
    """
    found: dict[str, None] = {}
    for name in asked:
        group, _, base = name.partition("@")
        if group == "ablations":
            found |= dict.fromkeys(ablations(split(base or BASE).reference))
            continue
        one = split(name)
        found[one.reference] = None
        if one.ablation is None:
            patterns = cards.read_yaml(one.file, _Bundle).ablations
            those = [what for what in cards.names("ablations") if any(fnmatch.fnmatch(what, p) for p in patterns)]
            found |= dict.fromkeys(f"{PREFIX}{what}@{one.reference}" for what in those)
    return list(found)
