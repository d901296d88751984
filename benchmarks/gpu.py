"""Run the benchmarks that a GPU decides, each in a process of its own, and write one JSON and one Markdown file.

At most 40 minutes, on a GPU with 40 GB: an entry that is not done within its share is ended, and the files say so. An
entry that fails does not keep the others from being measured; the command fails at the end. With ``--dry-run``, every
entry runs on the CPU at toy size: it shows that all of them work, and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from engine import files
from engine.distributed import choose_device
from engine.training.provenance import provenance


class Entry(NamedTuple):
    """A benchmark with its options."""

    title: str
    module: str
    minutes: float
    """After which it is ended on a GPU."""
    options: str
    toy: str
    """In place of `options`, for a CPU at toy size."""


ENTRIES = (
    Entry(
        "Time and memory of each method's loss, beside an encoder step", "method_step", 10,
        "--model ViT-B-32 --batch 256 1024 --dim 512 --precision fp32 bf16 fp16 --rounds 9 --prototypes 4096",
        "--batch 32 --dim 8 --precision fp32 bf16 fp16 --rounds 1 --prototypes 16 --updates 1 "
        "--set neuclip.num_prototypes=16 neuclip.num_updates=1",
    ),
    Entry(
        "Against open_clip's trainer", "trainer_speed", 11,
        "--case ViT-B-32:256:16 RN50:256:16 --precision fp32 bf16 fp16 --workers 12 --seconds 60",
        "--case tiny-vit:16:2 --precision bf16 --workers 1 --seconds 0 --warmup 2",
    ),
    Entry(
        "Loader by its processes", "loader", 6,
        "--pairs 8192 --batches 16 --rounds 3 --workers 1 4 12 --cache warm",
        "--pairs 64 --shards 4 --stored-size 48 --image-size 24 --batch 16 --workers 1 --cache warm --rounds 1",
    ),
    Entry(
        "Evaluation", "evaluation", 5,
        "--datacomp 6000 --model ViT-B-32 --workers 8 --rounds 2",
        "--datacomp 1000 --model tiny-vit --workers 1 --rounds 1",
    ),
)  # fmt: skip
WITH_DEVICE = {"method_step", "trainer_speed", "evaluation"}


def command(entry: Entry, *, is_dry: bool) -> list[str]:
    """Return the command of an entry, without ``--json``."""
    options = shlex.split(entry.toy if is_dry else entry.options)
    device = ["--device", "cpu" if is_dry else "cuda"] if entry.module in WITH_DEVICE else []
    return ["python", "-m", f"benchmarks.{entry.module}", *device, *options]


def run(entry: Entry, *, is_dry: bool, folder: Path) -> dict[str, Any]:
    """Run an entry; returns its title, command and seconds, what it printed and wrote, and what went wrong."""
    words = command(entry, is_dry=is_dry)
    file, log = folder / f"{entry.module}.json", folder / f"{entry.module}.log"
    begin = time.monotonic()
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, *words[1:], "--json", str(file)],
            stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            printed, _ = process.communicate(timeout=60 * entry.minutes)
            problem = "" if process.returncode == 0 else "\n".join(log.read_text().splitlines()[-5:])
        except subprocess.TimeoutExpired:
            printed, problem = "", f"not done after {entry.minutes:g} minutes"
        finally:
            # Its loaders and trainers are of its session.
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    measured = json.loads(file.read_text()) if file.exists() and not problem else None
    about = {"title": entry.title, "command": shlex.join(words), "seconds": round(time.monotonic() - begin, 1)}
    return about | {"problem": problem, "printed": printed, "measured": measured}


def as_markdown(about: dict[str, Any], entries: list[dict[str, Any]]) -> str:
    """Return the page: the machine, then for every entry its command and tables."""
    versions = ", ".join(f"{name} {about['packages'][name]}" for name in ("torch", "open_clip_torch"))
    what = "A dry run, which measures nothing" if about["is_dry_run"] else "Benchmarks"
    lines = [f"# {what}: {about['device']}", "", f"{about['date']}; commit {about['commit']}; {versions}."]
    for entry in entries:
        lines += ["", f"## {entry['title']}", "", "```", entry["command"], "```", ""]
        lines.append(f"Failed: {entry['problem']}" if entry["problem"] else entry["printed"].strip())
        lines += ["", f"{entry['seconds']:.0f} s."]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Run all entries, write the two files, and exit with 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="the files, without .json and .md (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=[entry.module for entry in ENTRIES], help="some of the entries")
    parser.add_argument("--dry-run", action="store_true", help="at toy size on the CPU; measures nothing")
    args = parser.parse_args(argv)
    device = choose_device("cpu" if args.dry_run else "cuda")
    about = provenance(dataset_sha256="", device=device, world_size=1).model_dump(exclude={"dataset_sha256"})
    about = {"date": time.strftime("%Y-%m-%d"), "is_dry_run": args.dry_run, **about}
    entries = []
    with tempfile.TemporaryDirectory() as folder:
        for entry in ENTRIES:
            if args.only and entry.module not in args.only:
                continue
            entries.append(run(entry, is_dry=args.dry_run, folder=Path(folder)))
            outcome = entries[-1]["problem"] or "done"
            print(f"{entry.module}: {entries[-1]['seconds']:.0f} s, {outcome}", flush=True)
            # After every entry: what has been measured is kept, whatever comes after.
            files.write_text(args.out.with_suffix(".json"), json.dumps({**about, "entries": entries}, indent=1) + "\n")
            files.write_text(args.out.with_suffix(".md"), as_markdown(about, entries))
    if any(entry["problem"] for entry in entries):
        sys.exit(1)


if __name__ == "__main__":
    main()
