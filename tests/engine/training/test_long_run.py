"""A long run with loader processes: what it takes does not grow, and stops at random moments change nothing.

``LONG_RUN_STEPS=20000 LONG_RUN_STOPS=50 pytest -s tests/engine/training/test_long_run.py`` is the long form; it prints
what was measured, step times among it. ``LONG_RUN_SEED`` chooses other moments.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from support import toy
from support.spawn import forkserver

from engine import paths, train
from engine.schema.base import parse
from engine.schema.record import Record
from engine.schema.run import RunSpec

pytestmark = pytest.mark.slow
STEPS = int(os.environ.get("LONG_RUN_STEPS", "400"))
STOPS = int(os.environ.get("LONG_RUN_STOPS", "3"))
SEED = int(os.environ.get("LONG_RUN_SEED", "0"))
BATCH, WORKERS = 8, 2
EXECUTION = {"num_workers": WORKERS, "log_every_steps": 1, "save_every_min": 0.02}
TIMES = ("time/", "unix_sec")
ALLOWED_BYTES = 16 * 2**20
"""That a process may grow by in the second half of a run: pools of memory fill up late."""


@dataclass
class Usage:
    """What the processes of a run took while it went on, a sample each time that somebody looked."""

    step: list[int] = field(default_factory=list)
    own_bytes: list[int] = field(default_factory=list)
    worker_bytes: list[int] = field(default_factory=list)
    """Of the largest loader process."""
    handles: list[int] = field(default_factory=list)
    """Open files of the run's own process."""
    children: list[int] = field(default_factory=list)


def _train(root: Path, spec: Path) -> None:
    os.chdir(root)
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 2)
    torch.multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    train.main([str(spec), "--execution", json.dumps(EXECUTION)])


@contextlib.contextmanager
def started(root: Path, spec: RunSpec) -> Iterator[Any]:
    """Train a run, or go on with it, in a process that is gone at the end of the block."""
    process = forkserver().Process(target=_train, args=(root, paths.spec(spec.run_id)))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def tell(text: str) -> None:
    sys.stdout.write(text + "\n")


def resident_bytes(pid: int) -> int:
    """Memory that is a process's own: pages that it shares with the one it was forked from are counted once there."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return 1024 * int(next(line for line in text.splitlines() if line.startswith("Pss:")).split()[1])


def children(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def last_step(log: Path) -> int:
    """The last step of a log, of which a line may be half written."""
    if not log.exists():
        return 0
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().rpartition(b"\n")[0].splitlines()
    return int(json.loads(lines[-1])["step"]) if lines and lines[-1].startswith(b"{") else 0


def look(pid: int, log: Path, usage: Usage) -> None:
    """Add a sample; nothing if the process, or a worker, is just going."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        step, workers = last_step(log), children(pid)
        if len(workers) < WORKERS:
            return
        sample = (
            resident_bytes(pid),
            max(map(resident_bytes, workers)),
            len(os.listdir(f"/proc/{pid}/fd")),
            len(workers),
        )
        usage.step.append(step)
        for values, value in zip(
            (usage.own_bytes, usage.worker_bytes, usage.handles, usage.children), sample, strict=True
        ):
            values.append(value)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunSpec, Path, Usage]:
    """A run that nobody stops, and what it took."""
    root = tmp_path_factory.mktemp("undisturbed")
    toy.build(root)
    spec = toy.run_spec(
        "fastclip", steps=STEPS, batch=BATCH, normalizer_error=None, augmentation={"kind": "random_resized_crop"}
    )
    toy.write_spec(root, spec)
    usage = Usage()
    with started(root, spec) as process:
        while process.is_alive():
            look(process.pid, root / paths.metrics(spec.run_id), usage)
            process.join(0.1 if STEPS < 2000 else 1.0)
        assert process.exitcode == 0, (root / "log.txt").read_text()[-3000:]
    return spec, root, usage


def lines(root: Path, spec: RunSpec) -> list[bytes]:
    return (root / paths.metrics(spec.run_id)).read_bytes().splitlines(keepends=True)


