import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.oracle import assert_step, every_dtype, load_case, load_table, relative_error
from support.small import assert_same_step, features_of, make_method, progress_of, random_features, train_step
from torch import Tensor, nn

from baselines.amorlip import AmorLIP, LogNormalizerNetwork, NetworkPair, network_loss
from engine.method import Features

SCRIPT = {"steps_per_epoch": 10, "num_steps": 330}
"""33 epochs, as in the authors' script."""


class Given(nn.Module):
    """A network pair that answers with given log lambdas."""

    def __init__(self, image: Any, text: Any) -> None:
        super().__init__()
        self.register_buffer("log_lambda_B2", torch.stack([torch.as_tensor(image), torch.as_tensor(text)], dim=1))

    def forward(self, features: Features) -> Tensor:
        return self.log_lambda_B2.to(features.image_BD.dtype)


def make_amorlip(dtype: torch.dtype = torch.float64, log_scale: float | None = None, **options: Any) -> AmorLIP:
    method = make_method("amorlip", dtype=dtype, **SCRIPT | options)
    assert isinstance(method, AmorLIP)
    if log_scale is not None:
        with torch.no_grad():
            method.temperature.log_scale.fill_(log_scale)
    return method


def log_lambdas(method: AmorLIP, features: Features, step: int) -> tuple[Tensor, Tensor]:
    """Turn the log-normalizers back into the sums lambda."""
    shift = method.logit_scale * (features.image_BD * features.text_BD).sum(dim=1)
    shift = shift + math.log(method.env.global_batch_size - 1)
    log_g_image, log_g_text = method.log_normalizers(features, progress_of(method, step))
    return log_g_image + shift, log_g_text + shift


def load_networks(pair: NetworkPair, case: dict[str, np.ndarray], prefix: str) -> None:
    """Take weights under the authors' names, image_mlp.fc1.weight and so on."""
    names = {f"{side}.{rest}": f"{prefix}{side}_mlp.{rest}" for side in ("image", "text") for rest in REST}
    pair.load_state_dict({mine: torch.tensor(case[theirs]) for mine, theirs in names.items()})


REST = [f"{layer}.{part}" for layer in ("fc1", "norm1", "fc2", "norm2", "fc3") for part in ("weight", "bias")]


# The authors' numbers ---------------------------------------------------------------------------------------------


@every_dtype
def test_the_mixture_with_the_previous_network_is_the_authors(
    dtype: torch.dtype, value_tolerance: float, grad_tolerance: float
) -> None:
    case = load_case("amorlip/target_readme_scale14.3")
    method = make_amorlip(dtype, math.log(case["scale"]), z_beta_decay_epochs=16)
    features = features_of(case["image"], case["text"], dtype=dtype)
    assert method.z_beta(5) == pytest.approx(float(case["z_beta"]))
    # Before the epoch's first step, the networks that will be the previous ones are still the averaged ones.
    method.average = Given(case["prev_log_lambda_image"], case["prev_log_lambda_text"])

    image, text = log_lambdas(method, features, step=50)

    assert relative_error(image, case["combined_log_target_image"]) < value_tolerance
    assert relative_error(text, case["combined_log_target_text"]) < value_tolerance


@every_dtype
def test_the_encoders_loss_and_its_gradients_are_the_authors(
    dtype: torch.dtype, value_tolerance: float, grad_tolerance: float
) -> None:
    case = load_case("amorlip/encoder_readme_batchlambda_rho8.5")
    method = make_amorlip(dtype, float(case["log_scale"]))
    features = features_of(case["image"], case["text"], dtype=dtype)

    output = method.loss(features, progress_of(method, 0))
    output.total.backward()

    assert_step(case, output.total, features, method.temperature.log_scale, value_tolerance, grad_tolerance)
    for part in ("joint", "cross"):
        assert relative_error(output.metrics[f"loss/{part}"], case[f"{part}_loss"]) < value_tolerance


