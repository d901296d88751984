"""What a variant makes of values: laid over each other, multiplied, and written into its label."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Iterator
from typing import Any

from engine.schema.base import check_known
from experiments.design.suite_file import Factors, Options, Variant
from experiments.design.tuning import nested


def merge(base: Any, change: Any) -> Any:
    """Return `base` with `change` laid over it: mappings are merged, anything else is replaced."""
    if isinstance(base, dict) and isinstance(change, dict):
        return {**base, **{key: merge(base.get(key), value) for key, value in change.items()}}
    return change


def times(values: Options, factors: Factors, where: str) -> Options:
    """Multiply the values of dotted names: integers stay integers of at least 1, None (worked out elsewhere) stays."""
    changed: Options = {}
    for key, factor in factors.items():
        value: Any = values
        for part in key.split("."):
            check_known("key", part, value if isinstance(value, dict) else (), f"{where}_times")
            value = value[part]
        if isinstance(value, bool) or not isinstance(value, (int, float, type(None))):
            raise ValueError(f"{where}_times: {key} is {value!r}, no number to multiply; give it in {where} instead")
        if value is not None:
            if not math.isfinite(value * factor):
                raise ValueError(
                    f"{where}_times: {key} = {value} times {factor} is no finite number: use a smaller factor"
                )
            # Twelve digits: 0.1 * 3 is to be 0.3, so that a run's id does not depend on how a value came about.
            changed[key] = max(1, round(value * factor)) if isinstance(value, int) else float(f"{value * factor:.12g}")
    return nested(changed)


def label_of(variant: Variant, values: Options) -> str:
    """Return what a variant is called: its label, with the values of what stands in braces, ``{rho}``, ``{a[b]}``."""
    pieces = []
    for text, name, form, conversion in _pieces(variant.label):
        pieces.append(text)
        if name is None:
            continue
        keys = re.fullmatch(r"(\w+)((?:\[\w+\])*)", name)
        if form or conversion or not keys:
            raise ValueError(f"label {variant.label!r}: in braces only the name of a setting can stand, as in {{rho}}")
        value: Any = values
        for key in (keys[1], *re.findall(r"\w+", keys[2])):
            check_known("key", key, value if isinstance(value, dict) else (), f"label {variant.label!r}")
            value = value[key]
        pieces.append(str(value))
    return "".join(pieces)


def _pieces(label: str) -> Iterator[tuple[str, str | None, str | None, str | None]]:
    try:
        yield from string.Formatter().parse(label)
    except ValueError as error:
        raise ValueError(f"label {label!r}: {error}: write a brace that is no setting's twice") from None
