"""AmorLIP over several epochs, beside the authors' algorithm written out: its order of updates, restarts and mixing."""

import copy
import math
from typing import Any

import pytest
import torch
from support.small import make_method, progress_of
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils import clip_grad_norm_

from baselines.amorlip import NetworkPair
from engine.method import Features

EPOCHS, STEPS, PAIRS, BATCH, DIM = 6, 20, 160, 8, 16


def draw(dtype: torch.dtype) -> tuple[Tensor, list[Tensor], Tensor]:
    """Return inputs of both sides, (2, N, D), encoders, and the positions of every step, (steps, B)."""
    generator = torch.Generator().manual_seed(0)
    shared, noise = torch.randn(PAIRS, DIM, generator=generator), torch.randn(2, PAIRS, DIM, generator=generator)
    start = torch.randn(2, DIM, DIM, generator=generator) / DIM**0.5
    order = torch.cat([torch.randperm(PAIRS, generator=generator).reshape(STEPS, BATCH) for _ in range(EPOCHS)])
    return (shared + noise).to(dtype), list(start.to(dtype)), order


def encode(inputs: Tensor, encoders: list[Tensor], index_B: Tensor) -> list[Tensor]:
    return [normalize(side[index_B] @ weight, dim=1) for side, weight in zip(inputs, encoders, strict=True)]


def optimizer_of(encoders: list[Tensor], t: Tensor) -> torch.optim.AdamW:
    groups = [{"params": encoders, "lr": 1e-3, "weight_decay": 0.2}, {"params": [t], "lr": 1e-4, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6)


def ours(dtype: torch.dtype, *, seed: int = 0) -> tuple[list[Tensor], list[float]]:
    """Train with the method; return the encoders and t at the end, and the loss of every step."""
    sizes: dict[str, Any] = {"steps_per_epoch": STEPS, "num_steps": EPOCHS * STEPS, "seed": seed}
    method = make_method("amorlip", dtype=dtype, dataset_size=PAIRS, **sizes)
    inputs, encoders, order = draw(dtype)
    encoders = [nn.Parameter(weight) for weight in encoders]
    (group,) = method.param_groups()
    optimizer, losses = optimizer_of(encoders, group.params[0]), []
    for step, index_B in enumerate(order):
        progress = progress_of(method, step)
        total = method.loss(Features(*encode(inputs, encoders, index_B), index_B), progress).total
        optimizer.zero_grad()
        total.backward()
        clip_grad_norm_([*encoders, *group.params], 1.0)
        optimizer.param_groups[1]["lr"] = 1e-4 * float(group.lr_factor(1.0))
        optimizer.step()
        method.after_step(progress)
        losses.append(total.item())
    return [*(weight.detach() for weight in encoders), group.params[0].detach()], losses


def theirs(dtype: torch.dtype) -> tuple[list[Tensor], list[float]]:
    """Train by the authors' algorithm, in linear space; of ours it has the networks' form and their random starts."""
    env = make_method("amorlip", dataset_size=PAIRS, steps_per_epoch=STEPS, num_steps=EPOCHS * STEPS).env
    inputs, encoders, order = draw(dtype)
    encoders, t = (
        [nn.Parameter(weight) for weight in encoders],
        nn.Parameter(torch.tensor(math.log(1 / 0.07)).to(dtype)),
    )
    optimizer, losses = optimizer_of(encoders, t), []
    average = NetworkPair(DIM, DIM).to(dtype)
    for step, index_B in enumerate(order):
        epoch = step // STEPS
        if step % STEPS == 0:
            previous, networks = average, NetworkPair(DIM, DIM)
            networks.reset(env.generator("amorlip networks", step))
            networks.to(dtype)
            average, adam = copy.deepcopy(networks), torch.optim.Adam(networks.parameters(), lr=1e-3)
        z = 0.4 * (1 - math.cos(math.pi * min(epoch / (EPOCHS // 2), 1)))
        x, y = encode(inputs, encoders, index_B)
        features, scale = Features(x, y, index_B), t.exp()
        logits = scale * x @ y.T
        weighted = torch.ones(BATCH, BATCH, dtype=dtype).fill_diagonal_(1e-3)
        sums = torch.stack([(weighted * side.exp()).sum(dim=1) for side in (logits, logits.T)], dim=1)
        with torch.no_grad():
            target = (z * previous(features).exp() + (1 - z) * sums).log()
        for _ in range(3):
            adam.zero_grad()
            (networks(features) - target).square().mean(dim=0).sum().backward()
            clip_grad_norm_(networks.parameters(), 1.0)
            adam.step()
        if step % STEPS % 2 == 0:
            with torch.no_grad():
                for slow, fast in zip(average.parameters(), networks.parameters(), strict=True):
                    slow.copy_(0.92 * slow + 0.08 * fast)
        cross, joint = (sums / target.exp()).mean(dim=0).sum(), 2 * scale * (x * y).sum(dim=1).mean()
        rho = 8.5 if epoch < EPOCHS // 3 else -8.5
        total = (cross - joint) / scale.detach() + rho / scale
        optimizer.zero_grad()
        total.backward()
        clip_grad_norm_([*encoders, t], 1.0)
        optimizer.param_groups[1]["lr"] = 1e-4 if 1 / scale.item() > 0.03 else 1e-4 / 3
        optimizer.step()
        with torch.no_grad():
            t.clamp_(0, math.log(100))
        losses.append(total.item())
    return [*(weight.detach() for weight in encoders), t.detach()], losses


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_six_epochs_are_the_authors_algorithm_where_the_networks_start_alike(
    dtype: torch.dtype, tolerance: float
) -> None:
    (found, losses), (expected, their_losses) = ours(dtype), theirs(dtype)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert losses == pytest.approx(their_losses, rel=tolerance)


def test_other_random_networks_are_first_seen_in_the_first_step_of_the_second_epoch() -> None:
    (_, losses), (_, others) = (ours(torch.float64, seed=seed) for seed in (0, 1))
    assert losses[:STEPS] == others[:STEPS]
    assert losses[STEPS] != pytest.approx(others[STEPS], rel=1e-4)
