"""Every method that there is, under every choice that its options offer: read off each `Config`, no list."""

import io
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import torch
from pydantic import BaseModel
from support.methods import method_class, method_names, resolve_config
from support.small import random_features, train_step
from torch import Tensor

from engine.method import Method, TemperatureConfig

Options = dict[str, Any]

FEW = 5
"""Integers that are larger by default are set to this: chunks, restarts and the like then come about within a small
batch and a few steps."""


def choices(annotation: Any) -> Iterator[Any]:
    """List the values among which a field's type lets one choose: those of Literal, True and False, None."""
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation is bool:
        yield from (False, True)
    elif annotation is type(None):
        yield None
    elif origin is Literal:
        yield from args
    elif origin is Annotated:
        yield from choices(args[0])
    elif origin in (Union, types.UnionType):
        for arg in args:
            yield from choices(arg)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from ({field: choice} for field, choices in alternatives(annotation).items() for choice in choices)


def alternatives(config_class: type[BaseModel]) -> dict[str, list[Any]]:
    """List the choices of every field that has any, without its default."""
    fields = config_class.model_fields.items()
    found = {name: [c for c in choices(field.annotation) if c != field.default] for name, field in fields}
    return {name: values for name, values in found.items() if values}


def is_valid(name: str, options: Options) -> bool:
    """Tell if a method takes these options together."""
    try:
        resolve_config(name, options)
    except ValueError:
        return False
    return True


def few(name: str) -> Options:
    """Options of a method that make its large integers small."""
    fields = method_class(name).Config.model_fields.items()
    large = [key for key, field in fields if type(field.default) is int and field.default > FEW]
    return {key: FEW for key in large if is_valid(name, {key: FEW})}


def variants() -> list[tuple[str, Options]]:
    """List every method as it is by default, and with small integers and each single choice."""
    found: list[tuple[str, Options]] = []
    for name in method_names(controls=True):
        small = few(name)
        single = [{key: value} for key, values in alternatives(method_class(name).Config).items() for value in values]
        candidates = [small, *(small | choice for choice in single)]
        found += [(name, {})] if small else []
        found += [(name, options) for options in candidates if is_valid(name, options)]
    return found


def label(variant: tuple[str, Options]) -> str:
    """Name a variant in a test's id: its method and what it chooses."""
    name, options = variant
    small = few(name)
    if small and not options:
        return f"{name} by default"
    return " ".join((name, *(f"{key}={value}" for key, value in options.items() if small.get(key, ...) != value)))


VARIANTS = variants()
SMALL = [variant for variant in VARIANTS if variant[1].keys() >= few(variant[0]).keys()]
"""Without the methods as they are by default, whose chunks hold a small batch whole."""


def at_temperature(name: str, options: Options, which: str) -> Options:
    """Let a method start at its ``minimum`` or ``maximum`` temperature, if its options have such bounds."""
    temperature = getattr(resolve_config(name, options), "temperature", None)
    if not isinstance(temperature, TemperatureConfig):
        return options
    return options | {"temperature": options.get("temperature", {}) | {"init": getattr(temperature, which)}}


def train(method: Method, steps: range) -> list[dict[str, Tensor]]:
    """Train with a batch of its own for every step; return what each step gave."""
    dtype = method.logit_scale.dtype
    return [train_step(method, step, random_features(step, dtype=dtype)) for step in steps]


def saved(method: Method) -> Any:
    """Return a method's state as it comes back from a file."""
    file = io.BytesIO()
    torch.save(method.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def tensors(state: Any) -> list[Tensor]:
    """List all tensors of a nested state."""
    if isinstance(state, Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    return [tensor for value in values for tensor in tensors(value)]


def same(a: Any, b: Any) -> bool:
    """Tell if two nested states are equal bit for bit; NaN equals NaN."""
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)
