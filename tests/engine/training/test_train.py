import dataclasses
import json
import os
import platform
import signal
import subprocess
import sys
import time

import pytest
import torch
from support import toy
from support.methods import method_names

from engine import files, paths
from engine.distributed import Collectives
from engine.method import LossOutput
from engine.schema.record import Record
from engine.schema.run import Execution
from engine.train import main
from engine.training.checkpoint import newest_step
from engine.training.loop import read_spec, train
from engine.training.provenance import cpu_name
from engine.training.reporting import forget_after
from engine.training.towers import WEIGHTS_FILE
from engine.training.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture
def root(tmp_path, monkeypatch):
    toy.build(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def final_weights(spec):
    return files.file_sha256(paths.weights(spec.run_id, spec.samples_seen) / WEIGHTS_FILE)


def lines(spec):
    return [json.loads(line) for line in paths.metrics(spec.run_id).read_text().splitlines()]


@pytest.mark.parametrize("method", method_names())
def test_a_run_writes_its_record_last_and_keeps_no_checkpoints(root, method):
    errors = {"at": (64, 160), "num_anchors": 32, "control_size": 16}
    spec = toy.run_spec(method, milestones=(48, 160), normalizer_error=errors)
    record = train(spec, Execution(log_every_steps=5))
    assert record == Record.model_validate_json(paths.record(spec.run_id).read_text())
    assert record.status == "finished"
    assert record.samples_seen == 160
    assert set(record.milestones) == {"48", "160"}
    assert [error.samples_seen for error in record.normalizer_error] == [64, 160]
    assert len(set(record.first_indices[:96])) == 96
    assert [line["step"] for line in lines(spec)] == [5, 10]
    assert not paths.checkpoints(spec.run_id).exists()


@pytest.mark.parametrize("method", method_names())
def test_gradients_reach_both_towers_and_all_that_the_method_hands_over(root, method):
    spec = toy.run_spec(method)
    trainer = Trainer(spec, Execution(), CPU, Collectives())
    trainer.backward(first_batch(trainer))
    without = [name for name, p in trainer.towers.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    assert all(p.grad is not None and p.grad.isfinite() for p in trainer.optimizer.method_parameters)


@pytest.mark.parametrize("method", method_names())
def test_accumulation_gives_the_gradient_of_the_whole_batch(root, method):
    spec = toy.run_spec(method)
    gradients = []
    for accumulation_steps in (1, 2, 4):
        trainer = Trainer(spec, Execution(accumulation_steps=accumulation_steps), CPU, Collectives())
        trainer.backward(first_batch(trainer))
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.optimizer.parameters]))
    for split in gradients[1:]:
        # float32 sums in another order; what is far below the largest gradient carries their rounding.
        torch.testing.assert_close(split, gradients[0], rtol=0, atol=1e-6 * float(gradients[0].abs().max()))


def first_batch(trainer):
    from engine.data.loader import build_loader

    loader = build_loader(
        trainer.dataset, seed=trainer.spec.seed, global_batch_size=16, steps=range(1),
        extra_shares=trainer.extra_shares,
    )  # fmt: skip
    return next(iter(loader))


# Of all methods and at all moments: test_kill.py.
@pytest.mark.parametrize(
    ("model", "kill_at"), [("tiny-vit", 7), pytest.param("tiny-resnet", 8, marks=pytest.mark.slow)]
)
def test_a_killed_run_goes_on_and_ends_with_the_same_weights(root, model, kill_at):
    spec = toy.run_spec("neuclip", steps=20, model={"name": model}, augmentation={"kind": "random_resized_crop"})
    path = toy.write_spec(root, spec)
    checkpoints = paths.checkpoints(spec.run_id)
    command = [sys.executable, "-m", "engine.train", str(path), "--execution", '{"save_every_min": 0}']
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    # The kill falls anywhere in what follows this checkpoint: a step, or the writing of the next one.
    while not (checkpoints / f"step-{kill_at:09d}.json").exists() and process.poll() is None:
        time.sleep(0.0005)
    time.sleep(0.001 * kill_at)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    left = newest_step(checkpoints)
    assert kill_at <= left < 20
    resumed = train(spec, Execution())
    assert [attempt.first_step for attempt in resumed.attempts] == [0, left]
    expected = final_weights(spec)

    os.rename(paths.run(spec.run_id), root / "killed")
    uninterrupted = train(spec, Execution())
    assert final_weights(spec) == expected
    assert uninterrupted.normalizer_error == resumed.normalizer_error
    assert uninterrupted.first_indices == resumed.first_indices


def test_a_run_that_is_being_trained_is_not_trained_a_second_time(root):
    spec = toy.run_spec("openclip", steps=30)
    path = toy.write_spec(root, spec)
    command = [sys.executable, "-m", "engine.train", str(path), "--execution", '{"save_every_min": 0}']
    processes = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert len(read_record(spec).attempts) == 1


