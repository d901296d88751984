from typing import Any

import pytest
import torch
from support.small import random_features
from torch import Tensor
from torch.nn.functional import cosine_similarity

from engine.contrastive import add_eps, log_partitions
from engine.distributed import Collectives
from neuclip.normalizer import MLP, Anchors, Prototypes
from neuclip.objective import conjugate_slope, regression_slope, unified

DIM, PAIRS = 6, 8


def make_prototypes(num_prototypes: int, *, eps: float = 1e-8, chunk_rows: int = 64, **options: Any) -> Prototypes:
    options = {"num_remembered": 0, "collectives": Collectives()} | options
    return Prototypes(num_prototypes, DIM, eps=eps, chunk_rows=chunk_rows, **options).double()


def make_anchors(tau: float, eps: float, *, seed: int = 0) -> Anchors:
    features = random_features(seed, num_pairs=PAIRS, dim=DIM)
    sides = (features.image_BD.detach(), features.text_BD.detach())
    scale = torch.tensor(1 / tau, dtype=torch.float64)
    log_g_2G = torch.stack(log_partitions(*sides, *sides, scale))
    return Anchors(torch.stack(sides), (sides[0] * sides[1]).sum(dim=1), add_eps(log_g_2G, eps), scale)


def slow_alpha(weights_2MD: Tensor, anchors: Anchors, eps: float) -> Tensor:
    cos_2GM = cosine_similarity(anchors.embedding_2GD[:, :, None], weights_2MD[:, None], dim=3)
    g_2G = ((cos_2GM - anchors.positive_G[:, None]) * anchors.logit_scale).exp().mean(dim=2)
    return (eps + g_2G).log()


def slow_fit(
    normalizer: Prototypes, anchors: Anchors, objective: str, num_updates: int, lr: float
) -> tuple[Tensor, Tensor]:
    """The same by autograd and torch's AdaGrad: the first gradient and the final weights."""
    weights = normalizer.weights.clone().requires_grad_()
    optimizer = torch.optim.Adagrad([weights], lr=lr, eps=1e-10)
    first = None
    for _ in range(num_updates):
        alpha_2G = slow_alpha(weights, anchors, normalizer.eps)
        tau = 1 / anchors.logit_scale
        if objective == "unified":
            value = unified(anchors.log_gamma_2G, alpha_2G, tau, rho=1.0)
        else:
            value = tau / 2 * ((alpha_2G - anchors.log_gamma_2G).square() / 2).sum(dim=0).mean()
        optimizer.zero_grad()
        value.backward()
        assert weights.grad is not None
        first = weights.grad.clone() if first is None else first
        optimizer.step()
    assert first is not None
    return first, weights.detach()


