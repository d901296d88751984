"""A small workflow in a folder of its own: two trainings, two evaluations, a frame, a table; and what it must leave."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import pytest
import yaml
from support import toy
from support.checkout import copy_checkout
from support.once import made_once

from analysis import frame as tidy
from engine import files, paths
from engine.jobs import scheduler
from engine.training import checkpoint
from experiments import jobs
from experiments.design import expansion

SUITE = "chaos"
MODEL = "dropout-vit"
STEPS, BATCH = 36, 16
METHODS = ("neuclip", "openclip")
"""The first has a loader process, the second two processes."""
DRAWN = paths.drawn(SUITE)
MARK = "NEUCLIP_CHAOS"
"""A variable in the environment of all that a workflow starts."""
OF_A_START = {"attempts", "clock_sec", "median_step_sec", "peak_memory_bytes", "log_sha256", "content_sha256"}
"""What a record says of times, and of where the run was."""
TEMPORARIES = (".*.tmp", ".tmp*", "*.save_tmp")
_HOW = {
    "execution": {"log_every_steps": 1, "save_every_min": 0.001},
    "overrides": [
        {"method": METHODS[0], "execution": {"num_workers": 1}},
        {"method": METHODS[1], "train": {"tasks_per_node": 2}},
    ],
}
CLUSTERS = {
    "local": {"train": {"timeout_min": 15}, "evaluate": {"timeout_min": 15}, **_HOW},
    "slurm": {
        "scheduler": "slurm",
        "partition": "main",
        "poll_sec": 1,
        "warn_before_limit_sec": 59,
        "train": {"mem_gb": 1, "timeout_min": 10},
        "evaluate": {"mem_gb": 1, "timeout_min": 10},
        **_HOW,
    },
}


class World:
    """A copy of the checkout with a small suite, and the folder in which that was run undisturbed."""

    def __init__(self, folder: Path) -> None:
        self.code, self.reference = folder / "code", folder / "reference"

    def make(self) -> None:
        """Fill the folder."""
        copy_checkout(self.code)
        self._write_cards()
        self.reference.mkdir()
        toy.write_shards(self.reference / "data/toy/train")
        toy.build_evaluation(self.reference)
        ended = Workflow(self, self.reference).start().wait()
        assert ended.code == 0, ended.output[-6000:]

    def _write_cards(self) -> None:
        kept = self.code / "experiments"
        shutil.copy(Path(toy.__file__).parent / "models" / f"{MODEL}.json", self.code / "engine/models")
        evaluation = toy.build_evaluation(self.code)
        about = {"licence": "CC0-1.0", "source": "made by the test"}
        train = {"name": "toy", "title": "Squares", "revision": "1", "pairs": toy.NUM_PAIRS, "shards": "data/toy/train"}
        cards: dict[str, Any] = {"datasets/toy": {**train, **about}}
        for name, card in evaluation.sets.items():
            place = str(Path(card.path).relative_to(self.code))
            cards[f"evals/{name}"] = card.model_dump(mode="json", exclude_defaults=True) | {"path": place}
        # One set is pinned; of the other, results say what they were measured on.
        pinned = files.folder_sha256(Path(evaluation.sets["toy_colours"].path))
        cards["evals/toy_colours"]["sha256"] = pinned
        cards["evaluations/toy"] = {
            "sets": [*evaluation.sets],
            "averages": {key: [*sets] for key, sets in evaluation.averages.items()},
        }
        cards[f"suites/{SUITE}"] = {
            "title": "Faults",
            "dataset": "toy",
            "model": MODEL,
            "evaluation": "toy",
            "seeds": [0],
            "training": {
                "global_batch_size": BATCH,
                "samples_seen": STEPS * BATCH,
                "optimizer": {"lr": 1e-3},
                "augmentation": {"kind": "shift"},
                "normalizer_error": {"num_anchors": 32, "control_size": 16},
            },
            "methods": {method: {"options": toy.OPTIONS.get(method, {})} for method in METHODS},
        }
        for name, card in cards.items():
            (kept / f"{name}.yaml").write_text(yaml.safe_dump(card))
        for name, cluster in CLUSTERS.items():
            (self.code / "slurm" / "clusters" / f"{SUITE}_{name}.yaml").write_text(yaml.safe_dump(cluster))


def shared_world(config: pytest.Config, factory: pytest.TempPathFactory) -> World:
    """Return the world of a test run: made once."""
    return World(made_once(config, factory, "chaos", lambda folder: World(folder).make()))


@dataclass(frozen=True)
class Process:
    """A process of a workflow."""

    pid: int
    role: str
    text: str
    """Its command line."""

    def signal(self, number: int) -> None:
        """Send it a signal, if it is still there."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    output: str


@dataclass(frozen=True)
class Command:
    """A command that runs."""

    process: subprocess.Popen[bytes]
    log: Path

    def is_running(self) -> bool:
        """Tell if it has not ended."""
        return self.process.poll() is None

    def wait(self) -> Ended:
        """Wait for its end."""
        return Ended(self.process.wait(), self.log.read_text(errors="replace"))