@every_dtype
@pytest.mark.parametrize("kind", ["log_l2", "kl_div_asym", "js_div"])
def test_the_networks_loss_is_the_authors(
    kind: str, dtype: torch.dtype, value_tolerance: float, grad_tolerance: float
) -> None:
    case = load_case(f"amorlip/lambda_{kind}")
    method = make_amorlip(dtype, math.log(case["scale"]), pos_coef=float(case["pos_coef"]))
    log_sums = log_lambdas(method, features_of(case["image"], case["text"], dtype=dtype), step=0)
    log_lambda_B2 = torch.tensor(np.stack([case["log_lambda_image"], case["log_lambda_text"]], axis=1), dtype=dtype)
    target_B2 = torch.tensor(np.stack([case["log_target_image"], case["log_target_text"]], axis=1), dtype=dtype)
    log_lambda_B2.requires_grad_()

    total = network_loss(
        kind,
        log_lambda_B2,
        target_B2,
        torch.stack(log_sums, dim=1).detach(),
        div_reg_coef=float(case["div_reg_coef"]),
        global_batch_size=8,
    )
    total.backward()

    assert relative_error(total, case["total_loss"]) < value_tolerance
    assert relative_error(log_lambda_B2.grad[:, 0], case["grad_log_lambda_image"]) < grad_tolerance
    assert relative_error(log_lambda_B2.grad[:, 1], case["grad_log_lambda_text"]) < grad_tolerance


@every_dtype
def test_the_networks_are_the_authors(dtype: torch.dtype, value_tolerance: float, grad_tolerance: float) -> None:
    case = load_case("amorlip/mlp_hfactor1")
    pair = NetworkPair(16, 16).to(dtype)
    load_networks(pair, case, "param/")

    log_lambda_B2 = pair(features_of(case["image"], case["text"], dtype=dtype))
    target_B2 = torch.tensor(np.stack([case["log_target_image"], case["log_target_text"]], axis=1), dtype=dtype)
    loss = network_loss("log_l2", log_lambda_B2, target_B2, target_B2, div_reg_coef=0.1, global_batch_size=8)
    loss.backward()

    assert relative_error(log_lambda_B2[:, 0], case["log_lambda_image"]) < value_tolerance
    assert relative_error(log_lambda_B2[:, 1], case["log_lambda_text"]) < value_tolerance
    assert relative_error(loss, case["loss"]) < value_tolerance
    for name, parameter in pair.named_parameters():
        side, rest = name.split(".", 1)
        assert relative_error(parameter.grad, case[f"grad/{side}_mlp.{rest}"]) < grad_tolerance, name


def test_four_whole_training_steps_are_the_authors() -> None:
    case = load_case("amorlip/step_log_l2_epoch0")
    method = make_amorlip(
        torch.float64,
        float(case["init/logit_scale"]),
        rho=(float(case["rho"]),),
        network_lr=float(case["lambda_lr"]),
        num_updates=(int(case["inner_steps"]),),
        average_beta=float(case["ema_beta"]),
        pos_coef=float(case["pos_coef"]),
    )
    load_networks(method.networks, case, "init/lambda/")
    method.average.load_state_dict(method.networks.state_dict())
    weights = [nn.Parameter(torch.tensor(case[f"init/{name}"])) for name in ("wi", "wt")]
    decay, lr_temperature = float(case["wd"]), float(case["lr_tau"])
    optimizer = torch.optim.AdamW(
        [
            {"params": weights, "lr": float(case["lr"]), "weight_decay": decay},
            {"params": [method.temperature.log_scale], "lr": lr_temperature, "weight_decay": 0.0},
        ],
        betas=(float(case["beta1"]), float(case["beta2"])),
        eps=float(case["adam_eps"]),
    )

    for step in range(4):
        sides = [
            nn.functional.normalize(torch.tensor(case[f"{side}_input"][step]) @ weight, dim=1)
            for side, weight in zip(("image", "text"), weights, strict=True)
        ]
        output = method.loss(Features(*sides, torch.arange(8)), progress_of(method, step))
        output.total.backward()
        norm = nn.utils.clip_grad_norm_([*weights, method.temperature.log_scale], float(case["grad_clip"]))
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(progress_of(method, step))

        assert output.total.item() == pytest.approx(case["log/total_loss"][step], rel=1e-6)
        assert norm.item() == pytest.approx(case["log/grad_norm"][step], rel=1e-6)
        inner = case["log/image_lambda_loss"][step] + case["log/text_lambda_loss"][step]
        assert output.metrics["normalizer/loss_after"].item() == pytest.approx(inner, rel=1e-6)
        assert relative_error(weights[0], case[f"after{step}/wi"]) < 1e-6
        assert relative_error(weights[1], case[f"after{step}/wt"]) < 1e-6
        assert relative_error(method.temperature.log_scale, case[f"after{step}/logit_scale"]) < 1e-6

    for pair, prefix in ((method.networks, "final/lambda/"), (method.average, "final/ema/")):
        for name, parameter in pair.named_parameters():
            side, rest = name.split(".", 1)
            assert relative_error(parameter, case[f"{prefix}{side}_mlp.{rest}"]) < 1e-6, name


