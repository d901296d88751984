import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.oracle import assert_step, every_dtype, load_case, load_table, relative_error
from support.small import assert_same_step, features_of, make_method, progress_of, random_features
from torch import Tensor

from baselines.fastclip import FastCLIP
from engine.method import Features

VERSIONS_AND_FORMS = [(version, form) for version in ("v0", "v1", "v2", "v3") for form in ("log", 2024)]
SCRIPT = {"steps_per_epoch": 10, "num_steps": 370}
"""37 epochs, as in the authors' CC3M script."""


def make_fastclip(dtype: torch.dtype = torch.float64, **options: Any) -> FastCLIP:
    method = make_method("fastclip", dtype=dtype, **SCRIPT | options)
    assert isinstance(method, FastCLIP)
    return method


def options_of(case: dict[str, np.ndarray]) -> dict[str, Any]:
    return {
        "rho": float(case["rho"]),
        "eps": float(case["eps"]),
        "gamma_min": float(case["gamma_min"]),
        "gamma_decay_epochs": int(case["gamma_decay_epochs"]),
    }


def both_sides(case: dict[str, np.ndarray], image: str) -> Tensor:
    return torch.tensor(np.stack([case[image], case[image.replace("_im_", "_tt_")]], axis=1))


def set_state(method: FastCLIP, log_u_N2: Tensor, visited_N: Tensor) -> None:
    method.visited_N.copy_(visited_N)
    method.log_u_N2.copy_(log_u_N2.masked_fill(~visited_N[:, None], 0))


# The authors' numbers ---------------------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize(
    "name",
    ["v0_mixed_gamma0.2_tau0.07", "v1_first_gamma1_tau0.07", "v3_first_gamma1_tau0.07", "v3_mixed_gamma0.2_tau0.07"],
)
def test_a_step_of_the_2024_form_is_the_authors(
    name: str, dtype: torch.dtype, value_tolerance: float, grad_tolerance: float
) -> None:
    case = load_case(f"fastclip/{name}")
    method = make_fastclip(dtype, version=name[:2], form=2024, **options_of(case))
    with torch.no_grad():
        method.temperature.log_scale.fill_(float(case["log_scale"]))
    before = both_sides(case, "u_im_before")
    set_state(method, before.log(), before[:, 0] > 0)
    features = features_of(case["image"], case["text"], case["index"], dtype=dtype)

    total = method.loss(features, progress_of(method, int(case["epoch"]) * 10)).total
    total.backward()

    log_scale = None if name[:2] == "v1" else method.temperature.log_scale
    assert_step(case, total, features, log_scale, value_tolerance, grad_tolerance)
    after = method.log_u_N2.exp() * method.visited_N[:, None]
    assert relative_error(after, both_sides(case, "u_im_after").numpy()) < value_tolerance


@pytest.mark.parametrize(
    ("dtype", "value_tolerance", "grad_tolerance"), [(torch.float64, 1e-6, 1e-6), (torch.float32, 1e-5, 1e-4)]
)
@pytest.mark.parametrize("name", ["v3log_first_gamma1_tau0.07", "v3log_mixed_gamma0.2_tau0.07"])
def test_a_step_of_the_log_form_is_the_authors(
    name: str, dtype: torch.dtype, value_tolerance: float, grad_tolerance: float
) -> None:
    case = load_case(f"fastclip_log/{name}")
    method = make_fastclip(dtype, **options_of(case))
    with torch.no_grad():
        method.temperature.log_scale.fill_(float(case["log_scale"]))
    before = both_sides(case, "log_u_im_before")
    set_state(method, before, before[:, 0] != 0)
    features = features_of(case["image"], case["text"], case["index"], dtype=dtype)

    method.loss(features, progress_of(method, int(case["epoch"]) * 10)).total.backward()

    grad_log_scale = method.temperature.log_scale.grad
    assert relative_error(features.image_BD.grad, case["grad_image"]) < grad_tolerance
    assert relative_error(features.text_BD.grad, case["grad_text"]) < grad_tolerance
    assert relative_error(grad_log_scale, case["grad_log_scale"]) < grad_tolerance
    assert relative_error(method.log_u_N2, both_sides(case, "log_u_im_after").numpy()) < value_tolerance
    # Theirs sums w h where we sum w exp(h - sg h): the same gradient, another value. Theirs follows from our gradient,
    # as h is linear in the scale.
    pull = float(case["rho"]) + method.log_u_N2[features.index_B].sum(dim=1).mean() / 2
    assert relative_error(grad_log_scale + 2 * pull / method.logit_scale, case["loss"]) < grad_tolerance


