"""Estimate how long runs and evaluations take, from recorded runs or published hours; see `experiments.plan`."""

from __future__ import annotations

import functools
import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from engine import files, paths
from engine.schema.base import parse
from engine.schema.evaluation import Evaluation
from engine.schema.record import Record
from engine.schema.run import ModelSpec, RunSpec
from engine.training.towers import introduce, outline
from experiments.design import cards
from experiments.design.models import OWN_MODELS

PUBLISHED_MODEL, PUBLISHED_HOURS, PUBLISHED_PAIRS = "ViT-B-16", 2 * 24 * 8, 1.28e9
PUBLISHED_BASIS = (
    f"published: {PUBLISHED_MODEL} saw 1.28 billion pairs in 2 days on 8 H100 (DRRho-CLIP's README); other models by "
    "the computation of their encoders. A card of 24 GB (RTX 4090) takes about six times as long, by peak rates in "
    "bf16: 165 against 989 TFLOPS (NVIDIA's data sheets)"
)
SLOWER = 6
"""So many times as long the published hours take on a card of 24 GB: the other end of the range."""
TASKS = "datacomp38"
TASKS_SEC = 5142.0
EVALUATION_BASIS = (
    "published: 5,142 s for a model on all 38 tasks, DataComp's own estimate (its task list); some of them by their "
    "share of the pictures"
)
FORWARD_SHARE = 1 / 3
"""Of a training step, is the forward half. An error of normalizers takes it of the whole set, an error of gradients of
its population, a step of its extra pairs."""


class Estimate(NamedTuple):
    """Hours of one GPU, or one process on a CPU, for a whole run."""

    hours: float
    basis: str
    pairs_per_sec: tuple[float, float]
    """That one GPU, or one process on a CPU, takes: from the slowest known to the fastest."""
    most_hours: float
    """At the slowest."""


def estimate(spec: RunSpec, finished: Sequence[Record], num_extra_pairs: int = 0) -> Estimate | None:
    """Estimate how long a run takes.

    Args:
        spec: The run.
        finished: Runs with a step time. Those of the same model count: with the same method if there are any, then
            with the nearest batch size, then on the device that most of them ran on; of those the median time per pair.
        num_extra_pairs: Those that the method asks for in every step: they are encoded, and not learned from.

    Returns:
        The estimate, or None if nothing is known about the model.
    """
    pairs = spec.samples_seen + round(FORWARD_SHARE * num_extra_pairs * spec.num_steps)
    if spec.normalizer_error is not None:
        pairs += round(FORWARD_SHARE * spec.dataset.pairs * len(spec.normalizer_error.at))
    if spec.gradient_error is not None:
        encoded = min(spec.gradient_error.population, spec.dataset.pairs)
        pairs += round(FORWARD_SHARE * encoded * len(spec.gradient_error.at))

    def distance(run: Record) -> tuple[bool, float]:
        ratio = run.spec.global_batch_size / spec.global_batch_size
        return run.spec.method.name != spec.method.name, abs(math.log(ratio))

    def per_pair_sec(run: Record) -> float:
        return (run.median_step_sec or 0.0) * run.provenance.world_size / run.spec.global_batch_size

    alike = [run for run in finished if run.spec.model == spec.model]
    if alike:
        nearest = min(map(distance, alike))
        alike = [run for run in alike if distance(run) == nearest]
        device = Counter(run.provenance.device for run in alike).most_common(1)[0][0]
        alike = [run for run in alike if run.provenance.device == device]
        like = alike[0].spec
        basis = (
            f"recorded: {like.model.name}, {like.method.name}, batch {like.global_batch_size}, on {device} "
            f"({len(alike)} run{'s' if len(alike) > 1 else ''})"
        )
        seconds = sorted(map(per_pair_sec, alike))
        rates = 1 / seconds[-1], 1 / seconds[0]
        return Estimate(pairs * statistics.median(seconds) / 3600, basis, rates, pairs * seconds[-1] / 3600)
    if (OWN_MODELS / f"{spec.model.name}.json").exists():  # too small for what was published
        return None
    size = flop_per_pair(spec.model) / flop_per_pair(ModelSpec(name=PUBLISHED_MODEL))
    hours = PUBLISHED_HOURS * size / PUBLISHED_PAIRS
    fastest = 1 / hours / 3600
    return Estimate(hours * pairs, PUBLISHED_BASIS, (fastest / SLOWER, fastest), SLOWER * hours * pairs)


@functools.cache
def flop_per_pair(model: ModelSpec) -> int:
    """Count the floating-point operations of both encoders on a pair, forward."""
    introduce(model)
    towers = outline(model.name)
    size = towers.image_size
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        towers.eval()(torch.empty(1, 3, size, size), torch.zeros(1, towers.clip.context_length, dtype=torch.long))
    return int(counter.get_total_flops())


def evaluation_sec(evaluation: Evaluation) -> float:
    """Estimate the time of a model's evaluation; NaN with sets that are none of DataComp's, as nobody timed them."""
    timed = cards.evaluation(TASKS).sets
    if not evaluation.sets.keys() <= timed.keys():
        return math.nan
    return TASKS_SEC * sum(timed[name].images for name in evaluation.sets) / sum(card.images for card in timed.values())


def finished_runs() -> Iterator[Record]:
    """Read the records of all finished runs that have a step time."""
    for path in sorted(paths.record("*").parent.parent.glob(f"*/{paths.record('*').name}")):
        record = parse(Record, files.read_text(path), str(path))
        if record.status == "finished" and record.median_step_sec:
            yield record
