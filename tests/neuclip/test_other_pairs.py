"""What stands in place of a network, against transcriptions of its equations over a list of pairs."""

import math
from typing import Any

import pytest
import torch
from support.small import features_of, make_method, progress_of, random_features, with_extra
from torch import Tensor

from engine.method import Features, Method

BATCH, DATASET = 8, 20
"""Of what `random_features` draws: pairs soon come back."""
Past = list[tuple[Tensor, Tensor, int]]
"""Image, text and position of the pairs in the queue."""


def make(control: str = "queue", **options: Any) -> Method:
    # Two batches and a half: the queue holds three.
    sizes = {"num_prototypes": 20} if control in ("queue", "exact") else {}
    options = sizes | {"eps": 1e-3, "rho": 1.0} | options
    return make_method(f"neuclip_{control}", dtype=torch.float64, **options)


def past_of(features: Features, *, grad: bool = False) -> Past:
    sides = (side if grad else side.detach() for side in (features.image_BD, features.text_BD))
    return list(zip(*sides, features.index_B.tolist(), strict=True))


def slow_alphas(features: Features, past: Past, scale: Tensor, eps: float) -> list[list[Tensor]]:
    """alpha of image and text anchors by its definition, one exponential at a time."""
    alphas: list[list[Tensor]] = [[], []]
    for image, text, own in zip(features.image_BD, features.text_BD, features.index_B.tolist(), strict=True):
        others = [pair for pair in past if pair[2] != own]
        for side, (anchor, partner) in enumerate(((image, text), (text, image))):
            terms = [((anchor @ pair[1 - side] - anchor @ partner) * scale).exp() for pair in others]
            alphas[side].append((eps + sum(terms) / len(terms)).log())
    return alphas


def slow_loss(features: Features, past: Past, method: Method) -> Tensor:
    """The loss by its definition: rho and eps of `make`."""
    config, scale = method.config, method.temperature.log_scale.exp()
    num_pairs = len(features.index_B)
    gammas, alphas = (slow_alphas(features, pairs, scale, 1e-3) for pairs in (past_of(features, grad=True), past))
    total = torch.zeros((), dtype=torch.float64)
    for log_gamma, alpha in zip(gammas[0] + gammas[1], alphas[0] + alphas[1], strict=True):
        alpha = alpha if config.npn_gradient == "full" else alpha.detach()
        gamma, mean = log_gamma.exp(), alpha.exp()
        if config.positive == "counted":
            gamma, mean = ((1 + (num_pairs - 1) * g) / num_pairs for g in (gamma, mean))
        total = total + gamma / mean + mean.log() - 1
    return (total / (2 * num_pairs) + 1.0) / scale


@pytest.mark.parametrize("positive", ["left out", "counted"])
@pytest.mark.parametrize("npn_gradient", ["detached", "full"])
@pytest.mark.parametrize("chunk_rows", [3, 1024])
@pytest.mark.parametrize("control", ["queue", "exact"])
def test_the_loss_and_its_gradients_are_those_of_the_definition(
    control: str, chunk_rows: int, npn_gradient: str, positive: str
) -> None:
    method = make(control, chunk_rows=chunk_rows, npn_gradient=npn_gradient, positive=positive)
    past: Past = []
    # Three batches fill the queue, the others replace its oldest. Some of the fresh pairs are in the batch.
    for step in range(5):
        ours, theirs = (with_extra(method, random_features(step), seed=step) for _ in range(2))
        past = past_of(theirs.extra) if theirs.extra else [*past, *past_of(theirs)][-3 * BATCH :]
        total = method.loss(ours, progress_of(method, step)).total
        expected = slow_loss(theirs, past, method)
        grads = [
            torch.autograd.grad(value, [side.image_BD, side.text_BD, method.temperature.log_scale])
            for value, side in ((total, ours), (expected, theirs))
        ]
        torch.testing.assert_close(total, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)


