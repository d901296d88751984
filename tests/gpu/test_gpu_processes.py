"""Several processes on GPUs train as one does: by gloo on one card, by nccl on two. What a billion pairs need.

Without a GPU, all of it runs on the CPU, on one method and few pairs: that shows that it can run.
"""

import os
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support import toy
from support.methods import method_names
from support.small import make_method, progress_of
from support.spawn import run_in_processes

from engine.data.loader import build_loader
from engine.distributed import Collectives, ProcessGroup
from engine.method import Features
from engine.schema.run import Execution
from engine.training import checkpoint
from engine.training.trainer import Trainer

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
NCCL = "cpu:gloo,cuda:nccl" if HAS_GPU else "gloo"
STEPS, BILLION = 6, 10**9 if HAS_GPU else 2000
GIB = 2**30


@pytest.fixture
def root(tmp_path, monkeypatch):
    toy.build(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def losses(root: str, device: str, method: str, model: str) -> list[float]:
    """Train a few steps as one of the processes that share the batch; return the global loss of each."""
    os.chdir(root)
    is_several = dist.is_available() and dist.is_initialized()
    collectives = ProcessGroup() if is_several else Collectives()
    number = collectives.rank % torch.cuda.device_count() if device == "cuda" else None
    if number is not None:
        torch.cuda.set_device(number)
    spec = toy.run_spec(method, steps=STEPS, model={"name": model})
    trainer = Trainer(spec, Execution(), torch.device(device, number), collectives)
    batches = build_loader(
        trainer.dataset,
        seed=0,
        global_batch_size=16,
        steps=range(STEPS),
        rank=collectives.rank,
        world_size=collectives.world_size,
        extra_shares=trainer.extra_shares,
    )
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = [trainer.step(batch, wants_metrics=True).metrics["loss/total"] for batch in batches]
    # DistributedDataParallel copies a gradient once more where it lies otherwise than its bucket.
    assert not [str(one.message) for one in told if "strides" in str(one.message)]
    return found


# tiny-resnet has batch norm: its processes share the batch's statistics.
@pytest.mark.parametrize("model", ["tiny-vit", "tiny-resnet"] if HAS_GPU else ["tiny-vit"])
@pytest.mark.parametrize("method", ["openclip", "neuclip", "fastclip"] if HAS_GPU else ["neuclip"])
def test_two_processes_on_one_card_train_as_one(root, method, model):
    alone = losses(str(root), DEVICE, method, model)
    shared = run_in_processes(losses, 2, str(root), DEVICE, method, model)
    assert shared[0] == shared[1]
    assert shared[0] == pytest.approx(alone, rel=2e-3)


@pytest.mark.skipif(torch.cuda.device_count() == 1, reason="needs two GPUs")
@pytest.mark.parametrize("method", method_names() if HAS_GPU else ["neuclip"])
def test_two_processes_on_two_cards_train_as_one(root, method):
    alone = losses(str(root), DEVICE, method, "tiny-vit")
    shared = run_in_processes(losses, 2, str(root), DEVICE, method, "tiny-vit", backend=NCCL)
    assert shared[0] == shared[1]
    assert shared[0] == pytest.approx(alone, rel=2e-3)


def test_the_state_of_a_billion_pairs_is_kept_saved_and_read_again(tmp_path: Path):
    free, _ = torch.cuda.mem_get_info() if HAS_GPU else (24 * GIB, 0)
    if free < 24 * GIB:
        pytest.skip(f"needs 24 GiB of GPU memory, {free / GIB:.0f} are free")
    method = make_method("fastclip", dtype=torch.float32, dataset_size=BILLION).to(DEVICE)
    drawn = torch.nn.functional.normalize(torch.randn(2, 8, 16, device=DEVICE), dim=2)
    some = [0, 1, 7, BILLION // 1000, BILLION // 2, BILLION - 3, BILLION - 2, BILLION - 1]
    index_B = torch.tensor(some, device=DEVICE)
    method.loss(Features(drawn[0], drawn[1], index_B), progress_of(method, 0))
    (visited, *_) = [method.get_buffer(name) for name in method.pair_buffers]
    kept = visited[index_B].cpu()
    checkpoint.save_checkpoint(tmp_path, 1, {"method": dict(method.named_buffers())})
    again = checkpoint.load_checkpoint(tmp_path, 1)["method"]
    name = method.pair_buffers[0]
    assert len(again[name]) == BILLION
    assert torch.equal(again[name][index_B.cpu()], kept)
    assert torch.isfinite(kept.float()).all()
