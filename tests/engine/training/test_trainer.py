"""A trainer averages weights, sees batch norm in parts, stops between two steps, and resumes."""

import os
import signal
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file
from support import toy
from support.killing import MODELS
from support.methods import method_names
from support.spawn import run_in_processes

from engine import files, paths
from engine.data.loader import build_loader
from engine.distributed import Collectives, ProcessGroup
from engine.schema.run import Execution
from engine.stop import Stopped
from engine.training import batch_norm, sweep
from engine.training.checkpoint import newest_step
from engine.training.loop import train
from engine.training.outcome import export_weights, read_attempts
from engine.training.reporting import peak_memory_bytes
from engine.training.towers import WEIGHTS_FILE
from engine.training.trainer import Trainer

open_clip.add_model_config(MODELS)
CPU = torch.device("cpu")


@pytest.fixture
def root(tmp_path, monkeypatch):
    toy.build(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def batches(trainer, steps):
    collectives = trainer.collectives
    return build_loader(
        trainer.dataset, seed=trainer.spec.seed, global_batch_size=trainer.spec.global_batch_size, steps=range(steps),
        rank=collectives.rank, world_size=collectives.world_size,
    )  # fmt: skip


def exported(spec):
    return load_file(paths.weights(spec.run_id, spec.samples_seen) / WEIGHTS_FILE)


# Averaged weights -------------------------------------------------------------------------------------------------


def test_averaged_weights_are_the_recursion_over_all_steps(root):
    decay = 0.7
    spec = toy.run_spec("openclip", steps=5, optimizer={"lr": 1e-2, "ema_decay": decay})
    trainer = Trainer(spec, Execution(), CPU, Collectives())
    expected = {}
    for batch in batches(trainer, 5):
        trainer.step(batch, wants_metrics=False)
        for name, value in trainer.towers.clip.named_parameters():
            now = value.detach().double()
            expected[name] = decay * expected[name] + (1 - decay) * now if name in expected else now
    export_weights(trainer)
    found = exported(spec)
    moved = 0.0
    for name, value in trainer.towers.clip.named_parameters():
        if not value.requires_grad:
            continue
        torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-5, atol=1e-7)
        moved = max(moved, float((found[name] - value.detach()).abs().max()))
    assert moved > 1e-3


def test_averaged_weights_survive_a_restart(root):
    spec = toy.run_spec("neuclip", optimizer={"lr": 1e-2, "ema_decay": 0.9})
    stop_at(root, spec, 6)
    train(spec, Execution())
    interrupted = exported(spec)
    os.rename(paths.run(spec.run_id), root / "interrupted")
    train(spec, Execution())
    assert all(torch.equal(value, interrupted[name]) for name, value in exported(spec).items())


# Batch norm in parts ----------------------------------------------------------------------------------------------


def normed(groups, **changes):
    return toy.run_spec(
        "openclip", model={"name": "tiny-resnet"}, batch_norm_groups=groups, optimizer={"lr": 1e-3}, **changes
    )


def running_statistics(trainer):
    return [buffer for norm in batch_norm.norms(trainer.towers) for buffer in norm.buffers()]


def first_step(spec, execution=None, collectives=None):
    """Gradient and running statistics after the first step's backward pass."""
    trainer = Trainer(spec, execution or Execution(), CPU, collectives or Collectives())
    trainer.backward(next(iter(batches(trainer, 1))))
    gradient = torch.cat([p.grad.flatten() for p in trainer.towers.parameters() if p.grad is not None])
    statistics = torch.cat([b.flatten().double() for b in running_statistics(trainer)])
    return gradient, statistics


