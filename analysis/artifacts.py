"""Finds tables and figures by file name. Imports the standard library only: Snakemake needs this to read its rules.

A table is ``tables/<id>.py`` with ``build(frame)``, a figure ``figures/<id>.py`` with ``build(frame, width)``, the
width in inches. Each may say, as literals,

- ``KINDS``: the kinds of rows that `build` gets; by default `rendering.DEFAULT_KINDS`;
- ``SUITES``: patterns of the suites it is made for, such as ``("ablation_*",)``; a pattern that begins with ``!`` names
  suites that it is not made for. By default it is made for all but tunings, whose trials are no results: they have what
  names ``tuning@*``.
"""

from __future__ import annotations

import ast
import fnmatch
import functools
import hashlib
from pathlib import Path
from typing import Literal

Form = Literal["table", "figure"]

HERE = Path(__file__).parent
TABLE_SUFFIXES = (".csv", ".md", ".tex", ".json")
IN_COLUMN = "_column"
"""End of the file name of a figure that is as wide as one of a page's two columns; the other is as wide as the page."""
FIGURE_FORMATS = ("pdf", "svg", "png")
FIGURE_SUFFIXES = (*(f"{end}.{form}" for end in ("", IN_COLUMN) for form in FIGURE_FORMATS), ".json")


def tables(suite: str | None = None) -> tuple[str, ...]:
    """Return the ids of all tables, or of those made for a suite."""
    return _find("table", suite)


def figures(suite: str | None = None) -> tuple[str, ...]:
    """Return the ids of all figures, or of those made for a suite."""
    return _find("figure", suite)


def source(form: Form, name: str) -> Path:
    """Return the file that defines a table or a figure."""
    return HERE / f"{form}s" / f"{name}.py"


def literal(form: Form, name: str, constant: str, default: tuple[str, ...]) -> tuple[str, ...]:
    """Read a module-level constant without importing the module.

    Raises:
        ValueError: If the constant is not a literal tuple of strings.
    """
    path = source(form, name)
    written = _constants(path).get(constant)
    if written is None:
        return default
    try:
        value = ast.literal_eval(written)
    except ValueError:
        value = None
    if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
        raise ValueError(
            f"{path}: {constant} = {ast.unparse(written)}: allowed is a literal tuple of strings, "
            f'such as {constant} = ("ablation_*",)'
        )
    return value


@functools.cache  # the workflow asks for every suite
def _constants(path: Path) -> dict[str, ast.expr]:
    """Return the names that a module defines."""
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    return {
        target.id: node.value
        for node in nodes
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def sources_sha256(form: Form | None = None, name: str = "") -> str:
    """Return the digest of the code that draws a table or a figure: this package's modules, and its own file.

    Without arguments, return the digest of this package's modules. When the digest changes, draw again.
    """
    return _digest([*_own(), *([source(form, name)] if form else [])])


def report_sha256() -> str:
    """Return the digest of the code that writes reports; tables and figures have their own."""
    report = sorted(path for path in (HERE / "report").rglob("*") if path.is_file() and path.suffix != ".pyc")
    return _digest([*_own(), *report])


def _own() -> list[Path]:
    return [path for path in sorted(HERE.iterdir()) if path.is_file()]


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _find(form: Form, suite: str | None) -> tuple[str, ...]:
    found = sorted(path.stem for path in (HERE / f"{form}s").glob("[a-z]*.py"))
    return tuple(name for name in found if suite is None or _serves(literal(form, name, "SUITES", ("*",)), suite))


def _serves(patterns: tuple[str, ...], suite: str) -> bool:
    wanted = [p for p in patterns if not p.startswith("!")] or ["*"]
    if suite.startswith("tuning@"):
        wanted = [p for p in wanted if p.startswith("tuning@")]
    unwanted = [p.removeprefix("!") for p in patterns if p.startswith("!")]
    return any(fnmatch.fnmatch(suite, p) for p in wanted) and not any(fnmatch.fnmatch(suite, p) for p in unwanted)
