"""Look at suites and runs, follow and end jobs, bring data and methods of your own, fetch data."""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from engine import errors, files, paths
from engine.jobs import scheduler
from engine.overview import overview
from engine.schema.base import parse, settings
from engine.schema.evaluation import TASK_METRICS
from engine.schema.record import Record
from engine.schema.run import RunSpec
from engine.schema.suite import ExpandedSuite
from engine.schema.written import parse_yaml
from experiments import check_method, jobs
from experiments.design import expansion, names, tuning
from experiments.design.answers import Answers
from experiments.design.suite import expand
from experiments.fetch import training
from experiments.tensorboard import mirror
from experiments.watch import Watcher, show, watch

GROUPS = {
    "See what there is to run, and what was run": ("list", "plan", "explain", "diff"),
    "Follow what runs, end it, do it again": ("watch", "jobs", "cancel", "retrain", "tensorboard"),
    "Bring your own": ("card", "check-method"),
    "Get data": ("training-data", "evaluation-data"),
    "Called by the workflow": ("expand", "choose"),
}
"""Commands by what one wants to do."""

PIPE_COLUMNS = 180
"""Width of what is printed into a pipe."""


def _list(console: Console, args: argparse.Namespace) -> None:
    """Show suites, and the ablations of the small one; those that are named, with their runs."""
    asked: list[str] = args.suites
    # One line a suite, with as much of the title as there is room for; those that are named have all of theirs.
    title = Column("title", ratio=1) if asked else Column("title", ratio=1, no_wrap=True, overflow="ellipsis")
    table = Table(*(Column(name, no_wrap=True) for name in ("suite", "runs", "done")), title, expand=True)
    runs = Table(Column("run", no_wrap=True), "variant", "state")
    claims: list[str] = []
    found: list[dict[str, Any]] = []
    with Answers.of_folder() as answers:
        for name in names.resolve(asked or [*names.suites(), *names.tunings(), "ablations"]):
            try:
                suite = expand(name, answers)
            except ValueError as error:
                table.add_row(name, "", "", f"wrong: {errors.describe(error)}")
                found.append({"name": name, "error": errors.describe(error)})
                continue
            states = {
                run.spec.run_id: "done" if paths.record(run.spec.run_id).exists() else "to do" for run in suite.runs
            }
            shown = name if asked else name.removesuffix(f"@{names.BASE}")
            table.add_row(shown, str(len(states)), str(list(states.values()).count("done")), suite.title)
            rows = [(run.spec.run_id, run.variant, states[run.spec.run_id]) for run in suite.runs]
            for row in rows:
                runs.add_row(*row)
            claimed = list(map(str, suite.hypotheses))
            claims.extend(f"{shown} claims {one}" for one in claimed)
            datasets = sorted({run.spec.dataset.name for run in suite.runs})
            listed = [dict(zip(("run_id", "variant", "state"), row, strict=True)) for row in rows]
            found.append(
                {"name": name, "title": suite.title, "datasets": datasets, "hypotheses": claimed, "runs": listed}
            )
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        console.print(table)
        if asked:
            console.print(runs)
            for claim in claims:
                console.print(claim)
        else:
            console.print(f"Any ablation applies to any suite: {names.ABLATION}WHAT@SUITE.")
            console.print("ablations@SUITE is all of them, but for those that say by_name_only.")
        if not paths.run("").exists():
            console.print(f"No run lies in {paths.run('').absolute()}: what is done elsewhere is seen there.")
    if any("error" in each for each in found):
        sys.exit(1)


def _plan(console: Console, args: argparse.Namespace) -> None:
    from experiments import plan, workflow  # here: the first imports open_clip, which takes seconds

    suites = list(expansion.load(args.suites or names.suites()).values())
    words = (word.partition("=") for word in args.config)
    config = {key: parse_yaml(value, f"--config {key}") for key, _, value in words}
    found = plan.make(suites, workflow.place_of(config)[1])
    if args.json:
        print(found.model_dump_json(indent=1))
    else:
        plan.show(found, console)