@every_dtype
@pytest.mark.parametrize("name", ["v2_first_epoch0", "v2_second_epoch1"])
def test_a_step_with_individual_temperatures_is_the_authors(
    name: str, dtype: torch.dtype, value_tolerance: float, grad_tolerance: float
) -> None:
    case = load_case(f"fastclip/{name}")
    method = make_fastclip(
        dtype,
        version="v2",
        form=2024,
        temperature={"init": 0.03, "lr": float(case["lr_tau"])},
        individual_betas=(float(case["beta1"]), float(case["beta2"])),
        individual_eps=float(case["eps_tau"]),
        individual_grad_clamp=float(case["grad_clamp"]),
        **options_of(case),
    )
    # Theirs is shifted by a running maximum: u exp(bound) is what we keep.
    before = both_sides(case, "u_im_before")
    set_state(method, before.log() + both_sides(case, "bound_im_before"), before[:, 0] > 0)
    names = {"temperature_N2": "tau", "moment1_N2": "m_grad_tau", "moment2_N2": "v_grad_tau"}
    for mine, theirs in names.items():
        method.get_buffer(mine).copy_(both_sides(case, f"{theirs}_im_before"))
    features = features_of(case["image"], case["text"], case["index"], dtype=dtype)

    total = method.loss(features, progress_of(method, int(case["epoch"]) * 10)).total
    total.backward()

    assert_step(case, total, features, None, value_tolerance, grad_tolerance)
    after = both_sides(case, "u_im_after").log() + both_sides(case, "bound_im_after")
    rows = features.index_B
    assert relative_error(method.log_u_N2[rows], after[rows].numpy()) < value_tolerance
    for mine, theirs in names.items():
        error = relative_error(method.get_buffer(mine), both_sides(case, f"{theirs}_im_after").numpy())
        # In float32 a state is as good as the gradient that it takes in.
        assert error < grad_tolerance, mine


@pytest.mark.parametrize("table", load_table("fastclip/gamma_schedule"))
def test_gamma_follows_the_authors_schedule(table: dict[str, Any]) -> None:
    names = ("gamma_schedule", "gamma_min", "gamma_decay_epochs")
    method = make_fastclip(**{name: table[name] for name in names})

    assert [method.gamma(epoch) for epoch in table["epochs"]] == pytest.approx(table["gamma"], rel=1e-12)


# The equations, in plain loops --------------------------------------------------------------------------------------


def one_step(
    options: dict[str, Any],
    features: Features,
    temperature: Tensor,
    u: dict[tuple[int, int], float],
    gamma: float,
) -> Tensor:
    """Update u, by (position, side), and return the loss; temperature is a scalar, or (B, 2) in v2."""
    pairs, eps, rho = range(len(features.index_B)), options["eps"], options["rho"]
    count = len(pairs)
    sides = [(features.image_BD, features.text_BD), (features.text_BD, features.image_BD)]
    surrogate, mean_log_u = torch.zeros((), dtype=torch.float64), 0.0
    for side, (anchors, others) in enumerate(sides):
        for i in pairs:
            own = temperature[i, side] if options["version"] == "v2" else temperature
            exponents = [(anchors[i] @ others[j] - anchors[i] @ others[i]) / own for j in pairs if j != i]
            g = torch.stack(exponents).exp().sum() / (count - 1)
            new = g.item() if options["form"] == 2024 else eps + g.item() * (count - 1) / count
            key = (features.index_B[i].item(), side)
            u[key] = (1 - gamma) * u[key] + gamma * new if key in u else new
            surrogate = surrogate + g / (u[key] + (eps if options["form"] == 2024 else 0)) / count
            mean_log_u += math.log(u[key]) / count
    if options["version"] != "v3":
        return surrogate
    pull = mean_log_u + 2 * rho
    if options["temperature_gradient"] == "authors":
        pull = pull / 2
    return surrogate * temperature.detach() + pull * temperature


