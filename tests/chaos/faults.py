"""Faults, by kind. Each is drawn from a seed, strikes a workflow, and says what may follow.

A fault prepares before a command starts, is asked again and again while that runs, and when it has ended mends what a
user would mend. What it strikes and when is in its `about`.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from support import debian

from chaos.workflow import METHODS, STEPS, SUITE, Command, Ended, Process, Workflow, remove
from engine import paths

DAY_SEC = 86400
POLL_SEC = 0.02
"""Seconds between two looks at what runs."""


class Fault:
    """Something that goes wrong while a command runs."""

    kind = ""
    how = ""
    """What tells it from others of its family."""
    may_fail = True
    """Whether the command may end with an error; the same command then goes on."""
    about = ""
    """What was drawn."""
    has_struck = False
    other: Ended | None = None
    """How a second command ended that ran beside the first."""

    def prepare(self, workflow: Workflow) -> None:
        """Act before the command starts."""

    def watch(self, workflow: Workflow) -> bool:
        """Act while the command runs; called again until it returns True."""
        return True

    def mend(self, workflow: Workflow, ended: Ended) -> None:
        """Do what the error asks for, when the command has ended."""

    def words(self, workflow: Workflow) -> tuple[str, ...]:
        """Return texts of which the error must have one, if there is an error."""
        return ()

    def explains_traceback(self, output: str) -> bool:
        """Tell if a traceback is Snakemake's own, of a fault that is not for us to tell."""
        return False


# Processes -----------------------------------------------------------------------------------------------------------

STAGES = {
    "training": "train",
    "loader worker": "train",
    "one process of two": "train",
    "launcher of a training": "train",
    "srun": "train",
    "evaluation": "evaluate",
    "launcher of an evaluation": "evaluate",
    "index": "index",
    "collect": "collect",
    "draw": "draw",
}
"""What has to be done for a process to be there."""
LONGEST_SEC = {
    "training": 4.0,
    "loader worker": 0.6,
    "one process of two": 4.0,
    "launcher of a training": 6.0,
    "srun": 5.0,
    "evaluation": 3.0,
    "launcher of an evaluation": 4.0,
    "index": 0.6,
    "collect": 1.0,
    "draw": 2.0,
    "snakemake": 12.0,
    "everything": 12.0,
}
"""Seconds of a process's life within which it is struck."""
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP)
OF_STEPS = ("training", "one process of two", "loader worker")


class Signal(Fault):
    """Send a signal to a process: when a training has logged some steps, or some seconds after it appeared."""

    def __init__(self, rng: random.Random, role: str, numbers: Sequence[signal.Signals] = SIGNALS) -> None:
        self.role, self.number = role, rng.choice(numbers)
        self.how = self.number.name
        self.kind = f"{self.how} to {'everything' if role == 'everything' else 'the ' + role}"
        self.may_fail = self.number != signal.SIGSTOP
        methods = {"loader worker": METHODS[:1], "one process of two": METHODS[1:]}.get(role, METHODS)
        self.method = rng.choice(methods)
        self.stage = STAGES.get(role) or rng.choice(["train", "evaluate"])
        self.step = rng.randint(1, STEPS - 2) if role in OF_STEPS and rng.random() < 0.7 else None
        self.after_sec = rng.uniform(0, LONGEST_SEC[role])
        self.stopped_sec = rng.uniform(0.5, 3)
        self._rng, self._seen, self._stopped = rng, dict[int, float](), list[Process]()
        self._until = 0.0
        when = f"after {self.after_sec:.1f} s" if self.step is None else f"after step {self.step}"
        self.about = f"{self.method if self.stage in ('train', 'evaluate') else self.stage}, {when}"

    def prepare(self, workflow: Workflow) -> None:
        if not workflow.is_undone(self.stage, self.method):
            workflow.undo(self.stage, self.method)

    def watch(self, workflow: Workflow) -> bool:
        now = time.monotonic()
        if self._stopped:
            if now < self._until:
                return False
            for process in self._stopped:
                process.signal(signal.SIGCONT)
            return True
        if self.step is not None and workflow.steps(self.method) < self.step:
            return False
        processes = self._targets(workflow)
        for process in processes:
            self._seen.setdefault(process.pid, now)
        if self.step is None:
            due = [process for process in processes if now - self._seen[process.pid] >= self.after_sec]
        else:
            due = processes
        if not due:
            # Those that were waited for have ended before their moment.
            return bool(self._seen) and not processes
        struck = processes if self.role == "everything" else [self._rng.choice(due)]
        for process in struck:
            process.signal(self.number)
        self.has_struck = True
        if self.number == signal.SIGSTOP:
            self._stopped, self._until = struck, now + self.stopped_sec
            return False
        return True

    def mend(self, workflow: Workflow, ended: Ended) -> None:
        for process in self._stopped:
            process.signal(signal.SIGCONT)

    def _targets(self, workflow: Workflow) -> list[Process]:
        if self.role == "everything":
            return workflow.processes()
        found = workflow.processes("training" if self.role == "one process of two" else self.role)
        if STAGES.get(self.role) in ("train", "evaluate"):
            found = [process for process in found if workflow.runs[self.method] in process.text]
        return found


