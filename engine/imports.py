"""Import a package without what it imports in turn and our processes never use: half of the time they take to start."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def hidden(*names: str) -> Iterator[None]:
    """Let imports of these modules fail in a block, as if they were not installed; those imported already are found."""
    with _in_place(dict.fromkeys(names)):
        yield


@contextmanager
def late(*names: str) -> Iterator[None]:
    """Import functions of these modules when they are first called; for ``from NAME import FUNCTION`` in a block.

    Args:
        names: The modules, and the packages that they are in.
    """
    with _in_place({name: _Late(name) for name in names}):
        yield


class _Late(ModuleType):
    """Stands in for a module of which only functions are imported."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: Any, **options: Any) -> Any:
            return getattr(importlib.import_module(self.__name__), name)(*args, **options)

        return call


@contextmanager
def _in_place(stand_ins: dict[str, Any]) -> Iterator[None]:
    placed = {name: module for name, module in stand_ins.items() if name not in sys.modules}
    sys.modules.update(placed)
    try:
        yield
    finally:
        for name in placed:
            del sys.modules[name]