class Workflow:
    """The workflow in a folder. A `Fault` strikes it through this."""

    def __init__(self, world: World, folder: Path, slurm: Any = None) -> None:
        self.world, self.folder, self.slurm = world, folder, slurm
        self.env = {**(slurm.env if slurm else os.environ), "PYTHONPATH": str(world.code), MARK: str(folder)}
        self.limits: dict[int, int] = {}
        """Resource limits of what is started next."""
        runs = world.reference / paths.RESULTS / "runs"
        self.runs = {path.name.partition("-")[0]: path.name for path in runs.glob("*-*")}
        """Ids of the runs by method; empty before they were ever made."""
        self.may_train_again: set[str] = set()
        """Methods whose saves or results were damaged or removed on purpose since they were last looked at."""
        self._number = 0

    # Commands -------------------------------------------------------------------------------------------------------

    @property
    def command(self) -> list[str]:
        """The command that a user would give, without its targets."""
        code, place = self.world.code, "slurm" if self.slurm else "local"
        profiles = ["--workflow-profile", str(code / "profiles/default")]
        profiles += ["--profile", str(code / "slurm"), "--latency-wait", "5"] if self.slurm else ["--cores", "4"]
        config = ["--config", f"suites={SUITE}", f"cluster={SUITE}_{place}"]
        return [sys.executable, "-m", "snakemake", "--snakefile", str(code / "Snakefile"), *profiles, "-k", *config]

    def start(self, *options: str) -> Command:
        """Start the command in a session of its own, as a terminal does."""
        self._number += 1
        log = self.folder / f"said-{self._number:03d}.txt"
        command = self.command
        if self.limits:
            limits = [f"--{name}={value}" for name, value in self.limits.items()]
            command = ["prlimit", *limits, *command]
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*command, *options, "--", "runs", str(paths.collected(SUITE)), str(DRAWN)],
                cwd=self.folder,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        return Command(process, log)

    # Look -----------------------------------------------------------------------------------------------------------

    def processes(self, role: str | None = None) -> list[Process]:
        """Return what was started here and has not ended, or those of a role; zombies are left out."""
        mark = f"{MARK}={self.folder}".encode()
        found: dict[int, tuple[int, list[str]]] = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != os.getpid():
                with contextlib.suppress(OSError):
                    if mark in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                        argv = Path(f"/proc/{entry}/cmdline").read_text(errors="replace").split("\0")
                        stat = Path(f"/proc/{entry}/stat").read_text(errors="replace").rpartition(")")[2].split()
                        if stat[0] not in "ZX":
                            found[int(entry)] = (int(stat[1]), argv)
        named = {pid: _role(argv) for pid, (_, argv) in found.items()}
        for pid, (parent, _) in found.items():
            if named[pid] == named.get(parent) == "training":
                named[pid] = "loader worker"
        processes = [Process(pid, named[pid], " ".join(argv)) for pid, (_, argv) in found.items()]
        return [process for process in processes if role in (None, process.role)]

    def steps(self, method: str) -> int:
        """Return how many steps of a run are logged."""
        path = self.folder / paths.metrics(self.runs[method])
        with contextlib.suppress(OSError):
            return path.read_bytes().count(b"\n")
        return 0

    def saved(self, method: str) -> int:
        """Return the step that a run goes on from when it is started now."""
        with open(os.devnull, "w") as nothing, contextlib.redirect_stderr(nothing):
            return checkpoint.newest_step(self.folder / paths.checkpoints(self.runs[method])) or 0

    def starts(self, method: str) -> list[int] | None:
        """Return the step that every start of a run went on from; None if that is not to be read."""
        path = self.folder / paths.attempts(self.runs[method])
        try:
            lines = path.read_text().splitlines() if path.exists() else []
            return [json.loads(line)["first_step"] for line in lines]
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def is_trained(self, method: str) -> bool:
        """Tell if a run has its outcome."""
        return (self.folder / paths.outcome(self.runs[method])).is_file()

    def of(self, path: Path) -> list[Path]:
        """Return the files here that a pattern of `engine.paths` names."""
        return sorted(self.folder.glob(str(path)))

    # Change ---------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Fill the folder with all that the undisturbed workflow left, times and all."""
        for name in ("data", "results", ".snakemake"):
            shutil.copytree(self.world.reference / name, self.folder / name, symlinks=True)

    def undo(self, stage: str, method: str) -> None:
        """Remove the results of a stage, as a user may, so that they are made again."""
        run_id = self.runs[method]
        gone = {
            "index": [paths.RESULTS / "index"],
            "train": [paths.run(run_id)],
            "record": [paths.record(run_id)],
            "evaluate": [paths.eval_result(run_id, "*", "*").parent.parent],
            "collect": [paths.collected(SUITE)],
            "draw": [DRAWN, paths.tables(SUITE) / "main_results.csv"],
        }
        if stage == "train":
            self.may_train_again.add(method)
        for path in gone[stage]:
            remove(self.folder / path)

    def is_undone(self, stage: str, method: str) -> bool:
        """Tell if the next command has to do a stage anyway."""
        run_id = self.runs[method]
        results = {
            "index": paths.index("toy"),
            "train": paths.record(run_id),
            "evaluate": paths.evaluated(run_id, STEPS * BATCH, "*"),
            "collect": paths.collected(SUITE),
            "draw": DRAWN,
        }
        return not self.of(results[stage])

    def kill_all(self) -> None:
        """End all that was started here."""
        if self.slurm:
            self.slurm.try_run("scancel", "--me")
        while processes := self.processes():
            for process in processes:
                process.signal(signal.SIGKILL)
            time.sleep(0.02)

    # Compare --------------------------------------------------------------------------------------------------------

    def differences(self) -> Iterator[str]:
        """Say what differs from the undisturbed workflow, where it must not."""
        for method, run_id in self.runs.items():
            ours, theirs = self.folder / paths.run(run_id), self.world.reference / paths.run(run_id)
            for file in ("weights/*/*", "normalizer_error/*"):
                yield from _different(ours, theirs, file)
            ours_said, theirs_said = (_record(run / "record.json") for run in (ours, theirs))
            for key in theirs_said.keys() - OF_A_START:
                if ours_said.get(key) != theirs_said[key]:
                    yield f"{method}: record.json says another {key}: {ours_said.get(key)}, not {theirs_said[key]}"
            if _logged(ours / "metrics.jsonl") != _logged(theirs / "metrics.jsonl"):
                yield f"{method}: metrics.jsonl has other lines, or others than one a step"
        # Nobody reads what is in the mark of an evaluation, so damage of it may stay.
        yield from _different(self.folder, self.world.reference, "results/evals/*/*/*.json")
        yield from _different(self.folder, self.world.reference, f"{paths.tables(SUITE)}/main_results.[cmt]*")
        frames = [tidy.read(root / paths.collected(SUITE)) for root in (self.folder, self.world.reference)]
        ours_frame, theirs_frame = (frame[frame["kind"] != "cost"].reset_index(drop=True) for frame in frames)
        try:
            pd.testing.assert_frame_equal(ours_frame, theirs_frame, check_exact=True)
        except AssertionError as error:
            yield f"the collected frame differs: {error}"

    def leftovers(self) -> Iterator[str]:
        """Say what the workflow left behind: processes, locks, temporary files, checkpoints, jobs without an end."""
        for process in self.processes():
            yield f"process {process.pid} still runs: {process.role}: {process.text[:300]}"
        for place in ("results", "data"):
            for pattern in TEMPORARIES:
                yield from (f"{path} is left" for path in (self.folder / place).rglob(pattern))
        yield from (f"{path} is left" for path in (self.folder / ".snakemake" / "locks").glob("*"))
        yield from (f"{path} is left" for path in (self.folder / ".snakemake" / "incomplete").rglob("*"))
        yield from (f"{path} is left" for path in self.of(paths.checkpoints("*")))
        with contextlib.chdir(self.folder), mock.patch.dict(os.environ, self.env):
            for name in ("lock", "*.lock"):
                yield from (f"{path} is held" for path in paths.RESULTS.rglob(name) if scheduler.is_locked(path))
            for view in jobs.in_need(jobs.look(), expansion.written()):
                yield f"job {view.job.job_id} ({view.job.name}) has no end: {view.status}"
        for line in self.slurm.run("squeue", "-h", "-o", "%A %T %Z").splitlines() if self.slurm else ():
            if line.endswith(f" {self.folder}"):
                yield f"Slurm still has job {line}"


