"""Parts that benchmarks share: options, methods, batches, timing in turn, memory, printing and files."""

from __future__ import annotations

import argparse
import bisect
import datetime
import gc
import itertools
import json
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile, record_function

from engine.distributed import choose_device
from engine.method import Features, Method, MethodEnv, Progress
from engine.registry import method_class, method_names, resolve_config
from engine.training.provenance import provenance

CPU = torch.device("cpu")
OPTIONS: dict[str, dict[str, Any]] = {
    "methods": {
        "nargs": "+",
        "choices": method_names(controls=False),
        "default": method_names(controls=False),
        "metavar": "NAME",
    },
    "set": {"nargs": "+", "default": [], "metavar": "METHOD.OPTION=VALUE", "help": "neuclip.num_prototypes=1024"},
    "batch": {"nargs": "+", "type": int, "default": [256, 1024], "help": "B"},
    "dim": {"nargs": "+", "type": int, "default": [256], "help": "D"},
    "precision": {"nargs": "+", "choices": ["fp32", "bf16", "fp16"], "default": ["fp32"], "help": "of the encoders"},
    "rounds": {"type": int, "help": "measured rounds (%(default)s)"},
    "device": {"choices": ["cpu", "cuda"], "default": "cpu"},
    "json": {"type": Path, "metavar": "FILE", "help": "also write what was measured, and where"},
}
"""Options that benchmarks share."""


def parser(description: str | None, *names: str, **defaults: Any) -> argparse.ArgumentParser:
    """Return a parser with some of `OPTIONS`, and ``--json``; `defaults` replace theirs."""
    shared = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in (*names, "json"):
        shared.add_argument(f"--{name}", **OPTIONS[name])
    shared.set_defaults(**defaults)
    return shared


def start(args: argparse.Namespace) -> torch.device:
    """Return the device to measure on, and set torch to one thread, so that other processes disturb least."""
    torch.set_num_threads(1)
    return choose_device(args.device)


def options_of(name: str, settings: list[str]) -> dict[str, Any]:
    """Return a method's options among ``METHOD.OPTION=VALUE``; values are YAML."""
    pairs = [setting.removeprefix(f"{name}.").split("=", 1) for setting in settings if setting.startswith(f"{name}.")]
    return {key: yaml.safe_load(value) for key, value in pairs}


def make_method(name: str, *, batch: int, dim: int, options: dict[str, Any], device: torch.device) -> Method:
    """Build a method for a long run on a data set of a hundred batches."""
    env = MethodEnv(dim, dataset_size=100 * batch, global_batch_size=batch, steps_per_epoch=100, num_steps=10_000)
    return method_class(name)(resolve_config(name, options), env).to(device)


def make_features(batch: int, dim: int, device: torch.device) -> Features:
    """Draw a batch of loosely matching pairs; embeddings are leaves with gradient."""
    generator = torch.Generator().manual_seed(0)
    image, noise = torch.randn(2, batch, dim, generator=generator)
    sides = (torch.nn.functional.normalize(side, dim=1).to(device) for side in (image, image + 2 * noise))
    image_BD, text_BD = (side.requires_grad_() for side in sides)
    return Features(image_BD, text_BD, torch.arange(batch, device=device))


def method_step(method: Method, features: Features) -> Callable[[], None]:
    """Return a call that computes the method's loss and its gradients, one step later each time."""
    env = method.env
    steps = iter(range(env.num_steps))

    def step() -> None:
        progress = Progress(next(steps), env.steps_per_epoch, env.num_steps, env.global_batch_size)
        torch.autograd.backward(method.loss(features, progress).total)
        features.image_BD.grad = features.text_BD.grad = None

    return step


class Seconds(NamedTuple):
    """Seconds by two clocks."""

    wall: float
    processor: float
    """Of this process and of its child processes that have ended."""

    def __sub__(self, begin: Seconds) -> Seconds:
        return Seconds(self.wall - begin.wall, self.processor - begin.processor)

    def on(self, device: torch.device) -> float:
        """Return the seconds that count on a device: processor time on the CPU, wall time on a GPU."""
        return self.processor if device.type == "cpu" else self.wall


def now(device: torch.device = CPU) -> Seconds:
    """Read both clocks; on CUDA wait for the device first."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    # os.times counts in hundredths of a second, and short turns take less.
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return Seconds(time.perf_counter(), sum(usage.ru_utime + usage.ru_stime for usage in used))


def take_turns(
    contestants: Mapping[str, Callable[[], Any]],
    rounds: int,
    *,
    unmeasured: int = 1,
    before: Callable[[], None] = lambda: None,
    device: torch.device = CPU,
) -> dict[str, list[Seconds]]:
    """Time calls in turn, so that other work on the machine disturbs all of them alike; returns seconds by round.

    The last contestant begins every other round. `before` is called before each call, and its time does not count.
    """
    seconds: dict[str, list[Seconds]] = {name: [] for name in contestants}
    for number in range(unmeasured + rounds):
        for name in list(contestants)[:: -1 if number % 2 else 1]:
            before()
            begin = now(device)
            contestants[name]()
            if number >= unmeasured:
                seconds[name].append(now(device) - begin)
    return seconds


def peak_bytes(make: Callable[[], Callable[[], None]], device: torch.device) -> int:
    """Return the most bytes that torch's allocator holds in a call, above those held before it.

    Optimisers make their state in the first call, which does not count. On the CPU the profiler does not know the size
    of earlier allocations, so what is used is made under it, by `make`, which returns the call.
    """
    if device.type == "cuda":
        call = make()
        call()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return int(torch.cuda.max_memory_allocated(device)) - before
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call = make()
        call()
        with record_function("measured"):
            call()
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    (span,) = (event for event in events if event.name() == "measured")
    times = [event.start_ns() for event in events if event.nbytes()]
    held = list(itertools.accumulate((event.nbytes() for event in events if event.nbytes()), initial=0))
    first, last = bisect.bisect_left(times, span.start_ns()), bisect.bisect_right(times, span.end_ns())
    return int(max(held[first : last + 1]) - held[first])


def ratio(ours: list[float], theirs: list[float]) -> tuple[float, float, float]:
    """Divide round by round; returns the lower quartile, the median and the upper quartile of the ratios."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return low, middle, high


def show_ratio(quartiles: tuple[float, float, float]) -> str:
    """Write a ratio's median with its quartiles."""
    low, middle, high = quartiles
    return f"{middle:.3g} ({low:.3g}-{high:.3g})"


def show(table: Table) -> None:
    """Print a table as Markdown, whatever the width of the terminal."""
    table.box = MARKDOWN
    Console(width=1000).print(table)


def write_json(path: Path | None, args: argparse.Namespace, device: torch.device, rows: list[dict[str, Any]]) -> None:
    """Write the rows with the date, the code, the machine and the arguments."""
    if path is None:
        return
    origin = provenance(dataset_sha256="", device=device, world_size=1).model_dump(exclude={"dataset_sha256"})
    arguments = {key: value for key, value in vars(args).items() if key != "json"}
    about = {"date": datetime.date.today().isoformat(), "provenance": origin, "arguments": arguments}
    path.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
