"""Finds methods by where their file lies: `baselines/<name>.py` or `<name>/method.py`. Nothing to register."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from engine.method import Method, MethodConfig
from engine.spec import explain_validation_error, unknown_name

_ROOT = Path(__file__).resolve().parent.parent


def method_names() -> tuple[str, ...]:
    """Return the names of all methods, sorted."""
    files = [p.stem for p in (_ROOT / "baselines").glob("*.py") if not p.stem.startswith("_")]
    packages = [p.parent.name for p in _ROOT.glob("*/method.py") if p.parent.name != "engine"]
    return tuple(sorted(files + packages))


def method_class(name: str) -> type[Method]:
    """Import the file of a method and return its class.

    Raises:
        ValueError: If there is no such method, or its file does not define exactly one `Method`.
    """
    if name not in method_names():
        raise ValueError(unknown_name("method", name, method_names()))
    in_package = (_ROOT / name / "method.py").exists()
    module = importlib.import_module(f"{name}.method" if in_package else f"baselines.{name}")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise ValueError(f"{module.__file__}: expected exactly one subclass of Method, found {len(found)}")
    return found[0]


def resolve_config(name: str, options: dict[str, Any]) -> MethodConfig:
    """Validate a method's options and fill in its defaults.

    Raises:
        ValueError: If an option is unknown or has a wrong value; the message names it.
    """
    config_class = method_class(name).Config
    try:
        return config_class.model_validate(options)
    except ValidationError as error:
        raise ValueError(explain_validation_error(f"method {name!r}", error, config_class)) from None
