"""Play rounds: some faults one after another in a folder, the same command until all is done, and what must hold.

What is promised of every round is in `Round.play`; a broken promise is a `BrokenPromiseError` that says which round
repeats it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from chaos import faults, on_slurm
from chaos.faults import Fault
from chaos.workflow import DRAWN, METHODS, Ended, Workflow, World

LONGEST_SEC = 600
"""A command that takes longer hangs."""
FAULTS = 8
"""Of a round."""
ROUNDS = os.environ.get("CHAOS_ROUNDS")
FIRST_SEED, REPORT = int(os.environ.get("CHAOS_SEED", "0")), os.environ.get("CHAOS_REPORT")
TRIES = 4
"""Commands without a fault within which all is done."""
LOCKED = "Directory cannot be locked"
_TRACEBACK = re.compile(r"^Traceback \(most recent call last\):$", re.MULTILINE)


class BrokenPromiseError(AssertionError):
    """Something did not hold; says the round and how to repeat it."""


def draw(seed: int, families: Sequence[str]) -> list[str]:
    """Draw the families of a round's faults: one after another of all, in an order that changes when all have been."""
    turn, place = divmod(seed * FAULTS, len(families))
    orders = [random.Random(number).sample(families, len(families)) for number in (turn, turn + 1)]
    return [*orders[0], *orders[1]][place : place + FAULTS]


def seeds(rounds: int) -> range:
    """Return the seeds of the rounds of a test run: of so many, where nobody asks for others."""
    return range(FIRST_SEED, FIRST_SEED + int(ROUNDS or rounds))


@contextlib.contextmanager
def disk(folder: Path) -> Iterator[None]:
    """Let a new folder be a disk of its own, where this user may mount one; what fails on it is kept beside it."""
    folder.mkdir(parents=True)
    if faults.lacks_mounts():
        yield
        return
    faults.mount("-t", "tmpfs", "-o", f"size={faults.ROOM_BYTES}", "tmpfs", str(folder))
    try:
        yield
    except BaseException:
        shutil.copytree(folder, folder.with_name("broken"), symlinks=True)
        raise
    finally:
        subprocess.run(["umount", "--lazy", "--recursive", str(folder)], check=False)