def _run_id(text: str) -> str:
    """Return a run's id, which may be given as the run's folder, as a shell completes it."""
    if not Path(text).name:
        raise argparse.ArgumentTypeError(f"came {text!r}, allowed is a run's id or folder")
    return Path(text).name


def _read(run_id: str) -> RunSpec:
    path = paths.spec(run_id)
    if not path.exists():
        close = difflib.get_close_matches(run_id, [each.name for each in paths.run("").glob("*")], n=1)
        meant = f"; did you mean {close[0]!r}?" if close else ":"
        raise ValueError(
            f"no run {run_id!r} below {paths.run('')}{meant} `python -m experiments list SUITE` shows them"
        )
    return parse(RunSpec, files.read_text(path), str(path))


def _explain(console: Console, args: argparse.Namespace) -> None:
    run_id, spec = args.run_id, _read(args.run_id)
    if args.json:
        print(spec.model_dump_json(indent=1))
        return
    table = Table(Column("setting", no_wrap=True), Column("value", overflow="fold"), title=run_id)
    for key, value in settings(spec).items():
        table.add_row(key, value)
    console.print(table)
    path = paths.record(run_id)
    if not path.exists():
        console.print(f"not finished; folder {paths.run(run_id)}")
        return
    record = parse(Record, files.read_text(path), str(path))
    console.print(f"{record.status}; folder {paths.run(run_id)}")
    if (end := record.divergence) is not None:
        console.print(f"{end}; first positions of the batch {', '.join(map(str, end.indices))}")
    for sign in record.signatures:
        console.print(f"{sign.name} (steps {sign.first_step} to {sign.last_step}): {sign.advice}; {sign.evidence}")


def _diff(console: Console, args: argparse.Namespace) -> None:
    first, second = args.run_a, args.run_b
    left, right = (settings(_read(run_id)) for run_id in (first, second))
    differ = {key: (left.get(key), right.get(key)) for key in sorted(left.keys() | right.keys())}
    differ = {key: values for key, values in differ.items() if values[0] != values[1]}
    if args.json:
        print(json.dumps({key: {first: a, second: b} for key, (a, b) in differ.items()}, indent=1))
        return
    table = Table(Column("setting", no_wrap=True), *(Column(run_id, overflow="fold") for run_id in (first, second)))
    for key, values in differ.items():
        table.add_row(key, *(value or "" for value in values))
    console.print(table if table.rows else "the two runs are the same")


def _load(asked: list[str]) -> list[ExpandedSuite]:
    """Return suites by name; without names those of which any run has been started in this folder, as they were."""
    if asked:
        return list(expansion.load(asked).values())
    suites = [suite for suite in expansion.written() if any(_is_started(run.spec.run_id) for run in suite.runs)]
    if not suites:
        raise ValueError(f"no run of a suite has been started here (none in {paths.suite('').parent}): name a suite")
    return suites


def _is_started(run_id: str) -> bool:
    return any(path.exists() for path in (paths.attempts(run_id), paths.jobs(run_id), paths.record(run_id)))


def _watch(console: Console, args: argparse.Namespace) -> None:
    suites = _load(args.suites)
    if args.json:
        print(Watcher(suites).look().model_dump_json(indent=1))
    elif sys.stdout.isatty() and not args.once:
        watch(suites, console, every_sec=args.every)
    else:
        console.print(show(Watcher(suites).look(), width=console.width))


def _jobs(console: Console, args: argparse.Namespace) -> None:
    """Show the jobs that are queued, running or failed; of named suites, all."""
    views, asked = jobs.look(), args.suites
    if asked:
        of_suites = jobs.outputs(_load(asked))
        shown = [view for view in views if view.folder in of_suites]
    else:
        shown = jobs.in_need(views, expansion.written())
    console.print(jobs.show(shown, width=console.width) if shown else "no jobs")
    if not asked and len(shown) < len(views):
        console.print(f"{len(views) - len(shown)} jobs that have ended are not shown: name suites to see theirs")


