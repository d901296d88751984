"""Finds tables and figures by file name. Standard library only: Snakemake imports this while it reads its rules.

A table is ``tables/<id>.py``, a figure ``figures/<id>.py``. Each defines ``build(frame)`` and may say, as literals,

- ``KINDS``: the kinds of rows it is drawn from (`build` gets no others); by default those of `rendering.DEFAULT_KINDS`;
- ``SUITES``: patterns of the suites it is made for, e.g. ``("ablation_*",)``, or with ``!`` of those that it is not
  made for; all suites by default.
"""

from __future__ import annotations

import ast
import fnmatch
import hashlib
from pathlib import Path
from typing import Literal

Form = Literal["table", "figure"]

HERE = Path(__file__).parent
TABLE_SUFFIXES = (".csv", ".md", ".tex", ".json")
FIGURE_SUFFIXES = (".pdf", ".svg", ".png", ".json")


def tables(suite: str | None = None) -> tuple[str, ...]:
    """Ids of all tables, or of those made for a suite."""
    return _find("table", suite)


def figures(suite: str | None = None) -> tuple[str, ...]:
    """Ids of all figures, or of those made for a suite."""
    return _find("figure", suite)


def source(form: Form, name: str) -> Path:
    """The file that defines an artefact."""
    return HERE / f"{form}s" / f"{name}.py"


def literal(form: Form, name: str, constant: str, default: tuple[str, ...]) -> tuple[str, ...]:
    """Read a module-level constant without importing the module.

    Raises:
        ValueError: If the constant is not a literal tuple of strings.
    """
    path = source(form, name)
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [constant]:
            try:
                value = ast.literal_eval(node.value)
            except ValueError:
                value = None
            if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
                raise ValueError(
                    f"{path}: {constant} = {ast.unparse(node.value)}: allowed is a literal tuple of strings, "
                    f'such as {constant} = ("ablation_*",)'
                )
            return value
    return default


def sources_sha256(form: Form | None = None, name: str = "") -> str:
    """Digest of the code that an artefact is drawn by: the package's own modules, and the artefact's file.

    Without arguments, of the package's own modules only. Another digest means: draw it again.
    """
    files = [path for path in sorted(HERE.iterdir()) if path.is_file()]
    files += [source(form, name)] if form else []
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _find(form: Form, suite: str | None) -> tuple[str, ...]:
    found = sorted(path.stem for path in (HERE / f"{form}s").glob("[a-z]*.py"))
    return tuple(name for name in found if suite is None or _serves(literal(form, name, "SUITES", ("*",)), suite))


def _serves(patterns: tuple[str, ...], suite: str) -> bool:
    wanted = [p for p in patterns if not p.startswith("!")] or ["*"]
    unwanted = [p.removeprefix("!") for p in patterns if p.startswith("!")]
    return any(fnmatch.fnmatch(suite, p) for p in wanted) and not any(fnmatch.fnmatch(suite, p) for p in unwanted)
