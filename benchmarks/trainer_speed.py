"""Samples per second of the OpenCLIP method here, beside open_clip's own trainer, on the same shards.

Both train in processes of their own that take turns: one stands still while the other takes its steps. Both are
timed by the same clock, which a hook reads after the optimiser's steps, so that all of a step counts: reading,
decoding, augmenting, both encoders, the loss, AdamW, logging. Start-up, warm-up and checkpoints do not.

The same on both sides: model and number of parameters (checked), shards, batch, augmentation (random resized crop),
AdamW's settings, precision, threads, loader processes, log interval. Needs ``pip install -e '.[benchmarks]'``.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.metadata
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version
from rich.table import Table
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks import cases, shards
from engine.distributed import choose_device
from engine.schema.run import Execution, RunSpec
from engine.training.loop import train
from engine.training.towers import build_towers

_MANY_STEPS = 1_000_000
_NEWEST_WEBDATASET = "0.2.86"
"""The newest version that open_clip 3.3's trainer can read shards with."""
_PRECISIONS = {"fp32": "fp32", "bf16": "amp_bf16"}
"""Names of precisions here and in open_clip's trainer."""


@dataclass(frozen=True)
class Job:
    """A training for both sides, in turns of `settle` unmeasured steps and `steps` measured ones."""

    folder: Path
    spec: RunSpec
    execution: Execution
    warmup: int
    settle: int
    steps: int


@dataclass(frozen=True)
class Turn:
    """Seconds that the measured steps took, and how many numbers the optimiser moves."""

    wall_sec: float
    cpu_sec: float
    parameters: int