def tenths(values: list[float]) -> tuple[float, float]:
    """Medians over the first and the last tenth, warm-up left out of the first."""
    size = max(1, len(values) // 10)
    warm = values[len(values) // 50 :]
    return statistics.median(warm[:size]), statistics.median(values[-size:])


def halves(values: list[int], of: Callable[[list[int]], float] = statistics.median) -> tuple[float, float]:
    """One number over the third and over the last quarter: the second half, by when all is warm."""
    quarter = max(1, len(values) // 4)
    return of(values[-2 * quarter : -quarter]), of(values[-quarter:])


def test_memory_handles_and_the_log_s_lines_do_not_grow(undisturbed):
    spec, root, usage = undisturbed
    entries = [json.loads(line) for line in lines(root, spec)]
    assert [entry["step"] for entry in entries] == list(range(1, STEPS + 1))
    assert len(usage.step) >= 8, "it was looked at too seldom"
    first, last = tenths([1000 * entry["time/step_sec"] for entry in entries])
    tell(f"\n{STEPS} steps, {WORKERS} loader processes, {len(usage.step)} samples")
    tell(f"step time, median of the first and the last tenth: {first:.2f} ms, {last:.2f} ms")
    for name in ("own_bytes", "worker_bytes"):
        before, after = halves(getattr(usage, name))
        tell(f"{name}: {before / 2**20:.1f} MiB in the third quarter, {after / 2**20:.1f} MiB in the last")
        assert after - before < ALLOWED_BYTES, f"{name} grows"
    # The fewest: a batch on its way from a loader, or a checkpoint being written, is open for a moment.
    before, after = halves(usage.handles, min)
    tell(f"open files: {before:g}, then {after:g}; children {sorted(set(usage.children))}")
    assert after <= before
    assert set(usage.children) == {WORKERS}
    first, last = tenths([float(len(line)) for line in lines(root, spec)])
    told = len((root / "log.txt").read_bytes())
    tell(f"bytes of a line of metrics.jsonl: {first:g}, then {last:g}; what the process said: {told} bytes")
    # Numbers of steps and samples take a digit more each time that they are ten times as large.
    assert last <= first + 2 * len(str(STEPS))
    # Lines for a person come by time, not by steps.
    seconds = entries[-1]["unix_sec"] - entries[0]["unix_sec"]
    assert told < 2000 + 200 * (1 + seconds / 15)


def outcome(root: Path, spec: RunSpec) -> dict[str, Any]:
    """Everything that a run leaves, but times and where it ran."""
    path = root / paths.record(spec.run_id)
    told = {"attempts", "clock_sec", "median_step_sec", "peak_memory_bytes", "log_sha256", "content_sha256"}
    record = parse(Record, path.read_text(), str(path)).model_dump(exclude=told)
    entries = [json.loads(line) for line in lines(root, spec)]
    curve = [{key: value for key, value in entry.items() if not key.startswith(TIMES)} for entry in entries]
    files = sorted(str(file.relative_to(path.parent)) for file in path.parent.rglob("*"))
    return {"record": record, "curve": curve, "files": files}


def test_stops_at_random_moments_change_neither_the_curve_nor_the_weights(undisturbed, tmp_path):
    spec, root, _ = undisturbed
    rng = random.Random(SEED)
    shutil.copytree(root / "results" / "index", tmp_path / "results" / "index")
    toy.write_spec(tmp_path, spec)
    log = tmp_path / paths.metrics(spec.run_id)
    moments = sorted(rng.sample(range(2, STEPS - 2), STOPS))
    ended: dict[int, int] = {}
    for moment in moments:
        number = rng.choice((signal.SIGTERM, signal.SIGUSR2, signal.SIGKILL))
        with started(tmp_path, spec) as process:
            while process.is_alive() and last_step(log) < moment:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.02))
            with contextlib.suppress(ProcessLookupError):  # it was done just then
                os.kill(process.pid, number)
            process.join(60)
            assert process.exitcode is not None, f"{number.name} at step {moment} did not end it"
        assert process.exitcode in (-number, 128 + number, 0), (number, process.exitcode)
        ended[process.exitcode] = ended.get(process.exitcode, 0) + 1
        if process.exitcode == 0:
            break
    with started(tmp_path, spec) as process:
        process.join()
        assert process.exitcode == 0, (tmp_path / "log.txt").read_text()[-3000:]
    attempts = len((tmp_path / paths.attempts(spec.run_id)).read_text().splitlines())
    tell(f"\n{STOPS} stops at steps {moments}; exit codes {ended}; {attempts} starts of {STEPS} steps")
    assert outcome(tmp_path, spec) == outcome(root, spec)
