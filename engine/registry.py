"""Find methods by their file: `baselines/<name>.py`, `<name>/method.py` or a control of a method here, or outside.

A control is `<method>/controls/<name>.py`: a sibling that tells what the method's gain comes of.

Nothing is registered. A file from outside is copied to `paths.method()` when a suite names it. The run executes the
copy, and its id covers the copy's digest.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from engine import files, paths
from engine.schema.base import located, unknown_name, validated
from engine.schema.run import MethodSource, MethodSpec
from engine.versions import ROOT

if TYPE_CHECKING:  # torch is imported with the first method that is asked for
    from engine.method import Method, MethodConfig, MethodEnv


def _method_files(*, controls: bool = True) -> dict[str, Path]:
    """Return the files of all methods of this repository, by name."""
    methods = {path.parent.name: path for path in ROOT.glob("*/method.py") if path.parent.name != "engine"}
    singles = [path for folder in ("baselines", "*/controls")[: 1 + controls] for path in ROOT.glob(f"{folder}/*.py")]
    return methods | {path.stem: path for path in singles if not path.stem.startswith("_")}


def method_names(*, controls: bool = True) -> tuple[str, ...]:
    """Return the names of all methods of this repository, sorted, with the controls of methods or without."""
    return tuple(sorted(_method_files(controls=controls)))


def method_class(name: str, source: MethodSource | None = None) -> type[Method]:
    """Import the file of a method and return its class.

    Args:
        name: The method.
        source: Its class and file, if it is not in this repository; `keep` must have copied the file.

    Raises:
        ValueError: If there is no such method, if its file does not define exactly one `Method` (or not the class
            that `source` names), or if the copy has changed.
    """
    if source is not None:
        return _class_in(_kept_module(source), source.class_name)
    known = _method_files()
    if name not in known:
        raise ValueError(unknown_name("method", name, sorted(known)))
    module = importlib.import_module(".".join(known[name].relative_to(ROOT).with_suffix("").parts))
    found = _methods_in(module)
    if len(found) != 1:
        raise ValueError(f"{module.__file__}: expected exactly one subclass of Method, found {len(found)}")
    return next(iter(found.values()))


def keep(reference: str, folder: Path = Path()) -> MethodSource:
    """Check a method in a file outside this repository, and keep a copy of the file for its runs.

    Args:
        reference: ``path/to/file.py:ClassName``.
        folder: The folder that a relative path starts from.

    Raises:
        ValueError: As `examine`.
    """
    source, content = examine(reference, folder)
    copy = paths.method(source.sha256)
    if not copy.exists() or copy.read_bytes() != content:
        with files.atomic_write(copy) as temporary:
            temporary.write_bytes(content)
    return source


def examine(reference: str, folder: Path = Path()) -> tuple[MethodSource, bytes]:
    """Import a method as `keep` does; returns its source and the file's content.

    Raises:
        ValueError: If there is no such file or class, if importing the file fails, or if the class is no method.
    """
    file, colon, class_name = reference.rpartition(":")
    if not colon or not file.endswith(".py") or not class_name.isidentifier():
        raise ValueError(f"class: {reference!r}: allowed is path/to/file.py:ClassName")
    with located("class"):
        path = folder / files.user_path(file)
    if not path.is_file():
        raise ValueError(f"class: {reference}: there is no file {path.absolute()}")
    content = path.read_bytes()
    source = MethodSource(class_name=class_name, sha256=hashlib.sha256(content).hexdigest())
    _class_in(_module(content, source.sha256, path), class_name)
    return source, content


def resolve_config(name: str, options: dict[str, Any], source: MethodSource | None = None) -> MethodConfig:
    """Check a method's options and fill in its defaults; `name` and `source` are those of `method_class`.

    Raises:
        ValueError: If an option is unknown or has a wrong value; the message names it.
    """
    config_class = method_class(name, source).Config
    with located(f"method {name!r}", config_class):
        return validated(config_class, options)


def build_method(spec: MethodSpec, env: MethodEnv) -> Method:
    """Return the method of a run."""
    config = resolve_config(spec.name, dict(spec.config), spec.source)
    return method_class(spec.name, spec.source)(config, env)


def _said(error: BaseException) -> str:
    """Return the kind and the text of a user's error, whose class may be the user's too."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # what the user's __str__ raises
        return f"{type(error).__name__}, which has no text"


def _methods_in(module: ModuleType) -> dict[str, type[Method]]:
    """Return the methods that a file defines itself, by the names of their classes; an abstract class is none."""
    from engine.method import Method

    own = {key: value for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
    return {
        key: value
        for key, value in own.items()
        if isinstance(value, type) and issubclass(value, Method) and not inspect.isabstract(value)
    }


def _class_in(module: ModuleType, name: str) -> type[Method]:
    from engine.method import Method, MethodConfig

    found = _methods_in(module)
    if name not in found:
        why = (
            "" if getattr(module, name, None) is None else f"{name} is no subclass of engine.method.Method made here; "
        )
        raise ValueError(f"{module.__file__}: {why}" + unknown_name("method class", name, found))
    method = found[name]
    if not (isinstance(method.Config, type) and issubclass(method.Config, MethodConfig)):
        raise ValueError(f"{module.__file__}: {name}.Config is {method.Config!r}: make it a subclass of MethodConfig")
    try:
        method.Config.model_rebuild(_types_namespace=vars(module))  # nothing, where all its types are known
    except Exception as error:  # of any kind: the types are the user's expressions
        raise ValueError(f"{module.__file__}: {name}.Config: {_said(error)}") from error
    for member in ("loss", "logit_scale"):
        if getattr(method, member) is getattr(Method, member):
            raise ValueError(f"{module.__file__}: {name} does not define {member!r}: see engine.method.Method")
    return method


def _kept_module(source: MethodSource) -> ModuleType:
    path = paths.method(source.sha256)
    if _module_name(source.sha256) in sys.modules:
        return sys.modules[_module_name(source.sha256)]
    if not path.exists():
        raise ValueError(f"{source.class_name}: the copy of its file, {path}, is gone: expand the suite again")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != source.sha256:
        raise ValueError(f"{path} was changed since the run was made: remove it, and expand the suite again")
    return _module(content, source.sha256, path)


def _module_name(sha256: str) -> str:
    return f"method_{sha256}"


def _module(content: bytes, sha256: str, path: Path) -> ModuleType:
    """Execute the content that a digest was taken of, once in a process."""
    name = _module_name(sha256)
    if name not in sys.modules:
        module = ModuleType(name)
        module.__file__ = str(path)
        sys.modules[name] = module  # dataclasses and pydantic look up the module of a class while they make it
        try:
            exec(compile(content, str(path), "exec", dont_inherit=True), vars(module))
        except (Exception, SystemExit) as error:  # of any kind: the file is the user's, who needs to know the line
            del sys.modules[name]
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
            line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
            raise ValueError(f"{path}, line {line}: {_said(error)}") from error
    return sys.modules[name]
