"""Time of a dry run of the workflow, relative to one of a bare Snakemake workflow with as many jobs.

The bare workflow's jobs form chains of four, as training, evaluation, collecting and drawing do, and every rule is one
command without parameters. So the ratio is what our rules, their functions and the reading of suites add to Snakemake's
own time. Both take turns. Time is processor time. Suites are expanded before the first turn that counts.
"""

from __future__ import annotations

import functools
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks import cases

ROOT = Path(__file__).resolve().parents[1]
BARE = """
rule all:
    input: [f"draw/{chain}" for chain in range(config["jobs"] // 4)]
rule train:
    output: "train/{chain}"
    shell: "touch {output}"
rule evaluate:
    input: "train/{chain}"
    output: "evaluate/{chain}"
    shell: "touch {output}"
rule collect:
    input: "evaluate/{chain}"
    output: "collect/{chain}"
    shell: "touch {output}"
rule draw:
    input: "collect/{chain}"
    output: "draw/{chain}"
    shell: "touch {output}"
"""


def plan(folder: Path, *arguments: str) -> str:
    """Return what a dry run of Snakemake prints.

    Raises:
        RuntimeError: If it fails; with the end of its output.
    """
    command = [sys.executable, "-m", "snakemake", "-n", "-q", "rules", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def main(argv: list[str] | None = None) -> None:
    """Plan each group of suites and as many bare jobs, print a table, write the file."""
    parser = cases.parser(__doc__, "rounds", rounds=3)
    parser.add_argument(
        "--suites",
        nargs="+",
        default=["smoke", "cc3m,ablations@cc3m", "laptop,ablations@laptop,ablations@cc3m,ablations@dfn14m"],
        metavar="NAMES",
        help="groups, each with commas as in --config suites= (%(default)s)",
    )
    args = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    table = Table("suites", "jobs", "s", "ms a job", "/ bare")
    for suites in args.suites:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "bare").mkdir()
            (folder / "bare" / "Snakefile").write_text(BARE, encoding="utf-8")
            ours = ["--snakefile", str(ROOT / "Snakefile"), "--config", f"suites={suites}"]
            ours += ["--workflow-profile", str(ROOT / "profiles" / "default")]
            (total,) = set(re.findall(r"^total +(\d+)$", plan(folder, *ours), re.MULTILINE))
            jobs = int(total)
            turns = {
                "ours": functools.partial(plan, folder, *ours),
                "bare": functools.partial(plan, folder / "bare", "--config", f"jobs={jobs}"),
            }
            seconds = cases.take_turns(turns, args.rounds, unmeasured=0)
        ours_sec, bare_sec = ([turn.processor for turn in seconds[of]] for of in ("ours", "bare"))
        middle, to_bare = statistics.median(ours_sec), cases.ratio(ours_sec, bare_sec)
        rows.append(
            {"suites": suites, "jobs": jobs, "ours_sec": ours_sec, "bare_sec": bare_sec, "ours_to_bare": to_bare}
        )
        table.add_row(suites, str(jobs), f"{middle:.1f}", f"{1000 * middle / jobs:.2f}", cases.show_ratio(to_bare))
    cases.show(table)
    cases.write_json(args.json, args, cases.CPU, rows)


if __name__ == "__main__":
    main()
