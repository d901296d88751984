import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.oracle import load_case, load_table, relative_error
from support.small import features_of, make_method, opposite_features, progress_of, random_features, train_step
from torch import Tensor, nn

from baselines.amorlip import AmorLIP, LogNormalizerNetwork, NetworkPair, network_loss
from engine.method import Features

TOLERANCES = [(torch.float64, 1e-9, 1e-9), (torch.float32, 1e-5, 1e-4)]
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


@pytest.mark.parametrize(("dtype", "value_tolerance", "grad_tolerance"), TOLERANCES)
def test_the_target_is_the_authors(dtype: torch.dtype, value_tolerance: float, grad_tolerance: float) -> None:
    case = load_case("amorlip/target_readme_scale14.3")
    method = make_amorlip(dtype, math.log(case["scale"]), z_beta_decay_epochs=16)
    features = features_of(case["image"], case["text"], dtype=dtype)

    image, text = log_lambdas(method, features, step=0)

    assert relative_error(image, case["log_target_image"]) < value_tolerance
    assert relative_error(text, case["log_target_text"]) < value_tolerance


@pytest.mark.parametrize(("dtype", "value_tolerance", "grad_tolerance"), TOLERANCES)
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


@pytest.mark.parametrize(("dtype", "value_tolerance", "grad_tolerance"), TOLERANCES)
def test_the_encoders_loss_and_its_gradients_are_the_authors(
    dtype: torch.dtype, value_tolerance: float, grad_tolerance: float
) -> None:
    case = load_case("amorlip/encoder_readme_batchlambda_rho8.5")
    method = make_amorlip(dtype, float(case["log_scale"]))
    features = features_of(case["image"], case["text"], dtype=dtype)

    output = method.loss(features, progress_of(method, 0))
    output.total.backward()

    assert relative_error(output.total, case["total_loss"]) < value_tolerance
    assert relative_error(output.metrics["loss/joint"], case["joint_loss"]) < value_tolerance
    assert relative_error(output.metrics["loss/cross"], case["cross_loss"]) < value_tolerance
    assert relative_error(features.image_BD.grad, case["grad_image"]) < grad_tolerance
    assert relative_error(features.text_BD.grad, case["grad_text"]) < grad_tolerance
    assert relative_error(method.temperature.log_scale.grad, case["grad_log_scale"]) < grad_tolerance


@pytest.mark.parametrize(("dtype", "value_tolerance", "grad_tolerance"), TOLERANCES)
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


@pytest.mark.parametrize(("dtype", "value_tolerance", "grad_tolerance"), TOLERANCES)
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


def test_the_mixture_grows_over_half_the_run_by_default() -> None:
    method = make_amorlip()

    assert method.z_beta(15) < method.z_beta(16) == method.z_beta(32) == 0.8


def test_rho_changes_after_a_third_of_the_epochs() -> None:
    assert [make_amorlip().rho(epoch) for epoch in range(33)] == [8.5] * 11 + [-8.5] * 22


