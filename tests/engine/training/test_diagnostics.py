"""The error of log-normalizers against a direct computation that holds everything at once."""

import hashlib
import os

import numpy as np
import pytest
import torch
from safetensors.numpy import load
from support import toy
from support.methods import resolve_config
from support.small import make_method
from support.spawn import run_in_processes

from engine.data import order
from engine.data.loader import Request
from engine.distributed import Collectives, ProcessGroup
from engine.method import Features
from engine.schema.run import Execution
from engine.training import diagnostics
from engine.training.diagnostics import measure_normalizer_error
from engine.training.sweep import SWEEP_EPOCH
from engine.training.trainer import Trainer

BATCH = 20  # 96 pairs: four whole batches, and a last one that is filled up
SPEC = {"at": (BATCH,), "num_anchors": 30, "control_size": 25}


@pytest.fixture
def root(tmp_path, monkeypatch):
    toy.build(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def measured(collectives, num_workers=0, method="fastclip"):
    spec = toy.run_spec(method, steps=4, batch=BATCH, normalizer_error=SPEC)
    trainer = Trainer(spec, Execution(num_workers=num_workers), torch.device("cpu"), collectives)
    trainer.step_number = 1
    return trainer, measure_normalizer_error(trainer)


@torch.no_grad()
def direct(trainer):
    """MSE of the random control, in float64, by plain loops over all pairs."""
    index = trainer.dataset.index
    positions = np.concatenate(list(order.epoch_order(index.shard_sizes, seed=0, epoch=SWEEP_EPOCH)))
    batch = trainer.dataset[Request(0, positions)]
    x, y = (features.double() for features in trainer.encoder.encode(batch.image_BCHW, batch.tokens_BT))
    scale = float(trainer.method.logit_scale)
    drawn = torch.randperm(96, generator=trainer.method.env.generator("random control"))[
        : SPEC["control_size"]
    ].tolist()
    errors = []
    for anchor, other in ((x, y), (y, x)):
        for i in range(2 * BATCH):
            terms = [float(torch.exp(scale * (anchor[i] @ other[j] - x[i] @ y[i]))) for j in range(96)]
            exact = np.mean([terms[j] for j in range(96) if j != i])
            control = np.mean([terms[j] for j in drawn if j != i])
            errors.append((np.log(control) - np.log(exact)) ** 2)
    return float(np.mean(errors))


def test_the_control_is_that_of_a_direct_computation(root):
    trainer, (error, _) = measured(Collectives())
    assert error.num_anchors == 2 * BATCH
    assert error.control_mse == pytest.approx(direct(trainer), rel=1e-4)


def test_a_method_without_an_estimate_has_no_error(root):
    error, sample = measured(Collectives())[1]
    # FastCLIP has seen no pair yet.
    assert error.num_without_estimate == 4 * BATCH
    assert error.image_mse is None
    assert not np.isfinite(load(sample)["estimate"]).any()


def test_the_sample_is_what_the_error_is_made_of(root, monkeypatch):
    monkeypatch.setattr(diagnostics, "_SAMPLE_SIZE", 2 * BATCH + 1)  # more than there are
    error, sample = measured(Collectives(), method="openclip")[1]
    assert error.sample_sha256 == hashlib.sha256(sample).hexdigest()
    found = load(sample)
    assert {name: (values.shape, values.dtype) for name, values in found.items()} == dict.fromkeys(
        ("estimate", "exact"), ((2, 2 * BATCH), np.float32)
    )
    mse = np.square(found["estimate"] - found["exact"]).mean(axis=1)
    assert mse == pytest.approx([error.image_mse, error.text_mse], rel=1e-5)


def test_the_sample_has_a_limit_and_the_error_has_none(root, monkeypatch):
    error, whole = measured(Collectives(), method="openclip")[1]
    monkeypatch.setattr(diagnostics, "_SAMPLE_SIZE", 7)
    same, part = measured(Collectives(), method="openclip")[1]
    assert same.image_mse == error.image_mse
    for name, values in load(part).items():
        np.testing.assert_array_equal(values, load(whole)[name][:, :7])


def test_workers_change_nothing(root):
    assert measured(Collectives(), num_workers=2)[1] == measured(Collectives())[1]


def test_of_a_large_set_the_control_is_drawn_without_a_permutation_and_evenly():
    method = make_method("openclip")
    drawn = diagnostics._draw_control(10**9, 1024, method)
    assert (len(drawn), len(drawn.unique()), int(drawn.min()) >= 0) == (1024, 1024, True)
    assert torch.equal(drawn, drawn.sort().values)
    # By quarters of the set: binomial, with a standard deviation of 14.
    assert (torch.bincount(drawn // 250_000_001, minlength=4) - 256).abs().max() < 70
    assert torch.equal(drawn, diagnostics._draw_control(10**9, 1024, method))


def test_without_a_permutation_the_control_has_as_many_pairs_as_was_asked_for(monkeypatch):
    monkeypatch.setattr(diagnostics, "_MAX_PERMUTED", 0)
    assert len(diagnostics._draw_control(20, 50, make_method("openclip")).unique()) == 19


def _control_in_processes(folder):
    os.chdir(folder)
    return measured(ProcessGroup())[1].error.control_mse


def test_two_processes_measure_what_one_does(root):
    found = run_in_processes(_control_in_processes, 2, str(root))
    assert found == pytest.approx([measured(Collectives())[1].error.control_mse] * 2, rel=1e-5)


# Exact estimates have no error ----------------------------------------------------------------------------------------


def measured_when_the_batch_is_the_set(name, prepare=lambda method: None, **options):
    """The error after one step of a method on all pairs at once."""
    spec = toy.run_spec(name, steps=1, batch=toy.NUM_PAIRS, normalizer_error={**SPEC, "at": (toy.NUM_PAIRS,)})
    config = resolve_config(name, options).model_dump(mode="json")
    spec = spec.model_copy(update={"method": spec.method.model_copy(update={"config": config})})
    trainer = Trainer(spec, Execution(), torch.device("cpu"), Collectives())
    batch = trainer.dataset[Request(0, np.random.default_rng(1).permutation(toy.NUM_PAIRS))]
    prepare(trainer.method)
    with torch.no_grad():
        features = Features(*toy.encode_pictures(batch.image_BCHW, batch.tokens_BT), batch.index_B)
    trainer.method.loss(features, trainer.progress())
    trainer.step_number, trainer.encoder.encode_detached = 1, toy.encode_pictures
    return measure_normalizer_error(trainer)


EXACT = {
    "openclip": ("openclip", {}),
    "fastclip": ("fastclip", {"eps": 1e-6}),
    "fastclip 2024": ("fastclip", {"eps": 1e-6, "form": 2024}),
    "amorlip": ("amorlip", {}),
    "neuclip's queue": ("neuclip_queue", {"eps": 1e-6, "num_prototypes": toy.NUM_PAIRS}),
}


@pytest.mark.parametrize("tau", [0.03, 0.01])
@pytest.mark.parametrize("which", EXACT)
def test_an_exact_estimate_of_whatever_a_method_estimates_has_no_error(root, which, tau):
    name, options = EXACT[which]
    error, sample = measured_when_the_batch_is_the_set(name, temperature={"init": tau}, **options)
    assert error.num_without_estimate == 0
    # In float32 a logit of 100 is known to 1e-5.
    assert error.image_mse < 1e-8
    assert error.text_mse < 1e-8
    exact = load(sample)["exact"]
    assert exact.std() > 0.01
    if error.eps:
        # eps does hide some of the normalizers: compared with log g itself, the estimate would be nats away.
        assert exact.min() < np.log(error.eps) + 0.1


def test_temperatures_of_their_own_are_those_at_which_anchors_are_compared(root):
    def spread(method):
        draws = torch.rand(method.temperature_N2.shape, generator=torch.Generator().manual_seed(0))
        method.temperature_N2.copy_(0.02 + 0.2 * draws)

    options = {"version": "v2", "temperature": {"learnable": False}}
    error, _ = measured_when_the_batch_is_the_set("fastclip", prepare=spread, **options)
    assert error.num_without_estimate == 0
    assert error.temperature == pytest.approx(0.12, rel=0.1)
    assert error.image_mse < 1e-8
    assert error.text_mse < 1e-8


def test_the_control_is_compared_as_the_method_is(root):
    """With eps far above every g nothing but eps is left, and no estimate can be wrong."""
    error, _ = measured_when_the_batch_is_the_set("fastclip", temperature={"init": 0.05}, eps=1e6)
    assert error.control_mse < 1e-6 < measured_when_the_batch_is_the_set("openclip")[0].control_mse