def test_checkpoints_of_other_data_are_refused(root):
    spec = toy.run_spec("openclip", steps=30)
    trainer = Trainer(spec, Execution(), CPU, Collectives())
    trainer.step_number = 3
    trainer.save()
    shard = root / "data" / "toy" / "train" / "00000.tar"
    shard.write_bytes(shard.read_bytes().replace(b"a red square", b"a RED square"))
    toy.index(root)
    with pytest.raises(ValueError, match="belongs to another spec or to other data"):
        train(spec, Execution())


@pytest.mark.parametrize("old", [b"a red square, top right", b"IHDR"], ids=["caption", "picture"])
def test_a_pair_that_changed_where_it_lies_ends_the_run(root, old):
    spec = toy.run_spec("openclip")
    shard = root / "data" / "toy" / "train" / "00000.tar"
    times = shard.stat()
    # One bit, and neither size nor time of the shard.
    shard.write_bytes(shard.read_bytes().replace(old, old[:-1] + bytes([old[-1] ^ 1]), 1))
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(
        SystemExit, match=r"error: data set 'toy': shard 00000.tar, sample 00000\d.png: .*Fetch .* again"
    ):
        main([str(toy.write_spec(root, spec))])
    assert not paths.record(spec.run_id).exists()


def test_replaced_samples_end_a_run_or_give_a_warning_at_its_end(root, capsys):
    shard = root / "data" / "toy" / "train" / "00000.tar"
    shard.write_bytes(shard.read_bytes().replace(b"IHDR", b"IHXX", 1))
    toy.index(root)
    command = [str(toy.write_spec(root, toy.run_spec("openclip", steps=6)))]
    with pytest.raises(SystemExit, match=r"max_replaced_fraction = 0\.001 allows 0 of the run's 96"):
        main(command)
    main([*command, "--execution", '{"max_replaced_fraction": 0.02}'])
    warning = "warning: 1 of 96 samples could not be decoded and were replaced by their neighbours"
    assert warning in capsys.readouterr().err


def test_batch_norm_is_refused_where_it_would_see_a_part_of_the_batch(root):
    spec = toy.run_spec("openclip", model={"name": "tiny-resnet"})
    with pytest.raises(ValueError, match=r"'tiny-resnet' has batch norm, .* use accumulation_steps 1"):
        train(spec, Execution(accumulation_steps=2))


def test_the_record_says_where_its_numbers_come_from(root):
    spec = toy.run_spec("openclip")
    origin = train(spec, Execution(threads=2)).provenance
    torch.set_num_threads(1)
    assert origin.packages["open_clip_torch"].startswith("3.")
    assert origin.threads == 2
    assert origin.libraries.keys() == {"cuda", "cudnn", "nccl", "driver"}
    assert origin.libraries["cuda"] == torch.version.cuda
    assert len(origin.dataset_sha256) == len(origin.lock_sha256) == 64


def test_a_record_from_before_libraries_were_noted_is_read(root):
    spec = toy.run_spec("openclip", steps=2)
    train(spec, Execution())
    old = json.loads(paths.record(spec.run_id).read_text())
    del old["attempts"][0]["provenance"]["libraries"], old["content_sha256"], old["log_sha256"]
    assert Record.model_validate(old).provenance.libraries == {}


