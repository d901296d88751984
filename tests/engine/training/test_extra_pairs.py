"""Pairs that a method wants beyond the batch: drawn by step, encoded without a trace, the same however a run goes."""

import copy
import os

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file
from support import toy
from support.killing import MODELS, Kill, Server
from support.spawn import run_in_processes

from engine import files, paths
from engine.data import order
from engine.data.loader import Request, build_loader
from engine.distributed import Collectives, ProcessGroup
from engine.schema.base import parse
from engine.schema.record import Record
from engine.schema.run import Execution
from engine.training.diagnostics import measure_normalizer_error
from engine.training.towers import WEIGHTS_FILE
from engine.training.trainer import Trainer

CPU = torch.device("cpu")
NUM_EXTRA = 24
EXACT = {"num_prototypes": NUM_EXTRA}

open_clip.add_model_config(MODELS)


@pytest.fixture
def root(tmp_path, monkeypatch):
    toy.build(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_trainer(execution=None, collectives=None, options=EXACT, name="neuclip_exact", **changes):
    spec = toy.run_spec(name, options=options, **changes)
    return Trainer(spec, execution or Execution(), CPU, collectives or Collectives())


def batches(trainer, steps=1):
    ours = trainer.collectives
    return build_loader(
        trainer.dataset, seed=0, global_batch_size=16, steps=range(steps), rank=ours.rank, world_size=ours.world_size,
        extra_shares=trainer.extra_shares,
    )  # fmt: skip


def gradient(trainer):
    return torch.cat([p.grad.flatten() for p in trainer.optimizer.parameters if p.grad is not None])


def seen_by(trainer):
    """The features that the method gets in the first step."""
    seen, loss = [], trainer.method.loss
    trainer.method.loss = lambda features, progress: seen.append(features) or loss(features, progress)
    trainer.backward(next(iter(batches(trainer))))
    return seen[0]


def test_a_method_sees_its_pairs_as_the_current_encoders_have_them(root):
    trainer = make_trainer()
    extra = seen_by(trainer).extra
    positions = order.extra_positions(toy.NUM_PAIRS, np.arange(NUM_EXTRA), seed=0, step=0)
    assert extra.index_B.tolist() == positions.tolist()
    batch = trainer.dataset[Request(0, positions)]
    with torch.no_grad():
        image_BD, text_BD = trainer.towers(batch.image_BCHW, batch.tokens_BT)
    torch.testing.assert_close(extra.image_BD, image_BD)
    torch.testing.assert_close(extra.text_BD, text_BD)
    assert not extra.image_BD.requires_grad


def test_they_leave_no_trace_in_batch_norm_nor_in_what_the_batch_draws(root):
    for model in ("tiny-resnet", "dropout-vit"):
        with_extra, without = (
            make_trainer(options=options, name=name, model={"name": model})
            for name, options in (("neuclip_exact", EXACT), ("neuclip", {}))
        )
        ours, theirs = seen_by(with_extra), seen_by(without)
        assert torch.equal(ours.image_BD, theirs.image_BD)
        assert torch.equal(ours.text_BD, theirs.text_BD)
        state = with_extra.towers.state_dict()
        assert all(torch.equal(state[name], value) for name, value in without.towers.state_dict().items())


def test_accumulation_gives_the_gradient_of_the_whole_batch(root):
    whole, parts = make_trainer(), make_trainer(Execution(accumulation_steps=4))
    for trainer in (whole, parts):
        trainer.backward(next(iter(batches(trainer))))
    expected = gradient(whole)
    torch.testing.assert_close(gradient(parts), expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


def _first_gradient_in_processes(folder, changes):
    os.chdir(folder)
    trainer = make_trainer(collectives=ProcessGroup(), **changes)
    extra = seen_by(trainer).extra
    return extra.index_B, extra.image_BD, gradient(trainer)


# Batch norm sees 8 of the batch's 16 pairs at a time, and so three parts of 8 of the 24 extra ones; or all 4 of them.
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": {"name": "tiny-resnet"}, "batch_norm_groups": 2},
        {"model": {"name": "tiny-resnet"}, "batch_norm_groups": 2, "options": EXACT | {"num_prototypes": 4}},
    ],
    ids=["no batch norm", "several parts", "one part"],
)
def test_two_processes_share_the_pairs_and_see_all_of_them(root, changes):
    alone = make_trainer(**changes)
    extra, expected = seen_by(alone).extra, gradient(alone)
    for index_K, image_KD, found in run_in_processes(_first_gradient_in_processes, 2, str(root), changes):
        assert torch.equal(index_K, extra.index_B)
        torch.testing.assert_close(image_KD, extra.image_BD)
        # The temperature's gradient comes last, and is averaged later.
        torch.testing.assert_close(found[:-1], expected[:-1], rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_killed_run_goes_on_bit_for_bit_and_tells_what_the_pairs_cost(root, num_workers):
    spec = toy.run_spec("neuclip_exact", options=EXACT, steps=6)
    path, server, finals = toy.write_spec(root, spec), Server(), []
    execution = {"save_every_min": 0, "num_workers": num_workers}
    for kills in ([], [Kill("step", 4)]):
        for kill in kills:
            assert server.run(root, path, kill=kill, execution=execution) == [-9]
        assert server.run(root, path, execution=execution) == [0]
        finals.append(load_file(paths.weights(spec.run_id, spec.samples_seen) / WEIGHTS_FILE))
        record = parse(Record, files.read_text(paths.record(spec.run_id)), "record")
        assert record.clock_sec["extra"] > 0
        for name in ("record.json", "outcome.json"):
            (paths.run(spec.run_id) / name).unlink(missing_ok=True)
    assert all(torch.equal(finals[0][name], value) for name, value in finals[1].items())


def test_a_measurement_brings_fresh_pairs_of_its_own(root):
    trainer = make_trainer(options=EXACT | {"num_prototypes": 64})
    trainer.step(next(iter(batches(trainer))), wants_metrics=False)
    before = copy.deepcopy(trainer.towers.state_dict())
    error, _ = measure_normalizer_error(trainer)
    assert error.num_without_estimate == 0
    # A mean over 64 random pairs errs less than one over the control's 16.
    assert 0 < error.image_mse < error.control_mse
    assert all(torch.equal(before[name], value) for name, value in trainer.towers.state_dict().items())
