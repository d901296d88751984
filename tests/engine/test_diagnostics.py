"""The error of log-normalizers against a direct computation that holds everything at once."""

import os

import numpy as np
import pytest
import torch
import toy
from spawn import run_in_processes

from engine import order
from engine.data import Request
from engine.diagnostics import _ANCHOR_EPOCH, measure_normalizer_error
from engine.distributed import Collectives, ProcessGroup
from engine.spec import Execution, NormalizerErrorSpec
from engine.trainer import Trainer

BATCH = 20  # 96 pairs: four whole batches, and a last one that is filled up
SPEC = NormalizerErrorSpec(at=(BATCH,), num_anchors=30, control_size=25)


@pytest.fixture
def root(tmp_path, monkeypatch):
    toy.build(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def measured(collectives, num_workers=0):
    trainer = Trainer(toy.run_spec("fastclip", steps=4, batch=BATCH), Execution(), torch.device("cpu"), collectives)
    return trainer, measure_normalizer_error(
        SPEC, towers=trainer.towers, encode=trainer.encode, dataset=trainer.dataset, method=trainer.method,
        progress=trainer.progress(), global_batch_size=BATCH, seed=0, device=trainer.device, num_workers=num_workers,
    )  # fmt: skip


@torch.no_grad()
def direct(trainer):
    """MSE of the random control, in float64, by plain loops over all pairs."""
    index = trainer.dataset.index
    positions = np.concatenate(list(order.epoch_order(index.shard_sizes, seed=0, epoch=_ANCHOR_EPOCH)))
    batch = trainer.dataset[Request(0, positions)]
    x, y = (features.double() for features in trainer.encode(batch.image_BCHW, batch.tokens_BT))
    scale = float(trainer.method.logit_scale)
    drawn = torch.randperm(96, generator=trainer.method.env.generator("random control"))[: SPEC.control_size].tolist()
    errors = []
    for anchor, other in ((x, y), (y, x)):
        for i in range(2 * BATCH):
            terms = [float(torch.exp(scale * (anchor[i] @ other[j] - x[i] @ y[i]))) for j in range(96)]
            exact = np.mean([terms[j] for j in range(96) if j != i])
            control = np.mean([terms[j] for j in drawn if j != i])
            errors.append((np.log(control) - np.log(exact)) ** 2)
    return float(np.mean(errors))


def test_the_control_is_that_of_a_direct_computation(root):
    trainer, error = measured(Collectives())
    assert error.num_anchors == 2 * BATCH
    assert error.control_mse == pytest.approx(direct(trainer), rel=1e-4)


def test_a_method_without_an_estimate_has_no_error(root):
    error = measured(Collectives())[1]
    # FastCLIP has seen no pair yet.
    assert error.num_without_estimate == 4 * BATCH
    assert error.image_mse is None


def test_workers_change_nothing(root):
    assert measured(Collectives(), num_workers=2)[1] == measured(Collectives())[1]


def _control_in_processes(folder):
    os.chdir(folder)
    return measured(ProcessGroup())[1].control_mse


def test_two_processes_measure_what_one_does(root):
    found = run_in_processes(_control_in_processes, 2, str(root), timeout_sec=300)
    assert found == pytest.approx([measured(Collectives())[1].control_mse] * 2, rel=1e-5)
