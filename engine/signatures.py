"""Find signs of failure in a run's log: each has a name, its steps, the numbers that show it, and advice.

They come from `metrics.jsonl` alone, at the end of a run: one that was killed and resumed has the same. Those that any
method can show are here; a method adds its own (`Method.signatures`). `docs/failure-signatures.md` lists all. Imports
no torch.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from engine.schema.record import Signature

NUM_WINDOWS = 10
"""Parts that a log is read in: single batches are noise, a tenth of a run is not."""
MIN_WINDOW_LINES = 4
"""Lines of a part: fewer cannot tell oscillation from noise. A log of less than two parts, 8 lines, shows nothing."""
MIN_LASTING = 2
"""Parts in a row for which a condition must hold: one bad stretch is no failure."""
COLLAPSED_RANK = 1.1
"""Effective rank below which embeddings count as collapsed: a typical pair has |cos| > 0.95. In warm-up 0.99 may well
come and go; after training on the embedded data set |cos| is between 0.4 and 0.7."""
AT_MINIMUM = 1.01
"""Temperature over its minimum, up to which it counts as held there."""
MIN_FLIPS = 1 / 3
"""Share of moves that go back on the move before: pure noise has 2/3, a drift has none."""
MAX_SKIPPED_SHARE = 1 / 1000
"""Share of skipped steps. A healthy scaler skips half as many: every 2000 steps it tries a doubled loss scale and takes
it back. A run that skips more often loses scale, and small gradients with it."""

Line = Mapping[str, Any]
"""Parsed JSON: numbers by name of metric, None where they were not finite."""


class Window:
    """Consecutive lines of a log. A metric that was not logged, or not finite, is NaN: it fulfils no condition."""

    def __init__(self, lines: list[Line]) -> None:
        self.lines = lines

    def values(self, name: str) -> list[float]:
        """Return a metric's values."""
        return [float(value) for line in self.lines if (value := line.get(name)) is not None]

    def __getitem__(self, name: str) -> float:
        """The median of a metric."""
        values = self.values(name)
        return statistics.median(values) if values else math.nan

    def oscillates(self, name: str, amplitude: float) -> bool:
        """Tell if a metric goes up and down, and typically by at least `amplitude` from line to line."""
        moves = [later - earlier for earlier, later in itertools.pairwise(self.values(name))]
        flips = sum(first * second < 0 for first, second in itertools.pairwise(moves))
        typical = statistics.median(map(abs, moves)) if moves else 0.0
        return typical >= amplitude and flips >= MIN_FLIPS * (len(moves) - 1)

    def signature(self, name: str, advice: str, *metrics: str, **compared_with: float) -> Signature:
        """Describe what these lines show.

        Args:
            name: The signature's name.
            advice: What to do.
            metrics: Metrics whose medians are evidence.
            compared_with: Further evidence. Values that are not finite are left out.
        """
        evidence = {metric: self[metric] for metric in metrics} | compared_with
        return Signature(
            name=name,
            first_step=self.lines[0]["step"],
            last_step=self.lines[-1]["step"],
            evidence={key: float(f"{value:.4g}") for key, value in evidence.items() if math.isfinite(value)},
            advice=advice,
        )


class Log:
    """The log of a run in order of its steps: as a whole, and in windows of like size.

    Args:
        lines: The lines of `metrics.jsonl`; of several for one step the last one counts.
    """

    def __init__(self, lines: Iterable[Line]) -> None:
        by_step = {line["step"]: line for line in lines}
        self.lines = [by_step[step] for step in sorted(by_step)]
        count = min(NUM_WINDOWS, len(self.lines) // MIN_WINDOW_LINES)
        edges = [number * len(self.lines) // count for number in range(count + 1)] if count else []
        self.windows = [Window(self.lines[start:end]) for start, end in itertools.pairwise(edges)]

    def find(
        self,
        name: str,
        holds: Callable[[Window], bool],
        advice: str,
        *metrics: str,
        at_end: bool = False,
        **compared_with: float,
    ) -> list[Signature]:
        """Return a signature of the longest stretch of windows that fulfil a condition; nothing if it is short.

        Args:
            name: The signature's name.
            holds: The condition.
            advice: What to do.
            metrics: Metrics whose medians are evidence.
            at_end: Take the stretch that ends with the log: a state that training leaves again is no failure.
            compared_with: Further evidence.
        """
        stretches: list[list[Window]] = [[]]
        for window in self.windows:
            if holds(window):
                stretches[-1].append(window)
            else:
                stretches.append([])
        stretch = stretches[-1] if at_end else max(stretches, key=len)
        if len(stretch) < MIN_LASTING:
            return []
        whole = Window([line for window in stretch for line in window.lines])
        return [whole.signature(name, advice, *metrics, **compared_with)]


def find_signatures(lines: Iterable[Line], of_method: Callable[[Log], list[Signature]]) -> tuple[Signature, ...]:
    """Return all signatures in a run's log: those of any method, then the method's own.

    Args:
        lines: The lines of `metrics.jsonl`.
        of_method: `Method.signatures` of the method that was trained.
    """
    log = Log(lines)
    return (*embedding_collapse(log), *steps_skipped(log), *of_method(log))


def embedding_collapse(log: Log) -> list[Signature]:
    """Return a signature if the embeddings of a side end in one direction; untrained ones may start there."""
    ranks = ("embedding/effective_rank_image", "embedding/effective_rank_text")
    return log.find(
        "embedding_collapse",
        lambda now: any(now[rank] < COLLAPSED_RANK for rank in ranks),
        "see where grad_norm and loss/total turned: lower the learning rate, lengthen the warm-up, clip gradients",
        *ranks,
        "embedding/mean_norm_image",
        "embedding/mean_norm_text",
        at_end=True,
        limit=COLLAPSED_RANK,
    )


def steps_skipped(log: Log) -> list[Signature]:
    """Return a signature if fp16 skips so many steps that the loss scale falls."""

    def share(now: Window) -> float:
        skipped = now.values("scaler/num_skipped")
        return (skipped[-1] - skipped[0]) / (now.lines[-1]["step"] - now.lines[0]["step"]) if skipped else 0.0

    return log.find(
        "steps_skipped",
        lambda now: share(now) > MAX_SKIPPED_SHARE,
        "precision bf16; or lower the learning rate, lengthen the warm-up, clip gradients",
        "scaler/scale",
        num_skipped=max(Window(log.lines).values("scaler/num_skipped"), default=0.0),
        limit=MAX_SKIPPED_SHARE,
    )


BUDGET = "lower rho: a budget in nats, which has to stay below log_others = log(global batch - 1)"
"""Advice where rho pulls on a temperature whose gradient is that of the loss."""
NO_BALANCE = (
    "temperature_gradient: consistent, with rho below log_others = log(global batch - 1): the authors' has no balance "
    "for rho >= 0 once pairs are told apart; while they are not, a lower rho helps"
)
"""Advice where the gradient is that of FastCLIP's authors."""


def temperature_at_floor(log: Log, minimum: float, advice: str, **compared_with: float) -> list[Signature]:
    """Return a signature if the temperature ends at `minimum`, with advice in terms of the method's options.

    For methods that pull the temperature (rho) away from its bounds: a plain contrastive loss may well end there.
    """
    return log.find(
        "temperature_at_floor",
        lambda now: now["temperature/value"] <= AT_MINIMUM * minimum,
        advice,
        "temperature/value",
        at_end=True,
        minimum=minimum,
        **compared_with,
    )
