"""Runs that provoke each sign of failure, healthy runs that show none, and how a log is read."""

from __future__ import annotations

import os

import pytest
import torch
from support import toy
from support.small import features_of, make_method, progress_of
from torch.nn.functional import normalize

from engine import paths
from engine.registry import resolve_config
from engine.schema.record import Record
from engine.schema.run import Execution, MethodSpec
from engine.signatures import Log, Window, embedding_collapse, find_signatures
from engine.training.loop import train
from engine.training.reporting import embedding_moments, embedding_spread
from engine.training.trainer import Trainer

SIGLIP = {"bias_init": -3.0, "temperature": {"lr": 0.02}}
LARGE_RHO = {"rho": 20.0, "temperature": {"lr": 0.2, "lr_schedule": "constant"}}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("signatures")
    toy.build(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield root


def train_toy(method, options=None, **changes):
    """Train on the toy set with every step logged."""
    config = resolve_config(method, toy.OPTIONS.get(method, {}) | (options or {}))
    spec = toy.run_spec(method, normalizer_error=None, **{"steps": 60} | changes)
    spec = spec.model_copy(update={"method": MethodSpec(name=method, config=config.model_dump(mode="json"))})
    return train(spec, Execution(log_every_steps=1))


@pytest.mark.parametrize(
    ("method", "options", "steps"),
    [
        ("openclip", {}, 60),
        ("fastclip", {}, 60),
        ("amorlip", {"init_output_bias": True}, 60),
        ("siglip", SIGLIP, 120),
        ("neuclip", {}, 120),
        ("neuclip_queue", {}, 120),
    ],
)
def test_a_healthy_run_shows_nothing(root, method, options, steps):
    assert train_toy(method, options, steps=steps).signatures == ()


@pytest.mark.parametrize(
    ("name", "method", "options", "changes"),
    [
        ("embedding_collapse", "openclip", {}, {"optimizer": {"lr": 1.0}}),
        ("temperature_at_floor", "neuclip", LARGE_RHO, {}),
        ("temperature_at_floor", "fastclip", LARGE_RHO, {}),
        ("temperature_at_floor", "amorlip", {**LARGE_RHO, "rho": [20.0]}, {}),
        ("npn_gradient_vanishing", "neuclip", {"eps": 10.0}, {}),
        ("npn_too_small", "neuclip", {"num_prototypes": 1}, {}),
        ("alternation_unstable", "neuclip", {"num_prototypes": 1}, {}),
        ("estimates_at_floor", "neuclip_queue", {"eps": 10.0}, {}),
        ("estimates_unvisited", "fastclip", {}, {"batch": 2, "steps": 40}),
        ("estimates_at_floor", "fastclip", {"eps": 10.0}, {}),
        ("network_not_fitting", "amorlip", {"network_lr": 1e-6, "z_beta_max": 0.0}, {}),
    ],
)
def test_a_provoked_failure_is_in_the_record_with_its_numbers(root, name, method, options, changes):
    record = train_toy(method, options, **changes)
    (found,) = (signature for signature in record.signatures if signature.name == name)
    assert 1 <= found.first_step < found.last_step <= record.spec.num_steps
    assert found.evidence
    assert found.advice
    assert Record.model_validate_json(paths.record(record.run_id).read_text()) == record


def skips(of):
    return {"scaler/num_skipped": of, "scaler/scale": lambda n: 2.0 ** (16 - of(n))}


@pytest.mark.parametrize(
    ("skipped", "is_found"),
    [
        # A line is ten steps: one in a hundred, up to the end.
        (lambda n: n // 10, True),
        # The first steps look for the scale, and every 2000 a doubled one is tried.
        (lambda n: 16 + n // 200, False),
        (lambda n: min(16, 10 * n), False),
        (lambda n: 0, False),
    ],
)
def test_steps_that_fp16_skips_again_and_again_are_reported(skipped, is_found):
    found = find_signatures(log_of(1000, **skips(skipped)), lambda log: [])
    assert [signature.name for signature in found] == ["steps_skipped"] * is_found
    for signature in found:
        assert signature.evidence["num_skipped"] == 99
        assert signature.evidence["scaler/scale"] < 1


def test_a_run_whose_steps_are_skipped_until_it_diverges_shows_them(root, monkeypatch):
    honest = Trainer.backward

    def backward(self, *args, **options):
        output = honest(self, *args, **options)
        if self.step_number % 3 == 0:
            self.optimizer.parameters[0].grad.fill_(torch.nan)
        return output

    monkeypatch.setattr(Trainer, "backward", backward)
    record = train_toy("openclip", precision="fp16", seed=1)
    assert record.status == "diverged"
    (found,) = record.signatures
    assert found.name == "steps_skipped"
    assert found.evidence["num_skipped"] == record.num_skipped - 1  # the last one ended the run
    assert Record.model_validate_json(paths.record(record.run_id).read_text()) == record


def drift(*, restart_period, turn=0.005, num_steps=240):
    """Log an untrained network while all embeddings turn at every step: what it copied at a restart goes stale."""
    method = make_method(
        "neuclip",
        num_updates=0,
        num_prototypes=128,
        restart_period=restart_period,
        global_batch_size=64,
        temperature={"learnable": False},
    )
    generator = torch.Generator().manual_seed(0)
    skew = torch.randn(16, 16, generator=generator) * turn
    rotation, lines = torch.eye(16), []
    for step in range(num_steps):
        rotation = rotation @ torch.matrix_exp(skew - skew.T)
        image = torch.randn(64, 16, generator=generator) + 2 * torch.eye(16)[0]
        sides = (
            normalize(side, dim=1) @ rotation for side in (image, image + torch.randn(64, 16, generator=generator))
        )
        metrics = method.loss(features_of(*sides, dtype=torch.float32), progress_of(method, step)).metrics
        lines.append({"step": step + 1, **{name: float(value) for name, value in metrics.items()}})
    return find_signatures(lines, method.signatures)


def test_a_gap_that_grows_until_each_restart_is_a_saw_tooth():
    (found,) = drift(restart_period=60)
    assert found.name == "restarts_too_rare"
    assert found.evidence["restarts"] == found.evidence["teeth"] == 3
    assert found.evidence["gap_before_restart"] > 2 * found.evidence["gap_after_restart"]


def test_restarts_that_come_in_time_show_nothing():
    assert drift(restart_period=6) == ()


def log_of(num_lines=40, **metrics):
    """Make lines whose metrics are functions of the line's number."""
    return [{"step": 10 * (n + 1), **{name: of(n) for name, of in metrics.items()}} for n in range(num_lines)]


def ranks(of):
    return {f"embedding/effective_rank_{side}": of for side in ("image", "text")}


def test_a_network_that_restarts_mend_is_not_called_too_small():
    def saw_tooth(n):
        return 0.1 + n % 10

    lines = log_of(**{"npn/gap_before": saw_tooth, "npn/gap_after": saw_tooth, "npn/gap_constant": lambda n: 0.2})
    for line in lines:
        line |= {"npn/gradient_norm": 0.1, "npn/floor_share": 0.0}
    for restart_period, expected in ((100, "restarts_too_rare"), ("never", "npn_too_small")):
        (found,) = make_method("neuclip", restart_period=restart_period).signatures(Log(lines))
        assert found.name == expected


def test_a_collapse_that_lasts_is_reported_from_where_it_began_and_one_that_passes_is_not():
    lines = log_of(**ranks(lambda n: 3.0 if n < 20 else 1.0))
    (found,) = embedding_collapse(Log(lines))
    assert (found.first_step, found.last_step) == (210, 400)
    assert found.evidence["embedding/effective_rank_text"] == 1.0
    # Of several lines for one step the last holds, in any order; what was not logged fulfils no condition.
    stale = log_of(**ranks(lambda n: 5.0))
    assert embedding_collapse(Log(stale + lines[::-1])) == [found]
    for passing in (ranks(lambda n: 1.0 if n < 30 else 3.0), ranks(lambda n: None), {}):
        assert embedding_collapse(Log(log_of(**passing))) == []


def test_a_log_too_short_to_tell_shows_nothing():
    assert embedding_collapse(Log(log_of(7, **ranks(lambda n: 1.0)))) == []
    assert embedding_collapse(Log(log_of(8, **ranks(lambda n: 1.0)))) != []
    assert find_signatures([], make_method("neuclip").signatures) == ()


@pytest.mark.parametrize(
    ("series", "expected"),
    [([0, 2, 0, 2, 0], True), ([0, 2, 4, 6, 8], False), ([0, 0.5, 0, 0.5, 0], False), ([], False), ([3], False)],
)
def test_only_large_moves_to_and_fro_are_oscillation(series, expected):
    assert Window([{"step": n, "x": value} for n, value in enumerate(series)]).oscillates("x", 1.0) == expected


@pytest.mark.parametrize(("copies", "signs", "rank"), [(8, (1, 1), 1.0), (8, (1, -1), 1.0), (1, (1, 1), 8.0)])
def test_the_effective_rank_counts_directions_whatever_their_sign(copies, signs, rank):
    rows = torch.eye(8)[: 8 // copies].repeat(copies, 1) * torch.tensor(signs * 4)[:, None]
    metrics = embedding_spread(embedding_moments(rows, rows), rows.shape[1])
    assert metrics["embedding/effective_rank_image"] == pytest.approx(rank)
    assert metrics["embedding/mean_norm_text"] == pytest.approx(float(rows.mean(dim=0).norm()))


def test_a_run_that_was_interrupted_finds_the_same(root, monkeypatch):
    whole = train_toy("neuclip", {"num_prototypes": 1})
    os.rename(paths.run(whole.run_id), root / "whole")
    honest = Trainer.step

    def stop_once(self, batch, ask, *, wants_metrics):
        if self.step_number == 43:
            raise KeyboardInterrupt
        # Saved long before the end: lines are logged beyond it.
        is_time_to_save = self.step_number == 12
        return honest(self, batch, lambda: ask()._replace(save=is_time_to_save), wants_metrics=wants_metrics)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stop_once)
        with pytest.raises(KeyboardInterrupt):
            train_toy("neuclip", {"num_prototypes": 1})
    resumed = train_toy("neuclip", {"num_prototypes": 1})
    assert [attempt.first_step for attempt in resumed.attempts] == [0, 13]
    assert resumed.signatures == whole.signatures != ()