def test_batch_norm_parts_are_normalised_apart(root):
    trainer = Trainer(normed(4), Execution(), CPU, Collectives())
    alone = Trainer(normed(1), Execution(), CPU, Collectives())
    batch = next(iter(batches(trainer, 1)))
    image_BD, _ = trainer.encoder.encode(batch.image_BCHW, batch.tokens_BT)
    for part in range(4):
        rows = slice(4 * part, 4 * part + 4)
        expected_BD, _ = alone.encoder.encode(batch.image_BCHW[rows], batch.tokens_BT[rows])
        torch.testing.assert_close(image_BD[rows], expected_BD, rtol=1e-5, atol=1e-6)
    whole_BD, _ = alone.encoder.encode(batch.image_BCHW, batch.tokens_BT)
    assert not torch.allclose(image_BD, whole_BD, atol=1e-3)


def test_only_the_first_part_enters_the_running_statistics(root):
    trainer = Trainer(normed(4), Execution(), CPU, Collectives())
    alone = Trainer(normed(1), Execution(), CPU, Collectives())
    batch = next(iter(batches(trainer, 1)))
    trainer.encoder.encode(batch.image_BCHW, batch.tokens_BT)
    alone.encoder.encode(batch.image_BCHW[:4], batch.tokens_BT[:4])
    for found, expected in zip(running_statistics(trainer), running_statistics(alone), strict=True):
        torch.testing.assert_close(found, expected)


def test_accumulation_over_the_parts_changes_nothing(root):
    gradient, statistics = first_step(normed(4))
    split_gradient, split_statistics = first_step(normed(4), Execution(accumulation_steps=4))
    torch.testing.assert_close(split_gradient, gradient, rtol=0, atol=1e-6 * float(gradient.abs().max()))
    torch.testing.assert_close(split_statistics, statistics)


def _first_step_in_processes(folder, groups):
    os.chdir(folder)
    return first_step(normed(groups), collectives=ProcessGroup())


@pytest.mark.parametrize("groups", [2, 4])
def test_two_processes_see_the_parts_that_one_process_sees(root, groups):
    gradient, statistics = first_step(normed(groups))
    (found, running), _ = run_in_processes(_first_step_in_processes, 2, str(root), groups)
    torch.testing.assert_close(found, gradient, rtol=0, atol=5e-6 * float(gradient.abs().max()))
    torch.testing.assert_close(running, statistics)


@pytest.mark.parametrize(
    ("groups", "execution", "message"),
    [
        (1, {"accumulation_steps": 2}, r"use accumulation_steps 1, or a model without batch norm"),
        (4, {"accumulation_steps": 2}, r"use accumulation_steps 1 or 4"),
    ],
)
def test_other_parts_than_the_run_names_are_refused(root, groups, execution, message):
    with pytest.raises(ValueError, match=message):
        train(normed(groups), Execution(**execution))


def test_batch_norm_parts_of_a_model_without_batch_norm_are_refused(root):
    with pytest.raises(ValueError, match="'tiny-vit' has no batch norm: leave it out"):
        train(toy.run_spec("openclip", batch_norm_groups=2), Execution())


# Stopping ---------------------------------------------------------------------------------------------------------


def stop_at(root, spec, step, *numbers):
    """Train until the signals arrive in the middle of a step; they are sent by this process to itself."""
    honest = Trainer.backward

    def backward(self, batch):
        if self.step_number == step - 1:
            for number in numbers or (signal.SIGTERM,):
                os.kill(os.getpid(), number)
        return honest(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "backward", backward)
        with pytest.raises(Stopped) as stopped:
            train(spec, Execution())
    assert stopped.value.step == step
    return stopped.value


@pytest.mark.parametrize("method", method_names())
def test_a_run_that_is_asked_to_stop_saves_its_step_and_goes_on_from_it(root, method):
    spec = toy.run_spec(method)
    stop_at(root, spec, 4)
    assert newest_step(paths.checkpoints(spec.run_id)) == 4
    assert not paths.record(spec.run_id).exists()
    record = train(spec, Execution())
    assert [attempt.first_step for attempt in record.attempts] == [0, 4]
    interrupted = exported(spec)
    os.rename(paths.run(spec.run_id), root / "interrupted")
    train(spec, Execution())
    assert all(torch.equal(value, interrupted[name]) for name, value in exported(spec).items())


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ((signal.SIGINT,), 130),
        ((signal.SIGTERM,), 143),
        ((signal.SIGTERM, signal.SIGUSR2), 140),
        ((signal.SIGUSR2, signal.SIGINT), 140),
    ],
)
def test_the_weightiest_signal_decides_how_a_run_ends(root, numbers, code):
    assert stop_at(root, toy.run_spec("openclip"), 3, *numbers).code == code