@pytest.mark.parametrize("objective", ["unified", "separate"])
@pytest.mark.parametrize("chunk_rows", [3, 64])
@pytest.mark.parametrize("eps", [1e-14, 1e-3])
@pytest.mark.parametrize("tau", [0.01, 0.07])
def test_the_closed_form_is_autograd_with_torchs_adagrad(
    tau: float, eps: float, chunk_rows: int, objective: str
) -> None:
    anchors = make_anchors(tau, eps)
    normalizer = make_prototypes(11, eps=eps, chunk_rows=chunk_rows)
    # Near the embeddings, as after a restart; far away, weights of exp(40) would leave nothing but their rounding.
    normalizer.restart(anchors.embedding_2GD, 0, torch.Generator().manual_seed(1))
    noise = torch.randn(normalizer.weights.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    normalizer.weights = normalizer.weights * 1.7 + 0.05 * noise
    start = normalizer.weights
    grad, _ = slow_fit(normalizer, anchors, objective, 1, 0.01)
    _, final = slow_fit(normalizer, anchors, objective, 10, 0.01)
    slope = conjugate_slope if objective == "unified" else regression_slope

    alpha_2G, norm = normalizer.fit(anchors, slope=slope, num_updates=1, lr=0.01)
    torch.testing.assert_close(alpha_2G, slow_alpha(start, anchors, eps), rtol=1e-11, atol=1e-11)
    assert abs(float(norm / grad.norm()) - 1) < 1e-12
    scale = float(grad.square().max())
    assert float((normalizer.accumulator - grad.square()).abs().max()) < 2e-12 * scale

    normalizer.weights, normalizer.accumulator = start, torch.zeros_like(start)
    normalizer.fit(anchors, slope=slope, num_updates=10, lr=0.01)
    # AdaGrad's first step is a sign: the gradient's rounding is amplified where it is small.
    assert float((normalizer.weights - final).abs().max()) < 1e-8


@pytest.mark.parametrize("chunk_rows", [3, 64])
def test_the_prediction_is_the_equation_and_differentiable_in_all_it_sees(chunk_rows: int) -> None:
    anchors = make_anchors(0.07, 1e-8)
    normalizer = make_prototypes(5, chunk_rows=chunk_rows)
    normalizer.weights = torch.randn(2, 5, DIM, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    leaves = [anchors.embedding_2GD, anchors.positive_G, anchors.logit_scale]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    alpha_2G = normalizer(*leaves)
    expected_2G = slow_alpha(normalizer.weights, Anchors(leaves[0], leaves[1], alpha_2G, leaves[2]), 1e-8)
    weight_2G = torch.arange(2.0 * PAIRS, dtype=torch.float64).reshape(2, PAIRS)

    torch.testing.assert_close(alpha_2G, expected_2G, rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad((alpha_2G * weight_2G).sum(), leaves)
    theirs = torch.autograd.grad((expected_2G * weight_2G).sum(), leaves)
    for our_grad, their_grad in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our_grad, their_grad, rtol=1e-10, atol=1e-10)


def rows_of(weights_MD: Tensor, pool_ND: Tensor) -> list[int]:
    """For each prototype the number of the embedding that it copies exactly."""
    same_MN = (weights_MD[:, None] == pool_ND[None]).all(dim=2)
    assert (same_MN.sum(dim=1) == 1).all()
    return [int(row) for row in same_MN.int().argmax(dim=1)]


def test_a_restart_copies_distinct_embeddings_of_the_other_modality_and_resets_adagrad() -> None:
    anchors = make_anchors(0.07, 1e-8)
    normalizer = make_prototypes(5)
    normalizer.accumulator += 1
    normalizer.restart(anchors.embedding_2GD, 7, torch.Generator().manual_seed(0))

    image_GD, text_GD = anchors.embedding_2GD
    rows = rows_of(normalizer.weights[0], text_GD)
    assert rows_of(normalizer.weights[1], image_GD) == rows
    assert len(set(rows)) == 5
    assert not normalizer.accumulator.any()


def test_with_more_prototypes_than_pairs_the_first_restart_repeats_embeddings_evenly() -> None:
    anchors = make_anchors(0.07, 1e-8)
    normalizer = make_prototypes(2 * PAIRS + 3, num_remembered=PAIRS + 3)
    normalizer.restart(anchors.embedding_2GD, 0, torch.Generator().manual_seed(0))

    rows = rows_of(normalizer.weights[0], anchors.embedding_2GD[1])
    assert {rows.count(row) for row in range(PAIRS)} == {2, 3}


@pytest.mark.parametrize("period", [2, 7])
def test_with_more_prototypes_than_pairs_a_later_restart_takes_just_the_most_recent_embeddings(period: int) -> None:
    num_prototypes = 2 * PAIRS + 3
    batches = [make_anchors(0.07, 1e-8, seed=seed).embedding_2GD for seed in range(15)]
    normalizer = make_prototypes(num_prototypes, num_remembered=num_prototypes - PAIRS)
    for step, batch in enumerate(batches):
        if step % period == 0:
            normalizer.restart(batch, step, torch.Generator().manual_seed(step))
            seen = torch.cat(batches[: step + 1], dim=1)[:, -num_prototypes:]
            for side in (0, 1):
                rows = rows_of(normalizer.weights[side], seen[1 - side])
                assert set(rows) == set(range(seen.shape[1]))
        normalizer.remember(batch, period - step % period)


def test_fewer_prototypes_than_processes_are_refused() -> None:
    collectives = Collectives()
    collectives.world_size = 4
    with pytest.raises(ValueError, match=r"num_prototypes = 3 is fewer than the 4 processes"):
        make_prototypes(3, collectives=collectives)


def test_the_mlp_takes_steps_of_torchs_adagrad_on_unified() -> None:
    anchors = make_anchors(0.07, 1e-8)
    normalizer = MLP(DIM, eps=1e-8, collectives=Collectives()).double()
    normalizer.restart(anchors.embedding_2GD, 0, torch.Generator().manual_seed(0))
    hidden, hidden_bias, out, out_bias = (
        part.clone().requires_grad_() for part in torch.split(normalizer.weights, [DIM * DIM, DIM, DIM, 1], dim=1)
    )
    optimizer = torch.optim.Adagrad([hidden, hidden_bias, out, out_bias], lr=0.02, eps=1e-10)
    for _ in range(4):
        sides = []
        for side in (0, 1):
            first_DD = hidden[side].reshape(DIM, DIM)
            hidden_GD = (anchors.embedding_2GD[side] @ first_DD.T + hidden_bias[side]).clamp(min=0)
            f_G = hidden_GD @ out[side] / DIM + out_bias[side]
            sides.append((1e-8 + ((f_G - anchors.positive_G) * anchors.logit_scale).exp()).log())
        optimizer.zero_grad()
        unified(anchors.log_gamma_2G, torch.stack(sides), 1 / anchors.logit_scale, rho=0.0).backward()
        optimizer.step()
    normalizer.fit(anchors, slope=conjugate_slope, num_updates=4, lr=0.02)

    expected = torch.cat((hidden, hidden_bias, out, out_bias), dim=1).detach()
    torch.testing.assert_close(normalizer.weights, expected, rtol=1e-9, atol=1e-9)
