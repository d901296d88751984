"""Time and memory of a whole training step by phase, for every method, with and without accumulation.

All runs of a precision take turns in one process, one step each per round. Phases are those of the trainer's clock:

data        read, decode, augment, tokenise
forward     of the encoders
method      loss, its gradients, inner networks
backward    of the encoders; with accumulation they encode once more first
optimizer   clipping, finite check, AdamW, the method's work after the step
other       the rest of the step
checkpoint  written and fsynced; part of no step

Times are processor time on the CPU, wall time for checkpoints, and synchronised wall time on CUDA. Memory is that of
torch's allocator: state (weights, optimiser, method) before a step, and the peak of each phase above it.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import itertools
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from rich.table import Table
from torch.profiler import record_function

from benchmarks import cases, shards
from engine.data.loader import build_loader, copied_ahead
from engine.distributed import Collectives
from engine.schema.record import Divergence
from engine.schema.run import Execution
from engine.training.reporting import Clock
from engine.training.towers import build_towers
from engine.training.trainer import Trainer

BASE = "openclip"
STEP, CHECKPOINT = "step", "checkpoint"
PHASES = ("data", "forward", "method", "backward", "optimizer", "other")
MIB = 2**20


class PhaseClock(Clock):
    """A trainer's clock that keeps every measurement, splits the encoders' passes, and marks phases for memory."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.device = device
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.peaks: dict[str, int] = {}
        self._passes = itertools.cycle(("forward", "backward"))

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """See `Clock.phase`."""
        name = next(self._passes) if name == "encoder" else name
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        begin = cases.now(self.device)
        with record_function(f"phase {name}"):
            yield
        seconds = cases.now(self.device) - begin
        self.seconds[name].append(seconds.wall if name == CHECKPOINT else seconds.on(self.device))
        if self.device.type == "cuda":
            self.peaks[name] = torch.cuda.max_memory_allocated(self.device)


class Contestant:
    """A run that takes one step at a time."""

    def __init__(
        self, method: str, accumulation: int, precision: str, pairs: int, args: argparse.Namespace, device: torch.device
    ) -> None:
        options = cases.options_of(method, args.set)
        steps = 100 * args.rounds
        sizes = {"pairs": pairs, "batch": args.batch, "steps": steps}
        spec = shards.run_spec(method, model=args.model, precision=precision, **sizes, **options)
        execution = Execution(device=device.type, accumulation_steps=accumulation)
        self.trainer = Trainer(spec, execution, device, Collectives())
        self.clock = self.trainer.clock = PhaseClock(device)
        loader = build_loader(
            self.trainer.dataset,
            seed=0,
            global_batch_size=args.batch,
            steps=range(steps),
            num_workers=args.workers,
            extra_shares=self.trainer.extra_shares,
        )
        self.batches = copied_ahead(loader, device)

    def step(self) -> None:
        """Load a batch and take a step."""
        begin = cases.now(self.clock.device)
        with self.clock.phase("data"):
            batch = next(self.batches)
        self._refuse(self.trainer.step(batch, wants_metrics=False).divergence)
        seconds = cases.now(self.clock.device) - begin
        self.clock.seconds[STEP].append(seconds.on(self.clock.device))

    def save(self) -> None:
        """Write a checkpoint, after the outcome of the last step has come from the device."""
        self._refuse(self.trainer.settle())
        self.trainer.save()

    def _refuse(self, divergence: Divergence | None) -> None:
        if divergence is not None:
            raise RuntimeError(f"{self.trainer.spec.run_id}: {divergence}; nothing is left to measure")


def start(make: Callable[[], Contestant], device: torch.device) -> tuple[Contestant, int, dict[str, int]]:
    """Let a run take its first two steps.

    Returns:
        The run, the bytes held before its second step, and the peak of each phase of that step above them. The first
        step does not count: the optimiser makes its state in it.
    """
    if device.type == "cuda":
        contestant = make()
        contestant.step()
        before = int(torch.cuda.memory_allocated(device))
        contestant.step()
        return contestant, before, {name: peak - before for name, peak in contestant.clock.peaks.items()}

    def two_steps() -> Contestant:
        contestant = make()
        contestant.step()
        contestant.step()
        return contestant

    spans, contestant = cases.trace_memory(two_steps, [f"phase {name}" for name in PHASES[:-1]])
    before, _ = spans["phase data"]
    return contestant, before, {name: spans[f"phase {name}"][1] - before for name in PHASES[:-1]}