def test_a_second_interrupt_acts_at_once(root):
    spec = toy.run_spec("openclip")
    with pytest.raises(KeyboardInterrupt):
        stop_at(root, spec, 3, signal.SIGINT, signal.SIGINT)
    assert newest_step(paths.checkpoints(spec.run_id)) is None


def test_handlers_are_as_they_were_after_a_run(root):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)]
    stop_at(root, toy.run_spec("openclip"), 3)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)] == before


def signal_in_measurement(number, patch, *, of=1, batch=3):
    """Let this process get a signal while the `of`-th measurement from now is at a batch; returns the batches begun."""
    honest, begun, measurements = sweep.load, [], iter(range(1, 10))

    def load(*args):
        this = next(measurements)
        for count, loaded in enumerate(honest(*args), start=1):
            begun.append((this, count))
            if (this, count) == (of, batch):
                os.kill(os.getpid(), number)
            yield loaded

    patch.setattr(sweep, "load", load)
    return begun


def stop_in_measurement(spec, step, **place):
    """Train until a signal arrives in a measurement; returns the batches of it that were begun."""
    with pytest.MonkeyPatch.context() as patch:
        begun = signal_in_measurement(signal.SIGUSR2, patch, **place)
        with pytest.raises(Stopped) as stopped:
            train(spec, Execution())
    assert (stopped.value.step, stopped.value.code) == (step, 128 + signal.SIGUSR2)
    assert newest_step(paths.checkpoints(spec.run_id)) == step
    assert not paths.measurement(spec.run_id, "normalizer_error", step * spec.global_batch_size).exists()
    return begun


def outcome(spec):
    """All of a finished run's record that does not say when, where and in how many attempts it was made."""
    of_a_start = {"attempts": (), "clock_sec": {}, "median_step_sec": None, "peak_memory_bytes": 0}
    digests = {"log_sha256": None, "content_sha256": None}
    return train(spec, Execution()).model_copy(update=of_a_start | digests)


@pytest.mark.parametrize("model", ["tiny-resnet", "dropout-vit"])
@pytest.mark.parametrize(("of", "step"), [(1, 4), (2, 10)])
def test_a_signal_in_a_measurement_ends_it_and_the_measurement_is_made_on_resuming(root, of, step, model):
    errors = {"at": (64, 160), "num_anchors": 32, "control_size": 16}
    spec = toy.run_spec("neuclip", model={"name": model}, milestones=(64, 160), normalizer_error=errors)
    # Of the six batches of 16 no other is begun.
    assert stop_in_measurement(spec, step, of=of, batch=3)[-1] == (of, 3)
    assert stop_in_measurement(spec, step, batch=5) == [(1, count) for count in range(1, 6)]
    interrupted = outcome(spec)
    assert len(interrupted.normalizer_error) == 2
    assert [attempt.first_step for attempt in read_attempts(spec.run_id)] == [0, step, step]

    os.rename(paths.run(spec.run_id), root / "interrupted")
    assert outcome(spec) == interrupted


def test_skipped_steps_in_a_row_are_counted_across_a_restart(root, monkeypatch):
    honest = Trainer.backward

    def backward(self, batch):
        if self.step_number == 0:
            self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
        output = honest(self, batch)
        self.optimizer.parameters[0].grad.fill_(float("nan"))
        return output

    monkeypatch.setattr(Trainer, "backward", backward)
    spec = toy.run_spec("openclip", steps=40, precision="fp16", normalizer_error=None)
    stop_at(root, spec, 13)
    interrupted = outcome(spec)
    assert read_attempts(spec.run_id)[-1].first_step == 13
    assert (interrupted.status, interrupted.divergence.step, interrupted.num_skipped) == ("diverged", 19, 20)
    assert interrupted.divergence.reason.startswith("fp16 skipped 20 steps in a row")

    os.rename(paths.run(spec.run_id), root / "interrupted")
    assert outcome(spec) == interrupted