def test_lines_that_a_killed_run_wrote_too_many_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n{"step": 3, "lo')
    forget_after(path, 1)
    assert path.read_text() == '{"step": 1, "loss": 2.0}\n'
    forget_after(tmp_path / "nothing.jsonl", 1)


def test_a_finished_run_is_left_alone(root):
    spec = toy.run_spec("openclip")
    train(spec, Execution())
    before = paths.record(spec.run_id).stat().st_mtime_ns
    assert len(train(spec, Execution()).attempts) == 1
    assert paths.record(spec.run_id).stat().st_mtime_ns == before


def test_the_same_seed_gives_the_same_weights_with_workers_and_without_the_cache(root):
    spec = toy.run_spec("neuclip")
    train(spec, Execution())
    expected = final_weights(spec)
    os.rename(paths.run(spec.run_id), root / "first")
    train(spec, Execution(num_workers=1, cache_decoded=False))
    assert final_weights(spec) == expected


def test_another_seed_gives_other_weights(root):
    specs = [toy.run_spec("openclip", seed=seed) for seed in (0, 1)]
    for spec in specs:
        train(spec, Execution())
    assert final_weights(specs[0]) != final_weights(specs[1])


def test_all_methods_start_from_the_same_weights_and_see_the_same_pairs(root):
    trainers = [Trainer(toy.run_spec(method), Execution(), CPU, Collectives()) for method in method_names()]
    states = [trainer.towers.state_dict() for trainer in trainers]
    for state in states[1:]:
        assert all(torch.equal(value, states[0][name]) for name, value in state.items() if "logit" not in name)
    batches = [first_batch(trainer) for trainer in trainers]
    assert all(torch.equal(batch.image_BCHW, batches[0].image_BCHW) for batch in batches)


def test_a_loss_that_is_not_finite_is_recorded_as_divergence(root, monkeypatch):
    spec = toy.run_spec("openclip", milestones=(48, 160))
    from baselines.openclip import OpenCLIP

    honest = OpenCLIP.loss

    def break_down(self, features, progress):
        output = honest(self, features, progress)
        return LossOutput(output.total * (float("nan") if progress.step == 5 else 1), output.metrics)

    monkeypatch.setattr(OpenCLIP, "loss", break_down)
    record = train(spec, Execution())
    assert record.status == "diverged"
    assert record.divergence.step == 5
    assert record.samples_seen == 5 * 16
    assert set(record.milestones) == {"48"}


def test_a_temperature_that_is_no_number_either_is_recorded_too(root, monkeypatch):
    from baselines.fastclip import FastCLIP

    honest = FastCLIP.loss

    def break_down(self, features, progress):
        spoiled = features.image_BD * (float("nan") if progress.step == 5 else 1)
        return honest(self, dataclasses.replace(features, image_BD=spoiled), progress)

    monkeypatch.setattr(FastCLIP, "loss", break_down)
    record = train(toy.run_spec("fastclip", options={"version": "v2"}, normalizer_error=None), Execution())
    assert (record.status, record.divergence.step, record.divergence.temperature) == ("diverged", 5, None)


def test_a_spec_that_was_edited_is_refused(root):
    path = toy.write_spec(root, toy.run_spec("openclip"))
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 5'))
    with pytest.raises(ValueError, match="A spec is never edited"):
        read_spec(path)


def test_other_data_than_the_spec_names_is_refused(root):
    spec = toy.run_spec("openclip", dataset={"name": "toy", "revision": "2", "pairs": toy.NUM_PAIRS})
    with pytest.raises(ValueError, match=r"of revision 1 with 96 pairs .* the run wants revision 2"):
        train(spec, Execution())


def test_bf16_trains_close_to_fp32(root):
    losses = []
    for precision in ("fp32", "bf16"):
        spec = toy.run_spec("openclip", precision=precision)
        train(spec, Execution(log_every_steps=1))
        losses.append([line["loss/total"] for line in lines(spec)])
    assert losses[0] != losses[1]
    # bfloat16 keeps 8 bits of each product: the loss, about ln 16, moves in its third digit.
    assert losses[0] == pytest.approx(losses[1], abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("method", method_names())
def test_two_processes_train_as_one_does(root, method):
    # tiny-vit: batch norm would see half a batch in each process.
    spec = toy.run_spec(method)
    path = toy.write_spec(root, spec)
    train(spec, Execution(log_every_steps=1))
    alone = lines(spec)
    largest = max(abs(line["loss/total"]) for line in alone)
    error = read_record(spec).normalizer_error
    os.rename(paths.run(spec.run_id), root / "alone")
    toy.write_spec(root, spec)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    execution = '{"log_every_steps": 1, "accumulation_steps": 2}'
    subprocess.run([*command, "-m", "engine.train", str(path), "--execution", execution], check=True, timeout=120)
    together = lines(spec)
    for one, two in zip(alone, together, strict=True):
        # Sums run in another order: float32 rounding, carried on by ten steps of AdamW.
        # A loss may pass through zero: what it is a difference of is as large as the largest loss.
        assert two["loss/total"] == pytest.approx(one["loss/total"], rel=1e-4, abs=1e-4 * largest)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)
    for one, two in zip(error, read_record(spec).normalizer_error, strict=True):
        assert two.image_mse == pytest.approx(one.image_mse, rel=1e-2, abs=1e-6)
        assert two.control_mse == pytest.approx(one.control_mse, rel=1e-2, abs=1e-6)


def read_record(spec):
    return Record.model_validate_json(paths.record(spec.run_id).read_text())


def test_a_finished_run_whose_record_a_workflow_removed_is_not_trained_again(root):
    spec = toy.run_spec("openclip", steps=4)
    toy.write_spec(root, spec)
    record = train(spec, Execution())
    paths.record(spec.run_id).unlink()
    assert train(spec, Execution()) == record


def test_a_finished_run_whose_weights_or_data_changed_is_trained_again(root):
    spec = toy.run_spec("openclip", steps=4)
    train(spec, Execution())
    paths.record(spec.run_id).unlink()
    (paths.weights(spec.run_id, spec.samples_seen) / WEIGHTS_FILE).unlink()
    assert len(train(spec, Execution()).attempts) == 2
    paths.record(spec.run_id).unlink()
    shard = root / "data" / "toy" / "train" / "00000.tar"
    shard.write_bytes(shard.read_bytes().replace(b"a red square", b"a RED square"))
    toy.index(root)
    assert len(train(spec, Execution()).attempts) == 3


def test_a_processor_is_named_with_its_generation() -> None:
    of_cloud = (
        "processor\t: 0\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\nmodel\t\t: 9\n"
    )
    assert cpu_name(of_cloud) == "AMD EPYC (family 26 model 2)"
    # An ARM processor says neither.
    assert cpu_name("processor\t: 0\nBogoMIPS\t: 50.00\n") == (platform.processor() or platform.machine())
