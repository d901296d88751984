"""Several processes train as one does, whatever number of them a run goes on with; they stop, save and fail together.

Final weights are compared in the Euclidean norm of all of them together, in float64: relative to the norm of the
weights, and to that of the way that training moved them. AdamW divides by the size of a gradient: where that is zero
but for rounding (a bias that softmax cancels), it would blow rounding up to a full step. Its eps here is above that.
"""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from support import toy
from support.killing import Kill, Server

from engine import distributed, files, paths
from engine.logs import read_attempts
from engine.method import LossOutput
from engine.registry import method_class, method_names
from engine.schema.base import parse
from engine.schema.record import Record
from engine.schema.run import Execution
from engine.training import loop, sweep
from engine.training.checkpoint import load_checkpoint, load_parts, newest_step
from engine.training.towers import WEIGHTS_FILE, build_towers
from engine.training.trainer import Trainer

OPTIMIZER = {"lr": 1e-3, "warmup_steps": 2, "eps": 1e-4}
SAVE_ALWAYS = {"save_every_min": 0, "log_every_steps": 1}
END = Kill("record", 1)
"""After the last step, while the checkpoint of the last but one is still there."""


@pytest.fixture(scope="module")
def server():
    return Server()


@pytest.fixture
def root(tmp_path, monkeypatch):
    toy.build(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_spec(method, **changes):
    return toy.run_spec(method, steps=12, **{"optimizer": OPTIMIZER, "normalizer_error": None, **changes})


def final_weights(spec):
    return load_file(paths.weights(spec.run_id, spec.samples_seen) / WEIGHTS_FILE)


def newest_checkpoint(spec):
    folder = paths.checkpoints(spec.run_id)
    step = newest_step(folder)
    state = load_checkpoint(folder, step)
    # What processes share out, put together; the last share may have rows that are of no pair.
    for name in load_parts(folder, step)[0] if load_parts(folder, step) else ():
        shares = [state["method"][name], *(part[name] for part in load_parts(folder, step))]
        state["method"][name] = torch.cat(shares)[: spec.dataset.pairs]
    return step, state


def logged(spec):
    """All metrics by step, without times."""
    lines = map(json.loads, paths.metrics(spec.run_id).read_text().splitlines())
    return [
        {name: value for name, value in line.items() if not name.startswith(("time/", "unix_sec"))} for line in lines
    ]


def set_aside(root, spec):
    os.rename(paths.run(spec.run_id), root / "set aside")
    return toy.write_spec(root, spec)


def read_record(spec):
    path = paths.record(spec.run_id)
    return parse(Record, path.read_text(), str(path))


def assert_weights_agree(found, expected, spec):
    start = build_towers(spec.model.name, seed=spec.seed).clip.state_dict()
    names = [name for name, value in expected.items() if name in start and value.is_floating_point()]
    found, expected, start = (
        torch.cat([weights[name].double().flatten() for name in names]) for weights in (found, expected, start)
    )
    difference = float((found - expected).norm())
    assert difference < 1e-6 * float(expected.norm())
    assert difference < 2e-5 * float((expected - start).norm())


# Numbers of processes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [pytest.param(name, marks=[] if name == "neuclip" else pytest.mark.slow) for name in method_names(controls=False)],
)
def test_a_run_that_goes_on_with_another_number_of_processes_ends_as_one_that_did_not(root, server, method):
    spec = make_spec(method)
    path = toy.write_spec(root, spec)
    assert server.run(root, path, kill=END, execution=SAVE_ALWAYS) == [-signal.SIGKILL]
    step, alone = newest_checkpoint(spec)
    assert server.run(root, path, execution=SAVE_ALWAYS) == [0]
    expected, expected_lines = final_weights(spec), logged(spec)

    path = set_aside(root, spec)
    for world_size in (2, 1):
        kill = Kill("step", 5, 10**9)
        assert -signal.SIGKILL in server.run(root, path, world_size=world_size, kill=kill, execution=SAVE_ALWAYS)
    assert -signal.SIGKILL in server.run(root, path, world_size=2, kill=END, execution=SAVE_ALWAYS)
    assert [attempt.provenance.world_size for attempt in read_attempts(spec.run_id)] == [2, 1, 2]
    step_of_both, together = newest_checkpoint(spec)
    assert server.run(root, path, world_size=2, execution=SAVE_ALWAYS) == [0, 0]

    assert_weights_agree(final_weights(spec), expected, spec)
    for found, line in zip(logged(spec), expected_lines, strict=True):
        assert found == pytest.approx(line, rel=1e-3, abs=1e-5)
    # All that the method keeps (averages of every sample, prototypes, networks) is there and the same.
    assert step == step_of_both == 11
    torch.testing.assert_close(together["method"], alone["method"], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_run_under_torchrun_ends_as_in_one_process(root):
    spec = make_spec("neuclip")
    toy.write_spec(root, spec)
    loop.train(spec, Execution())
    expected = final_weights(spec)
    path = set_aside(root, spec)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*torchrun, "-m", "engine.train", str(path)], check=True, timeout=300)
    assert read_record(spec).provenance.world_size == 2
    assert_weights_agree(final_weights(spec), expected, spec)


# Agreement --------------------------------------------------------------------------------------------------------


def signal_in_step(step, number, sender, rank):
    """Let one process get a signal in the middle of a step."""
    honest = Trainer.backward

    def backward(self, *args, **options):
        if self.step_number == step - 1 and rank == sender:
            os.kill(os.getpid(), number)
        return honest(self, *args, **options)

    Trainer.backward = backward


