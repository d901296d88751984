"""Measure what a run's spec asks for between two steps, and write it down.

A measurement has one name: of its spec in `RunSpec`, of its results in `Record`, and of their folder. A signal ends it;
it is the same when it is made again on resuming.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from engine import files, paths
from engine.schema.record import GradientError, NormalizerError
from engine.stop import Stopped
from engine.training import diagnostics, gradients
from engine.training.trainer import Trainer

Measurement = Callable[[Trainer, Callable[[], None]], NormalizerError | GradientError]
"""Called by every process after a step; calls its second argument before a batch, and ends with what that raises."""

MEASUREMENTS: dict[str, Measurement] = {
    "normalizer_error": diagnostics.measure_normalizers,
    "gradient_error": gradients.measure_gradient_error,
}


def measure(trainer: Trainer, before_batch: Callable[[], None], *, is_resumed: bool = False) -> None:
    """Measure what is due after the last step. Every process calls this.

    Args:
        trainer: The run.
        before_batch: Called before each batch; ends the measurement with what it raises.
        is_resumed: Leave out what is written down: it was not given up when the run was stopped.
    """
    for name, spec in trainer.spec.measurements.items():
        path = paths.measurement(trainer.spec.run_id, name, trainer.samples_seen)
        if trainer.samples_seen in spec.at and not (is_resumed and _is_there(trainer, path)):
            _measure(trainer, before_batch, MEASUREMENTS[name], path)


def _is_there(trainer: Trainer, path: Path) -> bool:
    """Tell on every process whether the first one sees a file: it writes it, and others may not see it yet."""
    return bool(trainer.collectives.broadcast(torch.tensor(float(path.exists()), device=trainer.device)))


def _measure(trainer: Trainer, before_batch: Callable[[], None], measurement: Measurement, path: Path) -> None:
    is_first = trainer.collectives.rank == 0
    if is_first:
        path.unlink(missing_ok=True)  # of an attempt that went back to before it
    trainer.seed_draws(0)
    with trainer.clock.phase("diagnostics"):
        error = measurement(trainer, before_batch)
    if is_first:
        files.write_text(path, error.model_dump_json() + "\n")


def heed_signals(trainer: Trainer, signals: Sequence[bool]) -> None:
    """Raise `Stopped` on every process once any got a signal. Every process calls this together.

    Args:
        trainer: The run.
        signals: For each of `engine.stop.STOP_SIGNALS`, if this process has got it by now.
    """
    asked = torch.tensor(signals, dtype=torch.int64)
    counts = trainer.collectives.all_reduce(asked, "sum").tolist()
    if any(counts):
        raise Stopped.by(counts, trainer.step_number)