def measure(args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Measure every method with every number of parts, in the working directory."""
    # An epoch of a few steps: shards are read again as in a real run.
    pairs = 8 * args.batch
    shards.write_shards(pairs, build_towers(args.model, seed=0).image_size * 8 // 7, num_shards=4)
    return [row for precision in args.precision for row in measure_in(precision, pairs, args, device)]


def measure_in(precision: str, pairs: int, args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Measure every method with every number of parts in a precision."""
    gc.collect()  # the runs of the precision before leave the device
    names = list(itertools.product(dict.fromkeys((BASE, *args.methods)), args.accumulation))

    started = {
        name: start(functools.partial(Contestant, *name, precision, pairs, args, device), device) for name in names
    }
    for contestant, _, _ in started.values():
        contestant.clock.seconds.clear()
    for number in range(args.rounds):
        for contestant, _, _ in started.values():
            contestant.step()
            if number < args.saves:
                contestant.save()
    rows = []
    base = started[BASE, args.accumulation[0]][0].clock.seconds[STEP]
    for (method, accumulation), (contestant, state_bytes, peaks) in started.items():
        seconds = contestant.clock.seconds
        inside = zip(*(seconds[name] for name in PHASES[:-1]), strict=True)
        seconds["other"] = [whole - sum(parts) for whole, parts in zip(seconds[STEP], inside, strict=True)]
        row = {
            "method": method,
            "precision": precision,
            "accumulation": accumulation,
            "state_bytes": state_bytes,
            "peak_bytes": peaks,
        }
        row |= {
            "median_sec": {
                name: statistics.median(seconds[name]) for name in (*PHASES, STEP, CHECKPOINT) if seconds[name]
            }
        }
        rows.append(row | {"to_openclip": cases.ratio(seconds[STEP], base)})
    return rows


def main(argv: list[str] | None = None) -> None:
    """Measure, print two tables, write the file."""
    parser = cases.parser(__doc__, "methods", "set", "precision", "rounds", "device", rounds=15)
    parser.add_argument("--model", default="tiny-vit", help="open_clip model; one without batch norm for accumulation")
    parser.add_argument("--batch", type=int, default=256, help="pairs per step")
    parser.add_argument("--accumulation", nargs="+", type=int, default=[1, 4], help="parts of the batch")
    parser.add_argument("--workers", type=int, default=0, help="loader processes of each run")
    parser.add_argument("--saves", type=int, default=3, help="rounds with a checkpoint")
    args = parser.parse_args(argv)
    device = cases.start(args)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        rows = measure(args, device)
    seconds = Table("", "precision", "parts", *PHASES, "step, ms", "/ openclip", "checkpoint, ms")
    memory = Table("MiB", "precision", "parts", "state", *PHASES[:-1])
    for row in rows:
        times, peaks = row["median_sec"], row["peak_bytes"]
        name = (row["method"], row["precision"], str(row["accumulation"]))
        shares = [f"{1e3 * times[of]:.1f} ({100 * times[of] / times[STEP]:.0f} %)" for of in PHASES]
        whole = [f"{1e3 * times[STEP]:.1f}", cases.show_ratio(row["to_openclip"])]
        seconds.add_row(*name, *shares, *whole, f"{1e3 * times[CHECKPOINT]:.0f}" if CHECKPOINT in times else "")
        memory.add_row(*name, f"{row['state_bytes'] / MIB:.1f}", *(f"{peaks[of] / MIB:.1f}" for of in PHASES[:-1]))
    cases.show(seconds)
    cases.show(memory)
    cases.write_json(args.json, args, device, rows)


if __name__ == "__main__":
    main()
