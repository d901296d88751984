"""Look at suites and runs: `list`, `explain RUN_ID`, `diff RUN_A RUN_B`; `expand SUITE` checks one."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from engine import paths
from engine.record import Record
from engine.spec import RunSpec, canonical_json, parse
from engine.suite import ExpandedSuite
from experiments import cards
from experiments.suite import expand


def write_expansion(suite: ExpandedSuite) -> None:
    """Write a suite's runs, their specs and its evaluation below `results/`; equal files are left untouched."""
    for run in suite.runs:
        paths.write_text(paths.spec(run.spec.run_id), run.spec.model_dump_json(indent=1) + "\n")
    evaluation = suite.evaluation
    paths.write_text(paths.evaluation(evaluation.key), evaluation.model_dump_json(indent=1) + "\n")
    paths.write_text(paths.suite(suite.name), suite.model_dump_json(indent=1) + "\n")


def _list(console: Console, names: list[str]) -> None:
    """Show suites; those that are named, with their runs."""
    table = Table("suite", "runs", "done", "data set", "title")
    runs = Table("run", "variant", "state")
    for name in names or cards.names("suites"):
        try:
            suite = expand(name)
        except ValueError as error:
            table.add_row(name, "", "", "", f"error: {error}")
            continue
        states = {run.spec.run_id: paths.record(run.spec.run_id).exists() for run in suite.runs}
        datasets = ", ".join(sorted({run.spec.dataset.name for run in suite.runs}))
        table.add_row(name, str(len(states)), str(sum(states.values())), datasets, suite.title)
        for run in suite.runs:
            runs.add_row(run.spec.run_id, run.variant, "done" if states[run.spec.run_id] else "to do")
    console.print(table)
    if names:
        console.print(runs)


def _read(run_id: str) -> RunSpec:
    path = paths.spec(run_id)
    if not path.exists():
        raise ValueError(f"no run {run_id!r} below {path.parent.parent}: `python -m experiments list SUITE` shows them")
    return parse(RunSpec, path.read_text(encoding="utf-8"), str(path))


def _flatten(value: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in _flatten(item, f"{prefix}{key}.").items()}
    return {prefix.removesuffix("."): canonical_json(value)}


def _explain(console: Console, run_id: str) -> None:
    table = Table(Column("setting", overflow="fold"), Column("value", overflow="fold"), title=run_id)
    for key, value in _flatten(_read(run_id).model_dump(mode="json")).items():
        table.add_row(key, value)
    console.print(table)
    path = paths.record(run_id)
    if not path.exists():
        console.print(f"not finished; folder {paths.run(run_id)}")
        return
    record = parse(Record, path.read_text(encoding="utf-8"), str(path))
    console.print(f"{record.status}; folder {paths.run(run_id)}")
    for sign in record.signatures:
        console.print(f"{sign.name} (steps {sign.first_step} to {sign.last_step}): {sign.advice}; {sign.evidence}")


def _diff(console: Console, first: str, second: str) -> None:
    left, right = (_flatten(_read(run_id).model_dump(mode="json")) for run_id in (first, second))
    table = Table(*(Column(title, overflow="fold") for title in ("setting", first, second)))
    for key in sorted(left.keys() | right.keys()):
        if left.get(key) != right.get(key):
            table.add_row(key, left.get(key, ""), right.get(key, ""))
    console.print(table if table.rows else "the two runs are the same")


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="suites and how many of their runs are done; of named suites, every run")
    listing.add_argument("suites", nargs="*", help="default: all")
    explaining = commands.add_parser("explain", help="every setting of a run")
    explaining.add_argument("run_id")
    differing = commands.add_parser("diff", help="settings in which two runs differ")
    differing.add_argument("run_a")
    differing.add_argument("run_b")
    expanding = commands.add_parser("expand", help="check suites and write their run specs (the workflow does it)")
    expanding.add_argument("suites", nargs="+")
    args = parser.parse_args(argv)
    console = Console()
    try:
        if args.command == "list":
            _list(console, args.suites)
        elif args.command == "explain":
            _explain(console, args.run_id)
        elif args.command == "diff":
            _diff(console, args.run_a, args.run_b)
        else:
            for name in args.suites:
                write_expansion(expand(name))
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
