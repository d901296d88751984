"""A run that is killed at any moment, however often, ends as if nothing had happened: bit for bit, on a CPU.

Kills are drawn from seeds: ``KILL_ROUNDS=50 pytest
tests/engine/training/test_kill.py`` takes 50 seeds instead of one, from
``KILL_SEED`` (default 0) on. A failure names its seed and the moments drawn.
"""

import json
import os
import random
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest
from support import toy
from support.killing import ENDING, STARTING, TRAINING, UPDATES, WRITING, Events, Kill, KillAfter, Server

from engine import paths
from engine.logs import read_attempts
from engine.registry import method_names
from engine.schema.base import parse
from engine.schema.record import Record
from engine.schema.run import RunSpec
from engine.training.checkpoint import newest_step

pytestmark = pytest.mark.slow
FIRST_SEED = int(os.environ.get("KILL_SEED", "0"))
SEEDS = range(FIRST_SEED, FIRST_SEED + int(os.environ.get("KILL_ROUNDS", "1")))
STEPS, BATCH = 24, 16
STEPS_TO_KILL = 3
"""A phase that comes in every step kills within so many."""
WORLD_SIZES = [1, 1, 1, 2]
"""Number of processes of the chains of kills, among which a method's phases are dealt out."""
CHAINS = len(WORLD_SIZES)
OF_A_START = {"attempts", "clock_sec", "median_step_sec", "peak_memory_bytes", "log_sha256", "content_sha256"}
"""What a record says of times, and of where the run was."""
EXECUTION = {"save_every_min": 0, "log_every_steps": 1}


@dataclass
class Reference:
    """A run that nobody killed."""

    spec: RunSpec
    outcome: dict[str, Any]
    events: Events
    seconds: float


@pytest.fixture(scope="module")
def server() -> Server:
    return Server()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    toy.build(root)
    return root


@pytest.fixture(scope="module")
def references() -> dict[tuple[str, str, int], Reference]:
    return {}


@pytest.fixture
def start(server, data, references, tmp_path_factory, tmp_path, monkeypatch):
    """Return a function that gives the run that nobody killed; the working directory is a place to repeat it."""

    def reference(method: str, model: str, world_size: int) -> Reference:
        key = (method, model, world_size)
        if key not in references:
            root = tmp_path_factory.mktemp("reference")
            shutil.copytree(data / "results", root / "results")
            spec = make_spec(method, model)
            path, count = toy.write_spec(root, spec), root / "events.json"
            begin = time.monotonic()
            assert server.run(root, path, world_size=world_size, execution=EXECUTION, count=count) == [0] * world_size
            monkeypatch.chdir(root)
            events = json.loads(count.read_text())
            references[key] = Reference(spec, outcome(spec), events, time.monotonic() - begin)
        shutil.copytree(data / "results", tmp_path / "results")
        monkeypatch.chdir(tmp_path)
        return references[key]

    return reference


def make_spec(method: str, model: str) -> RunSpec:
    often = tuple(range(4 * BATCH, STEPS * BATCH + 1, 4 * BATCH))
    error = {"at": often, "num_anchors": 16, "control_size": 8}
    return toy.run_spec(
        method, steps=STEPS, batch=BATCH, model={"name": model}, milestones=often, normalizer_error=error
    )