# Files ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileKind:
    """Files of which one is damaged."""

    pattern: Callable[[str], Path]
    """From a run's id to the pattern of their paths."""
    undone: tuple[str, ...] = ("collect",)
    """Stages that are done again so that the files are read."""
    mended_by: str = "removing it"
    """What the error asks for: removing the file or the run, or fetching it again."""


FILES = {
    "checkpoint": FileKind(lambda run: paths.checkpoints(run) / "step-*", ()),
    "record": FileKind(lambda run: paths.record(run)),
    "outcome": FileKind(lambda run: paths.outcome(run), ("record", "collect")),
    "spec": FileKind(lambda run: paths.spec(run), ("evaluate", "collect")),
    "log": FileKind(lambda run: paths.metrics(run), mended_by="removing its run"),
    "weights": FileKind(lambda run: paths.weights(run, 0).parent / "*/*", ("evaluate", "collect"), "removing its run"),
    "log-normalizers": FileKind(
        lambda run: paths.run(run) / "normalizer_error/*.safetensors", mended_by="removing its run"
    ),
    "job": FileKind(lambda run: paths.jobs(run) / "*/job.json", ("record", "evaluate", "collect")),
    "index file": FileKind(lambda run: paths.index("toy"), ("train",)),
    "sidecar": FileKind(lambda run: paths.sidecars(paths.index("toy"), "*") / "*", ("train",), "removing the index"),
    "shard": FileKind(lambda run: Path("data/toy/train/*.tar"), ("train",), "fetching it again"),
    "picture set": FileKind(lambda run: Path("data/toy/evals/*/*/*.tar"), ("evaluate", "collect"), "fetching it again"),
    "suite": FileKind(lambda run: paths.suite(SUITE)),
    "remembered answers": FileKind(lambda run: paths.answers()),
    "evaluation file": FileKind(lambda run: paths.evaluation("*"), ("evaluate", "collect")),
    "result": FileKind(lambda run: paths.eval_result(run, "*", "*")),
    "mark of an evaluation": FileKind(lambda run: paths.evaluated(run, "*", "*")),
    "frame": FileKind(lambda run: paths.collected(SUITE), ("draw",)),
}
DAMAGES = ("truncated", "one bit flipped", "empty", "another type")