@settings(max_examples=24, deadline=None)
@given(
    version_and_form=st.sampled_from(VERSIONS_AND_FORMS),
    temperature_gradient=st.sampled_from(["authors", "consistent"]),
    num_pairs=st.integers(2, 5),
    dim=st.integers(1, 4),
    temperature=st.floats(0.03, 1),
    eps=st.sampled_from([1e-14, 1e-2]),
    chunk_rows=st.sampled_from([2, 1024]),
    seed=st.integers(0, 999),
)
def test_two_steps_follow_the_equations(
    version_and_form: tuple[str, Any],
    temperature_gradient: str,
    num_pairs: int,
    dim: int,
    temperature: float,
    eps: float,
    chunk_rows: int,
    seed: int,
) -> None:
    version, form = version_and_form
    options = {"version": version, "form": form, "eps": eps, "rho": 6.5, "temperature_gradient": temperature_gradient}
    method = make_fastclip(
        **options,
        temperature={"init": temperature, "learnable": version in ("v0", "v3")},
        chunk_rows=chunk_rows,
        global_batch_size=num_pairs,
        dataset_size=num_pairs + 2,
    )
    u: dict[tuple[int, int], float] = {}
    for step in (0, 50):
        mine, theirs = (
            random_features(seed + step, num_pairs=num_pairs, dim=dim, dataset_size=num_pairs + 2) for _ in range(2)
        )
        scale = method.logit_scale.detach()
        leaf = (1 / scale).expand(num_pairs, 2) if version == "v2" else (1 / scale).requires_grad_()
        method.zero_grad()

        output = method.loss(mine, progress_of(method, step))
        output.total.backward()
        expected = one_step(options, theirs, leaf, u, method.gamma(step // 10))
        expected.backward()

        assert_same_step(mine, theirs, output.total, expected)
        if version in ("v0", "v3"):
            torch.testing.assert_close(method.temperature.log_scale.grad, -leaf.grad / scale, rtol=1e-9, atol=1e-12)
        for (position, side), value in u.items():
            assert method.log_u_N2[position, side].item() == pytest.approx(math.log(value), rel=1e-9, abs=1e-12)
        assert method.visited_N.sum() == len(u) / 2


def test_all_gradients_of_the_consistent_form_are_those_of_one_objective() -> None:
    options = {"temperature_gradient": "consistent", "form": 2024, "eps": 1e-30}
    method = make_fastclip(**options, temperature={"init": 0.2})
    mine, theirs = random_features(0), random_features(0)
    leaf = method.temperature.log_scale.detach().clone().requires_grad_()

    method.loss(mine, progress_of(method, 0)).total.backward()
    # At a first visit u is g itself, and the objective T mean[log g1 + log g2] + 2 rho T differentiable in all.
    log_g1_B, log_g2_B = method.batch_log_partitions(theirs, leaf.exp())
    ((log_g1_B + log_g2_B).mean() / leaf.exp() + 2 * 6.5 / leaf.exp()).backward()

    torch.testing.assert_close(method.temperature.log_scale.grad, leaf.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(mine.image_BD.grad, theirs.image_BD.grad, rtol=1e-9, atol=1e-12)


# State ----------------------------------------------------------------------------------------------------------------


def two_sides() -> tuple[Tensor, Tensor]:
    features = random_features(0)
    return features.image_BD.detach(), features.text_BD.detach()


@pytest.mark.parametrize(("version", "form"), VERSIONS_AND_FORMS)
def test_at_first_sight_the_normalizers_are_the_batch_s_own(version: str, form: Any) -> None:
    method = make_fastclip(version=version, form=form, temperature={"init": 0.1, **fixed(version)})
    features = random_features(0)
    expected = method.batch_log_partitions(features, method.logit_scale)

    method.loss(features, progress_of(method, 0))
    state = {name: value.clone() for name, value in method.state_dict().items()}
    actual = method.log_normalizers(features, progress_of(method, 0))

    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(dict(method.state_dict()), state, rtol=0, atol=0)


def fixed(version: str) -> dict[str, Any]:
    """Hold v2's temperatures, which would move within the step."""
    return {"learnable": False} if version == "v2" else {}


def test_where_a_sample_comes_twice_in_a_batch_its_last_row_is_kept() -> None:
    method, once = make_fastclip(), make_fastclip()
    method.loss(features_of(*two_sides(), [3, 1, 4, 1, 5, 9, 2, 6]), progress_of(method, 0))
    once.loss(features_of(*two_sides(), [3, 0, 4, 1, 5, 9, 2, 6]), progress_of(once, 0))

    assert method.log_u_N2[1].tolist() == once.log_u_N2[1].tolist()


def test_the_metrics_tell_the_share_of_samples_never_seen() -> None:
    method = make_fastclip()
    method.loss(features_of(*two_sides(), [3, 1, 4, 0, 5, 9, 2, 6]), progress_of(method, 0))

    output = method.loss(features_of(*two_sides(), [3, 7, 4, 0, 5, 9, 2, 8]), progress_of(method, 20))

    assert output.metrics["normalizer/unvisited_share"].item() == 0.25
    assert output.metrics["normalizer/gamma"].item() == pytest.approx(method.gamma(2))


# Options --------------------------------------------------------------------------------------------------------------


def test_the_temperature_of_v3_has_the_authors_threshold_schedule() -> None:
    method = make_fastclip()
    (group,) = method.param_groups()

    assert (group.lr, group.weight_decay, group.lr_factor(0.1)) == (2e-4, 0.0, 1.0)
    with torch.no_grad():
        method.temperature.log_scale.fill_(math.log(1 / 0.02))
    assert group.lr_factor(0.1) == pytest.approx(1 / 3)


def test_a_partly_given_temperature_keeps_the_version_s_other_options() -> None:
    config = make_fastclip(temperature={"init": 0.05}).config

    assert (config.temperature.init, config.temperature.lr) == (0.05, 2e-4)


@pytest.mark.parametrize(
    ("version", "temperature", "message"),
    [
        ("v1", {"learnable": True}, "v1 holds the temperature constant"),
        ("v2", {"lr_schedule": "encoder"}, "v2 moves its temperatures itself"),
    ],
)
def test_a_temperature_that_a_version_cannot_have_is_refused(
    version: str, temperature: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_fastclip(version=version, temperature=temperature)


def test_v2_keeps_every_temperature_within_its_bounds() -> None:
    method = make_fastclip(version="v2", temperature={"lr": 0.5})

    for step in range(0, 30, 10):
        method.loss(random_features(step), progress_of(method, step))

    assert method.temperature_N2.min() >= 0.01 - 1e-9
    assert method.temperature_N2.max() <= 1
