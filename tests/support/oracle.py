"""Loads the numeric oracles of `tests/cases/`: inputs and what the authors' code returned for them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

_CASES = Path(__file__).parents[1] / "cases"


def load_case(name: str) -> dict[str, np.ndarray]:
    """Return the arrays of one case by name, e.g. ``fastclip/v3_first_gamma1_tau0.07``."""
    with np.load(_CASES / f"{name}.npz") as arrays:
        return dict(arrays)


def load_table(name: str) -> Any:
    """Return the content of one JSON case by name, e.g. ``fastclip/gamma_schedule``."""
    return json.loads((_CASES / f"{name}.json").read_text())


def relative_error(actual: Any, expected: np.ndarray) -> float:
    """Return max |actual - expected| over max |expected|; an array of zeros is compared absolutely."""
    actual = np.asarray(actual.detach().cpu() if hasattr(actual, "detach") else actual)
    if actual.shape != expected.shape:
        raise ValueError(f"shapes differ: got {actual.shape}, expected {expected.shape}")
    return float(np.abs(actual - expected).max() / (np.abs(expected).max() or 1.0))
