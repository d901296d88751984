"""Import a package without the imports of its own that our processes never use: they take half of the start."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def hidden(*names: str) -> Iterator[None]:
    """Let imports of modules fail in a block, as if they were not installed, unless they are imported already."""
    with _in_place(dict.fromkeys(names)):
        yield


@contextmanager
def late(*names: str) -> Iterator[None]:
    """Let ``from NAME import FUNCTION`` in a block import the module only when the function is called.

    Args:
        names: The modules, and the packages that they are in.
    """
    with _in_place({name: _Late(name) for name in names}):
        yield


class _Late(ModuleType):
    """A stand-in for a module of which only functions are imported."""

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
