"""Runs that are killed (SIGKILL) at a chosen moment: processes forked from a server that has torch loaded already.

A moment is an event in a phase. A phase is a function of the suite; its events are all calls and returns of Python
and C functions while it runs, as `sys.setprofile` sees them: between any two of them the process can die, and nothing
in the suite needs to know. What is written in one go in between is covered by phases that cut off what was written.
"""

import contextlib
import importlib
import json
import multiprocessing as mp
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import open_clip
import torch
import torch.distributed as dist

from engine import train
from engine.registry import method_class
from engine.training import loop
from support.spawn import forkserver

MODELS = Path(__file__).parent / "models"


@dataclass(frozen=True)
class Phase:
    """A function of the suite.

    Args:
        place: Where it is: ``module:Class.name``.
        file: Only calls count whose first argument is a file with this in its name.
        cut: The process dies at the function's start, or the end of `LINE`, and what it has written last in the file
            is cut off there: the call or system call that wrote it was not done.
    """

    place: str
    file: str = ""
    cut: bool = False


LINE = "engine.training.reporting:Reporter.step"

STARTING = {
    "build": Phase("engine.training.trainer:Trainer.__init__"),
    "verify": Phase("engine.training.checkpoint:newest_step"),
    "load": Phase("engine.training.checkpoint:load_checkpoint"),
    "resume": Phase("engine.training.trainer:Trainer.resume"),
    "forget": Phase("engine.training.reporting:forget_after"),
    "attempts": Phase("engine.files:write_text", "attempts.jsonl"),
    "half of attempts": Phase("os:fsync", "attempts.jsonl", cut=True),
}
"""Phases between the start of a process and its first step."""

TRAINING = {
    "encode": Phase("engine.training.encoder:Encoder.encode"),
    "backward": Phase("engine.training.trainer:Trainer.backward"),
    "step": Phase("engine.training.trainer:Trainer.step"),
    "loss": Phase("{method}.loss"),
    "after step": Phase("{method}.after_step"),
}
"""Phases of a step."""

UPDATES = {
    "neuclip": {
        "restart": Phase("neuclip.normalizer:Prototypes.restart"),
        "update": Phase("neuclip.normalizer:Prototypes._gradient"),
        "put": Phase("neuclip.normalizer:Prototypes._put"),
    },
    "fastclip": {"write u": Phase("baselines.fastclip:FastCLIP._write")},
    "amorlip": {
        "update": Phase("torch.optim:Adam.step"),
        "average": Phase("baselines.amorlip:AmorLIP._move_average"),
        "new epoch": Phase("baselines.amorlip:AmorLIP._start_epoch"),
    },
}
"""Phases in which methods change their own state in a step."""

WRITING = {
    "log": Phase(LINE),
    "half a line": Phase(LINE, cut=True),
    "save": Phase("engine.training.checkpoint:save_checkpoint"),
    "half a checkpoint": Phase("os:fsync", ".pt", cut=True),
    "synchronise": Phase("os:fsync"),
    "rename": Phase("pathlib:Path.replace"),
    "remove": Phase("pathlib:Path.unlink"),
    "manifest": Phase("engine.files:write_text", "checkpoints"),
    "half a manifest": Phase("os:fsync", "json", cut=True),
    "export": Phase("engine.training.outcome:export_weights"),
    "half an export": Phase("os:fsync", "safetensors", cut=True),
    "diagnose": Phase("engine.training.measurements:_measure"),
}
"""Phases between two steps, in the first process."""

ENDING = {
    "record": Phase("engine.training.outcome:build_record"),
    "write the outcome": Phase("engine.files:write_text", "outcome.json"),
    "half an outcome": Phase("os:fsync", "outcome.json", cut=True),
    "write the record": Phase("engine.files:write_text", "record.json"),
    "half a record": Phase("os:fsync", "record.json", cut=True),
    "clean up": Phase("engine.training.checkpoint:remove_checkpoints"),
}
"""Phases after the last step, in the first process."""

Events = dict[str, list[int]]
"""Number of events in each time a phase ran."""


@dataclass(frozen=True)
class Kill:
    """Process `rank` dies when `phase` runs for the `entry`-th time in it, at its `event`-th event (both from 1).

    It dies at the phase's end if that has fewer events. Of a phase that cuts, the share `kept` of the file stays.
    """

    phase: str
    entry: int
    event: int = 1
    kept: float = 0.5
    rank: int = 0
    with_others: bool = True
    """Kill the other processes at once, too; otherwise they are left to find out."""


@dataclass(frozen=True)
class KillAfter:
    """Process `rank`, and all others with it, are killed after some seconds, unless they are done."""

    seconds: float
    rank: int = 0
    with_others: bool = True


def phases(method: str) -> dict[str, Phase]:
    """Return all phases of a method's run."""
    found = STARTING | TRAINING | UPDATES.get(method, {}) | WRITING | ENDING
    return {
        name: replace(phase, place=phase.place.format(method=method_place(method))) for name, phase in found.items()
    }


def method_place(method: str) -> str:
    found = method_class(method)
    return f"{found.__module__}:{found.__name__}"


