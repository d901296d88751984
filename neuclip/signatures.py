"""Finds signs of NeuCLIP's failures in its log; `Unified.loss_at` defines the metrics."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import TYPE_CHECKING

from engine.schema.record import Signature
from engine.signatures import BUDGET, NO_BALANCE, Log, Window, temperature_at_floor

if TYPE_CHECKING:
    from neuclip.method import NeuCLIP, Unified

MAX_FLOOR_SHARE = 0.5
"""Above it, most of exp(alpha) is eps, and the network gets less than half of its gradient."""
VANISHED = 1e-4
"""Share of its value at the start below which the gradient has vanished. A network that fits keeps a hundredth, from
the noise between batches."""
MIN_GAP = 0.1
"""Nats. The gap is about half the squared error of alpha: below 0.1, weights are within a factor of 1.6."""
MAX_UNEXPLAINED = 0.75
"""Share of the best constant's gap. Exact values leave 0.2 to 0.5 of it (the noise of small batches); a network that
was just trained on the batch leaves less."""
MAX_SWING = 1.0
"""Nats: from one logged step to the next, the weights in the loss change by a factor of e."""
MIN_TOOTH = 2.0
"""Factor by which the gap grows between restarts and falls at each. In a healthy run it rises at a restart."""


def of_network(log: Log, config: NeuCLIP.Config) -> list[Signature]:
    """Return the signs of a network that is trained and restarted."""
    rare = _restarts_too_rare(log, config)
    # A network that a restart mends is not too small.
    small = [] if rare else _npn_too_small(log, config)
    return [*_npn_gradient_vanishing(log, config), *_alternation_unstable(log), *small, *rare]


def of_temperature(log: Log, config: Unified.Config, *, rho: float, global_batch_size: int) -> list[Signature]:
    """Return a signature if the temperature ends at its minimum; `rho` is the value in use."""
    if not config.temperature.learnable:
        return []
    advice = {
        "consistent": BUDGET,
        "authors": NO_BALANCE,
        "infonce": "hold the temperature (learnable: false), or another temperature_gradient: this one has no rho",
    }[config.temperature_gradient]
    evidence = {"rho": rho, "log_others": math.log(global_batch_size - 1)}
    return temperature_at_floor(log, config.temperature.minimum, advice, **evidence)


def of_estimates(log: Log, config: Unified.Config) -> list[Signature]:
    """Return a signature if most of what a control takes for normalizers is eps."""
    return log.find(
        "estimates_at_floor",
        lambda now: now["npn/floor_share"] > MAX_FLOOR_SHARE,
        "lower eps, or raise temperature.minimum: alpha cannot fall below log_eps",
        "npn/floor_share",
        "npn/alpha_mean",
        log_eps=math.log(config.eps),
    )


def _npn_gradient_vanishing(log: Log, config: NeuCLIP.Config) -> list[Signature]:
    first = log.windows[0]["npn/gradient_norm"] if log.windows else math.nan
    return log.find(
        "npn_gradient_vanishing",
        lambda now: now["npn/floor_share"] > MAX_FLOOR_SHARE or now["npn/gradient_norm"] < VANISHED * first,
        "lower eps, or raise temperature.minimum: alpha cannot fall below log_eps",
        "npn/floor_share",
        "npn/alpha_mean",
        "npn/gradient_norm",
        log_eps=math.log(config.eps),
        first_gradient_norm=first,
    )


def _alternation_unstable(log: Log) -> list[Signature]:
    gaps = ("npn/gap_before", "npn/gap_after")
    return log.find(
        "alternation_unstable",
        lambda now: any(now.oscillates(gap, MAX_SWING) for gap in gaps),
        "let the network keep up (more num_prototypes, num_updates, npn_lr), or slow the encoders down (lr)",
        *gaps,
        "loss/total",
        min_swing=MAX_SWING,
    )


def _npn_too_small(log: Log, config: NeuCLIP.Config) -> list[Signature]:
    return log.find(
        "npn_too_small",
        lambda now: (
            now["npn/gap_after"] > max(MIN_GAP, MAX_UNEXPLAINED * now["npn/gap_constant"])
            and now["npn/gradient_norm"] > 0
            and now["npn/floor_share"] <= MAX_FLOOR_SHARE
        ),
        "raise num_prototypes; if that changes nothing, num_updates or npn_lr",
        "npn/gap_after",
        "npn/gap_constant",
        "npn/gradient_norm",
        max_share=MAX_UNEXPLAINED,
        num_prototypes=config.num_prototypes,
    )


def _restarts_too_rare(log: Log, config: NeuCLIP.Config) -> list[Signature]:
    """Look for a saw-tooth: the gap grows between restarts, and each restart brings it down."""
    period = config.restart_period
    if period == "never":
        return []
    gap = "npn/gap_before" if config.num_updates else "npn/gap_after"
    # Leave out the line of a restart: prototypes copied from a batch fit that batch too well.
    lines = [line for line in log.lines if (line["step"] - 1) % period]
    periods = [Window(list(group)) for _, group in itertools.groupby(lines, lambda line: (line["step"] - 1) // period)]
    starts, ends = [], []
    for window in periods:
        fifth = math.ceil(len(window.lines) / 5)
        starts.append(Window(window.lines[:fifth])[gap])
        ends.append(Window(window.lines[-fifth:])[gap])
    teeth = [
        number
        for number in range(len(periods) - 1)
        if ends[number] > max(MIN_GAP, MIN_TOOTH * starts[number], MIN_TOOTH * starts[number + 1])
    ]
    if len(teeth) <= max(1, (len(periods) - 1) / 2):
        return []
    evidence = {
        "gap_before_restart": statistics.median(ends[number] for number in teeth),
        "gap_after_restart": statistics.median(starts[number + 1] for number in teeth),
        "teeth": len(teeth),
        "restarts": len(periods) - 1,
        "restart_period": period,
    }
    advice = "lower restart_period; or raise num_updates or npn_lr, so that the network keeps up between restarts"
    shown = Window([line for number in teeth for line in periods[number].lines])
    return [shown.signature("restarts_too_rare", advice, **evidence)]