def _cancel(console: Console, args: argparse.Namespace) -> None:
    for job in jobs.cancel(args.names):
        console.print(f"cancelled job {job.job_id} ({job.name})")


def _retrain(console: Console, args: argparse.Namespace) -> None:
    """Move runs away, so that the workflow trains them again."""
    for run_id in args.run_ids:
        _read(run_id)
        state = scheduler.run_state(run_id)
        if state in ("pending", "running"):
            raise ValueError(f"run {run_id} is {state}: `python -m experiments cancel {run_id}` ends its job")
    suites = {suite.name: {run.spec.run_id for run in suite.runs} for suite in expansion.written()}
    for run_id in dict.fromkeys(args.run_ids):
        place = paths.replaced(run_id)
        place.parent.mkdir(parents=True, exist_ok=True)
        paths.run(run_id).rename(place)
        console.print(f"moved {paths.run(run_id)} to {place}", soft_wrap=True)
    of = [name for name, runs in suites.items() if runs.intersection(args.run_ids)] or ["SUITE"]
    console.print(f"to train anew: snakemake --config suites={','.join(of)}", soft_wrap=True)


def _expand(console: Console, args: argparse.Namespace) -> None:
    for suite in expansion.load(args.suites).values():
        expansion.write(suite)


def _tensorboard(console: Console, args: argparse.Namespace) -> None:
    look = f"tensorboard --logdir {args.out}"
    if args.follow:
        print(look, flush=True)
    found = mirror(_load(args.suites), args.out, every_sec=args.every if args.follow else None)
    if not found:
        raise ValueError("none of these runs has logged anything yet")
    if not args.follow:
        print(look)


def _fetch(console: Console, args: argparse.Namespace) -> None:
    try:
        if args.command == "training-data":
            training.run(args.name, console, anew=args.crawl)
        else:
            from experiments.fetch import evaluation  # here: it imports huggingface_hub, which takes seconds

            evaluation.run(args.names, console, dry_run=args.dry_run, pin_cards=args.pin)
    except KeyboardInterrupt:
        sys.exit("stopped; what came so far is kept: run this again to go on")


def _check_method(console: Console, args: argparse.Namespace) -> None:
    missing = [name for name in ("pytest", "hypothesis") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"{' and '.join(missing)} not installed: run `pip install -e '.[dev]'`")
    with console.status("holding it to all rules, about a minute"):
        keeps_all, told = check_method.check(args.reference, raw=args.pytest)
    for line in told:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    sys.exit(not keeps_all)