class Damage(Fault):
    """Damage a file between two commands, and let the next one read it."""

    def __init__(self, rng: random.Random, what: str) -> None:
        self.what, self.how = what, rng.choice(DAMAGES)
        self.kind = f"{what}: {self.how}"
        self.method = rng.choice(METHODS)
        self.step = rng.randint(8, STEPS - 3)
        self._rng = rng
        self._path = Path()

    def prepare(self, workflow: Workflow) -> None:
        run_id, of = workflow.runs[self.method], FILES[self.what]
        pattern = of.pattern(run_id)
        if not workflow.of(pattern):
            # An earlier fault has left it undone, or a training that ends removes it.
            self._leave_checkpoints(workflow) if self.what == "checkpoint" else workflow.start().wait()
        found = workflow.of(pattern)
        if not found:
            return
        self._path = self._rng.choice(found)
        self.about = str(self._path.relative_to(workflow.folder)) + damage(self._path, self.how, self._rng)
        for stage in of.undone:
            workflow.undo(stage, self.method)
        self.has_struck = True
        # A run that an earlier fault has left without its record is done only if its weights are whole.
        is_in_doubt = self.what == "weights" and not (workflow.folder / paths.record(run_id)).is_file()
        if self.what == "outcome" or is_in_doubt:
            workflow.may_train_again.add(self.method)

    def _leave_checkpoints(self, workflow: Workflow) -> None:
        """Kill a training in its middle."""
        kill = Signal(self._rng, "training", (signal.SIGKILL,))
        kill.method, kill.step = self.method, self.step
        kill.prepare(workflow)
        command = workflow.start()
        while command.is_running() and not kill.watch(workflow):
            time.sleep(POLL_SEC)
        command.wait()

    def words(self, workflow: Workflow) -> tuple[str, ...]:
        if not self.has_struck:
            return ()
        if self.what in ("index file", "sidecar", "shard"):
            # A damaged shard shows as one whose sidecar or index does not fit, and the reverse.
            return ("results/index/", "data/toy/train", *(path.name for path in workflow.of(Path("data/toy/train/*"))))
        if self.what == "picture set":
            return ("data/toy/evals", "toy_colours", "toy_retrieval")
        place = self._path.relative_to(workflow.folder)
        return (str(place),) if self.what != "checkpoint" else (str(place.parent),)

    def mend(self, workflow: Workflow, ended: Ended) -> None:
        if not self.has_struck or (ended.code == 0 and self.what not in ("shard", "picture set")):
            return
        by = FILES[self.what].mended_by
        if by == "fetching it again":
            remove(self._path)
            shutil.copy2(workflow.world.reference / self._path.relative_to(workflow.folder), self._path)
            if self.what == "picture set":
                workflow.undo("evaluate", self.method)  # on what was damaged
        elif by == "removing its run":
            workflow.undo("train", self.method)
        elif by == "removing the index":
            workflow.undo("index", self.method)
        elif self.what == "checkpoint":
            remove(self._path.parent)
            workflow.may_train_again.add(self.method)
        else:
            remove(self._path)


def damage(path: Path, how: str, rng: random.Random) -> str:
    """Damage a file; returns what was drawn."""
    data = bytearray(path.read_bytes())
    if how == "truncated":
        size = rng.randrange(len(data)) if data else 0
        os.truncate(path, size)
        return f" cut to {size} of {len(data)} bytes"
    if how == "one bit flipped":
        place, bit = rng.randrange(len(data)), rng.randrange(8)
        data[place] ^= 1 << bit
        path.write_bytes(data)
        return f" bit {bit} of byte {place}"
    if how == "empty":
        os.truncate(path, 0)
        return ""
    assert how == "another type"
    path.unlink()
    if rng.random() < 0.5:
        path.mkdir()
        return " is a folder"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + rng.randbytes(200))
    return " is a picture"


# The machine ---------------------------------------------------------------------------------------------------------


def lacks_mounts() -> str | None:
    """Say why nothing can be mounted here; None if it can."""
    if os.getuid() != 0:
        return "only root may mount"
    if not shutil.which("mount"):
        return "there is no mount here"
    probe = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    return None if probe.returncode == 0 else f"nothing can be mounted: {probe.stderr.decode().strip()}"


def mount(*arguments: str) -> None:
    """Run mount."""
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


ROOM_BYTES = 2**30


