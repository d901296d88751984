"""The error of gradients: references against autograd, and methods whose error is known."""

import copy
import math
import os
import signal

import pytest
import torch
from support import toy
from support.methods import method_names
from support.spawn import run_in_processes
from torch.nn.functional import normalize

from engine import paths
from engine.data.loader import build_loader
from engine.distributed import Collectives, ProcessGroup
from engine.method import LossOutput
from engine.schema.run import Execution
from engine.stop import Stopped
from engine.training import gradients, measurements
from engine.training.checkpoint import newest_step
from engine.training.gradients import measure_gradient_error, partition, population_gradient
from engine.training.loop import train
from engine.training.trainer import Trainer

CPU = torch.device("cpu")
BATCH = 16


@pytest.fixture
def root(tmp_path, monkeypatch):
    toy.build(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_trainer(method, *, batch=BATCH, num_rounds=2, steps=2, execution=None, collectives=None, **changes):
    error = {"at": (batch,), "num_rounds": num_rounds}
    spec = toy.run_spec(method, steps=steps, batch=batch, gradient_error=error, **changes)
    trainer = Trainer(spec, execution or Execution(), CPU, collectives or Collectives())
    trainer.step_number = 1
    return trainer


# References -----------------------------------------------------------------------------------------------------------


def random_pairs(num_pairs, dim=6):
    generator = torch.Generator().manual_seed(0)
    image_PD = normalize(torch.randn(num_pairs, dim, generator=generator, dtype=torch.float64), dim=1)
    noise_PD = torch.randn(num_pairs, dim, generator=generator, dtype=torch.float64)
    return torch.stack((image_PD, normalize(image_PD + 0.7 * noise_PD, dim=1)))


def plain_log_g(embedding_2PD, scale):
    """log g1 and log g2 by their definition, one pair after the other."""
    x, y = embedding_2PD
    others = [[j for j in range(len(x)) if j != i] for i in range(len(x))]
    sides = [
        [torch.stack([torch.exp(scale * (a[i] @ b[j] - x[i] @ y[i])) for j in others[i]]).mean() for i in range(len(x))]
        for a, b in ((x, y), (y, x))
    ]
    return torch.stack([torch.stack(side) for side in sides]).log()


@pytest.mark.parametrize("tau", [0.5, 0.05])
def test_the_population_s_gradient_is_autograd_s(monkeypatch, tau):
    monkeypatch.setattr(gradients, "_CHUNK_ROWS", 5)
    embedding_2PD, log_s = random_pairs(12).requires_grad_(), torch.tensor(-math.log(tau)).double().requires_grad_()
    weight_2P = torch.rand(2, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    log_g_2P = plain_log_g(embedding_2PD, log_s.exp())
    total = (weight_2P * log_g_2P).sum()
    grad_2PD, slope = torch.autograd.grad(total, (embedding_2PD, log_s))
    # Through the normalisation that makes embeddings: autograd knows which part moves them.
    raw_2PD = (2 * embedding_2PD.detach()).requires_grad_()
    (felt_2PD,) = torch.autograd.grad(normalize(raw_2PD, dim=2), raw_2PD, grad_2PD)

    found = partition(embedding_2PD.detach(), log_s.detach().exp())
    torch.testing.assert_close(found.log_g_2P, log_g_2P.detach(), rtol=1e-10, atol=1e-12)
    assert float((weight_2P * found.slope_2P).sum()) == pytest.approx(float(slope), rel=1e-10)
    grad = population_gradient(embedding_2PD.detach(), log_s.detach().exp(), found, weight_2P)
    torch.testing.assert_close(grad, 12 * 2 * felt_2PD, rtol=1e-9, atol=1e-11)


# Methods whose error is known -----------------------------------------------------------------------------------------


EXACT = {
    "openclip": ("openclip", {}),
    "memory queue": ("memory_queue", {}),
    "fastclip": ("fastclip", {"temperature_gradient": "authors"}),
    "fastclip, consistent": ("fastclip", {"temperature_gradient": "consistent"}),
    "fastclip v0 of 2024": ("fastclip", {"version": "v0", "form": 2024}),
    "amorlip": ("amorlip", {}),
    "neuclip": ("neuclip_batch", {}),
    "neuclip, authors": ("neuclip_batch", {"temperature_gradient": "authors"}),
    "neuclip, infonce": ("neuclip_batch", {"temperature_gradient": "infonce"}),
    "neuclip, counted": ("neuclip_batch", {"positive": "counted"}),
}


@pytest.mark.parametrize("is_learned", [True, False])
@pytest.mark.parametrize("which", EXACT)
def test_a_method_that_sees_all_pairs_at_once_has_the_gradients_of_its_exact_loss(root, which, is_learned):
    name, options = EXACT[which]
    temperature = {"init": 0.1, "learnable": is_learned}
    trainer = make_trainer(name, batch=toy.NUM_PAIRS, options=options | {"temperature": temperature})
    trainer.encoder.encode_detached = toy.encode_pictures
    error = measure_gradient_error(trainer)
    assert (error.population, error.num_batches) == (toy.NUM_PAIRS, 2)
    # In float32.
    assert error.exact_factor == pytest.approx(1, rel=1e-5)
    assert abs(error.exact_bias_squared) < 1e-9
    assert error.variance < 1e-9
    assert error.pull == pytest.approx(error.exact_pull, rel=1e-4)
    assert error.pull_sd < 1e-4 * abs(error.pull)
    if name == "neuclip_batch" and "positive" not in options:
        assert error.factor == pytest.approx(1, rel=1e-5)
        assert abs(error.bias_squared) < 1e-9
    if which == "neuclip":
        assert error.pull == pytest.approx(error.rgcl_pull - toy.OPTIONS["neuclip"]["rho"], rel=1e-4)
    if name == "openclip":
        # Pairs that are told apart weigh less in InfoNCE.
        assert error.bias_squared > 1e-3


def test_exact_normalizers_leave_no_bias_and_the_batch_s_own_do(root):
    """Of gradients in embeddings and in the temperature, at batches of a sixth of the population."""
    errors = {}
    for name, own in (("average", {"average_gamma": 1e-12}), ("batch", {})):
        options = {**own, "temperature": {"init": 0.1}}
        trainer = make_trainer(f"neuclip_{name}", options=options, num_rounds=60, seed=1)
        trainer.encoder.encode_detached = toy.encode_pictures
        if name == "average":
            population = gradients._encode_population(trainer, toy.NUM_PAIRS, 0, lambda: None)
            exact = partition(population.embedding_2PD, trainer.method.logit_scale.detach())
            trainer.method.log_u_N2[population.index_P] = exact.log_g_2P.float().T
            trainer.method.visited_N[:] = True
        errors[name] = measure_gradient_error(trainer)
    exact, own = errors["average"], errors["batch"]
    assert exact.exact_factor == pytest.approx(1, abs=0.1)
    assert abs(exact.exact_bias_squared) < 3 * exact.exact_bias_squared_se
    assert own.exact_bias_squared > 10 * own.exact_bias_squared_se
    off = {name: abs(e.pull - e.exact_pull) / (e.pull_sd / math.sqrt(e.num_batches)) for name, e in errors.items()}
    assert off["average"] < 3 < 10 < off["batch"]
    # Unbiased weights cost variance.
    assert exact.variance > own.variance > 0


def test_gradients_that_are_not_finite_are_no_numbers_and_end_no_training(root):
    trainer = make_trainer("openclip")
    honest = trainer.method.loss
    trainer.method.loss = lambda *args: LossOutput(honest(*args).total * math.nan)
    error = measure_gradient_error(trainer)
    assert (error.factor, error.bias_squared, error.variance, error.pull) == (None, None, None, None)
    assert error.rgcl_pull > 0


# A measurement leaves no trace and depends on nothing else ------------------------------------------------------------


def batches(trainer, steps):
    shares = trainer.extra_shares
    return build_loader(trainer.dataset, seed=0, global_batch_size=BATCH, steps=range(steps), extra_shares=shares)


@pytest.mark.parametrize("method", method_names())
def test_a_measurement_changes_no_state(root, method):
    trainer = make_trainer(method, model={"name": "tiny-resnet"})
    trainer.step_number = 0
    for batch in batches(trainer, 2):
        trainer.step(batch, wants_metrics=False)
    parts = (trainer.towers, trainer.method)
    before = copy.deepcopy([part.state_dict() for part in parts])
    learned = [[p.requires_grad for p in part.parameters()] for part in parts]
    first = measure_gradient_error(trainer)
    torch.testing.assert_close([part.state_dict() for part in parts], before, rtol=0, atol=0)
    assert [[p.requires_grad for p in part.parameters()] for part in parts] == learned
    assert all(p.grad is None for part in parts for p in part.parameters())
    assert measure_gradient_error(trainer) == first


def test_workers_change_nothing_and_extra_pairs_are_of_the_population(root):
    options = {"num_prototypes": 24}
    found = [
        measure_gradient_error(make_trainer("neuclip_exact", options=options, execution=Execution(num_workers=number)))
        for number in (0, 1)
    ]
    assert found[0] == found[1]
    assert found[0].exact_bias_squared is not None


def _in_processes(folder):
    os.chdir(folder)
    return measure_gradient_error(make_trainer("neuclip", collectives=ProcessGroup())).model_dump()


def test_two_processes_measure_what_one_does(root):
    alone = measure_gradient_error(make_trainer("neuclip")).model_dump()
    for found in run_in_processes(_in_processes, 2, str(root)):
        assert found == pytest.approx(alone, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("call", [3, 9])  # while pairs are encoded; while batches are measured
def test_a_signal_in_a_measurement_ends_it_and_it_is_made_on_resuming(root, monkeypatch, call):
    error = {"at": (64,), "num_rounds": 2}
    spec = toy.run_spec("neuclip", steps=6, normalizer_error=None, gradient_error=error)
    honest, calls = measurements.heed_signals, []

    def heed_signals(*args):
        calls.append(args)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGUSR2)
        honest(*args)

    with monkeypatch.context() as patch:
        patch.setattr(measurements, "heed_signals", heed_signals)
        with pytest.raises(Stopped) as stopped:
            train(spec, Execution())
    assert (stopped.value.step, len(calls), newest_step(paths.checkpoints(spec.run_id))) == (4, call, 4)
    assert not paths.measurement(spec.run_id, "gradient_error", 64).exists()
    interrupted = train(spec, Execution())
    assert [entry.samples_seen for entry in interrupted.gradient_error] == [64]

    os.rename(paths.run(spec.run_id), root / "interrupted")
    record = train(spec, Execution())
    assert record.gradient_error == interrupted.gradient_error
    assert record.milestones == interrupted.milestones


def test_a_run_with_it_is_another():
    assert toy.run_spec("openclip", gradient_error={"at": (160,)}).run_id != toy.run_spec("openclip").run_id


def test_a_population_is_at_least_a_batch():
    with pytest.raises(ValueError, match=r"population = 8 is less than global_batch_size = 16: use"):
        toy.run_spec("openclip", gradient_error={"at": (160,), "population": 8})
