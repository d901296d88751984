"""A small results folder as the engine would write it, with numbers that tests can predict."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.numpy

from analysis.collect import collect
from engine import paths
from engine.schema.base import fingerprint
from engine.schema.evaluation import EvalCard
from engine.schema.run import RunSpec

METHODS = ("neuclip", "openclip", "fastclip", "siglip", "amorlip")
ABOUT = {"path": "data/x", "licence": "CC0-1.0", "source": "made up"}
CARDS = {
    "digits": {"title": "Digits", "task": "zeroshot_classification", "metric": "acc1", "images": 1797, "chance": 0.1},
    "flickr": {
        "title": "Flickr", "task": "zeroshot_retrieval", "metric": "mean_recall@1", "images": 200, "chance": 0.005,
    },
}  # fmt: skip
AVERAGES = {"Average": ["digits", "flickr"], "Retrieval": ["flickr"]}
PROVENANCE = {
    "commit": "0123456789abcdef", "dirty_sha256": None, "lock_sha256": "e" * 64, "dataset_sha256": "d" * 64,
    "device": "cpu", "device_count": 2, "world_size": 1, "threads": 1, "python": "3.11", "platform": "Linux",
    "packages": {},
}  # fmt: skip
BATCH, STEPS = 64, 40
CURVE_SHARES, CURVE_SAMPLES = (0.25, 0.5, 0.625, 0.75, 0.875, 1.0), 64 * 64
"""Milestones and length of `frame_with_curves`."""
CORNERS = [
    {"architecture": source, "temperature_gradient": rule, "positive": own, "temperature": {"learnable": True}}
    for source, rule, own in itertools.product(
        ("batch", "prototypes"), ("infonce", "consistent"), ("counted", "left out")
    )
]
"""Where the normalizer is from, what moves the temperature, and the own pair: on the way from OpenCLIP to NeuCLIP."""
LEVEL = {"openclip": 0.30, "fastclip": 0.34, "siglip": 0.29, "amorlip": 0.33, "neuclip": 0.40}


def score(method: str, seed: int, eval_set: str, progress: float = 1.0) -> float:
    """What a run scores: level of the method + offset of the set + an effect of the seed that methods share.

    `seed % 3` makes the seed effect -0.02, 0.00, 0.02; NeuCLIP's own wobble keeps paired differences from being equal.
    """
    value = LEVEL.get(method, 0.3) + (0.05 if eval_set == "flickr" else 0.0) + 0.02 * (seed % 3 - 1)
    if method == "neuclip":
        value += 0.004 * (1, -2, 1)[seed % 3]
    return round(value * (0.5 + 0.5 * progress), 6)


def run_spec(method: str, seed: int, **changes: Any) -> dict[str, Any]:
    """The spec of a run as JSON; `changes` replace top-level fields, `config` is the method's."""
    spec = {
        "method": {"name": method, "config": changes.pop("config", {})},
        "dataset": {"name": "scenes", "revision": "r1", "pairs": 10000},
        "model": {"name": "tiny"},
        "global_batch_size": BATCH,
        "samples_seen": BATCH * STEPS,
        "milestones": [BATCH * STEPS // 2, BATCH * STEPS],
        "optimizer": {},
        "augmentation": {},
        "normalizer_error": {"at": [BATCH * STEPS // 2, BATCH * STEPS], "num_anchors": 512},
        "gradient_error": {"at": [changes.get("samples_seen", BATCH * STEPS)]},
        "seed": seed,
    }
    return RunSpec.model_validate(spec | changes).model_dump(mode="json")


def main_specs(seeds: int = 3) -> list[dict[str, Any]]:
    """Every method with the same seeds."""
    return [run_spec(method, seed) for method in METHODS for seed in range(seeds)]


def log_normalizers(method: str, seed: int) -> bytes:
    """The file of estimates and exact values of 40 anchors; NeuCLIP's are 0.1 too high, the text side's 0.2."""
    exact = np.random.default_rng(seed).normal(-3.0, 0.5, (2, 40)).astype(np.float32)
    off = {"neuclip": 0.1, "openclip": 0.6}.get(method, 0.3) * np.array([[1], [2]], np.float32)
    estimate = exact + off
    if method == "fastclip":
        estimate[0, :4] = np.inf
    return safetensors.numpy.save({"exact": exact, "estimate": estimate.astype(np.float32)})


def gradient_error(method: str, seed: int, samples_seen: int) -> dict[str, Any]:
    """OpenCLIP's batches pull the temperature down where all pairs pull it up; NeuCLIP's bias is within noise of 0."""
    bias = {"neuclip": -0.01, "openclip": 0.25}.get(method, 1.0)
    is_known = method != "siglip"
    return {
        "samples_seen": samples_seen,
        "temperature": 0.05,
        "population": 4096,
        "num_rounds": 4,
        "num_batches": 256,
        "factor": 20.0,
        "bias_squared": bias + 0.02 * (seed % 3 - 1),
        "bias_squared_se": 0.01,
        "variance": 4.0,
        "variance_se": 0.1,
        "exact_factor": 1.1 if is_known else None,
        "exact_bias_squared": bias if is_known else None,
        "exact_bias_squared_se": 0.01 if is_known else None,
        "pull": -0.5 if method == "openclip" else 0.5,
        "pull_sd": 0.8,
        "exact_pull": 0.4 if is_known else None,
        "rgcl_pull": 3.0,
    }


def outcomes(card: dict[str, Any], value: float) -> dict[str, Any]:
    """Answers that make `value`: right, wrong, and one that is partly right, for the rest.

    In retrieval each image has one caption, and both are found alike.
    """
    rest, hits = math.modf(value * card["images"])
    kinds = [[hit, 1.0, hit] if card["metric"] == "mean_recall@1" else [hit] for hit in (0.0, rest, 1.0)]
    return {"stratum": [0, 0, 0], "outcome": kinds, "count": [card["images"] - int(hits) - 1, 1, int(hits)]}


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_suite(
    specs: list[dict[str, Any]],
    *,
    name: str = "quickstart",
    cards: dict[str, dict[str, Any]] = CARDS,
    averages: dict[str, list[str]] = AVERAGES,
    diverged: tuple[tuple[str, int], ...] = (),
    variants: dict[str, list[dict[str, Any]]] | None = None,
    hypotheses: tuple[tuple[str, str], ...] = (),
) -> Path:
    """Write a suite and all its results below the working directory; return the suite's file.

    Args:
        specs: The runs.
        name: The suite's name.
        cards: Evaluation sets.
        averages: Averages over them.
        diverged: (method, seed) of runs that stopped at three quarters: the last milestone was never reached.
        variants: Further runs by the label of their variant.
        hypotheses: (higher, lower), by ``method@batch``.
    """
    runs = []
    labelled = [("", spec) for spec in specs] + [(v, spec) for v, more in (variants or {}).items() for spec in more]
    for variant, raw in labelled:
        spec = RunSpec.model_validate(raw)
        runs.append({"variant": variant, "spec": raw})
        write_run(spec, cards, is_diverged=(spec.method.name, spec.seed) in diverged)
    sets = {key: {"name": key, **ABOUT, **card} for key, card in cards.items()}
    evaluation = {"name": "two", "sets": sets, "averages": averages}
    told = {"title": "A part of it", "licence": "Apache-2.0", "source": "the makers"}
    training_sets = {run["spec"]["dataset"]["name"]: told for run in runs}
    suite = {"name": name, "title": "A suite", "runs": runs, "evaluation": evaluation, "training_sets": training_sets}
    suite["hypotheses"] = [
        {
            which: {"method": method, "global_batch_size": int(batch)}
            for which, (method, batch) in zip(("higher", "lower"), (side.split("@") for side in pair), strict=True)
        }
        for pair in hypotheses
    ]
    write_json(paths.suite(name), suite)
    return paths.suite(name)


def write_trials() -> Path:
    """Write the suite `trials`, a tuning of NeuCLIP with two trials; return its file."""
    trials = {f"trial {n}": [run_spec("neuclip", 9, config={"num_updates": n})] for n in (1, 2)}
    suite = write_suite([], name="trials", variants=trials)
    content = json.loads(suite.read_text())
    for run in content["runs"]:
        updates = run["spec"]["method"]["config"]["num_updates"]
        tried = {"value": updates, "range": "1 to 50, log", "place": 0.1 * updates - 0.1}
        run["settings"] = {"options.num_updates": tried}
    write_json(suite, content)
    return suite


def write_run(spec: RunSpec, cards: dict[str, dict[str, Any]], *, is_diverged: bool) -> None:
    reached = [m for m in spec.milestones if not is_diverged or m <= 0.75 * spec.samples_seen]
    seen = int(0.75 * spec.samples_seen) if is_diverged else spec.samples_seen
    method, seed = spec.method.name, spec.seed
    weights = {str(m): hashlib.sha256(f"{spec.run_id}/{m}".encode()).hexdigest() for m in spec.milestones}
    error = {"neuclip": 0.1, "openclip": 0.6, "fastclip": 2.0}.get(method, 0.3)
    sample = log_normalizers(method, seed)
    if spec.samples_seen in reached:
        path = paths.log_normalizers(spec.run_id, spec.samples_seen)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample)
    record = {
        "schema_version": 1,
        "run_id": spec.run_id,
        "fingerprint": fingerprint(spec),
        "spec": spec.model_dump(mode="json"),
        "status": "diverged" if is_diverged else "finished",
        "samples_seen": seen,
        "milestones": {str(m): {"weights": f"weights/{m}/x.safetensors", "sha256": weights[str(m)]} for m in reached},
        "normalizer_error": [
            {
                "samples_seen": m,
                "temperature": 0.07 if spec.method.config.get("fixed") else 0.07 - 0.1 * LEVEL.get(method, 0.3),
                "num_anchors": 512,
                "num_without_estimate": 3,
                "image_mse": error * (1 + 0.1 * seed) * (spec.samples_seen / m) ** 0.5,
                "text_mse": 2 * error * (spec.samples_seen / m) ** 0.5,
                "image_bias": -0.1,
                "text_bias": 0.1,
                "control_mse": 0.03,
                "control_size": 256,
                "sample_sha256": hashlib.sha256(sample).hexdigest() if m == spec.samples_seen else None,
            }
            for m in reached
        ],
        "gradient_error": [gradient_error(method, seed, m) for m in reached if m == spec.samples_seen],
        "clock_sec": {"data": 1.0, "encoder": 6.0, "method": 2.0, "optimizer": 0.5, "checkpoint": 0.5},
        "median_step_sec": 0.010 + 0.001 * seed,
        "peak_memory_bytes": 2**30,
        "attempts": [{"first_step": 0, "provenance": PROVENANCE, "host": "node1"}],
        "first_indices": [3, 1, 2],
        "divergence": {
            "step": seen // spec.global_batch_size, "reason": "not finite", "temperature": 0.07, "indices": [1, 2],
        } if is_diverged else None,
    }  # fmt: skip
    write_json(paths.record(spec.run_id), record)
    lines = []
    steps = seen // spec.global_batch_size
    for step in range(0, steps, max(1, steps // 40)):
        x = step / spec.num_steps
        lines.append(
            {
                "unix_sec": 1e9 + step,
                "step": step,
                "samples_seen": (step + 1) * spec.global_batch_size,
                "epoch": 0,
                "loss/total": (3 if method == "siglip" else 1)
                * (4 - 2 * x + 0.1 * seed + 0.2 * math.sin(9 * x + seed)),
                "temperature/value": 0.07 - 0.03 * x * LEVEL.get(method, 0.3) * 2 + 0.001 * seed,
                "lr": 1e-3 * (1 - x),
                "grad_norm": 1.5 - x + 0.1 * seed + LEVEL.get(method, 0.3),
                "time/step_sec": 0.01,
            }
        )
    paths.metrics(spec.run_id).write_text("".join(json.dumps(line) + "\n" for line in lines))
    for milestone in spec.milestones:
        for eval_set, card in cards.items():
            identity = EvalCard.model_validate({"name": eval_set, **ABOUT, **card}).identity
            evaluated = milestone in reached
            value = score(method, seed, eval_set, milestone / spec.samples_seen) if evaluated else None
            result = {
                "schema_version": 1,
                "run_id": spec.run_id,
                "milestone": milestone,
                "eval_set": eval_set,
                "status": "evaluated" if evaluated else "absent",
                "metrics": {card["metric"]: value, "acc5": min(1.0, 2 * value)} if evaluated else {},
                "main_metric": card["metric"],
                "value": value,
                "num_samples": card["images"] if evaluated else None,
                "weights_sha256": weights[str(milestone)] if evaluated else None,
                "card_sha256": identity,
                "evaluator": {"clip_benchmark": "1.6.2"},
                "outcomes": outcomes(card, value) if evaluated else None,
            }
            write_json(paths.eval_result(spec.run_id, milestone, eval_set), result)


def lose_set(suite: Path, eval_set: str, *, when_missing: str, method: str = "") -> Path:
    """Make a written suite one whose runs (of a method, or all) were evaluated while a set was not on disk."""
    content = json.loads(suite.read_text())
    content["evaluation"]["when_missing"] = when_missing
    write_json(suite, content)
    for path in (paths.RESULTS / "evals").glob(f"{method}*/*/{eval_set}.json"):
        result = json.loads(path.read_text())
        if result["status"] == "evaluated":
            write_json(path, result | {"status": "missing", "value": None, "metrics": {}, "num_samples": None})
    return suite


def frame_with_curves(
    seeds: int = 3, *, large_batch: bool = True, diverged: tuple[tuple[str, int], ...] = ()
) -> pd.DataFrame:
    """Five methods at 64 pairs and OpenCLIP at 512: `held_out` is in no average.

    Every method's validation score rises from chance to a level of its own; the large batch's is the highest.
    """
    cards = {**CARDS, "held_out": {**CARDS["digits"], "title": "Held out"}}
    size = {"samples_seen": CURVE_SAMPLES, "milestones": [int(share * CURVE_SAMPLES) for share in CURVE_SHARES]}
    size |= {"normalizer_error": None, "gradient_error": None}
    specs = [run_spec(method, seed, **size) for method in METHODS for seed in range(seeds)]
    if large_batch:
        large = {**size, "global_batch_size": 512}
        specs += [run_spec("openclip", seed, **large) for seed in range(seeds)]
    frame = collect(write_suite(specs, cards=cards, averages=AVERAGES, diverged=diverged))
    rows = frame["kind"].eq("validation")
    rate = {"openclip": 0.35, "fastclip": 0.36, "siglip": 0.10, "amorlip": 0.45, "neuclip": 0.55}
    for index, row in frame[rows & frame["value"].notna()].iterrows():
        level = 0.6 if row["global_batch_size"] == 512 else rate[row["method"]]
        level += (0, 0.03, 0.04)[row["seed"] % 3]
        progress = row["samples_seen"] / CURVE_SAMPLES
        frame.loc[index, "value"] = CARDS["digits"]["chance"] + level * progress**0.7
    return frame