class Server:
    """Starts processes that train: forked from one that has imported everything, a fraction of a second each."""

    def __init__(self) -> None:
        self._context = forkserver()

    def run(
        self,
        root: Path,
        spec: Path,
        *,
        world_size: int = 1,
        kill: Kill | KillAfter | None = None,
        execution: dict[str, Any] | None = None,
        prepare: Callable[[int], None] | None = None,
        count: Path | None = None,
        timeout_sec: float = 600.0,
    ) -> list[int]:
        """Train a run with working directory `root` in `world_size` processes that share a gloo group.

        Args:
            root: Where data and results lie; what a process says is added to ``log-<rank>.txt`` in it.
            spec: The run's spec.
            world_size: Number of processes.
            kill: When to die.
            execution: Settings of the run, as its command line takes them.
            prepare: Called with the rank in every process before it trains, to change something; a module's function.
            count: Write how many events the phases have to this file.
            timeout_sec: Time for all of them.

        Returns:
            Exit codes by rank; -9 is a kill.

        Raises:
            TimeoutError: If they take longer; they are killed.
        """
        with tempfile.TemporaryDirectory() as meet:
            args = (root, spec, world_size, meet, kill, json.dumps(execution or {}), prepare, count)
            processes = [self._context.Process(target=_train, args=(rank, *args)) for rank in range(world_size)]
            for process in processes:
                process.start()
            try:
                return self._wait(processes, kill, time.monotonic() + timeout_sec)
            finally:
                for process in processes:
                    process.kill()
                    process.join()

    def _wait(self, processes: list[Any], kill: Kill | KillAfter | None, deadline: float) -> list[int]:
        if isinstance(kill, KillAfter):
            processes[kill.rank].join(kill.seconds)
            processes[kill.rank].kill()
        if kill:
            processes[kill.rank].join(max(0.0, deadline - time.monotonic()))
            if kill.with_others and processes[kill.rank].exitcode == -signal.SIGKILL:
                for process in processes:
                    process.kill()
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        late = [rank for rank, process in enumerate(processes) if process.exitcode is None]
        if late:
            raise TimeoutError(f"processes {late} of {len(processes)} were not done in time")
        return [process.exitcode for process in processes]


def _train(
    rank: int,
    root: Path,
    spec: Path,
    world_size: int,
    meet: str,
    kill: Kill | KillAfter | None,
    execution: str,
    prepare: Callable[[int], None] | None,
    count: Path | None,
) -> None:
    os.chdir(root)
    log = os.open(f"log-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, sys.stderr.fileno())
    # As where nobody has chosen otherwise; a server for each process would import torch anew for its loader's workers.
    mp.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    open_clip.add_model_config(MODELS)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size)}
    if world_size > 1:
        address, timeout = f"file://{meet}/file", timedelta(minutes=5)
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world_size, timeout=timeout)
    places = phases(loop.read_spec(spec).method.name)
    if isinstance(kill, Kill) and kill.rank == rank:
        _arm(kill, places[kill.phase])
    if prepare:
        prepare(rank)
    with _counting(places, count) if count and rank == 0 else contextlib.nullcontext():
        train.main([str(spec), "--execution", execution])


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def _file(argument: Any) -> str:
    """The file that an argument stands for: a path, a descriptor, or what writes to an open file."""
    if isinstance(argument, int):
        return os.readlink(f"/proc/self/fd/{argument}")
    return str(argument if isinstance(argument, Path) else argument._file.name)


def _arm(kill: Kill, phase: Phase) -> None:
    """Change the function that is the kill's phase so that the process dies in it."""
    entries, events_left = 0, kill.event

    def profile(frame: Any, event: str, arg: Any) -> None:
        nonlocal events_left
        events_left -= 1
        if events_left == 0:
            _die()

    def enter(honest: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal entries
        entries += phase.file in _file(args[0]) if phase.file else 1
        if entries < kill.entry:
            return honest(*args, **kwargs)
        if phase.cut:
            file = _file(args[0])
            start = 0
            if phase.place == LINE:
                start = os.stat(file).st_size
                honest(*args, **kwargs)
            os.truncate(file, start + int(kill.kept * (os.stat(file).st_size - start)))
            _die()
        sys.setprofile(profile)
        try:
            return honest(*args, **kwargs)
        finally:
            _die()

    _replace(phase.place, enter)


@contextlib.contextmanager
def _counting(places: dict[str, Phase], path: Path) -> Iterator[None]:
    """Count the events of all phases while the block runs, and write them to a file."""
    events: Events = {name: [] for name in places}
    number = 0

    def profile(frame: Any, event: str, arg: Any) -> None:
        nonlocal number
        number += 1

    def counted(name: str, phase: Phase) -> Callable[..., Any]:
        def enter(honest: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            counts = not phase.file or phase.file in _file(args[0])
            before = number
            try:
                return honest(*args, **kwargs)
            finally:
                if counts:
                    events[name].append(number - before)

        return enter

    for name, phase in places.items():
        _replace(phase.place, counted(name, phase))
    sys.setprofile(profile)
    yield
    sys.setprofile(None)
    path.write_text(json.dumps(events))


def _replace(place: str, call: Callable[..., Any]) -> None:
    """Put a function in a place (``module:Class.name``) that gets the honest one as its first argument."""
    module, _, name = place.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, last = name.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    honest = getattr(owner, last)

    def function(*args: Any, **kwargs: Any) -> Any:
        return call(honest, *args, **kwargs)

    setattr(owner, last, function)
