"""What only a GPU can show. Without one, every test runs on the CPU, on one method: that shows that it can run.

`tests/contract/test_accelerator.py` sees on a CPU what it can.
"""

import json
import math
import subprocess
import sys
import time

import pytest
import torch
from support import toy
from support.methods import method_class, method_names
from support.small import make_method, progress_of, random_features, with_extra

from engine import paths
from engine.data.loader import build_loader, copied_ahead
from engine.distributed import Collectives
from engine.evaluation import reading
from engine.evaluation.runner import Model
from engine.method import Features, LossOutput
from engine.schema.run import Execution
from engine.training.loop import train
from engine.training.towers import load_export
from engine.training.trainer import Trainer

HAS_GPU = torch.cuda.is_available()
CPU = torch.device("cpu")
GPU = torch.device("cuda", 0) if HAS_GPU else CPU
STEPS = 20 if HAS_GPU else 6
"""On a CPU, as few as have all that tests look at."""
every_method = pytest.mark.parametrize("method", method_names() if HAS_GPU else ["neuclip"])


@pytest.fixture
def root(tmp_path, monkeypatch):
    toy.build(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_waits():
    """Let every wait for the device raise, once it is called."""
    tell = torch.cuda.set_sync_debug_mode if HAS_GPU else str
    yield lambda: tell("error")
    tell("default")


def batches(trainer, steps):
    loader = build_loader(trainer.dataset, seed=0, global_batch_size=16, steps=range(steps))
    return copied_ahead(loader, trainer.device)


def losses(device, method, accumulation=1, precision="fp32"):
    spec, steps = toy.run_spec(method, steps=STEPS, precision=precision), STEPS
    trainer = Trainer(spec, Execution(accumulation_steps=accumulation), device, Collectives())
    return [trainer.step(batch, wants_metrics=True).metrics["loss/total"] for batch in batches(trainer, steps)]


@every_method
@pytest.mark.parametrize("changes", [{}, {"precision": "bf16", "optimizer": {"ema_decay": 0.9}}], ids=str)
def test_plain_steps_never_wait_for_the_gpu(root, no_waits, method, changes):
    trainer = Trainer(toy.run_spec(method, steps=STEPS, **changes), Execution(), GPU, Collectives())
    rest = batches(trainer, STEPS - 1)
    for _ in range(8 if HAS_GPU else 2):  # the record's first positions are read in the first of them
        trainer.step(next(rest), wants_metrics=False)
    no_waits()
    for batch in rest:
        assert trainer.step(batch, wants_metrics=False).divergence is None


@every_method
def test_a_method_computes_on_a_gpu_what_it_computes_on_the_cpu(method):
    found = []
    for device in (CPU, GPU):
        ours = make_method(method, dtype=torch.float64).to(device)
        drawn = with_extra(ours, random_features(0))
        sides = [side.detach().to(device).requires_grad_() for side in (drawn.image_BD, drawn.text_BD)]
        extra = drawn.extra and Features(*(x.to(device) for x in list(vars(drawn.extra).values())[:3]))
        output = ours.loss(Features(*sides, drawn.index_B.to(device), extra), progress_of(ours, 0))
        output.total.backward()
        found.append([x.cpu() for x in (output.total.detach(), *(side.grad for side in sides))])
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-12)