def test_the_normalizers_of_any_batch_are_means_over_the_queue_without_the_anchors_own_past() -> None:
    method = make(eps=1e-14)
    past: Past = []
    for step in range(4):
        batch = random_features(step)
        method.loss(batch, progress_of(method, step))
        past = [*past, *past_of(batch)][-3 * BATCH :]
    asked = random_features(9)
    # Some pairs of the batch are in the queue, one of them more than once; some are not.
    times = [sum(position == own for _, _, position in past) for own in asked.index_B.tolist()]
    assert min(times) == 0
    assert max(times) > 1
    expected = slow_alphas(asked, past, method.logit_scale, 1e-14)
    for ours, theirs in zip(method.log_normalizers(asked, progress_of(method, 4)), expected, strict=True):
        torch.testing.assert_close(ours, torch.stack(theirs).detach(), rtol=1e-12, atol=1e-12)


def test_an_anchor_with_nothing_but_its_own_past_is_left_with_eps_and_passes_no_gradient() -> None:
    method = make(npn_gradient="full")
    alone = features_of(torch.eye(8, 16), torch.eye(8, 16), [3] * BATCH)
    total = method.loss(alone, progress_of(method, 0)).total
    total.backward()
    assert total.isfinite()
    assert alone.image_BD.grad.isfinite().all()
    for alpha_B in method.log_normalizers(alone, progress_of(method, 0)):
        torch.testing.assert_close(alpha_B, torch.full_like(alpha_B, math.log(1e-3)))


def test_a_method_that_lacks_its_extra_pairs_says_who_brings_them() -> None:
    method = make("exact")
    with pytest.raises(ValueError, match=r"features\.extra is missing: .* the engine's trainer"):
        method.loss(random_features(0), progress_of(method, 0))


# Averages, and the batch itself --------------------------------------------------------------------------------------


def test_an_average_mixes_the_estimates_of_a_pairs_own_visits() -> None:
    gamma, eps = 0.3, 1e-3
    method = make("average", average_gamma=gamma, temperature={"learnable": False})
    scale = method.logit_scale
    known: dict[int, list[float]] = {}
    for step in range(3):
        batch = random_features(step)
        log_gamma_2B = slow_alphas(batch, past_of(batch), scale, eps)
        for row, own in enumerate(batch.index_B.tolist()):
            new = [float(log_gamma_2B[side][row].detach().exp()) for side in (0, 1)]
            old = known.get(own)
            known[own] = new if old is None else [(1 - gamma) * a + gamma * b for a, b in zip(old, new, strict=True)]
        method.loss(batch, progress_of(method, step))
    asked = random_features(9, num_pairs=DATASET)
    found_2B = torch.stack(method.log_normalizers(asked, progress_of(method, 3)))
    assert 8 < len(known) < DATASET
    for row, own in enumerate(asked.index_B.tolist()):
        expected = [math.log(u) for u in known[own]] if own in known else [math.nan] * 2
        assert found_2B[:, row].tolist() == pytest.approx(expected, rel=1e-5, nan_ok=True)


def test_the_batch_with_the_positive_counted_and_infonces_temperature_is_openclip_times_the_temperature() -> None:
    mine, theirs = random_features(0), random_features(0)
    control = make("batch", positive="counted", temperature_gradient="infonce", eps=1e-30, npn_gradient="detached")
    openclip = make_method("openclip", dtype=torch.float64)
    control.loss(mine, progress_of(control, 0)).total.backward()
    openclip.loss(theirs, progress_of(openclip, 0)).total.backward()
    temperature = 1 / control.logit_scale.detach()
    for ours, other in ((mine.image_BD, theirs.image_BD), (mine.text_BD, theirs.text_BD)):
        torch.testing.assert_close(ours.grad, temperature * other.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(control.temperature.log_scale.grad, openclip.temperature.log_scale.grad)


def test_only_infonce_moves_the_temperature_where_it_is_asked_to() -> None:
    grads = []
    for rho in (0.0, 5.0):
        method = make("queue", temperature_gradient="infonce", rho=rho)
        method.loss(random_features(0), progress_of(method, 0)).total.backward()
        grads.append(method.temperature.log_scale.grad)
    openclip = make_method("openclip", dtype=torch.float64)
    openclip.loss(random_features(0), progress_of(openclip, 0)).total.backward()
    assert grads[0] == grads[1]
    torch.testing.assert_close(grads[0], openclip.temperature.log_scale.grad)
