"""Samples per second of the OpenCLIP method here, beside open_clip's own trainer, on the same shards.

Each side trains in a process of its own. They take turns: one stands still while the other takes its steps. A hook
after the optimiser's steps reads the same clock on both sides. So whole steps count: reading, decoding, augmenting,
both encoders, the loss, AdamW, logging. Start-up, warm-up and checkpoints do not.

Equal on both sides: model and number of parameters (checked), shards, batch, augmentation (random resized crop),
AdamW's settings, precision, threads, loader processes, log interval. Needs ``pip install -e '.[benchmarks]'``.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import itertools
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
from typing import Any, NamedTuple

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
"""The newest version with which open_clip 3.3's trainer can read shards."""
_PRECISIONS = {"fp32": "fp32", "bf16": "amp_bf16", "fp16": "amp"}
"""Names of precisions here and in open_clip's trainer."""


@dataclass(frozen=True)
class Contest:
    """A training for both sides, in turns of `settle` unmeasured and `steps` measured steps."""

    folder: Path
    spec: RunSpec
    execution: Execution
    warmup: int
    settle: int
    steps: int


class Turn(NamedTuple):
    """Seconds of a turn's measured steps, and the number of parameters that the optimiser moves."""

    seconds: cases.Seconds
    parameters: int


class Turns:
    """A hook after the optimiser's steps that times a process's turns, and makes it wait between them."""

    def __init__(self, contest: Contest, connection: Connection) -> None:
        self.contest, self.connection = contest, connection
        self.step = 0
        self.device = torch.device(contest.execution.device)
        self.start = cases.now(self.device)

    def __call__(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Count a step. After a turn, report it and wait for the next one; exit if the connection closes."""
        self.step += 1
        if self.step < self.contest.warmup:
            return
        into_turn = (self.step - self.contest.warmup) % (self.contest.settle + self.contest.steps)
        if into_turn == 0:
            parameters = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
            self.connection.send(Turn(cases.now(self.device) - self.start, parameters))
            try:
                self.connection.recv()
            except EOFError:
                sys.exit()
        if into_turn == self.contest.settle:
            self.start = cases.now(self.device)


def train_there(contest: Contest) -> None:
    """Train with open_clip's trainer."""
    spec, execution = contest.spec, contest.execution
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
    # This process was spawned, and would spawn its loader's: open_clip's readers hold functions that do not pickle.
    multiprocessing.set_start_method("fork", force=True)
    main([word for key, value in options.items() for word in (f"--{key}", str(value))])


SIDES: dict[str, Callable[[Contest], object]] = {
    "here": lambda contest: train(contest.spec, contest.execution),
    "open_clip": train_there,
}


def take_part(side: str, contest: Contest, connection: Connection) -> None:
    """Train as one side, in a process of its own."""
    os.chdir(contest.folder)
    log = _log(contest, side).open("w")
    for stream in (sys.stdout, sys.stderr):
        os.dup2(log.fileno(), stream.fileno())
    register_optimizer_step_post_hook(Turns(contest, connection))
    SIDES[side](contest)


def _log(contest: Contest, side: str) -> Path:
    return contest.folder / f"{side}.log"


def compete(contest: Contest, *, seconds: float) -> dict[str, list[Turn]]:
    """Let both sides train in turn for a number of seconds, at least three turns.

    Raises:
        RuntimeError: If a side fails, or if the two do not train equally many parameters.
    """
    context = multiprocessing.get_context("spawn")
    processes, connections = [], {}
    try:
        for side in SIDES:
            connections[side], theirs = context.Pipe()
            processes.append(context.Process(target=take_part, args=(side, contest, theirs)))
            processes[-1].start()
            theirs.close()
            _receive(contest, side, connections[side])
        turns: dict[str, list[Turn]] = {side: [] for side in SIDES}
        end = time.perf_counter() + seconds
        for number in range(_MANY_STEPS):
            if number >= 3 and time.perf_counter() > end:
                break
            for side in sorted(SIDES, reverse=bool(number % 2)):
                connections[side].send("go on")
                turns[side].append(_receive(contest, side, connections[side]))
    finally:
        for connection in connections.values():
            connection.close()
        for process in processes:
            process.join()
    sizes = {side: measured[0].parameters for side, measured in turns.items()}
    if len(set(sizes.values())) > 1:
        raise RuntimeError(f"the two sides train different numbers of parameters: {sizes}")
    return turns


def _receive(contest: Contest, side: str, connection: Connection) -> Turn:
    with contextlib.suppress(EOFError):
        turn: Turn = connection.recv()
        return turn
    raise RuntimeError("\n".join([f"{side} stopped:", *_log(contest, side).read_text().splitlines()[-20:]]))


def measure(case: str, precision: str, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Measure one ``MODEL:BATCH:STEPS`` in a precision."""
    model, batch, steps = case.split(":")
    # A turn is one pass over the shards: each has the same share of opening, shuffling and reading them.
    pairs = int(batch) * int(steps)
    spec = shards.run_spec(
        "openclip", pairs=pairs, model=model, batch=int(batch), steps=_MANY_STEPS, precision=precision
    )
    execution = Execution(
        device=device.type,
        threads=args.threads,
        num_workers=args.workers,
        log_every_steps=args.log_every,
        save_every_min=1e6,
    )
    # The loader's processes have batches ready after a pause: these must not count.
    settle = 2 * args.workers
    with tempfile.TemporaryDirectory() as folder:
        contest = Contest(Path(folder), spec, execution, warmup=args.warmup, settle=settle, steps=int(steps))
        with contextlib.chdir(folder):
            shards.write_shards(pairs, build_towers(model, seed=0).image_size * 8 // 7, max(4, args.workers))
        turns = compete(contest, seconds=args.seconds)
    here, there = turns["here"], turns["open_clip"]
    wall, cpu = (
        [[getattr(turn.seconds, of) for turn in side] for side in (there, here)] for of in cases.Seconds._fields
    )
    row = {"model": model, "precision": precision, "batch": int(batch), "steps": int(steps), "turns": len(here)}
    row |= {"parameters": here[0].parameters, "wall_ratio": cases.ratio(*wall)}
    for side in SIDES:
        row[f"{side}_pairs_per_sec"] = pairs / statistics.median(turn.seconds.wall for turn in turns[side])
    # Loader processes and a GPU are not in a process's own processor time.
    return row | ({"cpu_ratio": cases.ratio(*cpu)} if device.type == "cpu" and not args.workers else {})


def main(argv: list[str] | None = None) -> None:
    """Measure, print a table, write the file."""
    parser = cases.parser(__doc__, "precision", "device")
    parser.add_argument(
        "--case", nargs="+", default=["tiny-vit:256:4", "tiny-resnet:128:8"], metavar="MODEL:BATCH:STEPS",
        help="open_clip model, pairs per step, measured steps per turn",
    )  # fmt: skip
    parser.add_argument("--seconds", type=float, default=60, help="for each case")
    parser.add_argument("--warmup", type=int, default=5, help="steps before the first turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0, help="loader processes of each side")
    parser.add_argument("--log-every", type=int, default=10, help="steps")
    args = parser.parse_args(argv)
    found = importlib.metadata.version("webdataset")
    if Version(found) > Version(_NEWEST_WEBDATASET):
        parser.error(
            f"open_clip's trainer needs webdataset {_NEWEST_WEBDATASET} or older, and {found} is installed: "
            "use an environment with `pip install -e '.[benchmarks]'`"
        )
    device = choose_device(args.device)
    rows = []
    for precision, case in itertools.product(args.precision, args.case):
        os.environ.pop("NVIDIA_TF32_OVERRIDE", None)
        if precision == "fp32":
            # open_clip's trainer turns TensorFloat-32 on, so that fp32 would differ between the sides.
            os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
        rows.append(measure(case, precision, args, device))
    table = Table(
        "model", "precision", "B", "turns", "here, pairs/s", "open_clip, pairs/s", "ratio", "by processor time"
    )
    for row in rows:
        rates = [f"{row[f'{side}_pairs_per_sec']:.1f}" for side in SIDES]
        ratios = [cases.show_ratio(row[key]) if key in row else "" for key in ("wall_ratio", "cpu_ratio")]
        table.add_row(row["model"], row["precision"], str(row["batch"]), str(row["turns"]), *rates, *ratios)
    cases.show(table)
    cases.write_json(args.json, args, device, rows)


if __name__ == "__main__":
    main()
