"""The losses for other training code: they are the suite's methods, and they are called as `ClipLoss` is."""

import inspect
import io
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from losses import BATCH, DIM, NEUCLIP, PAIRS, SCHEDULE, STEPS, VARIANTS, TwoTowers, make_loss, same
from open_clip import ClipLoss
from support.small import make_method, progress_of, random_features
from torch import Tensor, nn

from baselines import AmorLIPLoss, FastCLIPLoss
from engine.standalone import StandaloneLoss
from neuclip import NeuCLIPLoss


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return VARIANTS[request.param]


def scale_at(step: int, dtype: torch.dtype) -> Tensor:
    """t of a temperature that moves, as a leaf."""
    return torch.tensor(math.log(1 / 0.07) + 0.1 * step, dtype=dtype, requires_grad=True)


def call(loss: nn.Module, step: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Call a loss with the batch of a step; returns its value and the gradients of images, texts and t."""
    features, log_scale = random_features(step, dtype=dtype), scale_at(step, dtype)
    value = loss(features.image_BD, features.text_BD, log_scale.exp(), index=features.index_B)
    value.backward()
    return [value.detach(), features.image_BD.grad, features.text_BD.grad, log_scale.grad]


def snapshot(loss: nn.Module) -> dict[str, Any]:
    """The state as it comes back from a file."""
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_gradients_and_state_are_those_of_the_suite(
    variant: tuple[str, dict[str, Any]], dtype: torch.dtype
) -> None:
    name, options = variant
    loss = make_loss(name, options).to(dtype)
    method = make_method(name, dtype=dtype, dataset_size=PAIRS, steps_per_epoch=2, num_steps=8, **options)
    for step in range(STEPS):
        features, log_scale = random_features(step, dtype=dtype), scale_at(step, dtype)
        method.temperature.log_scale = nn.Parameter(log_scale.detach().clone())
        total = method.loss(features, progress_of(method, step)).total
        total.backward()
        expected = [total.detach(), features.image_BD.grad, features.text_BD.grad, method.temperature.log_scale.grad]

        assert same(call(loss, step, dtype), expected)
    ours, theirs = loss.method.state_dict(), method.state_dict()
    assert theirs.pop("temperature.log_scale") != ours.pop("temperature.log_scale")
    assert same(ours, theirs)
    assert loss.step == STEPS


def test_the_call_is_that_of_open_clip() -> None:
    theirs = inspect.signature(ClipLoss.forward).parameters
    ours = inspect.signature(StandaloneLoss.forward).parameters

    assert [(p.name, p.default) for p in list(ours.values())[: len(theirs)]] == [
        (p.name, p.default) for p in theirs.values()
    ]
    assert all(p.kind is p.KEYWORD_ONLY for p in list(ours.values())[len(theirs) :])


def test_evaluation_gives_the_value_of_a_step_and_moves_nothing(variant: tuple[str, dict[str, Any]]) -> None:
    loss = make_loss(*variant)
    for step in range(3):
        before = snapshot(loss)
        loss.eval()
        in_eval_mode = call(loss, step)
        loss.train()
        features = random_features(step, dtype=torch.float32)
        with torch.no_grad():
            sides = features.image_BD, features.text_BD
            without_grad = loss(*sides, scale_at(step, torch.float32).exp(), index=features.index_B)

        assert same(snapshot(loss), before)
        assert not without_grad.requires_grad
        assert same(in_eval_mode, call(loss, step))
        assert torch.equal(without_grad, in_eval_mode[0])
        assert not same(snapshot(loss), before)


def test_training_goes_on_from_a_loaded_state_as_if_it_had_not_stopped(variant: tuple[str, dict[str, Any]]) -> None:
    loss, resumed = make_loss(*variant), make_loss(*variant)
    for step in range(3):
        call(loss, step)
    state = snapshot(loss)
    resumed.load_state_dict(state)

    assert same(snapshot(resumed), state)
    for step in range(3, STEPS):
        assert same(call(resumed, step), call(loss, step))
    assert same(snapshot(resumed), snapshot(loss))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast_do_not_reach_the_computation(
    variant: tuple[str, dict[str, Any]], dtype: torch.dtype
) -> None:
    low, full = make_loss(*variant), make_loss(*variant)
    for step in range(3):
        features = random_features(step, dtype=dtype)
        scale = scale_at(step, torch.float32).exp().detach()
        with torch.autocast("cpu", dtype=dtype):
            value = low(features.image_BD, features.text_BD, scale, index=features.index_B)
        value.backward()
        exact = [side.detach().float().requires_grad_() for side in (features.image_BD, features.text_BD)]
        expected = full(*exact, scale, index=features.index_B)
        expected.backward()

        assert value.dtype == torch.float32
        assert torch.equal(value, expected)
        assert torch.equal(features.image_BD.grad, exact[0].grad.to(dtype))
    assert same(snapshot(low), snapshot(full))


def test_accumulated_calls_share_one_step(variant: tuple[str, dict[str, Any]]) -> None:
    whole, parts = make_loss(*variant), make_loss(*variant, accum_freq=2)
    for step in range(STEPS):
        value, *expected = call(whole, step)
        features, log_scale = random_features(step, dtype=torch.float32), scale_at(step, torch.float32)
        for first in (True, False):
            # As open_clip does it: everything is there each time, with gradient in one part.
            mask_B1 = (torch.arange(BATCH) < BATCH // 2)[:, None] == first
            sides = [torch.where(mask_B1, x, x.detach()) for x in (features.image_BD, features.text_BD)]
            part = parts(*sides, log_scale.exp(), index=features.index_B)
            part.backward()
            assert torch.equal(part, value)
        for actual, side in zip((features.image_BD.grad, features.text_BD.grad), expected[:2], strict=True):
            torch.testing.assert_close(actual, side, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(log_scale.grad, 2 * expected[2])
    assert same(snapshot(parts), snapshot(whole))


@pytest.mark.parametrize("name", ["neuclip", "fastclip", "amorlip"])
def test_a_bias_gets_a_zero_gradient_as_from_open_clip(name: str) -> None:
    model, features = TwoTowers(bias=True), random_features(0, dtype=torch.float32)
    output = model(features.image_BD, features.text_BD)
    value = make_loss(name, {})(**output, index=features.index_B)
    value.backward()

    output.pop("logit_bias")
    assert torch.equal(make_loss(name, {})(**output, index=features.index_B), value)
    assert model.logit_bias.grad == 0


WRONG: dict[str, tuple[type[StandaloneLoss], dict[str, Any], str]] = {
    "an unknown option": (NeuCLIPLoss, {"num_prototype": 3}, "did you mean 'num_prototypes'.*Known: .*restart_period"),
    "a temperature": (AmorLIPLoss, {"temperature": {"init": 0.1}}, "your model has the temperature"),
    "one temperature per sample": (FastCLIPLoss, {"version": "v2"}, "allowed are v0 and v3"),
    "no step": (AmorLIPLoss, {"steps_per_epoch": 0}, "steps_per_epoch = 0: allowed is a whole number, 1 or more"),
    "a string": (NeuCLIPLoss, {"embed_dim": "16"}, "embed_dim = '16': allowed is a whole number, 1 or more"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_refused(case: str) -> None:
    kind, options, message = WRONG[case]
    names = inspect.signature(kind).parameters
    sizes = {"embed_dim": DIM, "dataset_size": PAIRS, "global_batch_size": BATCH} | SCHEDULE
    with pytest.raises(ValueError, match=message):
        kind(**{name: value for name, value in sizes.items() if name in names} | options)


@pytest.mark.parametrize("name", ["fastclip", "neuclip_queue"])
def test_a_loss_that_needs_positions_says_what_to_do_about_them(name: str) -> None:
    loss, features = make_loss(name, {}), random_features(0, dtype=torch.float32)
    sides = (features.image_BD, features.text_BD, 14.3)
    with pytest.raises(ValueError, match=r"return each pair's position and pass them, loss.*index=positions"):
        loss(*sides)
    for wrong in (features.index_B[:4], features.index_B.float(), features.index_B - 20):
        with pytest.raises(ValueError, match="allowed are 8 integers of 0 or more"):
            loss(*sides, index=wrong)
    if name == "fastclip":
        with pytest.raises(ValueError, match="allowed are 0 to 19"):
            loss(*sides, index=features.index_B + 20)
    assert loss.step == 0


def test_a_batch_of_another_size_or_device_is_refused() -> None:
    loss = make_loss("neuclip", NEUCLIP)
    with pytest.raises(ValueError, match=r"got 7 pairs on each of 1 processes.*global_batch_size = 8"):
        loss(torch.ones(7, DIM), torch.ones(7, DIM), 14.3)
    with pytest.raises(ValueError, match=rf"image_features have shape \(8, 5\), .* embed_dim = {DIM}: make it with"):
        loss(torch.ones(8, 5), torch.ones(8, DIM), 14.3)
    with pytest.raises(ValueError, match=r"text_features have shape \(8, 5\)"):
        loss(torch.ones(8, DIM), torch.ones(8, 5), 14.3)
    with pytest.raises(ValueError, match="features are on meta, the loss is on cpu"):
        loss(torch.ones(8, DIM, device="meta"), torch.ones(8, DIM, device="meta"), 14.3)


def test_the_losses_need_torch_and_pydantic_and_no_more_of_the_suite() -> None:
    make = "neuclip.NeuCLIPLoss(4, 2); baselines.FastCLIPLoss(9, 2, 3, 1); baselines.AmorLIPLoss(4, 2, 3, 1)"
    code = f"import sys, neuclip, baselines; {make}; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"open_clip", "torchvision", "pandas", "snakemake", "engine.train", "experiments"} & set(modules)