def test_a_measurement_that_was_given_up_leaves_no_earlier_one_behind(root):
    spec = toy.run_spec("openclip", normalizer_error={"at": (64,), "num_anchors": 32, "control_size": 16})
    stale = paths.measurement(spec.run_id, "normalizer_error", 64)
    files.write_text(stale, "of other data")
    stop_in_measurement(spec, 4, batch=1)
    assert outcome(spec).normalizer_error[0].samples_seen == 64


def test_a_signal_in_the_last_step_lets_the_run_finish(root):
    spec = toy.run_spec("openclip", steps=4, normalizer_error=None)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        stop_at(root, spec, 4)
    assert paths.record(spec.run_id).exists()


# Resuming ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", method_names())
def test_what_was_resumed_does_not_lie_in_the_checkpoint_s_file(root, method):
    spec = toy.run_spec(method, optimizer={"lr": 1e-2, "ema_decay": 0.9})
    first, second = (Trainer(spec, Execution(), CPU, Collectives()) for _ in range(2))
    loader = batches(first, 4)
    for batch in (next(iter(loader)), *loader):
        first.step(batch, wants_metrics=False)
    first.settle()
    first.save()
    (file,) = paths.checkpoints(spec.run_id).glob("*.pt")
    second.resume()
    assert file.name not in Path("/proc/self/maps").read_text()
    file.write_bytes(bytes(file.stat().st_size))
    states = [
        (t.towers.state_dict(), t.averaged.state_dict(), t.method.state_dict(), t.optimizer.adamw.state_dict())
        for t in (first, second)
    ]
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)
    batch = next(iter(batches(first, 1)))
    assert first.step(batch, wants_metrics=True).metrics == second.step(batch, wants_metrics=True).metrics


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_what_resuming_takes_is_no_part_of_a_gpu_s_peak(root):
    device = torch.device("cuda", 0)
    spec = toy.run_spec("fastclip")
    trainer = Trainer(spec, Execution(), device, Collectives())
    trainer.step(next(iter(batches(trainer, 1))), wants_metrics=False)
    trainer.settle()
    trainer.save()
    resumed = Trainer(spec, Execution(), device, Collectives())
    resumed.resume()
    assert peak_memory_bytes(device) == torch.cuda.memory_allocated(device)


@pytest.mark.parametrize("method_tf32", [False, True])
def test_tf32_is_allowed_where_the_method_computes_and_nowhere_else(root, monkeypatch, method_tf32):
    spec = toy.run_spec("openclip", **({"method_tf32": True} if method_tf32 else {}))
    assert (spec.run_id == toy.run_spec("openclip").run_id) == (not method_tf32)
    trainer, seen = Trainer(spec, Execution(), CPU, Collectives()), {}

    def note(owner, name):
        honest = getattr(owner, name)

        def noting(*args, **kwargs):
            seen[name] = torch.backends.cuda.matmul.allow_tf32
            return honest(*args, **kwargs)

        monkeypatch.setattr(owner, name, noting)

    for owner, name in ((trainer.encoder, "encode"), (trainer.method, "loss"), (trainer.method, "after_step")):
        note(owner, name)
    output_of_loss = trainer.method.loss

    def loss(*args):
        output = output_of_loss(*args)
        output.total.register_hook(lambda _: seen.update(gradient=torch.backends.cuda.matmul.allow_tf32))
        return output

    monkeypatch.setattr(trainer.method, "loss", loss)
    trainer.step(next(iter(batches(trainer, 1))), wants_metrics=False)
    assert seen == {"encode": False, "loss": method_tf32, "gradient": method_tf32, "after_step": method_tf32}
    assert not torch.backends.cuda.matmul.allow_tf32