@every_method
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.1), ("fp16", 0.1)])
def test_twenty_steps_on_a_gpu_go_as_on_the_cpu(root, method, accumulation, precision, tolerance):
    expected = losses(CPU, method)
    found = losses(GPU, method, accumulation, precision)
    assert found == pytest.approx(expected, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("options", [{}, {"architecture": "mlp"}, {"num_updates": 1, "objective": "separate"}], ids=str)
def test_as_a_cuda_graph_the_network_is_trained_to_the_same_bits(root, options):
    spec = toy.run_spec("neuclip", steps=12, options=options)
    found = []
    for is_on in (False, True):
        trainer = Trainer(spec, Execution(method_graphs=is_on and HAS_GPU), GPU, Collectives())
        logged = [trainer.step(batch, wants_metrics=True).metrics["npn/gap_after"] for batch in batches(trainer, 12)]
        found.append((logged, trainer.method.normalizer.weights.cpu(), trainer.method.normalizer.accumulator.cpu()))
    (logged, *state), (again, *same_state) = found
    assert again == logged
    assert all(map(torch.equal, same_state, state))


def test_the_network_is_recorded_while_the_loader_pins_memory(root):
    spec = toy.run_spec("neuclip", steps=12)
    record = train(spec, Execution(device=GPU.type, method_graphs=HAS_GPU, num_workers=4))
    assert record.status == "finished"


def test_a_loss_that_is_not_finite_moves_nothing_and_is_found_in_the_next_step(root, monkeypatch):
    honest = method_class("openclip").loss

    def loss(self, features, progress):
        output = honest(self, features, progress)
        return LossOutput(output.total * (math.nan if progress.step == 4 else 1), output.metrics)

    monkeypatch.setattr(method_class("openclip"), "loss", loss)
    record = train(toy.run_spec("openclip"), Execution(device=GPU.type))
    assert (record.status, record.divergence.step, record.samples_seen) == ("diverged", 4, 64)
    assert record.divergence.indices == record.first_indices[64:80]
    assert math.isfinite(record.divergence.temperature)


def logged_losses(spec):
    lines = map(json.loads, paths.metrics(spec.run_id).read_text().splitlines())
    return {line["step"]: line["loss/total"] for line in lines}


@pytest.mark.parametrize("method", ["fastclip", "neuclip"] if HAS_GPU else ["neuclip"])
def test_a_training_that_is_killed_goes_on_as_if_nothing_had_happened(root, method):
    spec, execution = (
        toy.run_spec(method, steps=2 * STEPS),
        Execution(device=GPU.type, save_every_min=0, log_every_steps=1),
    )
    path = toy.write_spec(root, spec)
    command = [sys.executable, "-m", "engine.train", str(path), "--execution", execution.model_dump_json()]
    training = subprocess.Popen(command)
    while training.poll() is None and len(list(paths.checkpoints(spec.run_id).glob("*.pt"))) < 2:
        time.sleep(0.01)
    training.kill()
    assert training.wait() == -9
    record = train(spec, execution)
    assert [attempt.first_step > 0 for attempt in record.attempts] == [False, True]
    resumed = logged_losses(spec)
    paths.run(spec.run_id).rename(root / "killed")
    train(spec, execution)
    assert resumed == pytest.approx(logged_losses(spec), rel=1e-3)


WORK = f"""
import pathlib, time, torch
def main(argv):
    busy = pathlib.Path("busy")
    busy.mkdir()
    total = torch.ones(1000, device="{GPU.type}").sum().item()
    time.sleep(0.5)
    busy.rmdir()
    pathlib.Path(argv[0]).write_text(f"{{torch.cuda.device_count()}} {{total:g}}")
"""


def test_two_jobs_take_turns_on_one_gpu(root, monkeypatch):
    (root / "work.py").write_text(WORK)
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    command = [sys.executable, "-m", "engine.launch", "--request", json.dumps({"gpus_per_node": int(HAS_GPU)})]
    names = "ab" if HAS_GPU else "a"  # without a GPU nothing lets them take turns
    jobs = [
        subprocess.Popen([*command, "--name", n, "--folder", f"jobs/{n}", "--output", n, "--", "work", n])
        for n in names
    ]
    assert {job.wait() for job in jobs} == {0}
    assert {(root / name).read_text() for name in names} == {f"{int(HAS_GPU)} 1000"}


def test_a_model_is_evaluated_on_a_gpu_as_on_the_cpu(root):
    evaluation = toy.build_evaluation(root)
    record = train(toy.run_spec("openclip", steps=60), Execution(device=GPU.type))
    folder = (paths.run(record.run_id) / record.milestones["960"].weights).parent
    card = evaluation.sets["toy_retrieval"]
    sides = []
    for device in ("cpu", GPU.type):
        model, data = Model(*load_export(folder), device), reading.read(card)
        sides.append(
            (
                model.unit_images(model.images(data)),
                model.unit_texts([text for texts in data.captions for text in texts]),
            )
        )
    # cuDNN rounds the first convolution to TF32.
    torch.testing.assert_close(sides[1], sides[0], rtol=0, atol=2e-3)


def test_batches_that_are_copied_ahead_are_those_of_the_loader(root):
    trainer = Trainer(toy.run_spec("openclip"), Execution(), GPU, Collectives())
    loader = build_loader(trainer.dataset, seed=0, global_batch_size=16, steps=range(6))
    busy = torch.zeros(4096, 4096, device=GPU) if HAS_GPU else torch.zeros(1, 1)
    for ahead, batch in zip(batches(trainer, 6), loader, strict=True):
        busy = busy @ busy  # the step is still at work when the next batch comes
        assert all(torch.equal(ours.cpu(), own) for ours, own in zip(ahead.tensors(), batch.tensors(), strict=True))


def test_tf32_changes_the_method_s_numbers_within_its_bound_and_nothing_outside_of_it(root):
    spec = toy.run_spec("openclip", method_tf32=True)
    trainer, plain = (Trainer(s, Execution(), GPU, Collectives()) for s in (spec, toy.run_spec("openclip")))
    (batch,) = batches(trainer, 1)
    (rounded, features), (exact, same_features) = trainer.backward(batch), plain.backward(batch)
    assert torch.equal(features.image_BD, same_features.image_BD)
    # Log-normalizers are off by at most 2^-9 / temperature, and so is InfoNCE.
    apart = abs(float((rounded.total - exact.total).detach()))
    assert apart <= 2**-9 * float(trainer.method.logit_scale.detach())
    assert (apart > 0) == HAS_GPU
    assert not torch.backends.cuda.matmul.allow_tf32