def _card(console: Console, args: argparse.Namespace) -> None:
    from experiments import draft  # here: it imports numpy

    told = draft.write(args.folder, args.out, captions=args.captions, task=args.task, split=args.split)
    for line in told:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _choose(console: Console, args: argparse.Namespace) -> None:
    for name, suite in expansion.load(args.suites).items():
        path = names.split(name).tuned
        tuning.write(tuning.choose(suite), path)
        console.print(f"wrote {path}", soft_wrap=True)


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def command(name: str, call: Callable[[Console, argparse.Namespace], None], help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help)
        added.set_defaults(call=call)
        return added

    listing = command("list", _list, "suites and how many of their runs are done; of named suites, every run")
    listing.add_argument("suites", nargs="*", help="default: all")
    planning = command("plan", _plan, "what suites still ask for: runs, hours, disk, data that are missing")
    planning.add_argument("suites", nargs="*", help="or ablation_WHAT@, ablations@, tuning@SUITE (default: all)")
    planning.add_argument(
        "--config", nargs="+", default=[], metavar="KEY=VALUE", help="where it is to run, as for snakemake"
    )
    explaining = command("explain", _explain, "every setting of a run")
    explaining.add_argument("run_id", type=_run_id, metavar="RUN_ID", help="or its folder")
    differing = command("diff", _diff, "settings in which two runs differ")
    differing.add_argument("run_a", type=_run_id, metavar="RUN_A")
    differing.add_argument("run_b", type=_run_id, metavar="RUN_B")
    for each in (listing, planning, explaining, differing):
        each.add_argument("--json", action="store_true", help="print it as JSON")
    showing = command("jobs", _jobs, "jobs that are queued, running or failed; of named suites, every job")
    showing.add_argument("suites", nargs="*", help="default: all")
    cancelling = command("cancel", _cancel, "end the jobs of runs; what they saved is kept")
    cancelling.add_argument("names", nargs="+", type=_run_id, metavar="RUN_ID", help="or the name of a single job")
    retraining = command("retrain", _retrain, "move finished runs away, so that `snakemake` trains them again")
    retraining.add_argument("run_ids", nargs="+", type=_run_id, metavar="RUN_ID")
    expanding = command("expand", _expand, "check suites and write their run specs (the workflow does it)")
    expanding.add_argument("suites", nargs="+")
    watching = command("watch", _watch, "how far the runs of suites are, until all are done or Ctrl-C")
    watching.add_argument("--once", action="store_true", help="show it once (as it does when not on a terminal)")
    watching.add_argument("--json", action="store_true", help="print it once, as JSON")
    mirroring = command("tensorboard", _tensorboard, "write what runs have logged in TensorBoard's format")
    mirroring.add_argument("--out", type=Path, default=paths.tensorboard(), help="folder (default: %(default)s)")
    mirroring.add_argument("--follow", action="store_true", help="go on with what comes, until Ctrl-C")
    for each in (watching, mirroring):
        each.add_argument("suites", nargs="*", help="default: those with a run that was started in this folder")
        each.add_argument("--every", type=float, default=5.0, metavar="SEC", help="how often it looks")
    fetching = command("evaluation-data", _fetch, "fetch what is missing of evaluation sets")
    fetching.add_argument("names", nargs="+", help="evaluations or single sets, by name or by file")
    fetching.add_argument("--dry-run", action="store_true", help="only say what is missing, and how much it is")
    fetching.add_argument("--pin", action="store_true", help="write the commits that were found into the cards")
    downloading = command("training-data", _fetch, "fetch a training set as its card says")
    downloading.add_argument("name", help="a card of experiments/datasets/")
    downloading.add_argument("--crawl", action="store_true", help="from the links of its pictures, not from a copy")
    choosing = command("choose", _choose, "write what tunings have chosen (`snakemake tune` does it)")
    choosing.add_argument("suites", nargs="+", metavar="tuning@SUITE")
    checking = command("check-method", _check_method, "hold a method of your own to what the tests ask of ours")
    checking.add_argument("reference", metavar="FILE.py:CLASS")
    checking.add_argument("--pytest", action="store_true", help="show all that pytest says")
    carding = command("card", _card, "write the card of a folder: a training set's shards, or an evaluation set")
    carding.add_argument("folder", type=Path, metavar="FOLDER")
    carding.add_argument("--out", type=Path, metavar="NAME.yaml", help="default: as the folder is called, here")
    carding.add_argument("--captions", metavar="MEMBER[:FIELD]", help="of a training set, where several could be meant")
    carding.add_argument("--task", choices=tuple(TASK_METRICS), help="of an evaluation set, if it is another")
    carding.add_argument("--split", default="test", help="of an evaluation set (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.command is None:
        print(overview(parser.prog, commands.choices, GROUPS))
        return
    with errors.explained():
        width = None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", PIPE_COLUMNS))
        # Titles and names are shown as they are: brackets in them are no markup, words in colons no emoji.
        args.call(Console(width=width, markup=False, emoji=False), args)


if __name__ == "__main__":
    main()
