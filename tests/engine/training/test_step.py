"""A step computes as it should: precisions, clipping, metrics, compiled encoders, draws of random numbers."""

import dataclasses
import json
import math
import os
import re
import shutil
import signal

import open_clip
import pytest
import torch
from support import toy
from support.killing import MODELS, Kill, Server
from support.methods import method_class
from support.spawn import run_in_processes

from engine import files, paths
from engine.data.loader import build_loader
from engine.distributed import Collectives, ProcessGroup
from engine.method import LossOutput
from engine.schema.run import Execution
from engine.stop import Stopped
from engine.training.agreement import Agreement, Votes
from engine.training.checkpoint import load_checkpoint, newest_step
from engine.training.loop import train
from engine.training.reporting import mean_metrics, pack_metrics
from engine.training.towers import WEIGHTS_FILE
from engine.training.trainer import Trainer

CPU = torch.device("cpu")

open_clip.add_model_config(MODELS)


@pytest.fixture
def root(tmp_path, monkeypatch):
    toy.build(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_trainer(execution=None, method="openclip", **changes):
    return Trainer(toy.run_spec(method, **changes), execution or Execution(), CPU, Collectives())


def batches(trainer, steps=1):
    return build_loader(trainer.dataset, seed=0, global_batch_size=16, steps=range(steps))


def gradient(trainer):
    return torch.cat([p.grad.flatten() for p in trainer.optimizer.parameters if p.grad is not None])


# Draws ------------------------------------------------------------------------------------------------------------


def test_with_dropout_both_passes_over_a_part_draw_the_same(root):
    dropout = {"model": {"name": "dropout-vit"}}
    trainer = make_trainer(Execution(accumulation_steps=2), **dropout)
    honest, states = trainer.encoder.module.forward, []

    def forward(*args):
        states.append(torch.get_rng_state())
        return honest(*args)

    trainer.encoder.module.forward = forward
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
        losses.append([trainer.backward(batch)[0].total.item() for batch in batches(trainer, 2)])
        trainer.step_number = 1
        losses[-1].append(trainer.backward(next(iter(batches(trainer))))[0].total.item())
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
    metrics = trainer.step(batch, wants_metrics=True).metrics
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
        finals.append(files.file_sha256(paths.weights(spec.run_id, spec.samples_seen) / WEIGHTS_FILE))
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

    def overflow(batch):
        output = honest(batch)
        trainer.optimizer.parameters[0].grad.fill_(math.inf)
        return output

    trainer.backward = overflow
    assert trainer.step(next(iter(batches(trainer))), wants_metrics=True).divergence is None
    assert all(torch.equal(p, old) for p, old in zip(trainer.towers.parameters(), before, strict=True))
    assert trainer.scaler.get_scale() == scale / 2


def test_a_method_s_rate_of_zero_is_zero(root):
    optimizer = make_trainer().optimizer
    (group,) = optimizer._method_groups
    for declared, expected in ((None, optimizer.spec.lr), (0.0, 0.0), (0.25, 0.25)):
        optimizer._method_groups = [dataclasses.replace(group, lr=declared)]
        optimizer.set_learning_rates(optimizer.spec.warmup_steps - 1)
        assert optimizer.adamw.param_groups[-1]["lr"] == expected


def spoil(monkeypatch, steps, *, init_scale=1024.0):
    """Let one layer's gradient hold a NaN in these steps (from 0), the first of them at a certain loss scale."""
    honest = Trainer.backward

    def backward(self, batch):
        if self.step_number in (0, steps[0]):
            self.scaler = torch.amp.GradScaler("cpu", init_scale=init_scale if self.step_number else 1024.0)
        output = honest(self, batch)
        if self.step_number in steps:
            self.optimizer.parameters[0].grad.view(-1)[0] = math.nan
        return output

    monkeypatch.setattr(Trainer, "backward", backward)


def logged(spec):
    return [json.loads(line) for line in paths.metrics(spec.run_id).read_text().splitlines()]


@pytest.mark.parametrize(
    ("init_scale", "num_skipped", "reason"),
    [
        (65536.0, 17, r"the loss scale of fp16 fell to 0\.5, below 1: the gradient is not finite"),
        (2.0**40, 20, r"fp16 skipped 20 steps in a row: their gradients are not finite"),
    ],
)
def test_a_run_in_half_precision_that_no_longer_learns_is_diverged(root, monkeypatch, init_scale, num_skipped, reason):
    spoil(monkeypatch, range(4, 40), init_scale=init_scale)
    spec = toy.run_spec("openclip", steps=40, precision="fp16", normalizer_error=None, milestones=(32, 640))
    record = train(spec, Execution(log_every_steps=1))
    assert (record.status, record.divergence.step) == ("diverged", 4 + num_skipped - 1)
    assert re.fullmatch(reason, record.divergence.reason)
    assert (record.num_skipped, record.loss_scale) == (num_skipped, init_scale / 2**num_skipped)
    assert record.samples_seen == 16 * record.divergence.step
    assert set(record.milestones) == {"32"}
    skipped = [(line["scaler/num_skipped"], line["scaler/scale"]) for line in logged(spec)]
    assert skipped == [(0, 1024.0)] * 4 + [(n, init_scale / 2**n) for n in range(1, num_skipped)]


def test_a_run_in_half_precision_that_finds_its_scale_again_is_finished_and_says_what_it_skipped(root, monkeypatch):
    plain = train(toy.run_spec("openclip", normalizer_error=None), Execution())
    assert (plain.num_skipped, plain.loss_scale) == (0, None)
    spoil(monkeypatch, [2, 3, 4, 8])
    spec = toy.run_spec("openclip", steps=12, precision="fp16", normalizer_error=None)
    record = train(spec, Execution(log_every_steps=4))
    assert (record.status, record.num_skipped, record.loss_scale) == ("finished", 4, 64.0)
    assert [line["scaler/num_skipped"] for line in logged(spec)] == [2, 3, 4]
    assert [line["scaler/scale"] for line in logged(spec)] == [256.0, 128.0, 64.0]


def loader_of(trainer, steps):
    ours = trainer.collectives
    return build_loader(
        trainer.dataset, seed=0, global_batch_size=16, steps=range(steps), rank=ours.rank, world_size=ours.world_size
    )


def _skip_in_processes(folder):
    """Take steps; in all but the first, one process's rows have a NaN in their gradient. Once for each process."""
    os.chdir(folder)
    return [_skip_where_one_is_broken(ProcessGroup(), broken) for broken in range(2)]


def _skip_where_one_is_broken(collectives, broken):
    trainer = Trainer(toy.run_spec("openclip", precision="fp16"), Execution(), CPU, collectives)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    honest = trainer.method.loss

    def loss(features, progress):
        if progress.step and collectives.rank == broken:
            features.image_BD.register_hook(lambda grad: grad * math.nan)
        return honest(features, progress)

    trainer.method.loss = loss
    seen = []
    for batch in loader_of(trainer, 5):
        divergence = trainer.step(batch, wants_metrics=False).divergence or trainer.settle()
        seen.append(
            [trainer.agreement.num_skipped, trainer.scaler.get_scale(), divergence.reason if divergence else ""]
        )
    return {"seen": seen, "weights": [p.detach() for p in trainer.towers.parameters()]}


def test_processes_skip_together_though_one_alone_has_a_gradient_that_is_not_finite(root):
    first, second = run_in_processes(_skip_in_processes, 2, str(root), timeout_sec=300)
    for one, other in zip(first, second, strict=True):
        assert one["seen"] == other["seen"]
        assert [seen[:2] for seen in one["seen"]] == [[0, 8.0], [1, 4.0], [2, 2.0], [3, 1.0], [4, 0.5]]
        assert [bool(seen[2]) for seen in one["seen"]] == [False] * 4 + [True]
        assert all(torch.equal(a, b) for a, b in zip(one["weights"], other["weights"], strict=True))


# Outcomes that are looked at later ---------------------------------------------------------------------------------


@pytest.mark.parametrize("votes", [Votes(), Votes(stop=(0, 1, 0)), Votes(save=1), Votes(num_replaced=1)])
def test_the_outcome_of_a_step_is_looked_at_in_it_only_if_something_was_asked_for(root, votes):
    trainer = make_trainer()
    trainer.agreement.reads_late = True
    looked = []
    trainer.agreement._count_skipped = lambda scaler, *, is_skipped: looked.append(trainer.step_number)
    told = [trainer.step(batch, lambda: votes, wants_metrics=False).votes for batch in batches(trainer, 2)]
    # The step that one step is looked at in, and the next.
    assert looked == ([1] if votes == Votes() else [1, 2])
    assert told == [Votes(), votes.and_of(votes)]


def read_late(monkeypatch, reads_late=True):
    """Let steps be read as a GPU lets them be read."""
    monkeypatch.setattr(
        Agreement, "reads_late", property(lambda self: reads_late, lambda self, value: None), raising=False
    )


def test_a_run_that_is_stopped_or_saved_a_step_late_ends_with_the_same_weights(root, monkeypatch):
    spec = toy.run_spec("fastclip")
    toy.write_spec(root, spec)
    read_late(monkeypatch)
    whole = train(spec, Execution())
    shutil.rmtree(paths.run(spec.run_id))
    honest, taken = Trainer.step, []

    def step(self, *args, **kwargs):
        taken.append(self.step_number)
        if self.step_number == 3:
            signal.raise_signal(signal.SIGTERM)
        return honest(self, *args, **kwargs)

    toy.write_spec(root, spec)
    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(Stopped, match="after step 5, which is saved"):
        train(spec, Execution())
    record = train(spec, Execution(save_every_min=0))
    assert taken == list(range(spec.num_steps))
    assert [kept.sha256 for kept in record.milestones.values()] == [kept.sha256 for kept in whole.milestones.values()]


@pytest.mark.parametrize(("method", "options"), [("openclip", {}), ("fastclip", {"version": "v2"})])
def test_divergence_is_the_same_whenever_it_is_noticed_and_the_method_sees_no_batch_after_it(
    root, monkeypatch, method, options
):
    spec, found = toy.run_spec(method, options=options), []
    honest = method_class(method).loss

    def loss(self, features, progress):
        steps.append(progress.step)
        output = honest(self, features, progress)
        return LossOutput(output.total * (math.nan if progress.step == 4 else 1), output.metrics)

    monkeypatch.setattr(method_class(method), "loss", loss)
    for log_every_steps, reads_late in ((1, False), (10, False), (10, True)):
        steps = []
        read_late(monkeypatch, reads_late)
        toy.write_spec(root, spec)
        record = train(spec, Execution(log_every_steps=log_every_steps))
        assert (record.status, record.samples_seen, steps) == ("diverged", 64, [0, 1, 2, 3, 4])
        found.append((record.divergence, record.first_indices))
        shutil.rmtree(paths.run(spec.run_id))
    assert found[0] == found[1] == found[2]
    assert found[0][0].indices == found[0][1][64:80]


# Metrics ----------------------------------------------------------------------------------------------------------


class Counting(Collectives):
    """Notes how many numbers each all-reduce carries."""

    def __init__(self):
        self.sizes = []

    def all_reduce(self, x, op):
        self.sizes.append(x.numel())
        return x


def test_metrics_travel_with_what_processes_agree_on_and_only_when_they_are_logged(root):
    collectives = Counting()
    trainer = Trainer(toy.run_spec("openclip"), Execution(), CPU, collectives)
    sizes = []
    for batch, is_logged in zip(batches(trainer, 2), (False, True), strict=True):
        collectives.sizes = []
        assert bool(trainer.step(batch, wants_metrics=is_logged).metrics) == is_logged
        sizes.append(collectives.sizes)
    plain, logged = sizes
    # The temperature's gradient, and the outcome with the votes.
    assert plain == [1, 8]
    assert logged[0] == 1
    assert len(logged) == 2
    assert logged[1] > 8 + len(trainer.towers.clip.visual.proj) ** 2


NAMES = [
    ([["a", "b"], ["b", "a"]], r"{'a': 0\.5, 'b': 0\.5}"),
    ([["a", "b"], ["a", "c"]], r"processes logged different metrics, this one a, [bc]: "),
    ([["a"], []], r"processes logged different metrics, this one (a|none): "),
    ([[f"n{n}" for n in range(129)]] * 2, r"the method logged 129 metrics: at most 128 are allowed"),
]
"""Names of the metrics that two processes log, and what comes of it."""


def _log_in_processes(folder):
    """Take a logged step for each of `NAMES`; returns what was logged, or the error."""
    os.chdir(folder)
    return [_log_metrics(ProcessGroup(), names) for names, _ in NAMES]


def _log_metrics(collectives, names):
    trainer = Trainer(toy.run_spec("openclip"), Execution(), CPU, collectives)
    honest, own = trainer.method.loss, {name: torch.tensor(float(collectives.rank)) for name in names[collectives.rank]}
    trainer.method.loss = lambda *args: LossOutput(honest(*args).total, own)
    try:
        metrics = trainer.step(next(iter(loader_of(trainer, 1))), wants_metrics=True).metrics
    except ValueError as error:
        return str(error)
    return str({name: metrics[name] for name in sorted(own)})


def test_metrics_are_means_over_processes_and_names_that_differ_end_all_of_them_with_an_error(root):
    for said in run_in_processes(_log_in_processes, 2, str(root), timeout_sec=300):
        for text, (_, expected) in zip(said, NAMES, strict=True):
            assert re.match(expected, text)


@pytest.mark.parametrize("names", ["aab", "abc", "abb", "abcdefgh", "aaaaaaab"])
def test_every_process_notices_that_names_differ(names):
    own = [{name: torch.tensor(1.0)} for name in names]
    sums = sum(pack_metrics(metrics, CPU) for metrics in own)
    for metrics in own:
        with pytest.raises(ValueError, match="processes logged different metrics"):
            mean_metrics(metrics, sums, len(names))


# Encoders that keep less -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_with_gradient_checkpointing_a_run_has_the_same_numbers(root, accumulation_steps):
    finals = []
    for is_on in (False, True):
        execution = Execution(gradient_checkpointing=is_on, accumulation_steps=accumulation_steps)
        trainer = make_trainer(execution, model={"name": "dropout-vit"})
        runs = []
        trainer.towers.clip.transformer.resblocks[0].register_forward_pre_hook(lambda *_, runs=runs: runs.append(0))
        metrics = [trainer.step(batch, wants_metrics=True).metrics for batch in batches(trainer, 3)]
        finals.append((metrics, [p.detach() for p in trainer.towers.parameters()], len(runs)))
    (plain, weights, passes), (again, same, more) = finals
    assert (again, passes < more) == (plain, True)
    assert all(torch.equal(a, b) for a, b in zip(weights, same, strict=True))


def test_gradient_checkpointing_is_refused_where_it_would_move_running_statistics_twice(root):
    with pytest.raises(ValueError, match="gradient_checkpointing: model 'tiny-resnet' has batch norm"):
        make_trainer(Execution(gradient_checkpointing=True), model={"name": "tiny-resnet"})


def test_a_graph_of_the_method_is_refused_where_there_is_no_gpu_to_replay_it(root):
    with pytest.raises(ValueError, match="method_graphs: 1 processes on cpu; allowed is one process on a GPU"):
        make_trainer(Execution(method_graphs=True))


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
        losses.append([trainer.step(batch, wants_metrics=True).metrics["loss/total"] for batch in loader])
    # Fused kernels round otherwise.
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-5 * float(gradients[0].abs().max()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