class Round:
    """Faults one after another in one folder.

    Args:
        world: What to strike.
        folder: A folder that is not there yet.
        seed: Of all that is drawn.
        families: Families of the faults, in order.
        slurm: The cluster; None is this machine.
    """

    def __init__(self, world: World, folder: Path, seed: int, families: Sequence[str], slurm: Any = None) -> None:
        self.workflow, self.seed = Workflow(world, folder, slurm), seed
        draw = on_slurm.families() if slurm else faults.families()
        self.faults = [
            (name, draw[name](random.Random(f"{seed} {number} {name}"))) for number, name in enumerate(families)
        ]
        self._now = ""

    def play(self) -> None:
        """Strike, repeat the command until all is done, and compare with the undisturbed workflow.

        Raises:
            BrokenPromiseError: If a command hangs, fails where it must not or without a clear error, trains again what
                was saved, is not done in the end, gives other results, or leaves something behind.
        """
        workflow = self.workflow
        workflow.begin()
        try:
            for number, (family, fault) in enumerate(self.faults, start=1):
                self._now = f"fault {number}, {fault.kind}"
                self._strike(family, fault)
            self._now = "after all faults"
            self._finish()
        except BrokenPromiseError as error:
            self._note(what="round", is_kept=False, error=str(error))
            raise
        else:
            self._note(what="round", is_kept=True)
        finally:
            workflow.kill_all()

    def _strike(self, family: str, fault: Fault) -> None:
        begin, workflow = time.monotonic(), self.workflow
        fault.prepare(workflow)
        try:
            ended = self._run(fault)
        except BaseException:
            fault.mend(workflow, Ended(1, ""))
            raise
        words = fault.words(workflow)
        fault.mend(workflow, ended)
        self._note(
            what="fault",
            family=family,
            how=fault.how,
            about=fault.about,
            has_struck=fault.has_struck,
            code=ended.code,
            seconds=round(time.monotonic() - begin, 1),
        )
        if ended.code and not fault.may_fail:
            self._break(f"the command failed ({ended.code})", ended)
        if ended.code and words and not any(word in ended.output for word in words):
            self._break(f"the error names none of {', '.join(words)}", ended)
        if (other := fault.other) is not None:
            if _TRACEBACK.search(other.output):
                self._break("the second command shows a traceback", other)
            if other.code and not fault.may_fail and LOCKED not in other.output:
                self._break("the second command failed in another way than by the lock", other)

    def _finish(self) -> None:
        for _ in range(TRIES):
            ended = self._run(Fault())
            if ended.code == 0:
                break
        if ended.code:
            self._break(f"the command is not done after {TRIES} tries", ended)
        again = self._run(Fault())
        if "Nothing to be done" not in again.output:
            self._break("a command after the last one still has something to do", again)
        for wrong in (*self.workflow.differences(), *self.workflow.leftovers()):
            self._break(wrong, ended)

    def _run(self, fault: Fault) -> Ended:
        """Run the command, with a fault; of the lock that a killed Snakemake leaves, do what the documentation says."""
        ended = self._run_once(fault)
        if ended.code < 0:
            unlocked = self.workflow.start("--unlock").wait()
            if unlocked.code:
                self._break("--unlock failed", unlocked)
        return ended

    def _run_once(self, fault: Fault) -> Ended:
        workflow = self.workflow
        before = {
            method: (workflow.starts(method), workflow.saved(method), workflow.is_trained(method)) for method in METHODS
        }
        command = workflow.start()
        deadline, is_over = time.monotonic() + LONGEST_SEC, False
        while command.is_running():
            is_over = is_over or fault.watch(workflow)
            if time.monotonic() > deadline:
                running = "\n".join(f"{process.role}: {process.text[:200]}" for process in workflow.processes())
                workflow.kill_all()
                self._break(f"the command hangs; after {LONGEST_SEC} s there were\n{running}", command.wait())
            time.sleep(faults.POLL_SEC)
        ended = command.wait()
        if ended.code == 0 and not (workflow.folder / DRAWN).is_file():
            self._break("the command says that it is done, and nothing is drawn", ended)
        if _TRACEBACK.search(ended.output) and not fault.explains_traceback(ended.output):
            self._break("the command shows a traceback", ended)
        for method, (starts, saved, is_trained) in before.items():
            now = workflow.starts(method)
            if starts is None or now is None or (method in workflow.may_train_again and is_trained):
                continue
            new = now[len(starts) :]
            if new and is_trained:
                self._break(f"{method} was done, and is trained again from step {new[0]}", ended)
            if new != sorted(new) or (new and new[0] < saved):
                self._break(f"{method} had saved step {saved}, and started from {new}", ended)
        workflow.may_train_again.clear()
        return ended

    def _break(self, what: str, ended: Ended) -> None:
        place = "tests/slurm/test_chaos_on_slurm.py" if self.workflow.slurm else "tests/chaos"
        drawn = "; ".join(f"{fault.kind} ({fault.about})" for _, fault in self.faults)
        raise BrokenPromiseError(
            f"round {self.seed}, {self._now}: {what}\nfaults: {drawn}\n"
            f"repeat: CHAOS_SEED={self.seed} CHAOS_ROUNDS=1 pytest {place}\nthe command said:\n{ended.output[-5000:]}"
        )

    def _note(self, **facts: Any) -> None:
        if REPORT is not None:
            line = json.dumps({"seed": self.seed, "where": "slurm" if self.workflow.slurm else "local", **facts}) + "\n"
            descriptor = os.open(REPORT, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            with open(descriptor, "a", encoding="utf-8") as file:
                file.write(line)
