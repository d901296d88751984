"""Names of suites, and what they ask for.

- ``NAME`` is a file of `experiments/suites/`;
- ``ablation_WHAT@NAME`` is a file of `experiments/ablations/`, applied to that suite; without ``@NAME`` to `laptop`;
- ``ablations@NAME`` or ``ablations`` is all of these, but for those that their files leave to be asked for by name;
- ``tuning@NAME`` is the trials of that suite's tuning.

In place of ``NAME`` a suite that is not in this repository is named by its file, ``path/to/mine.yaml``; once a
workflow was about it in a folder, also as ``mine`` there, which is what its results are called.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from engine import files, paths
from engine.evaluation import card_files
from engine.schema.base import ID_PATTERN, check_known, located, parse, unknown_name
from engine.schema.suite import ABLATION as ABLATION
from engine.schema.suite import TUNING as TUNING
from engine.schema.suite import ExpandedSuite
from experiments.design import cards
from experiments.design.suite_file import Ablation, Suite

BASE = "laptop"
"""What an ablation is applied to when nothing is said: small enough for one machine."""
SUFFIX = ".yaml"


def suites() -> list[str]:
    """Names of the suites, sorted."""
    return cards.names("suites")


def ablations(base: str = BASE) -> list[str]:
    """Names of a suite's ablations, sorted, but for those that are asked for by name only."""
    return [f"{ABLATION}{what}@{base}" for what in cards.names("ablations") if not ablation(what).by_name_only]


def tunings() -> list[str]:
    """Names of the tunings of all suites that have one, sorted."""
    return [f"{TUNING}@{name}" for name in suites() if split(name).said.tuning is not None]


def ablation(what: str) -> Ablation:
    """Return what the file of an ablation says."""
    return cards.read_yaml(cards.FOLDER / "ablations" / f"{what}{SUFFIX}", Ablation)


class Asked(NamedTuple):
    """A suite, an ablation of one, or the tuning of one."""

    part: str | None
    """``ablation_WHAT`` or ``tuning``; None for the suite itself."""
    base: str
    """Name of the suite that is a file."""
    file: Path
    is_ours: bool
    """True if that file is one of `experiments/suites/`."""

    @property
    def name(self) -> str:
        """Name of its results."""
        return self.base if self.part is None else f"{self.part}@{self.base}"

    @property
    def base_reference(self) -> str:
        """Name that asks for the suite itself again."""
        return self.base if self.is_ours else str(self.file)

    @property
    def reference(self) -> str:
        """Name that asks for it again."""
        return self.base_reference if self.part is None else f"{self.part}@{self.base_reference}"

    @property
    def ablation(self) -> str | None:
        """Name of the ablation's file."""
        return self.part.removeprefix(ABLATION) if self.part and self.part != TUNING else None

    @property
    def said(self) -> Suite:
        """What the suite's file says, word for word."""
        return cards.read_yaml(self.file, Suite)

    @property
    def tuned(self) -> Path:
        """The file of the settings that the suite's tuning has chosen."""
        return (cards.FOLDER if self.is_ours else self.file.parent) / "tuned" / self.file.name

    def maker(self, tuned: str) -> Asked:
        """Return the suite that `tuned` of this one names: itself, or another; a file lies relative to its own."""
        if tuned == self.base:
            return self
        with located("tuned"):
            return split(card_files.placed(tuned, self.file.parent, SUFFIX))


def split(name: str) -> Asked:
    """Take a suite's name apart.

    Raises:
        ValueError: If there is no such suite or no such ablation.
    """
    first, at, second = name.partition("@")
    if first == TUNING or (first.startswith(ABLATION) and (at or not first.endswith(SUFFIX))):
        if first != TUNING:
            check_known("ablation", first.removeprefix(ABLATION), cards.names("ablations"))
        with located(name):
            return Asked(first, *_find(second or BASE))
    return Asked(None, *_find(name))


def called(asked: str) -> str:
    """Return one name for all that a name asks for: a suite with its ablations is called as the suite.

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
            known = [*suites(), *(ABLATION + what for what in cards.names("ablations"))]
            raise ValueError(unknown_name("suite", base, known) + f" One of your own: its file, path/to/NAME{SUFFIX}")
        base = remembered
    file = files.user_path(base)
    if not file.is_file():
        raise ValueError(f"suite {base}: there is no file {os.path.abspath(file)}")
    if file.resolve().parent == folder.resolve():
        return file.stem, folder / file.name, True
    is_taken = file.stem in (TUNING, *suites()) or file.stem.startswith(ABLATION)
    if is_taken or not re.fullmatch(ID_PATTERN, file.stem):
        raise ValueError(
            f"suite {base}: its results would be called {file.stem!r}; allowed are names of {ID_PATTERN}, at most 60 "
            f"characters, that none of this repository's suites has and that are not {TUNING!r} nor begin with "
            f"{ABLATION!r}: rename the file"
        )
    return file.stem, file, False


def _outside(base: str) -> str | None:
    """The file of a suite of which there are results in this folder."""
    folder = paths.suite(base).parent
    for path in (paths.suite(base), *sorted(folder.glob(f"*@{glob.escape(base)}.json"))):
        if path.exists():
            return file_of(path)
    return None


def file_of(path: Path) -> str | None:
    """Return the file that an expanded suite was written in; None for one of this repository."""
    return parse(ExpandedSuite, files.read_text(path), str(path)).file


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
        if one.part is None:
            patterns, known = one.said.ablations, cards.names("ablations")
            for pattern in patterns:
                if not fnmatch.filter(known, pattern):
                    raise ValueError(f"{one.file}: ablations: " + unknown_name("ablation", pattern, known))
            those = [what for what in known if any(fnmatch.fnmatch(what, p) for p in patterns)]
            found |= dict.fromkeys(f"{ABLATION}{what}@{one.reference}" for what in those)
    return list(found)