def outcome(spec: RunSpec) -> dict[str, Any]:
    """Everything that a run leaves, but times and where it ran."""
    folder = paths.run(spec.run_id)
    record = read_record(spec).model_dump(exclude=OF_A_START)
    lines = [json.loads(line) for line in paths.metrics(spec.run_id).read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    times = ("time/", "unix_sec")
    values = [{key: value for key, value in line.items() if not key.startswith(times)} for line in lines]
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    return {"record": record, "metrics": values, "files": files}


def read_record(spec: RunSpec) -> Record:
    path = paths.record(spec.run_id)
    return parse(Record, path.read_text(), str(path))


def draw(rng: random.Random, phase: str, events: Events) -> Kill:
    """Draw a moment in a phase."""
    # A reference has nothing to go on from: then any number that the phase may well have.
    counts = events[phase] or [int(10 ** rng.uniform(0, 4))]
    if phase in ENDING or phase in STARTING:
        return Kill(phase, 1, rng.randint(1, max(counts)), kept=rng.random())
    entry = rng.randint(1, max(1, STEPS_TO_KILL * len(counts) // STEPS))
    return Kill(phase, entry, rng.randint(1, rng.choice(counts)), kept=rng.random())


def draw_kills(method: str, reference: Reference, world_size: int, chain: int, seed: int) -> list[Kill | KillAfter]:
    """Draw the kills of a chain. All chains of a seed together meet every phase.

    The first comes after a save, so that the next starts have something to go on from; ends of runs come last.
    """
    deal = random.Random(f"{method} {seed}")
    in_steps, at_start, at_end = (
        deal.sample([*group], len(group))[chain::CHAINS]
        for group in (TRAINING | UPDATES.get(method, {}) | WRITING, STARTING, ENDING)
    )
    rng = random.Random(f"{method} {seed} {chain}")
    middle = rng.sample(in_steps + at_start, len(in_steps + at_start))
    kills: list[Kill | KillAfter] = [draw(rng, phase, reference.events) for phase in ("step", *middle, *at_end)]
    kills[0] = replace(kills[0], entry=rng.randint(2, STEPS_TO_KILL))
    kills.insert(-len(at_end), KillAfter(rng.uniform(0, reference.seconds / 2)))
    if world_size == 1:
        return kills
    in_all = [*TRAINING, *UPDATES.get(method, {}), "build", "load", "resume"]
    return [
        replace(
            kill,
            rank=rng.randrange(world_size) if isinstance(kill, KillAfter) or kill.phase in in_all else 0,
            with_others=rng.random() < 0.5,
        )
        for kill in kills
    ]


def run_and_kill(server: Server, spec: RunSpec, world_size: int, kills: list[Kill | KillAfter]) -> None:
    """Start a run once for each kill and then to its end; check after each start what it left."""
    path, folder = toy.write_spec(Path(), spec), paths.checkpoints(spec.run_id)
    for kill in [*kills, None]:
        begin, before = newest_step(folder) or 0, read_attempts(spec.run_id)
        is_done = paths.outcome(spec.run_id).exists()
        codes = server.run(Path.cwd(), path, world_size=world_size, kill=kill, execution=EXECUTION)
        if kill is None:
            assert codes == [0] * world_size
        elif isinstance(kill, Kill) and not is_done:
            assert codes[kill.rank] == -SIGKILL, f"{kill} was not reached"
            assert 0 not in codes, f"{kill}: another process ended as if nothing had happened"
        attempts = read_attempts(spec.run_id)
        begun = [attempt.first_step for attempt in attempts[len(before) :]]
        assert attempts[: len(before)] == before
        assert begun == [] if is_done else begun == [begin] or (kill and begun == [])
        assert paths.record(spec.run_id).exists() or (newest_step(folder) or 0) >= begin


def choose_model(method: str, chain: int, seed: int) -> str:
    """Choose a model with something besides weights: random draws, or (slower, so that every third is enough) running
    statistics, which not all numbers of processes can share."""
    with_batch_norm = chain == 0 and (method_names(controls=False).index(method) + seed) % 3 == 2
    return "small-resnet" if with_batch_norm else "dropout-vit"


@pytest.mark.parametrize("chain", range(CHAINS))
@pytest.mark.parametrize("method", method_names(controls=False))
@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_killed_again_and_again_in_all_its_phases_ends_as_one_that_was_not(start, server, seed, method, chain):
    world_size = WORLD_SIZES[chain]
    reference = start(method, choose_model(method, chain, seed), world_size)
    run_and_kill(server, reference.spec, world_size, draw_kills(method, reference, world_size, chain, seed))
    assert outcome(reference.spec) == reference.outcome