@pytest.mark.parametrize(("num_epochs", "expected"), [(5, [1, 2, 3, 3, 3]), (2, [1, 2]), (1, [1])])
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

    torch.testing.assert_close(total, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(mine.image_BD.grad, theirs.image_BD.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(mine.text_BD.grad, theirs.text_BD.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(method.temperature.log_scale.grad, leaf.grad, rtol=1e-9, atol=1e-12)


@settings(max_examples=8, deadline=None)
@given(num_pairs=st.integers(2, 5), kind=st.sampled_from(["kl_div_asym", "js_div"]), seed=st.integers(0, 999))
def test_the_divergences_follow_the_equations_pair_by_pair(num_pairs: int, kind: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    entries = torch.randn(2, num_pairs, num_pairs, generator=generator, dtype=torch.float64).exp()
    mine, target = torch.randn(2, num_pairs, 2, generator=generator, dtype=torch.float64)
    mine.requires_grad_()

    actual = network_loss(kind, mine, target, entries.sum(dim=2).T.log(), div_reg_coef=0.1, global_batch_size=num_pairs)
    expected = torch.zeros((), dtype=torch.float64)
    for side in range(2):
        for i in range(num_pairs):
            gap = mine[i, side] - target[i, side]
            expected = expected + 0.1 * gap**2 / num_pairs
            for j in range(num_pairs):
                p = entries[side, i, j] * torch.exp(-mine[i, side])
                q = entries[side, i, j] * torch.exp(-target[i, side])
                m = (p + q) / 2
                js = (p * torch.log(p / m) + q * torch.log(q / m)) / 2
                expected = expected + (js if kind == "js_div" else -p * gap) / num_pairs**2

    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
    (actual_grad,), (expected_grad,) = (torch.autograd.grad(value, mine) for value in (actual, expected))
    torch.testing.assert_close(actual_grad, expected_grad, rtol=1e-9, atol=1e-12)


# Networks over the epochs ---------------------------------------------------------------------------------------------


def weights(pair: NetworkPair) -> Tensor:
    return nn.utils.parameters_to_vector(pair.parameters()).detach().clone()


def train(method: AmorLIP, steps: range) -> None:
    for step in steps:
        train_step(method, step, random_features(step, dtype=torch.float32))


def test_an_epoch_turns_the_averaged_networks_into_the_previous_ones() -> None:
    method = make_amorlip(torch.float32, steps_per_epoch=3)
    train(method, range(3))
    average = weights(method.average)

    train(method, range(3, 4))

    assert torch.equal(weights(method.previous), average)


def test_an_epoch_starts_from_new_networks_of_its_own() -> None:
    starts = []
    for first_step in (0, 3, 6):
        method = make_amorlip(torch.float32, steps_per_epoch=3, num_updates=(1,), network_lr=1e-12)
        train(method, range(first_step, first_step + 1))
        starts.append(weights(method.networks))

    assert all(not torch.allclose(a, b, atol=1e-3) for a, b in zip(starts, starts[1:] + starts[:1], strict=True))


def test_the_networks_live_on_where_restarts_are_off() -> None:
    method = make_amorlip(torch.float32, steps_per_epoch=3, reinit_every_epochs=None, network_lr=1e-6)
    train(method, range(3))
    before = weights(method.networks)

    train(method, range(3, 5))

    torch.testing.assert_close(weights(method.networks), before, rtol=0, atol=1e-4)


def test_new_networks_do_not_depend_on_the_global_random_state() -> None:
    torch.manual_seed(1)
    first = weights(make_amorlip(torch.float32).networks)
    torch.manual_seed(2)

    assert torch.equal(weights(make_amorlip(torch.float32).networks), first)
    assert not torch.equal(weights(make_amorlip(torch.float32, seed=1).networks), first)


def test_new_weights_are_distributed_as_torch_draws_them() -> None:
    network, reference = LogNormalizerNetwork(64, 64), LogNormalizerNetwork(64, 64)

    network.reset(torch.Generator().manual_seed(0))

    for mine, theirs in zip(network.parameters(), reference.parameters(), strict=True):
        if mine.numel() > 1000:
            assert mine.std().item() == pytest.approx(theirs.std().item(), rel=0.05)
            assert mine.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.01)


def test_the_average_moves_every_second_step_only() -> None:
    method = make_amorlip(torch.float32)
    train(method, range(1))
    after_first = weights(method.average)
    train(method, range(1, 2))
    after_second = weights(method.average)
    current = weights(method.networks)
    train(method, range(2, 3))

    assert torch.equal(after_second, after_first)
    assert not torch.equal(weights(method.average), after_second)
    assert not torch.equal(current, after_second)


def test_the_networks_learn_their_target() -> None:
    method = make_amorlip(torch.float32, num_updates=(200,), network_lr=1e-2)
    features = random_features(0, dtype=torch.float32)

    metrics = method.loss(features, progress_of(method, 0)).metrics

    assert metrics["normalizer/loss_after"] < metrics["normalizer/loss_before"] / 10


def test_the_output_bias_may_start_at_the_mean_target() -> None:
    method = make_amorlip(torch.float32, init_output_bias=True, network_lr=1e-12)
    features = random_features(0, dtype=torch.float32)
    targets = log_lambdas(method, features, step=0)

    method.loss(features, progress_of(method, 0))

    for pair in (method.networks, method.average):
        for network, target in zip((pair.image, pair.text), targets, strict=True):
            assert network.fc3.bias.item() == pytest.approx(target.mean().item(), rel=1e-5)


def test_the_encoders_loss_leaves_no_gradient_in_the_networks() -> None:
    method = make_amorlip(torch.float32)

    method.loss(random_features(0, dtype=torch.float32), progress_of(method, 0)).total.backward()

    assert [name for name, p in method.named_parameters() if p.grad is not None] == ["temperature.log_scale"]


def test_only_the_temperature_goes_to_the_optimiser() -> None:
    method = make_amorlip(torch.float32)
    (group,) = method.param_groups()

    assert group.params == [method.temperature.log_scale]
    assert (group.lr, group.weight_decay, group.lr_factor(0.1)) == (1e-4, 0.0, 1.0)


@pytest.mark.parametrize("fit_w_prev", [True, False])
def test_asking_for_normalizers_changes_nothing(fit_w_prev: bool) -> None:
    method = make_amorlip(torch.float32, fit_w_prev=fit_w_prev)
    train(method, range(12))
    state = {name: value.clone() for name, value in method.named_parameters()}

    first = method.log_normalizers(random_features(0, dtype=torch.float32), progress_of(method, 12))
    second = method.log_normalizers(random_features(0, dtype=torch.float32), progress_of(method, 12))

    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(dict(method.named_parameters()), state, rtol=0, atol=0)


# State and numerics ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"fit_w_prev": False}, {"reinit_every_epochs": None}])
@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_restored_run_continues_bit_for_bit(stop: int, options: dict[str, Any]) -> None:
    options = {"steps_per_epoch": 2, "num_steps": 8} | options
    batches = [random_features(seed, dtype=torch.float32) for seed in range(6)]
    unbroken, broken = make_amorlip(torch.float32, **options), make_amorlip(torch.float32, **options)
    expected = [train_step(unbroken, step, batch) for step, batch in enumerate(batches)]
    for step, batch in enumerate(batches[:stop]):
        train_step(broken, step, batch)
    file = io.BytesIO()
    torch.save(broken.state_dict(), file)
    file.seek(0)

    restored = make_amorlip(torch.float32, **options)
    restored.load_state_dict(torch.load(file, weights_only=True))
    actual = [train_step(restored, step, batches[step]) for step in range(stop, 6)]

    for mine, theirs in zip(actual, expected[stop:], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    assert torch.equal(weights(restored.networks), weights(unbroken.networks))
    assert torch.equal(weights(restored.previous), weights(unbroken.previous))


def test_a_restored_method_shares_no_state_with_its_source() -> None:
    source, copy = make_amorlip(torch.float32), make_amorlip(torch.float32)
    train(source, range(2))
    copy.load_state_dict(source.state_dict())
    before = weights(source.networks)

    train(copy, range(2, 5))

    assert torch.equal(weights(source.networks), before)
    first = next(iter(source.optimizer.state.values()))
    assert first["step"].item() == 6


@pytest.mark.parametrize("matched", [True, False])
@pytest.mark.parametrize("kind", ["log_l2", "kl_div_asym", "js_div"])
@pytest.mark.parametrize("fit_w_prev", [True, False])
def test_everything_is_finite_at_the_lowest_temperature(kind: str, fit_w_prev: bool, matched: bool) -> None:
    method = make_amorlip(
        torch.float32,
        temperature={"init": 0.01},
        lambda_loss_type=kind,
        fit_w_prev=fit_w_prev,
        global_batch_size=2,
        steps_per_epoch=2,
    )
    # log C reaches 100, beyond float32, while new networks answer about 0.
    for step in range(4):
        features = opposite_features(matched=matched)
        output = method.loss(features, progress_of(method, step))
        output.total.backward()

        assert output.total.isfinite()
        assert features.image_BD.grad.isfinite().all()
        assert all(value.isfinite() for value in output.metrics.values())
    assert all(parameter.isfinite().all() for parameter in method.parameters())


@pytest.mark.parametrize("kind", ["kl_div_asym", "js_div"])
def test_the_divergences_move_new_networks_at_a_low_temperature(kind: str) -> None:
    method = make_amorlip(
        torch.float32, temperature={"init": 0.012}, lambda_loss_type=kind, num_updates=(450,), embed_dim=64
    )
    before = weights(method.networks)

    metrics = method.loss(random_features(0, dim=64, dtype=torch.float32), progress_of(method, 0)).metrics

    assert (weights(method.networks) - before).norm() > 1
    assert metrics["normalizer/loss_after"] < metrics["normalizer/loss_before"]


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


def test_the_metrics_are_detached_scalars() -> None:
    method = make_amorlip(torch.float32)

    metrics = method.loss(random_features(0, dtype=torch.float32), progress_of(method, 0)).metrics

    assert all(value.ndim == 0 and not value.requires_grad for value in metrics.values())
    assert metrics["loss/cross"].item() == pytest.approx(2)


@pytest.mark.parametrize(
    "options", [{"pos_coef": 0}, {"rho": []}, {"num_updates": [0]}, {"lambda_loss_type": "l2"}, {"lambda_lr": 1e-3}]
)
def test_a_wrong_option_is_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        make_amorlip(torch.float32, **options)


def test_an_epochs_first_step_can_be_asked_for_again_without_beginning_the_epoch_again() -> None:
    method = make_amorlip(steps_per_epoch=2)
    for step in range(3):
        train_step(method, step, random_features(step))
    before = {name: value.clone() for name, value in method.previous.state_dict().items()}
    method.loss(random_features(9), progress_of(method, 2))
    assert all(torch.equal(value, before[name]) for name, value in method.previous.state_dict().items())
