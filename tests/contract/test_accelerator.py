"""On an accelerator a step mixes no devices, and nowhere has the CPU to wait: seen without one, on torch's meta device.

What only a GPU can show is in `tests/gpu`.
"""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from support import accelerator, toy
from support.accelerator import DEVICE
from support.methods import method_names
from support.small import make_method, progress_of
from torch import Tensor
from variants import VARIANTS, Options, label

from engine.data.loader import Batch
from engine.distributed import Collectives
from engine.method import Features
from engine.schema.run import Execution
from engine.training.reporting import pack_metrics
from engine.training.trainer import Trainer


def pairs(number: int) -> Features:
    """Return embeddings on the device."""
    image_BD, text_BD = (torch.zeros(number, 16).to(DEVICE).requires_grad_() for _ in range(2))
    return Features(image_BD, text_BD, torch.arange(number).to(DEVICE))


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=map(label, VARIANTS))
def test_a_method_stays_on_its_device_and_never_waits_for_it(name: str, options: Options) -> None:
    with accelerator.pretended() as waits:
        method = make_method(name, **options).to(DEVICE)
        # The first step, one that begins an epoch, and one that restarts a network.
        for step in (0, 4, 5):
            features = pairs(8)
            if method.num_extra_pairs:
                features = dataclasses.replace(features, extra=pairs(method.num_extra_pairs))
            waits.forget()
            output = method.loss(features, progress_of(method, step))
            output.total.backward()
            method.after_step(progress_of(method, step))
            pack_metrics(output.metrics, DEVICE)
            estimates = method.log_normalizers(features, progress_of(method, step))
            assert +waits.places == {}
            assert {output.total.device, *(estimate.device for estimate in estimates)} == {DEVICE}


class OneOfFour(Collectives):
    """The second of four processes, as far as shapes tell."""

    rank, world_size = 1, 4

    def gather(self, x: Tensor) -> Tensor:
        return torch.cat([x.detach()] * 4)

    def gather_with_grad(self, x: Tensor) -> Tensor:
        return torch.cat([x] * 4)


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_rows_that_other_processes_keep_come_without_a_wait_and_take_a_share_of_the_memory(version: str) -> None:
    with accelerator.pretended() as waits:
        sizes: dict[str, Any] = {"global_batch_size": 32, "dataset_size": 10**9}
        method = make_method("fastclip", version=version, collectives=OneOfFour(), shares_pairs=True, **sizes).to(
            DEVICE
        )
        assert {len(method.get_buffer(name)) for name in method.pair_buffers} == {250_000_000}
        for step in range(2):
            features = pairs(8)
            waits.forget()
            method.loss(features, progress_of(method, step)).total.backward()
            method.anchor_logit_scales(features)
            method.log_normalizers(features, progress_of(method, step))
            assert method.logit_scale.device == DEVICE
            assert +waits.places == {}


# A whole step -----------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path, monkeypatch):
    toy.build(tmp_path)
    monkeypatch.chdir(tmp_path)


def make_trainer(name: str, **changes: Any) -> Trainer:
    execution = Execution(accumulation_steps=changes.pop("accumulation_steps", 1))
    return Trainer(toy.run_spec(name, **changes), execution, DEVICE, Collectives())


def batch_of(trainer: Trainer) -> Batch:
    """Return a batch as the loader does, on the CPU."""
    size, length = trainer.towers.image_size, trainer.towers.clip.context_length
    num_extra = trainer.method.num_extra_pairs

    def rows(number: int) -> tuple[Tensor, Tensor, Tensor]:
        pictures = torch.zeros(number, 3, size, size, dtype=torch.uint8)
        return pictures, torch.zeros(number, length, dtype=torch.int64), torch.arange(number)

    return Batch(*rows(16), extra=Batch(*rows(num_extra)) if num_extra else None)


RUNS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in method_names(controls=True)),
    ("openclip", {"optimizer": {"ema_decay": 0.9, "grad_clip_norm": 1.0}, "model": {"name": "tiny-resnet"}}),
    ("neuclip", {"precision": "fp16", "accumulation_steps": 2}),
]


@pytest.mark.parametrize(("name", "changes"), RUNS, ids=lambda value: str(value))
def test_a_step_waits_for_nothing_and_its_outcome_comes_by_one_copy_that_is_looked_at_later(root, name, changes):
    with accelerator.pretended() as waits:
        trainer = make_trainer(name, **copy.deepcopy(changes))
        for _ in range(3):
            batch = batch_of(trainer)
            waits.forget()
            assert trainer.step(batch, wants_metrics=False).metrics == {}
            assert +waits.places == {}
            assert waits.looks.total() == 1
        # fp16's metrics have the loss scale.
        waits.forget()
        assert trainer.step(batch_of(trainer), wants_metrics=True).metrics
        assert waits.places.total() == (changes.get("precision") == "fp16")
        assert waits.looks.total() == 1


# The instrument itself --------------------------------------------------------------------------------------------


WAITING = {
    "a number": lambda x: float(x.sum()),
    "a decision": lambda x: bool(x.any()),
    "a list": lambda x: x.tolist(),
    "a copy to the CPU": lambda x: x.cpu(),
    "a copy to the device": lambda x: torch.ones(8).to(x.device),
    "numbers to the device": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "rows by a mask, in place": lambda x: x.index_put_((x > 0,), torch.zeros(()).to(x.device, non_blocking=True)),
}


@pytest.mark.parametrize("what", WAITING)
def test_a_wait_is_counted_where_it_is(what):
    with accelerator.pretended() as waits:
        x = torch.ones(8).to(DEVICE)
        waits.forget()
        WAITING[what](x)
        assert list((+waits.places).values()) == [1]
        assert all("tests/contract/test_accelerator.py" in place for place in +waits.places)
        waits.forget()
        torch.ones(8).to(DEVICE, non_blocking=True)
        float(torch.ones(()))
        assert +waits.places == {}
