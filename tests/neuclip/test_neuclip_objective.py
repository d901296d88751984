import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.oracle import load_case, relative_error
from support.small import features_of

from engine.contrastive import add_eps, log_partitions
from neuclip.objective import MAX_GAP, conjugate, conjugate_slope, regression_slope, rgcl, unified

CASES = ["neuclip/tau0.03_m8_Tu3", "neuclip/tau0.07_m32"]


def objective_gradients(case: dict[str, np.ndarray], name: str) -> list[torch.Tensor]:
    """Value and gradients (image, text, tau) of RGCL, or of UNIFIED at alpha* = log(eps + g) held constant."""
    features = features_of(case["image"], case["text"])
    tau = torch.tensor(float(case["tau"]), dtype=torch.float64, requires_grad=True)
    sides = (features.image_BD, features.text_BD)
    log_g_2B = torch.stack(log_partitions(*sides, *sides, 1 / tau))
    eps, rho = float(case["eps"]), float(case["rho"])
    if name == "rgcl":
        total = rgcl(log_g_2B, tau, rho=rho, eps=eps)
    else:
        log_gamma_2B = add_eps(log_g_2B, eps)
        total = unified(log_gamma_2B, log_gamma_2B.detach(), tau, rho=rho)
    return [total, *torch.autograd.grad(total, (*sides, tau))]


@pytest.mark.parametrize("name", ["rgcl", "unified"])
@pytest.mark.parametrize("path", CASES)
def test_rgcl_and_unified_at_the_optimal_alpha_have_the_value_and_gradients_of_the_oracle(path: str, name: str) -> None:
    case = load_case(path)
    expected = [case[f"rgcl_{key}"] for key in ("loss", "grad_image", "grad_text", "grad_tau")]
    for ours, theirs in zip(objective_gradients(case, name), expected, strict=True):
        assert relative_error(ours, theirs) < 1e-12


@settings(max_examples=50, deadline=None)
@given(log_gamma=st.floats(-80, 80), alpha=st.floats(-80, 80))
def test_the_conjugate_is_an_upper_bound_that_the_optimal_alpha_reaches(log_gamma: float, alpha: float) -> None:
    pair = torch.tensor([log_gamma, alpha], dtype=torch.float64)
    assert conjugate(pair[0], pair[1]) >= log_gamma - 1e-12
    assert math.isclose(float(conjugate(pair[0], pair[0])), log_gamma, abs_tol=1e-12)


@settings(max_examples=50, deadline=None)
@given(gap=st.floats(-50, MAX_GAP - 1))
def test_the_slopes_are_the_derivatives_of_what_they_belong_to(gap: float) -> None:
    alpha = torch.tensor(-gap, dtype=torch.float64, requires_grad=True)
    log_gamma = torch.zeros_like(alpha)
    for value, slope in (
        (conjugate(log_gamma, alpha), conjugate_slope),
        ((alpha - log_gamma).square() / 2, regression_slope),
    ):
        (expected,) = torch.autograd.grad(value, alpha)
        torch.testing.assert_close(slope(log_gamma, alpha.detach()), expected)