@pytest.mark.slow
@pytest.mark.parametrize("sender", [0, 1])
def test_a_signal_to_one_process_lets_all_save_the_same_step_and_end(root, server, sender):
    spec = make_spec("fastclip", model={"name": "dropout-vit"})
    path = toy.write_spec(root, spec)
    assert server.run(root, path, world_size=2) == [0, 0]
    expected = files.file_sha256(paths.weights(spec.run_id, spec.samples_seen) / WEIGHTS_FILE)
    path = set_aside(root, spec)
    ask = functools.partial(signal_in_step, 4, signal.SIGTERM, sender)
    assert server.run(root, path, world_size=2, prepare=ask) == [128 + signal.SIGTERM] * 2
    assert newest_step(paths.checkpoints(spec.run_id)) == 4
    assert server.run(root, path, world_size=2) == [0, 0]
    assert [attempt.first_step for attempt in read_record(spec).attempts] == [0, 4]
    assert files.file_sha256(paths.weights(spec.run_id, spec.samples_seen) / WEIGHTS_FILE) == expected


def signal_in_measurement(batch, number, sender, rank):
    """Let one process get a signal while a batch of the measurement is encoded."""
    honest = sweep.load

    def load(*args):
        for count, loaded in enumerate(honest(*args), start=1):
            if count == batch and rank == sender:
                os.kill(os.getpid(), number)
            yield loaded

    sweep.load = load


@pytest.mark.slow
@pytest.mark.parametrize("sender", [0, 1])
def test_a_signal_to_one_process_ends_the_measurement_of_all(root, server, sender):
    spec = make_spec("fastclip", normalizer_error={"at": (192,), "num_anchors": 32, "control_size": 16})
    path = toy.write_spec(root, spec)
    assert server.run(root, path, world_size=2) == [0, 0]
    expected = read_record(spec).normalizer_error
    path = set_aside(root, spec)
    ask = functools.partial(signal_in_measurement, 3, signal.SIGTERM, sender)
    assert server.run(root, path, world_size=2, prepare=ask) == [128 + signal.SIGTERM] * 2
    assert newest_step(paths.checkpoints(spec.run_id)) == 12
    assert server.run(root, path, world_size=2) == [0, 0]
    assert [attempt.first_step for attempt in read_record(spec).attempts] == [0, 12]
    assert read_record(spec).normalizer_error == expected


def release_late(rank):
    """Stop both, and let gloo still hold a tensor of the second process when it leaves, as on a busy machine."""
    signal_in_step(4, signal.SIGTERM, 1, rank)
    honest = distributed.stop

    def stop():
        if rank == 1:
            dist.broadcast(torch.zeros(1), 0, async_op=True)
        else:
            time.sleep(2)
            with contextlib.suppress(RuntimeError):  # the other one has left
                dist.broadcast(torch.zeros(1), 0)
        honest()

    distributed.stop = stop


def test_a_process_leaves_though_the_group_still_holds_a_tensor_of_it(root, server):
    spec = make_spec("openclip")
    path = toy.write_spec(root, spec)
    ended = server.run(root, path, world_size=2, prepare=release_late, timeout_sec=120)
    assert ended == [128 + signal.SIGTERM] * 2


def hurry(number, rank):
    """Let an hour go by in the second process whenever it looks at the clock, and stop both after a while."""
    if rank == 1:
        honest, looks = time.monotonic, iter(range(10**9))
        loop.time.monotonic = lambda: honest() + 3600 * next(looks)
    signal_in_step(6, number, 0, rank)


@pytest.mark.slow
def test_the_first_process_s_clock_decides_when_all_save(root, server):
    spec = make_spec("openclip")
    path = toy.write_spec(root, spec)
    ask = functools.partial(hurry, signal.SIGTERM)
    assert server.run(root, path, world_size=2, prepare=ask) == [128 + signal.SIGTERM] * 2
    assert [file.name for file in paths.checkpoints(spec.run_id).glob("*.json")] == ["step-000000006.json"]


def break_loss(method, step, broken, rank):
    """Let the loss of one process not be finite in a step."""
    owner = method_class(method)
    honest = owner.loss

    def loss(self, features, progress):
        output = honest(self, features, progress)
        is_broken = progress.step == step and rank == broken
        return LossOutput(output.total * (float("nan") if is_broken else 1), output.metrics)

    owner.loss = loss


@pytest.mark.slow
@pytest.mark.parametrize("method", ["neuclip", "openclip"])
@pytest.mark.parametrize("broken", [0, 1])
def test_a_loss_that_is_not_finite_in_one_process_ends_all_and_is_recorded_once(root, server, method, broken):
    spec = make_spec(method, milestones=(48, 192))
    path = toy.write_spec(root, spec)
    prepare = functools.partial(break_loss, method, 5, broken)
    assert server.run(root, path, world_size=2, prepare=prepare, execution=SAVE_ALWAYS) == [0, 0]
    record = read_record(spec)
    assert (record.status, record.divergence.step, record.samples_seen) == ("diverged", 5, 5 * 16)
    assert (len(record.attempts), set(record.milestones)) == (1, {"48"})
    steps = [json.loads(line)["step"] for line in paths.metrics(spec.run_id).read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5]
    end = ": diverged after 80 samples, in step 5: "
    said = [(root / f"log-{rank}.txt").read_text().count(end) for rank in range(2)]
    assert said == [1, 0]
    assert server.run(root, path, world_size=2) == [0, 0]
    assert read_record(spec) == record