class Turns:
    """A hook after the optimiser's steps: it measures a process's turns, and waits for the next one."""

    def __init__(self, job: Job, connection: Connection) -> None:
        self.job, self.connection = job, connection
        self.step = 0
        self.start = self._now()

    def _now(self) -> tuple[float, float]:
        if self.job.execution.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    def __call__(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Count a step. After a turn report it, and wait until the next one begins or the connection closes."""
        self.step += 1
        if self.step < self.job.warmup:
            return
        into_turn = (self.step - self.job.warmup) % (self.job.settle + self.job.steps)
        if into_turn == 0:
            wall_sec, cpu_sec = (end - start for end, start in zip(self._now(), self.start, strict=True))
            parameters = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
            self.connection.send(Turn(wall_sec, cpu_sec, parameters))
            try:
                self.connection.recv()
            except EOFError:
                sys.exit()
        if into_turn == self.job.settle:
            self.start = self._now()


def train_here(job: Job) -> None:
    """Train with this project's trainer."""
    train(job.spec, job.execution)


def train_there(job: Job) -> None:
    """Train with open_clip's trainer."""
    spec, execution = job.spec, job.execution
    options = {
        "train-data": "::".join(map(str, sorted(shards.FOLDER.glob("*.tar")))),
        "dataset-type": "webdataset",
        "train-num-samples": spec.samples_seen,
        "epochs": 1,
        "batch-size": spec.global_batch_size,
        "model": spec.model.name,
        "precision": _PRECISIONS[spec.precision],
        "device": execution.device,
        "workers": execution.num_workers,
        "lr": spec.optimizer.lr,
        "beta1": spec.optimizer.betas[0],
        "beta2": spec.optimizer.betas[1],
        "eps": spec.optimizer.eps,
        "wd": spec.optimizer.weight_decay,
        "warmup": spec.optimizer.warmup_steps,
        "log-every-n-steps": execution.log_every_steps,
        "logs": "none",
        "name": "open_clip",
    }
    main = importlib.import_module("open_clip_train.main").main
    torch.set_num_threads(execution.threads)
    main([word for key, value in options.items() for word in (f"--{key}", str(value))])


SIDES: dict[str, Callable[[Job], None]] = {"here": train_here, "open_clip": train_there}


def take_part(side: str, job: Job, connection: Connection) -> None:
    """Train as one side, in a process of its own."""
    os.chdir(job.folder)
    log = _log(job, side).open("w")
    for stream in (sys.stdout, sys.stderr):
        os.dup2(log.fileno(), stream.fileno())
    register_optimizer_step_post_hook(Turns(job, connection))
    SIDES[side](job)


def _log(job: Job, side: str) -> Path:
    return job.folder / f"{side}.log"


def compete(job: Job, *, seconds: float) -> dict[str, list[Turn]]:
    """Let both sides train in turn for so many seconds, at least three turns.

    Raises:
        RuntimeError: If a side fails, or if the two do not train equally many parameters.
    """
    context = multiprocessing.get_context("spawn")
    processes, connections = [], {}
    try:
        for side in SIDES:
            connections[side], theirs = context.Pipe()
            processes.append(context.Process(target=take_part, args=(side, job, theirs)))
            processes[-1].start()
            theirs.close()
            _receive(job, side, connections[side])
        turns: dict[str, list[Turn]] = {side: [] for side in SIDES}
        end = time.perf_counter() + seconds
        for number in range(_MANY_STEPS):
            if number >= 3 and time.perf_counter() > end:
                break
            for side in sorted(SIDES, reverse=bool(number % 2)):
                connections[side].send("go on")
                turns[side].append(_receive(job, side, connections[side]))
    finally:
        for connection in connections.values():
            connection.close()
        for process in processes:
            process.join()
    sizes = {side: measured[0].parameters for side, measured in turns.items()}
    if len(set(sizes.values())) > 1:
        raise RuntimeError(f"the two sides train different numbers of parameters: {sizes}")
    return turns


def _receive(job: Job, side: str, connection: Connection) -> Turn:
    with contextlib.suppress(EOFError):
        turn: Turn = connection.recv()
        return turn
    raise RuntimeError("\n".join([f"{side} stopped:", *_log(job, side).read_text().splitlines()[-20:]]))


def measure(case: str, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Measure one ``MODEL:BATCH:STEPS``."""
    model, batch, steps = case.split(":")
    # A turn is one pass over the shards, so that each holds the same share of opening, shuffling and reading them.
    pairs = int(batch) * int(steps)
    spec = shards.run_spec(
        "openclip", pairs=pairs, model=model, batch=int(batch), steps=_MANY_STEPS, precision=args.precision
    )
    execution = Execution(
        device=device.type,
        threads=args.threads,
        num_workers=args.workers,
        log_every_steps=args.log_every,
        save_every_min=1e6,
    )
    # After a pause the loader's processes have batches ready, which would cost nothing.
    settle = 2 * args.workers
    with tempfile.TemporaryDirectory() as folder:
        job = Job(Path(folder), spec, execution, warmup=args.warmup, settle=settle, steps=int(steps))
        with contextlib.chdir(folder):
            shards.write_shards(pairs, build_towers(model, seed=0).image_size * 8 // 7, max(4, args.workers))
        turns = compete(job, seconds=args.seconds)
    here, there = turns["here"], turns["open_clip"]
    wall, cpu = ([[getattr(turn, of) for turn in side] for side in (there, here)] for of in ("wall_sec", "cpu_sec"))
    row = {"model": model, "batch": int(batch), "steps": int(steps), "turns": len(here)}
    row |= {"parameters": here[0].parameters}
    row |= {f"{side}_pairs_per_sec": pairs / statistics.median(t.wall_sec for t in turns[side]) for side in SIDES}
    row |= {"turns_sec": {side: [dataclasses.asdict(turn) for turn in turns[side]] for side in SIDES}}
    row |= {"wall_ratio": cases.ratio(*wall)}
    # What runs in loader processes or on a GPU is not in a process's own processor time.
    return row | ({"cpu_ratio": cases.ratio(*cpu)} if device.type == "cpu" and not args.workers else {})


def main(argv: list[str] | None = None) -> None:
    """Measure, print a table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--case", nargs="+", default=["tiny-vit:256:4", "tiny-resnet:128:8"], metavar="MODEL:BATCH:STEPS",
        help="open_clip model, pairs per step, measured steps per turn",
    )  # fmt: skip
    parser.add_argument("--seconds", type=float, default=60, help="for each case")
    parser.add_argument("--warmup", type=int, default=5, help="steps before the first turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0, help="loader processes of each side")
    parser.add_argument("--log-every", type=int, default=10, help="steps")
    parser.add_argument("--precision", choices=_PRECISIONS, default="fp32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what was measured, and where")
    args = parser.parse_args(argv)
    found = importlib.metadata.version("webdataset")
    if Version(found) > Version(_NEWEST_WEBDATASET):
        parser.error(
            f"open_clip's trainer needs webdataset {_NEWEST_WEBDATASET} or older, and {found} is installed: "
            "use an environment with `pip install -e '.[benchmarks]'`"
        )
    device = choose_device(args.device)
    if args.precision == "fp32":
        # open_clip's trainer turns TensorFloat-32 on: fp32 would mean two things.
        os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
    rows = [measure(case, args, device) for case in args.case]
    table = Table("model", "B", "turns", "here, pairs/s", "open_clip, pairs/s", "ratio", "by processor time")
    for row in rows:
        rates = [f"{row[f'{side}_pairs_per_sec']:.1f}" for side in SIDES]
        ratios = [cases.show_ratio(row[key]) if key in row else "" for key in ("wall_ratio", "cpu_ratio")]
        table.add_row(row["model"], str(row["batch"]), str(row["turns"]), *rates, *ratios)
    cases.show_markdown(table)
    cases.write_json(args.json, args, device, rows)


if __name__ == "__main__":
    main()
