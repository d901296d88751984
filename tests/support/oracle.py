"""Loads the numeric oracles of `tests/cases/`: inputs and what the authors' code returned for them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

_CASES = Path(__file__).parents[1] / "cases"


every_dtype = pytest.mark.parametrize(
    ("dtype", "value_tolerance", "grad_tolerance"), [(torch.float64, 1e-9, 1e-9), (torch.float32, 1e-5, 1e-4)]
)
"""The cases in float64, and as runs compute them."""


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


def assert_step(
    case: dict[str, np.ndarray], total: Any, features: Any, t: Any, value_tolerance: float, grad_tolerance: float
) -> None:
    """Hold a loss, and its gradients in both sides and in t, against a case; a t of None has no gradient there."""
    assert relative_error(total, case["loss" if "loss" in case else "total_loss"]) < value_tolerance
    grads = {"grad_image": features.image_BD.grad, "grad_text": features.text_BD.grad}
    if t is not None:
        grads["grad_log_scale"] = t.grad
    for name, grad in grads.items():
        assert relative_error(grad, case[name]) < grad_tolerance, name
