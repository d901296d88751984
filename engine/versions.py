"""Check that the packages this checkout asks for are installed, in versions that it allows."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent


def check_packages(requirements: list[str] | None = None) -> None:
    """Compare what is installed with what is required.

    Args:
        requirements: Requirements as in `pyproject.toml`; None takes the project's own, without its extras.

    Raises:
        ValueError: If a package is missing or has a version that is not allowed; names all of them.
    """
    if requirements is None:
        # Of this checkout, not of its installation, which may be older.
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        requirements = project["dependencies"]
    problems = []
    for requirement in map(Requirement, requirements):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            problems.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            problems.append(f"{requirement.name} {version} is installed, {requirement.specifier} is allowed")
    if problems:
        raise ValueError(f"{'; '.join(problems)}: run `pip install -e {ROOT} -c {ROOT / 'requirements.lock'}`")