@pytest.mark.parametrize("table", load_table("amorlip/z_beta_schedule")["get_cosine_ema_beta"])
def test_the_mixture_follows_the_authors_schedule(table: dict[str, Any]) -> None:
    method = make_amorlip(z_beta_max=table["beta_max"], z_beta_decay_epochs=table["beta_decay_epochs"])

    assert [method.z_beta(epoch) for epoch in table["epochs"]] == pytest.approx(table["beta"], rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(("num_epochs", "expected"), [(6, [1, 1, 2, 2, 3, 3]), (5, [1, 2, 3, 3, 3]), (2, [1, 2])])
def test_the_last_block_of_rho_takes_the_remaining_epochs(num_epochs: int, expected: list[float]) -> None:
    method = make_amorlip(rho=(1, 2, 3), num_steps=10 * num_epochs)

    assert [method.rho(epoch) for epoch in range(num_epochs)] == expected


# The equations, in plain loops ----------------------------------------------------------------------------------------


def batch_sums(features: Features, scale: float, pos_coef: float) -> Tensor:
    sides = [(features.image_BD, features.text_BD), (features.text_BD, features.image_BD)]
    pairs = range(len(features.index_B))
    return torch.stack(
        [
            torch.stack(
                [sum((pos_coef if i == j else 1) * torch.exp(scale * a[i] @ o[j]) for j in pairs) for a, o in sides]
            )
            for i in pairs
        ]
    )


@settings(max_examples=12, deadline=None)
@given(
    num_pairs=st.integers(2, 5),
    dim=st.integers(1, 4),
    temperature=st.floats(0.05, 1),
    pos_coef=st.sampled_from([1e-3, 0.5]),
    epoch=st.sampled_from([0, 1, 5, 30]),
    fit_w_prev=st.booleans(),
    chunk_rows=st.sampled_from([2, 1024]),
    seed=st.integers(0, 999),
)
def test_the_encoders_loss_follows_the_equations(
    num_pairs: int,
    dim: int,
    temperature: float,
    pos_coef: float,
    epoch: int,
    fit_w_prev: bool,
    chunk_rows: int,
    seed: int,
) -> None:
    method = make_amorlip(
        temperature={"init": temperature},
        pos_coef=pos_coef,
        fit_w_prev=fit_w_prev,
        chunk_rows=chunk_rows,
        global_batch_size=num_pairs,
        embed_dim=dim,
    )
    mine, theirs = (random_features(seed, num_pairs=num_pairs, dim=dim) for _ in range(2))
    network = torch.randn(num_pairs, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    given_network = Given(network[:, 0], network[:, 1])
    method.previous, step = given_network, 10 * epoch + 1
    if not fit_w_prev:
        method.average = given_network
    leaf = method.temperature.log_scale.detach().clone().requires_grad_()
    scale = leaf.exp()

    total = method.loss(mine, progress_of(method, step)).total
    total.backward()
    sums = batch_sums(theirs, scale, pos_coef)
    z = method.z_beta(epoch)
    lambdas = (1 - z) * sums.detach() + z * network.exp() if fit_w_prev else network.exp()
    positives = sum(theirs.image_BD[i] @ theirs.text_BD[i] for i in range(num_pairs)) / num_pairs
    data_term = (sums / lambdas).sum() / num_pairs - 2 * scale * positives
    expected = data_term / scale.detach() + method.rho(epoch) / scale
    expected.backward()

    assert_same_step(mine, theirs, total, expected)
    torch.testing.assert_close(method.temperature.log_scale.grad, leaf.grad, rtol=1e-9, atol=1e-12)


# Networks over the epochs ---------------------------------------------------------------------------------------------


def weights(pair: NetworkPair) -> Tensor:
    return nn.utils.parameters_to_vector(pair.parameters()).detach().clone()


def train(method: AmorLIP, steps: range) -> None:
    for step in steps:
        train_step(method, step, random_features(step, dtype=torch.float32))


@pytest.mark.parametrize("every", [1, None])
def test_an_epoch_starts_from_new_networks_of_its_own_where_restarts_are_on(every: int | None) -> None:
    method = make_amorlip(torch.float32, steps_per_epoch=1, network_lr=1e-12, reinit_every_epochs=every)
    starts = []
    for step in range(3):
        train(method, range(step, step + 1))
        starts.append(weights(method.networks))

    assert [torch.allclose(a, b, atol=1e-3) for a, b in itertools.pairwise(starts)] == [every is None] * 2


def test_new_weights_are_distributed_as_torch_draws_them() -> None:
    network, reference = LogNormalizerNetwork(64, 64), LogNormalizerNetwork(64, 64)

    network.reset(torch.Generator().manual_seed(0))

    for mine, theirs in zip(network.parameters(), reference.parameters(), strict=True):
        if mine.numel() > 1000:
            assert mine.std().item() == pytest.approx(theirs.std().item(), rel=0.05)
            assert mine.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.01)


def test_the_output_bias_may_start_at_the_mean_target() -> None:
    method = make_amorlip(torch.float32, init_output_bias=True, network_lr=1e-12)
    features = random_features(0, dtype=torch.float32)
    targets = log_lambdas(method, features, step=0)

    method.loss(features, progress_of(method, 0))

    for pair in (method.networks, method.average):
        for network, target in zip((pair.image, pair.text), targets, strict=True):
            assert network.fc3.bias.item() == pytest.approx(target.mean().item(), rel=1e-5)


# State and numerics ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["log_l2", "kl_div_asym", "js_div"])
def test_the_networks_gradients_have_a_finite_norm_however_far_their_targets(kind: str) -> None:
    pair = NetworkPair(512, 512)
    pair.reset(torch.Generator().manual_seed(0))
    log_lambda_B2 = pair(random_features(0, num_pairs=2, dim=512, dtype=torch.float32))

    for distance in range(20, 120, 4):
        far_B2 = log_lambda_B2.detach() + distance
        loss = network_loss(kind, log_lambda_B2, far_B2 + 20, far_B2, div_reg_coef=0.1, global_batch_size=2)
        grads = torch.autograd.grad(loss, list(pair.parameters()), retain_graph=True)

        assert 0 < nn.utils.get_total_norm(grads) < math.inf


def test_an_epochs_first_step_can_be_asked_for_again_without_beginning_the_epoch_again() -> None:
    method = make_amorlip(steps_per_epoch=2)
    for step in range(3):
        train_step(method, step, random_features(step))
    before = {name: value.clone() for name, value in method.previous.state_dict().items()}
    method.loss(random_features(9), progress_of(method, 2))
    assert all(torch.equal(value, before[name]) for name, value in method.previous.state_dict().items())