class FullDisk(Fault):
    """Leave little room on the disk: the folder is a tmpfs."""

    kind = "full disk"

    def __init__(self, rng: random.Random) -> None:
        self.method, self.stage = rng.choice(METHODS), rng.choice(["train", "train", "evaluate", "index", "collect"])
        self.free_bytes = int(2 ** rng.uniform(12, 24))
        self.about = f"{self.free_bytes:,} bytes are free for {self.stage} of {self.method}"

    def prepare(self, workflow: Workflow) -> None:
        if not workflow.is_undone(self.stage, self.method):
            workflow.undo(self.stage, self.method)
        used = shutil.disk_usage(workflow.folder).used
        mount("-o", f"remount,size={used + self.free_bytes}", str(workflow.folder))
        self.has_struck = True

    def words(self, workflow: Workflow) -> tuple[str, ...]:
        return ("no room for", "No space left on device", "make room")

    def explains_traceback(self, output: str) -> bool:
        return "snakemake/persistence/" in output and "No space left on device" in output

    def mend(self, workflow: Workflow, ended: Ended) -> None:
        mount("-o", f"remount,size={ROOM_BYTES}", str(workflow.folder))


class ReadOnly(Fault):
    """Let a folder of results be read only."""

    kind = "read-only folder"

    def __init__(self, rng: random.Random) -> None:
        self.method = rng.choice(METHODS)
        self.stage = rng.choice(["train", "evaluate", "index", "collect", "draw"])
        self.about = f"that of {self.stage} of {self.method}"
        self._place = Path()

    def prepare(self, workflow: Workflow) -> None:
        run_id = workflow.runs[self.method]
        if not workflow.is_undone(self.stage, self.method):
            workflow.undo(self.stage, self.method)
        places = {
            "train": paths.run(run_id),
            "evaluate": paths.eval_result(run_id, 0, "").parent.parent,
            "index": paths.index("toy").parent,
            "collect": paths.collected(SUITE).parent,
            "draw": paths.tables(SUITE),
        }
        self._place = places[self.stage]
        place = workflow.folder / self._place
        place.mkdir(parents=True, exist_ok=True)
        mount("--bind", str(place), str(place))
        mount("-o", "remount,ro,bind", str(place))
        self.has_struck = True

    def words(self, workflow: Workflow) -> tuple[str, ...]:
        return (f"{self._place}",)

    def mend(self, workflow: Workflow, ended: Ended) -> None:
        subprocess.run(["umount", str(workflow.folder / self._place)], check=True, capture_output=True)


class FileSizeLimit(Fault):
    """Let no file grow beyond a size, as `ulimit -f` does."""

    kind = "file-size limit"

    def __init__(self, rng: random.Random) -> None:
        self.method, self.stage = rng.choice(METHODS), rng.choice(["train", "train", "evaluate"])
        self.limit_bytes = int(2 ** rng.uniform(14, 24))
        self.about = f"{self.limit_bytes:,} bytes for {self.stage} of {self.method}"

    def prepare(self, workflow: Workflow) -> None:
        if not workflow.is_undone(self.stage, self.method):
            workflow.undo(self.stage, self.method)
        workflow.limits = {"fsize": self.limit_bytes}
        self.has_struck = True

    def words(self, workflow: Workflow) -> tuple[str, ...]:
        return ("no room for", "File too large")

    def mend(self, workflow: Workflow, ended: Ended) -> None:
        workflow.limits = {}


_SKEW = "clock skew"
"""In Snakemake's error on a result that is older than what it is made of."""


class WrongTimes(Fault):
    """Give files times of the past or the future, as a clock that was wrong leaves them."""

    kind = "times of a wrong clock"

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.share = rng.choice([0.1, 0.5, 1.0])
        self.shift_sec = rng.choice([-1, 1]) * rng.choice([2, 3600, DAY_SEC, 400 * DAY_SEC])
        # What an earlier fault has left undone is then made of files of the future.
        self.may_fail = self.shift_sec > 0
        self.about = f"{self.share:.0%} of the files moved by {self.shift_sec} s"

    def prepare(self, workflow: Workflow) -> None:
        for path in sorted(path for place in ("data", "results") for path in (workflow.folder / place).rglob("*")):
            if path.is_file() and self._rng.random() < self.share:
                then = path.stat().st_mtime + self.shift_sec
                os.utime(path, (then, then))
        self.has_struck = True

    def words(self, workflow: Workflow) -> tuple[str, ...]:
        return (_SKEW,)

    def mend(self, workflow: Workflow, ended: Ended) -> None:
        end_the_future(workflow)


