"""Every method keeps these promises: methods are found by where they lie, their options by their types."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from support.methods import method_class, method_names, resolve_config
from support.small import (
    features_of,
    make_method,
    opposite_features,
    progress_of,
    random_features,
    train_step,
    with_extra,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from variants import (
    FEW,
    SMALL,
    VARIANTS,
    Options,
    alternatives,
    at_temperature,
    few,
    is_valid,
    label,
    same,
    saved,
    tensors,
)
from variants import train as train_on

from engine import contrastive
from engine.method import Features, wrong_form

every_variant = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=map(label, VARIANTS))
every_small_variant = pytest.mark.parametrize(("name", "options"), SMALL, ids=map(label, SMALL))
every_method = pytest.mark.parametrize("name", method_names(controls=True))


# Loss, gradients, metrics -------------------------------------------------------------------------------------------


@every_variant
def test_the_loss_is_a_finite_scalar_that_every_embedding_has_a_part_in(name: str, options: Options) -> None:
    method = make_method(name, **options)
    features = with_extra(method, random_features(0, dtype=torch.float32))

    output = method.loss(features, progress_of(method, 0))
    if wrong := wrong_form(output):
        # Without a traceback: `check-method` tells it as it is.
        pytest.fail(wrong, pytrace=False)
    total = output.total
    total.backward()

    assert total.dtype == torch.float32
    assert total.isfinite()
    for side_BD in (features.image_BD, features.text_BD):
        assert side_BD.grad.isfinite().all()
        assert side_BD.grad.any(dim=1).all()


@every_variant
def test_what_the_optimiser_is_given_belongs_to_the_method_and_gets_a_gradient(name: str, options: Options) -> None:
    method = make_method(name, **options)
    features = with_extra(method, random_features(0, dtype=torch.float32))
    method.loss(features, progress_of(method, 0)).total.backward()
    if wrong := method.without_gradient_or_training(features):
        # Without a traceback: `check-method` tells it as it is.
        pytest.fail(wrong[0], pytrace=False)

    own = {id(parameter) for parameter in method.parameters()}
    for group in method.param_groups():
        for parameter in group.params:
            assert id(parameter) in own
            assert parameter.grad.isfinite().all()


@every_variant
def test_metrics_are_detached_scalars_with_a_group_in_their_name(name: str, options: Options) -> None:
    method = make_method(name, **options)
    metrics = method.loss(with_extra(method, random_features(0, dtype=torch.float32)), progress_of(method, 0)).metrics

    for key, value in metrics.items():
        assert [bool(part) for part in key.split("/")] == [True, True]
        assert isinstance(value, Tensor)
        assert (value.shape, value.requires_grad) == ((), False)


@every_variant
@settings(max_examples=2, deadline=None)
@given(order=st.permutations(range(8)))
def test_the_order_of_a_batch_only_orders_its_gradients(name: str, options: Options, order: list[int]) -> None:
    # Past step 0, at which prototypes are drawn from the batch by row.
    first, second = (make_method(name, dtype=torch.float64, **options) for _ in range(2))
    for method in (first, second):
        train_on(method, range(1))
    features = random_features(1)
    sides = (features.image_BD.detach()[order], features.text_BD.detach()[order])

    ours = train_step(first, 1, features)
    theirs = train_step(second, 1, features_of(*sides, features.index_B[order]))

    expected = {key: value[order] if value.ndim else value for key, value in ours.items()}
    # Sums run in another order, and an optimiser's first step magnifies their rounding.
    torch.testing.assert_close(theirs, expected, rtol=1e-7, atol=1e-9, equal_nan=True)
    # What the step has left behind is the same: so is what comes of it.
    later = [train_on(method, range(2, 4)) for method in (second, first)]
    torch.testing.assert_close(*later, rtol=1e-6, atol=1e-8, equal_nan=True)


class LargestTensor(TorchDispatchMode):
    """Notes the shape of the largest tensor that comes about."""

    shape: tuple[int, ...] = (0,)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # What works in place may give nothing back.
        self.shape = max([self.shape, *(tuple(tensor.shape) for tensor in tensors(result))], key=math.prod)
        return result


@every_small_variant
def test_no_tensor_holds_all_pairs_of_a_batch(name: str, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    # Chunks that a method does not choose itself are small enough for a small batch, too.
    monkeypatch.setattr(contrastive, "DEFAULT_CHUNK_ROWS", FEW)
    num_pairs = 128
    method = make_method(name, embed_dim=8, dataset_size=num_pairs, global_batch_size=num_pairs, **options)
    for step in range(2):
        features = random_features(step, num_pairs=num_pairs, dim=8, dataset_size=num_pairs, dtype=torch.float32)
        with LargestTensor() as largest:
            method.loss(with_extra(method, features), progress_of(method, step)).total.backward()
        assert math.prod(largest.shape) > 0
        if math.prod(largest.shape) >= num_pairs**2 / 2:
            # Without a traceback: `check-method` tells it as it is.
            pytest.fail(f"a tensor has shape {largest.shape} for a batch of {num_pairs} pairs", pytrace=False)


# Hard batches -------------------------------------------------------------------------------------------------------


def identical() -> Features:
    row_BD = torch.eye(16)[:1].expand(8, -1)
    return features_of(row_BD, row_BD, dtype=torch.float32)


def partners_opposite() -> Features:
    row_BD = torch.eye(16)[:1].expand(8, -1)
    return features_of(row_BD, -row_BD, dtype=torch.float32)


def nearest_is_a_stranger() -> Features:
    features = random_features(0, dtype=torch.float32)
    return features_of(features.image_BD.detach(), features.image_BD.detach().roll(1, dims=0), dtype=torch.float32)


def one_position_repeated() -> Features:
    features = random_features(0, dtype=torch.float32)
    features.index_B[2:5] = features.index_B[0]
    return features


def one_position_only() -> Features:
    features = random_features(0, dtype=torch.float32)
    features.index_B.zero_()
    return features


HARD: dict[str, Callable[[], Features]] = {
    "two pairs, partners equal": lambda: opposite_features(matched=True),
    "two pairs, strangers equal": lambda: opposite_features(matched=False),
    "all embeddings identical": identical,
    "all partners opposite": partners_opposite,
    "nearest is a stranger": nearest_is_a_stranger,
    "a position repeated": one_position_repeated,
    "one position only": one_position_only,
}


@every_variant
@pytest.mark.parametrize("batch", HARD)
@pytest.mark.parametrize("temperature", ["minimum", "maximum"])
def test_everything_stays_finite_in_float32(name: str, options: Options, batch: str, temperature: str) -> None:
    num_pairs = len(HARD[batch]().index_B)
    method = make_method(name, global_batch_size=num_pairs, **at_temperature(name, options, temperature))
    unvisited = {key: value.isnan() for key, value in method.named_buffers()}
    for step in range(3):
        # Not the metrics: a share of nothing has no value, and is logged as null.
        values = train_step(method, step, HARD[batch]())
        estimates = [values.pop("log_g_image"), values.pop("log_g_text")]
        assert not any(value.isinf().any() for value in estimates)
        buffers = dict(method.named_buffers())
        for key, value in buffers.items():
            # NaN that it began with says of an entry that it was not visited yet.
            was_nan = unvisited.get(key, torch.tensor(False))
            was_nan = was_nan if was_nan.shape == value.shape else torch.tensor(False)
            assert not (value.isinf() | (value.isnan() & ~was_nan)).any()
        rest = [value for key, value in method.state_dict().items() if key not in buffers]
        for value in (*values.values(), *tensors(rest)):
            assert value.isfinite().all()


# Pairs beyond the batch ---------------------------------------------------------------------------------------------


@every_variant
def test_pairs_beyond_the_batch_get_no_gradient_and_are_not_changed(name: str, options: Options) -> None:
    method = make_method(name, **options)
    features = with_extra(method, random_features(0, dtype=torch.float32))
    if features.extra is None:
        assert method.num_extra_pairs == 0
        return
    extra = features.extra
    before = [tensor.clone() for tensor in (extra.image_BD, extra.text_BD, extra.index_B)]
    method.loss(features, progress_of(method, 0)).total.backward()
    assert same(before, [extra.image_BD, extra.text_BD, extra.index_B])
    assert not extra.image_BD.requires_grad
    # The number is settled when the method is built: the engine draws all steps alike.
    assert method.num_extra_pairs == len(extra.index_B)


# State --------------------------------------------------------------------------------------------------------------


@every_variant
def test_asking_for_normalizers_changes_no_state(name: str, options: Options) -> None:
    method = make_method(name, **options)
    for step in range(3):
        train_on(method, range(step, step + 1))
        before = copy.deepcopy(method.state_dict())
        for batch in (step, step + 1):
            features = with_extra(method, random_features(batch, dtype=torch.float32))
            for log_g_B in method.log_normalizers(features, progress_of(method, batch)):
                assert (log_g_B.shape, log_g_B.requires_grad) == ((8,), False)
        assert same(method.state_dict(), before)


@every_variant
def test_what_is_estimated_is_said_for_every_anchor(name: str, options: Options) -> None:
    method = make_method(name, **options)
    features = random_features(0, dtype=torch.float32)
    for step in range(2):
        train_on(method, range(step, step + 1))
        scale_2B = method.anchor_logit_scales(features)
        assert (scale_2B.shape, scale_2B.requires_grad) == ((2, 8), False)
        assert (scale_2B.isfinite() & (scale_2B > 0)).all()
        assert 0 <= method.normalizer_eps < math.inf


@every_variant
def test_the_state_is_tensors_and_plain_values(name: str, options: Options) -> None:
    method = make_method(name, **options)
    train_on(method, range(2))

    assert same(saved(method), method.state_dict())


def goes_on_bit_for_bit(name: str, options: Options, stop: int, end: int) -> bool:
    """Tell if training ends alike when it is stopped, saved, and taken up by a new instance."""
    whole, begun, resumed = (make_method(name, steps_per_epoch=5, **options) for _ in range(3))
    steps = train_on(whole, range(end))
    train_on(begun, range(stop))
    resumed.load_state_dict(saved(begun))
    return same(train_on(resumed, range(stop, end)), steps[stop:]) and same(resumed.state_dict(), whole.state_dict())


@every_variant
def test_training_goes_on_bit_for_bit_from_a_saved_state(name: str, options: Options) -> None:
    assert goes_on_bit_for_bit(name, options, stop=3, end=7)


@every_method
@settings(max_examples=6, deadline=None)
@given(data=st.data(), stop=st.integers(0, 6))
def test_so_it_does_under_any_combination_of_options(name: str, data: st.DataObject, stop: int) -> None:
    offered = {key: st.sampled_from(values) for key, values in alternatives(method_class(name).Config).items()}
    options = few(name) | data.draw(st.fixed_dictionaries({}, optional=offered))
    assume(is_valid(name, options))

    assert goes_on_bit_for_bit(name, options, stop, end=7)


@every_variant
def test_two_instances_share_no_state(name: str, options: Options) -> None:
    first, second = (make_method(name, **options) for _ in range(2))
    before = copy.deepcopy(second.state_dict())
    train_on(first, range(2))
    assert same(second.state_dict(), before)

    second.load_state_dict(first.state_dict())
    before = copy.deepcopy(first.state_dict())
    train_on(second, range(2, 5))
    assert same(first.state_dict(), before)


@every_variant
def test_nothing_depends_on_the_global_random_state_nor_moves_it(name: str, options: Options) -> None:
    runs = []
    with torch.random.fork_rng(devices=[]):
        for seed in (0, 1):
            torch.manual_seed(seed)
            # Building may move it: torch's layers draw weights, which the method then draws anew.
            method = make_method(name, **options)
            before = torch.get_rng_state()
            runs.append([train_on(method, range(6)), method.state_dict()])
            assert torch.equal(torch.get_rng_state(), before)
    assert same(*runs)


# Options ------------------------------------------------------------------------------------------------------------


def option_groups(config_class: type[BaseModel], *path: str) -> Iterator[tuple[tuple[str, ...], type[BaseModel]]]:
    """List the nested models of options, with where they stand."""
    yield path, config_class
    for name, field in config_class.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from option_groups(field.annotation, *path, name)


@every_method
def test_an_unknown_option_is_refused_with_the_known_names(name: str) -> None:
    for path, model in option_groups(method_class(name).Config):
        options: Options = {"no_such_option": 1}
        for key in reversed(path):
            options = {key: options}
        with pytest.raises(ValueError, match="unknown key 'no_such_option'") as refused:
            resolve_config(name, options)
        assert all(known in str(refused.value) for known in model.model_fields)


@every_variant
def test_resolved_options_resolve_to_themselves(name: str, options: Options) -> None:
    config = resolve_config(name, options)

    assert resolve_config(name, config.model_dump(mode="json")) == config
