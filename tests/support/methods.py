"""The methods that tests of every method run on: all of this repository, or the one that `check-method` was given."""

from __future__ import annotations

import os
from typing import Any

from engine import registry
from engine.method import Method, MethodConfig
from engine.schema.run import MethodSource

CHECKED = os.environ.get("CHECK_METHOD")
"""``path/to/file.py:ClassName``, set by `python -m experiments check-method`; tests' own processes see it too."""


def method_names(*, controls: bool = False) -> tuple[str, ...]:
    """Names of all methods to test, sorted; controls of methods keep the contract, and are not trained whole."""
    return registry.method_names(controls=controls) if CHECKED is None else (CHECKED.rpartition(":")[2].lower(),)


def source(name: str) -> MethodSource | None:
    """Return the source of a method for its runs; keep a copy of it below the working directory."""
    return registry.keep(CHECKED) if CHECKED is not None and name in method_names() else None


def method_class(name: str) -> type[Method]:
    """Return the class of a method."""
    return registry.method_class(name, _examined(name))


def resolve_config(name: str, options: dict[str, Any]) -> MethodConfig:
    """Validate a method's options and fill in its defaults."""
    return registry.resolve_config(name, options, _examined(name))


def _examined(name: str) -> MethodSource | None:
    return registry.examine(CHECKED)[0] if CHECKED is not None and name in method_names() else None
