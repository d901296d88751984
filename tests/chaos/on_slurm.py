"""Faults of a Slurm cluster, and of the commands by which it is asked."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from chaos.faults import LONGEST_SEC, SIGNALS, Fault, Signal
from chaos.workflow import METHODS, STEPS, Ended, Workflow
from engine import paths
from engine.jobs import scheduler


class Event(Fault):
    """Let something happen to a training's job, or to its cluster, once the training has logged some steps."""

    def __init__(self, rng: random.Random, kind: str) -> None:
        self.kind, self.method = kind, rng.choice(METHODS)
        self.may_fail = kind == "scancel"
        self.step = rng.randint(1, STEPS - 6)
        self.down_sec = rng.uniform(1, 8)
        self.about = f"{self.method} after step {self.step}"
        if kind.endswith("down"):
            self.about += f", for {self.down_sec:.0f} s"
        self._node: str | None = None
        self._until = 0.0

    def prepare(self, workflow: Workflow) -> None:
        if not workflow.is_undone("train", self.method):
            workflow.undo("train", self.method)

    def watch(self, workflow: Workflow) -> bool:
        if self.has_struck:
            return time.monotonic() >= self._until and self._restore(workflow)
        if workflow.is_trained(self.method):
            return True
        if workflow.steps(self.method) < self.step:
            return False
        cluster = workflow.slurm
        job = json.loads((workflow.folder / paths.job(paths.jobs(workflow.runs[self.method]) / "train")).read_text())[
            "job_id"
        ]
        if self.kind == "requeue":
            cluster.try_run("scontrol", "requeue", job)
        elif self.kind == "scancel":
            cluster.try_run("scancel", job)
        elif self.kind == "node down":
            self._node = cluster.try_run("squeue", "-h", "-o", "%N", "-j", job)
            if self._node not in cluster.nodes:
                return True  # it has ended just now
            cluster.fail_node(self._node)
        else:
            cluster.stop_controller()
        self.has_struck = True
        self._until = time.monotonic() + (self.down_sec if self.kind.endswith("down") else 0)
        return False

    def words(self, workflow: Workflow) -> tuple[str, ...]:
        return (scheduler.CANCELLED,)

    def mend(self, workflow: Workflow, ended: Ended) -> None:
        if self.has_struck:
            self._restore(workflow)

    def _restore(self, workflow: Workflow) -> bool:
        if self._until:
            self._until = 0.0
            if self.kind == "node down":
                workflow.slurm.restore_node(self._node)
            elif self.kind == "slurmctld down":
                workflow.slurm.restore_controller()
        return True


EVENTS = ("requeue", "scancel", "node down", "slurmctld down")
_HOW = {
    "refusing": 'echo "{tool}: error: Batch job submission failed: Invalid account" >&2; exit 1',
    "hanging": "sleep {seconds}; exec {real} $@",
    "answering garbage": "echo '<html>502 Bad Gateway</html>'",
    "answering garbage after it has done it": "{real} $@ > /dev/null; echo '<html>502 Bad Gateway</html>'",
}


class BrokenTool(Fault):
    """Let one of Slurm's commands be missing, refuse, hang for a while or answer garbage.

    `squeue` does so for some seconds: who waits asks it again.
    """

    def __init__(self, rng: random.Random, tool: str) -> None:
        hows = ["missing", *_HOW] if tool == "sbatch" else ["refusing", "hanging", "answering garbage"]
        self.tool, self.how = tool, rng.choice(hows)
        self.kind = f"{tool} {self.how}"
        self.may_fail = tool == "sbatch" and self.how in ("missing", "refusing", "answering garbage")
        self.method, self.stage = rng.choice(METHODS), rng.choice(["train", "evaluate"])
        self.seconds = rng.randint(3, 12)
        self.about = f"{self.stage} of {self.method}" + (f", for {self.seconds} s" if not self.may_fail else "")
        self._path = ""

    def prepare(self, workflow: Workflow) -> None:
        if not workflow.is_undone(self.stage, self.method):
            workflow.undo(self.stage, self.method)
        self._path = workflow.env["PATH"]
        real = shutil.which(self.tool, path=self._path)
        assert real is not None
        folder = workflow.folder / "commands"
        folder.mkdir()
        if self.how == "missing":
            # All others are there.
            for place in reversed(self._path.split(os.pathsep)):
                for path in Path(place).glob("*"):
                    (folder / path.name).unlink(missing_ok=True)
                    (folder / path.name).symlink_to(path)
            (folder / self.tool).unlink()
            workflow.env["PATH"] = str(folder)
        else:
            said = _HOW[self.how].format(tool=self.tool, seconds=self.seconds, real=real)
            until = int(time.time()) + 8 + self.seconds
            limited = f"[ $(date +%s) -lt {until} ] || exec {real} $@\n" if self.tool == "squeue" else ""
            said = said.replace("$@", '"$@"')
            (folder / self.tool).write_text("#!/bin/sh\n" + limited.replace("$@", '"$@"') + said + "\n")
            (folder / self.tool).chmod(0o755)
            workflow.env["PATH"] = f"{folder}{os.pathsep}{self._path}"
        self.has_struck = True

    def words(self, workflow: Workflow) -> tuple[str, ...]:
        return (self.tool,)

    def mend(self, workflow: Workflow, ended: Ended) -> None:
        workflow.env["PATH"] = self._path
        shutil.rmtree(workflow.folder / "commands")


def families() -> dict[str, Callable[[random.Random], Fault]]:
    """Return how a fault of each family is drawn: of processes, the cluster, and its commands."""
    roles = [role for role in LONGEST_SEC if role not in ("index", "collect", "draw")]
    # A training that gets SIGTERM alone saves, and waits for the SIGKILL with which Slurm follows it.
    trains = {"training": (signal.SIGKILL, signal.SIGSTOP), "one process of two": (signal.SIGKILL, signal.SIGSTOP)}
    return {
        **{role: partial(Signal, role=role, numbers=trains.get(role, SIGNALS)) for role in roles},
        **{event: partial(Event, kind=event) for event in EVENTS},
        **{f"command {tool}": partial(BrokenTool, tool=tool) for tool in ("sbatch", "squeue")},
    }
