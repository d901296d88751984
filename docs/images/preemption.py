"""Draw preemption.svg: what one training went through on a Slurm that this script starts and disturbs.

``python docs/images/preemption.py`` takes some minutes and writes what it observed, five times a second or oftener, to
preemption.json: the job's state as squeue says it, the steps in metrics.jsonl, the checkpoints on disk, when the
launcher ran. ``--draw`` only draws that again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "slurm"), str(ROOT / "tests")]

from login_node import Checkout, Training, output_of, wait_for  # noqa: E402
from one_machine_slurm import PACKAGES, OneMachineSlurm  # noqa: E402
from support import debian  # noqa: E402
from support.checkout import NOT_COPIED  # noqa: E402

from analysis import style  # noqa: E402
from engine import paths  # noqa: E402

NUM_STEPS = 1200
SUITE = f"""
title: One run that is long enough to be disturbed
dataset: scenes_tiny
model: tiny-vit
evaluation: scenes_tiny
seeds: [0]
training: {{global_batch_size: 64, samples_seen: {64 * NUM_STEPS}, augmentation: {{kind: shift}}}}
methods:
  neuclip:
    options: {{num_prototypes: 128, restart_period: 20, num_updates: 3, rho: 2.0}}
"""
SAVE_EVERY_SEC = 4
COLORS = {"PENDING": "#cccccc", "RUNNING": style.KNOWN["fastclip"].color, "other": style.KNOWN["amorlip"].color}
LANE = {"launcher": 1, "job": 0}
OBSERVED = Path(__file__).with_suffix(".json")


class Observer:
    """Notes, in a thread of its own until it is told to stop, how the run stands."""

    def __init__(self, run: Training) -> None:
        self.training, self.start_sec = run, time.monotonic()
        self.states: list[tuple[float, str]] = []
        self.steps: list[tuple[float, int]] = []
        self.saved: dict[int, float] = {}
        self.events: list[tuple[float, str]] = []
        self.launcher: list[list[float]] = []
        self.done = False
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def seen(self) -> dict[str, Any]:
        """All that was noted, as JSON; of what stays equal, the first and the last look."""
        series = {"states": _changes(self.states), "steps": _changes(self.steps)}
        return {**series, "saved": sorted(self.saved.items()), "events": self.events, "launcher": self.launcher}

    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start_sec

    def note(self, event: str) -> None:
        """Mark this moment."""
        self.events.append((self.now(), event))

    def _watch(self) -> None:
        asked_at = -1.0
        while not self.done:
            now = self.now()
            if now - asked_at > 0.2:
                asked_at = now
                state = self.training.state
                if state:
                    self.states.append((now, state))
            self.steps.append((now, self.training.step))
            for path in (self.training.folder / "checkpoints").glob("step-*.json"):
                self.saved.setdefault(int(path.stem.removeprefix("step-")), now)
            time.sleep(0.02)


def _changes(series: list[tuple[float, Any]]) -> list[tuple[float, Any]]:
    inner = zip(series, series[1:], series[2:], strict=False)
    kept = [here for before, here, after in inner if not before[1] == here[1] == after[1]]
    return [(round(at, 2), value) for at, value in [series[0], *kept, series[-1]]]


def observe(folder: Path) -> dict[str, Any]:
    """Run one training and disturb it three times."""
    checkout = prepared(folder / "checkout")
    with OneMachineSlurm(folder / "slurm") as slurm:
        checkout.slurm, checkout.env = slurm, slurm.env
        execution = {"log_every_steps": 1, "save_every_min": SAVE_EVERY_SEC / 60}
        checkout.write_cluster(execution=execution)
        (run_folder,) = (checkout.folder / paths.RESULTS / "runs").iterdir()
        run = Training(checkout, run_folder.name)
        command = ("--profile", "slurm", run.record, "--config", "cluster=one_machine.yaml", "suites=long")
        observer = Observer(run)
        process = checkout.start(*command)
        observer.launcher.append([observer.now()])

        wait_for("steps", lambda: run.step > 0.2 * NUM_STEPS, every_sec=0.02)
        observer.note("preempted: SIGTERM,\nsaves at once")
        urgent = ("sbatch", "--partition", "urgent", "--exclusive", "--nodes", "2", "--chdir", str(slurm.folder))
        slurm.run(*urgent, "--wrap", "sleep 3")

        wait_for("steps", lambda: len(run.attempts) == 2 and run.step > 0.45 * NUM_STEPS, every_sec=0.02)
        os.killpg(process.pid, signal.SIGKILL)
        for pid in checkout.login_processes():
            os.kill(pid, signal.SIGKILL)
        observer.launcher[-1].append(observer.now())
        observer.note("kill -9 of Snakemake\nand its launchers")
        time.sleep(4)
        output_of(checkout.start("--unlock", *command[3:]))
        process = checkout.start(*command)
        observer.launcher.append([observer.now()])
        observer.note("started again:\nwaits for the same job")

        wait_for("steps", lambda: run.step > 0.8 * NUM_STEPS, every_sec=0.02)
        observer.note("power loss: back to\nthe last save")
        node = slurm.run("squeue", "-h", "-o", "%N", "-j", run.job)
        slurm.fail_node(node)
        slurm.restore_node(node)
        output_of(process)
        observer.launcher[-1].append(observer.now())
        observer.done = True
        observer.thread.join()
        assert len(run.attempts) == 3
        return observer.seen()


def prepared(folder: Path) -> Checkout:
    """Copy the checkout and build the data."""
    shutil.copytree(ROOT, folder, ignore=NOT_COPIED)
    (folder / "experiments" / "suites" / "long.yaml").write_text(SUITE)
    checkout = Checkout(folder)
    checkout.run(str(paths.index("scenes_tiny")), "--config", "suites=long")
    return checkout


@style.paper
def draw(seen: dict[str, Any]) -> Figure:
    """Above, the launcher's process and the job's state; below, the steps that are done and those that are saved."""
    figure = Figure(figsize=(style.PAGE_IN, 3.0))
    lanes, curve = figure.subplots(2, 1, sharex=True, height_ratios=(1, 4))
    _draw_lanes(lanes, seen)
    curve.plot(*zip(*seen["steps"], strict=True), color=style.KNOWN["neuclip"].color, linewidth=1.4, label="done")
    saved, at = zip(*seen["saved"], strict=True)
    curve.plot(at, saved, "o", color=style.INK, markersize=2.5, label="saved")
    curve.set(xlabel="Seconds since Snakemake was started", ylabel="Steps", xlim=(0, None), ylim=(0, None))
    for number, (at, event) in enumerate(seen["events"]):
        for axes in (lanes, curve):
            axes.axvline(at, color=style.MUTED, linewidth=0.7, linestyle=(0, (3, 2)), zorder=1)
        place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        curve.annotate(event, (at, 0.03 + 0.14 * (number % 3)), (3, 0), fontsize=6, **place)
    curve.legend(loc="upper left")
    return figure


def _draw_lanes(axes: Axes, seen: dict[str, Any]) -> None:
    for start, end in seen["launcher"]:
        axes.barh(LANE["launcher"], end - start, left=start, height=0.6, color=style.KNOWN["openclip"].color)
    ends = [at for at, _ in seen["states"][1:]] + [seen["launcher"][-1][-1]]
    for (start, state), end in zip(seen["states"], ends, strict=True):
        color = COLORS.get(state, COLORS["other"])
        axes.barh(LANE["job"], end - start, left=start, height=0.6, color=color)
    axes.set_yticks(list(LANE.values()), list(LANE))
    axes.grid(False)
    patches = [Patch(color=color, label=state.lower()) for state, color in COLORS.items()]
    axes.legend(handles=patches, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(patches), borderaxespad=0.1)
    axes.set_title("One training, disturbed three times")


def main() -> None:
    """Observe and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draw", action="store_true", help="only draw what was observed before")
    if not parser.parse_args().draw:
        debian.install(PACKAGES)
        with tempfile.TemporaryDirectory() as folder:
            OBSERVED.write_text(json.dumps(observe(Path(folder))) + "\n")
    draw(json.loads(OBSERVED.read_text())).savefig(Path(__file__).with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
