import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.oracle import assert_step, every_dtype, load_case, relative_error
from support.small import assert_same_step, features_of, make_method, progress_of, random_features
from torch import Tensor

from engine.method import Features

CHUNKS = [4096, 3, 1]
"""A batch within one chunk goes to open_clip's own loss; uneven chunks; one row at a time."""


@pytest.mark.parametrize("chunk_rows", CHUNKS)
@every_dtype
def test_the_loss_and_its_gradients_are_those_of_open_clip(
    dtype: torch.dtype, value_tolerance: float, grad_tolerance: float, chunk_rows: int
) -> None:
    case = load_case("open_clip/siglip_init")
    method = make_method("siglip", dtype=dtype, chunk_rows=chunk_rows)
    # The start is kept in float32, exact to 1e-7 only.
    with torch.no_grad():
        method.temperature.log_scale.fill_(float(case["log_scale"]))
    features = features_of(case["image"], case["text"], dtype=dtype)
    total = method.loss(features, progress_of(method, 0)).total
    total.backward()

    assert_step(case, total, features, method.temperature.log_scale, value_tolerance, grad_tolerance)
    assert relative_error(method.bias.grad, case["grad_bias"]) < grad_tolerance


def sigmoid_loss(features: Features, scale: float, bias: float) -> Tensor:
    pairs = range(len(features.index_B))
    total = torch.zeros((), dtype=torch.float64)
    for i in pairs:
        for j in pairs:
            sign = 1 if i == j else -1
            logit = scale * features.image_BD[i] @ features.text_BD[j] + bias
            total = total + torch.log1p(torch.exp(-sign * logit)) / len(pairs)
    return total


@settings(max_examples=8, deadline=None)
@given(
    num_pairs=st.integers(2, 6),
    dim=st.integers(1, 5),
    temperature=st.floats(0.02, 1),
    bias=st.floats(-12, 2),
    chunk_rows=st.sampled_from(CHUNKS),
    seed=st.integers(0, 999),
)
def test_the_loss_is_the_sigmoid_loss_of_every_pair(
    num_pairs: int, dim: int, temperature: float, bias: float, chunk_rows: int, seed: int
) -> None:
    method = make_method(
        "siglip",
        dtype=torch.float64,
        global_batch_size=num_pairs,
        temperature={"init": temperature},
        bias_init=bias,
        chunk_rows=chunk_rows,
    )
    mine, theirs = (random_features(seed, num_pairs=num_pairs, dim=dim) for _ in range(2))

    total = method.loss(mine, progress_of(method, 0)).total
    total.backward()
    expected = sigmoid_loss(theirs, method.logit_scale.item(), method.logit_bias.item())
    expected.backward()

    assert_same_step(mine, theirs, total, expected)


def test_scale_and_bias_start_as_in_the_paper() -> None:
    method = make_method("siglip")

    assert method.logit_scale.item() == pytest.approx(10)
    assert method.logit_bias.item() == -10


def test_scale_and_bias_may_have_learning_rates_of_their_own() -> None:
    scale, bias = make_method("siglip", temperature={"lr": 1e-3}, bias_lr=1e-2).param_groups()

    assert (scale.lr, bias.lr, scale.weight_decay, bias.weight_decay) == (1e-3, 1e-2, 0.0, 0.0)


def test_what_is_fixed_is_not_handed_to_the_optimiser() -> None:
    method = make_method("siglip", temperature={"learnable": False}, bias_learnable=False)

    assert method.param_groups() == []
    method.loss(random_features(0, dtype=torch.float32), progress_of(method, 0)).total.backward()
    assert method.bias.grad is None