def _role(argv: list[str]) -> str:
    module = argv[argv.index("-m") + 1] if "-m" in argv[:-1] else ""
    place = "training" if any("/jobs/train" in word for word in argv) else "evaluation"
    roles = {
        "snakemake": "snakemake",
        "engine.launch": f"launcher of a {place}" if place == "training" else "launcher of an evaluation",
        "engine.jobs.process": place,
        "submitit.core._submit": place,
        "engine.index": "index",
        "analysis": " ".join(argv[3:4]),
    }
    program = Path(argv[0]).name
    if program.startswith("python"):
        return roles.get(module, module)
    return program


def remove(path: Path) -> None:
    """Remove what a path names, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _different(ours: Path, theirs: Path, pattern: str) -> Iterator[str]:
    """Compare the files of two folders that a pattern names."""
    found, expected = ({str(path.relative_to(root)): path for path in root.glob(pattern)} for root in (ours, theirs))
    assert expected, pattern
    for name in sorted(found.keys() | expected.keys()):
        if name not in found or name not in expected:
            yield f"{name} is {'missing' if name not in found else 'there, and should not be'}"
        elif not found[name].is_file() or found[name].read_bytes() != expected[name].read_bytes():
            yield f"{name} has another content"


def _record(path: Path) -> dict[str, Any]:
    said: dict[str, Any] = files.read_json(path)
    return said


def _logged(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("time/", "unix_sec"))} for line in lines]
