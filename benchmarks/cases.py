"""Share what benchmarks need: methods, batches, alternating timings, and the files they write."""

from __future__ import annotations

import argparse
import bisect
import datetime
import gc
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from engine.distributed import choose_device
from engine.method import Features, Method, MethodEnv, Progress
from engine.registry import method_class, method_names, resolve_config

T = TypeVar("T")


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks share."""
    shared = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared.add_argument("--methods", nargs="+", choices=method_names(), default=method_names(), metavar="NAME")
    shared.add_argument("--batch", nargs="+", type=int, default=[256, 1024], help="B")
    shared.add_argument("--dim", nargs="+", type=int, default=[256], help="D")
    shared.add_argument(
        "--set", nargs="+", default=[], metavar="METHOD.OPTION=VALUE", help="options, e.g. neuclip.num_prototypes=1024"
    )
    shared.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    shared.add_argument("--json", type=Path, metavar="FILE", help="also write what was measured, and where")
    return shared


def start(args: argparse.Namespace) -> torch.device:
    """Return the device to measure on; one thread on the CPU, so that neighbours count least."""
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
    """Return a call that takes the method's loss and its gradients, a step later each time."""
    env = method.env
    steps = iter(range(env.num_steps))

    def step() -> None:
        progress = Progress(next(steps), env.steps_per_epoch, env.num_steps, env.global_batch_size)
        torch.autograd.backward(method.loss(features, progress).total)
        features.image_BD.grad = features.text_BD.grad = None

    return step


def alternate(contestants: dict[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Time calls in turn, after one unmeasured round, so that what disturbs the machine disturbs all alike.

    Returns:
        Seconds per round, by name. CPU: processor time of this process. CUDA: wall time, synchronised.
    """
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, call in contestants.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            begin = clock()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number:
                seconds[name].append(clock() - begin)
    return seconds


@dataclass(frozen=True)
class MemoryTrace:
    """Record what torch's allocator held on the CPU while a block ran; times in nanoseconds."""

    times: list[int]
    levels: list[int]
    """Bytes held from the time beside it."""
    spans: dict[str, tuple[int, int]]
    """Begin and end of every `record_function` and operator; of the last, where a name occurs again."""

    def held(self, when: int) -> int:
        """Return the bytes held just before a time."""
        place = bisect.bisect_left(self.times, when)
        return self.levels[place - 1] if place else 0

    def peak(self, begin: int, end: int) -> int:
        """Return the most bytes held at once between two times."""
        inside = self.levels[bisect.bisect_left(self.times, begin) : bisect.bisect_right(self.times, end)]
        return max([self.held(begin), *inside])


def trace_memory(call: Callable[[], T]) -> tuple[MemoryTrace, T]:
    """Run a call; returns every allocation and release in it, and its result.

    What was held before it counts as nothing, so it should make all that it uses; the profiler does not know the size
    of what was allocated earlier.
    """
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    events = profiler.profiler.kineto_results.events()
    changes = sorted(
        (event.start_ns(), number, event.nbytes()) for number, event in enumerate(events) if event.nbytes()
    )
    by_start = sorted(events, key=lambda event: event.start_ns())
    trace = MemoryTrace(
        times=[when for when, _, _ in changes],
        levels=list(itertools.accumulate(size for _, _, size in changes)),
        spans={event.name(): (event.start_ns(), event.end_ns()) for event in by_start},
    )
    return trace, result


def ratio(ours: list[float], theirs: list[float]) -> tuple[float, float, float]:
    """Return quartiles and median of the ratios round by round: (lower quartile, median, upper quartile)."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return low, middle, high


def show_ratio(quartiles: tuple[float, float, float]) -> str:
    """Write a median with its quartiles."""
    low, middle, high = quartiles
    return f"{middle:.3g} ({low:.3g}-{high:.3g})"


def show_markdown(table: Table) -> None:
    """Print a table as Markdown, however wide the terminal."""
    table.box = MARKDOWN
    Console(width=1000).print(table)


def write_json(path: Path | None, args: argparse.Namespace, device: torch.device, rows: list[dict[str, Any]]) -> None:
    """Write the rows beside the machine and the arguments they were measured with."""
    if path is None:
        return
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    machine = {"device": device.type, "gpu": gpu, "cpu": _cpu(), "threads": torch.get_num_threads()}
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    about = {"date": datetime.date.today().isoformat(), "machine": machine, "versions": versions}
    arguments = {key: value for key, value in vars(args).items() if key != "json"}
    path.write_text(json.dumps({**about, "arguments": arguments, "rows": rows}, indent=1) + "\n")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