def end_the_future(workflow: Workflow) -> None:
    """Touch results of a time to come: what is made from them is older, and Snakemake refuses it or makes it again."""
    now = time.time()
    for path in (workflow.folder / "results").rglob("*"):
        if path.is_file() and path.stat().st_mtime > now:
            os.utime(path)


class JumpingClock(Fault):
    """Let the clock of all that a command starts be wrong by days."""

    kind = "a clock that jumped"
    PACKAGES: ClassVar = {"faketime": "faketime"}
    LIBRARY = "faketime/libfaketimeMT.so.1"

    def __init__(self, rng: random.Random) -> None:
        self.method, self.stage = rng.choice(METHODS), rng.choice(["train", "evaluate", "collect"])
        self.shift_sec = rng.choice([-1, 1]) * rng.choice([90, 3600, DAY_SEC, 400 * DAY_SEC])
        self.may_fail = self.shift_sec < 0
        self.about = f"by {self.shift_sec} s in {self.stage} of {self.method}"
        self._kept: dict[str, str] = {}

    def prepare(self, workflow: Workflow) -> None:
        if not workflow.is_undone(self.stage, self.method):
            workflow.undo(self.stage, self.method)
        self._kept = workflow.env
        (library,) = Path("/usr/lib").glob(f"*/{self.LIBRARY}")
        clock = {"FAKETIME": f"{self.shift_sec:+d}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1"}
        workflow.env = {**self._kept, "LD_PRELOAD": str(library), **clock}
        self.has_struck = True

    def words(self, workflow: Workflow) -> tuple[str, ...]:
        return (_SKEW,)

    def mend(self, workflow: Workflow, ended: Ended) -> None:
        workflow.env = self._kept
        end_the_future(workflow)


class TwoHeads(Fault):
    """Start the same command a second time while the first runs; one of two takes no notice of Snakemake's lock."""

    kind = "two snakemakes at once"

    def __init__(self, rng: random.Random) -> None:
        self.method, self.stage = rng.choice(METHODS), rng.choice(["train", "evaluate", "index"])
        self.after_sec = rng.uniform(0, 8)
        self.takes_notice = rng.random() < 0.5
        self.may_fail = not self.takes_notice
        self.how = "with the lock" if self.takes_notice else "without the lock"
        self.about = f"the second after {self.after_sec:.1f} s, {self.how}"
        self._begin = 0.0
        self._other: Command | None = None

    def prepare(self, workflow: Workflow) -> None:
        if not workflow.is_undone(self.stage, self.method):
            workflow.undo(self.stage, self.method)

    def watch(self, workflow: Workflow) -> bool:
        now = time.monotonic()
        self._begin = self._begin or now
        if now - self._begin < self.after_sec:
            return False
        self._other = workflow.start(*([] if self.takes_notice else ["--nolock"]))
        self.has_struck = True
        return True

    def mend(self, workflow: Workflow, ended: Ended) -> None:
        if self._other is not None:
            self.other = self._other.wait()


# All of them ---------------------------------------------------------------------------------------------------------

MACHINE = (FullDisk, ReadOnly, FileSizeLimit, WrongTimes, JumpingClock, TwoHeads)


def families() -> dict[str, Callable[[random.Random], Fault]]:
    """Return how a fault of each family is drawn: a process, a kind of file, or something of the machine."""
    return {
        **{role: partial(Signal, role=role) for role in LONGEST_SEC if role != "srun"},
        **{what: partial(Damage, what=what) for what in FILES},
        **{fault.kind: fault for fault in MACHINE},
    }


def impossible() -> dict[str, str]:
    """Return the families whose faults cannot be made here, and why; installs what is missing where this user may."""
    found = {}
    if (why := lacks_mounts()) is not None:
        found |= {FullDisk.kind: why, ReadOnly.kind: why}
    try:
        debian.install(JumpingClock.PACKAGES)
    except debian.MissingPackageError as error:
        found[JumpingClock.kind] = str(error)
    return found
