"""What a step computes: precisions, clipping, compiled encoders, draws of random numbers."""

import math
import os
import shutil

import open_clip
import pytest
import torch
import toy
from killing import MODELS, Kill, Server

from engine import paths
from engine.checkpoint import load_checkpoint, newest_step
from engine.data import build_loader
from engine.distributed import Collectives
from engine.spec import Execution
from engine.towers import WEIGHTS_FILE
from engine.trainer import Trainer, Wishes

CPU = torch.device("cpu")

open_clip.add_model_config(MODELS)


@pytest.fixture
def root(tmp_path, monkeypatch):
    toy.build(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_trainer(execution=None, method="openclip", **changes):
    return Trainer(toy.run_spec(method, **changes), execution or Execution(), CPU, Collectives())


def nothing():
    return Wishes((False, False, False), save=False, num_replaced=0)


def batches(trainer, steps=1):
    return build_loader(trainer.dataset, seed=0, global_batch_size=16, steps=range(steps))


def gradient(trainer):
    return torch.cat([p.grad.flatten() for p in trainer.optimizer.parameters if p.grad is not None])


# Draws ------------------------------------------------------------------------------------------------------------


def test_with_dropout_both_passes_over_a_part_draw_the_same(root):
    dropout = {"model": {"name": "dropout-vit"}}
    trainer = make_trainer(Execution(accumulation_steps=2), **dropout)
    honest, states = trainer.encoder.forward, []

    def forward(*args):
        states.append(torch.get_rng_state())
        return honest(*args)

    trainer.encoder.forward = forward
    batch = next(iter(batches(trainer)))
    trainer.backward(batch)
    assert len(states) == 4
    assert not torch.equal(states[0], states[1])

    # The whole batch in one graph, each half with the draws of its first pass.
    direct = make_trainer(**dropout)
    halves = []
    for state, image_BCHW, tokens_BT in zip(
        states[:2], batch.image_BCHW.chunk(2), batch.tokens_BT.chunk(2), strict=True
    ):
        torch.set_rng_state(state)
        halves.append(direct.towers(image_BCHW.contiguous(memory_format=torch.channels_last), tokens_BT))
    image_BD, text_BD = (torch.cat(side) for side in zip(*halves, strict=True))
    logits_BB = direct.method.logit_scale * image_BD @ text_BD.T
    targets_B = torch.arange(16)
    loss = torch.nn.functional.cross_entropy(logits_BB, targets_B)
    loss = (loss + torch.nn.functional.cross_entropy(logits_BB.T, targets_B)) / 2
    loss.backward()
    expected = gradient(direct)
    torch.testing.assert_close(gradient(trainer), expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


def test_draws_depend_on_the_step_and_not_on_what_was_drawn_before(root):
    losses = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        trainer = make_trainer(model={"name": "dropout-vit"})
        losses.append([trainer.backward(batch).total.item() for batch in batches(trainer, 2)])
        trainer.step_number = 1
        losses[-1].append(trainer.backward(next(iter(batches(trainer)))).total.item())
    assert losses[0] == losses[1]
    # The same batch and weights at another step.
    assert losses[0][0] != losses[0][2]


# Clipping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("share", [0.5, 2.0])
def test_the_gradient_is_clipped_at_its_norm_over_all_parameters(root, precision, share):
    plain = make_trainer(precision=precision)
    # The usual first scale overflows here, and a scaler then skips steps until it does not.
    plain.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=precision == "fp16")
    batch = next(iter(batches(plain)))
    plain.backward(batch)
    whole = gradient(plain) / plain.scaler.get_scale()
    norm = float(whole.double().square().sum().sqrt())
    limit = share * norm

    trainer = make_trainer(precision=precision, optimizer={"lr": 1e-3, "grad_clip_norm": limit})
    trainer.scaler = plain.scaler
    given = []
    trainer.optimizer.adamw.register_step_pre_hook(lambda *_: given.append(gradient(trainer)))
    metrics, _ = trainer.step(batch, nothing, timing=True)
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-6)
    expected = whole * min(1.0, limit / norm)
    torch.testing.assert_close(given[0], expected, rtol=0, atol=2e-6 * float(expected.abs().max()))
    assert float(given[0].norm()) == pytest.approx(min(limit, norm), rel=1e-5)


# Precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["neuclip", "fastclip"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_run_in_half_precision_is_close_to_one_in_full_and_goes_on_bit_for_bit(root, method, precision):
    server, finals = Server(), []
    spec = toy.run_spec(method, precision=precision, normalizer_error=None)
    path, execution = toy.write_spec(root, spec), {"save_every_min": 0}
    for kills in ([], [Kill("step", 4), Kill("record", 1)]):
        for kill in kills:
            assert server.run(root, path, kill=kill, execution=execution) == [-9]
        if kills:
            step = newest_step(paths.checkpoints(spec.run_id))
            scaler = load_checkpoint(paths.checkpoints(spec.run_id), step)["scaler"]
            assert scaler.get("_growth_tracker", 0) == (step if precision == "fp16" else 0)
        assert server.run(root, path, execution=execution) == [0]
        finals.append(paths.file_sha256(paths.weights(spec.run_id, spec.samples_seen) / WEIGHTS_FILE))
        os.rename(paths.run(spec.run_id), root / f"{len(finals)}")
        toy.write_spec(root, spec)
    assert finals[0] == finals[1]

    full, half = (make_trainer(method=method, precision=name) for name in ("fp32", precision))
    batch = next(iter(batches(full)))
    for trainer in (full, half):
        trainer.backward(batch)
    cosine = float(torch.nn.functional.cosine_similarity(gradient(half).double(), gradient(full).double(), dim=0))
    # Products of 8 or 11 significant bits: an error of less than a percent in every entry, with any sign.
    assert 1e-8 < 1 - cosine < 1e-3


def test_an_overflow_in_half_precision_skips_the_step_and_halves_the_scale(root):
    trainer = make_trainer(precision="fp16")
    before = [p.detach().clone() for p in trainer.towers.parameters()]
    scale = trainer.scaler.get_scale()
    honest = trainer.backward

    def overflow(batch, **options):
        output = honest(batch, **options)
        trainer.optimizer.parameters[0].grad.fill_(math.inf)
        return output

    trainer.backward = overflow
    metrics, _ = trainer.step(next(iter(batches(trainer))), nothing, timing=True)
    assert metrics is not None
    assert all(torch.equal(p, old) for p, old in zip(trainer.towers.parameters(), before, strict=True))
    assert trainer.scaler.get_scale() == scale / 2


# Compiled encoders ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_encoders_train_as_plain_ones_do(root):
    gradients, losses = [], []
    for is_compiled in (False, True):
        trainer = make_trainer(Execution(compile=is_compiled))
        loader = batches(trainer, 3)
        trainer.backward(next(iter(loader)))
        gradients.append(gradient(trainer))
        trainer.optimizer.adamw.zero_grad()
        losses.append([trainer.step(batch, nothing, timing=True)[0]["loss/total"] for batch in loader])
    # Fused kernels round otherwise.
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-5 * float(gradients[0].abs().max()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
