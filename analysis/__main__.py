"""Command line: collect results, write tables, figures and reports, print, check and compare them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from analysis import artifacts, collect, comparison, draw, frame, rendering, staleness
from analysis.report import content, page
from engine import errors, files, paths
from engine.overview import overview
from engine.schema.suite import ABLATION, TUNING

CELL_WIDTH = 16
"""Characters that a column of the table takes in the terminal, about."""

EPILOG = """\
examples:
  python -m analysis collect results/suites/quickstart.json --out results/collected/quickstart.parquet
  python -m analysis draw results/collected/quickstart.parquet --out results
  python -m analysis table results/collected/quickstart.parquet main_results --out results/tables/quickstart
  python -m analysis figure results/collected/quickstart.parquet training_curves --out results/figures/quickstart
  python -m analysis report quickstart --out results/reports/quickstart.html
  python -m analysis publish results/collected/quickstart.parquet main_results headroom --out docs/results
  python -m analysis show results
  python -m analysis check
  python -m analysis compare results /other/checkout/results
"""


GROUPS = {
    "Read what came out": ("show", "report", "check"),
    "Draw again": ("collect", "draw", "table", "figure"),
    "Compare and publish": ("compare", "publish"),
}
"""Commands by what one wants to do."""


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    top = argparse.ArgumentParser(
        prog="python -m analysis",
        description="Turn results into a tidy frame, tables and figures. Run it where the folder 'results' is.",
        epilog=f"tables:  {', '.join(artifacts.tables())}\nfigures: {', '.join(artifacts.figures())}\n\n{EPILOG}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND")

    def command(name: str, help: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=help, description=help)

    one = command("collect", help="check all results of a suite and write them as one tidy frame")
    one.add_argument("suite", type=Path, metavar="SUITE_JSON", help="the expanded suite, results/suites/<suite>.json")
    one.add_argument("--out", type=Path, required=True, metavar="PARQUET", help="file to write")
    one = command("draw", help="write all tables and figures that a frame has something for")
    one.add_argument("frame", type=Path, metavar="PARQUET", help="the collected frame")
    one.add_argument("--out", type=Path, required=True, metavar="RESULTS", help="results folder to write to")
    for form, names in {"table": artifacts.tables(), "figure": artifacts.figures()}.items():
        one = command(form, help=f"write one {form} in all formats, with its sidecar")
        one.add_argument("frame", type=Path, metavar="PARQUET", help="the collected frame")
        one.add_argument("id", metavar="ID", choices=names, help=f"one of: {', '.join(names)}")
        one.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    one = command("report", help="write all that suites say as one HTML file that needs no network")
    one.add_argument("suites", nargs="+", metavar="SUITE", help="a collected suite, as in results/collected")
    one.add_argument("--out", type=Path, required=True, metavar="HTML", help="file to write")
    one = command(
        "publish", help="keep a collected frame, with tables (.md) and figures (.svg) drawn from it, to be committed"
    )
    one.add_argument("frame", type=Path, metavar="PARQUET", help="the collected frame")
    one.add_argument(
        "ids", nargs="*", metavar="ID", help="tables and figures to add; those that are there are drawn again"
    )
    one.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to, such as docs/results")
    one = command("show", help="print the main table, and where all tables, figures and reports are")
    one.add_argument(
        "places", type=Path, nargs="+", metavar="PLACE", help="a collected frame, a report, or the results folder"
    )
    command("check", help="name all that is missing, and what is older than its records; status 1 if there is any")
    one = command("compare", help="say what differs between two results folders beyond noise, as Markdown")
    one.add_argument("a", type=Path, metavar="RESULTS_A", help="a results folder, or docs/results")
    one.add_argument("b", type=Path, metavar="RESULTS_B", help="another one: another commit, another cluster")
    one.add_argument("--json", action="store_true", help="all numbers, for programs")
    top.set_defaults(commands=commands.choices)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command; a known problem ends it with one message and status 1."""
    args = parser().parse_args(argv)
    try:
        if args.command is None:
            print(overview("python -m analysis", args.commands, GROUPS))
        elif args.command == "collect":
            frame.write(collect.collect(args.suite), args.out)
        elif args.command == "draw":
            draw.draw(args.frame, args.out)
        elif args.command in ("table", "figure"):
            if not rendering.write(args.command, frame.read(args.frame), args.id, args.out):
                raise ValueError(
                    f"{args.frame}: nothing in it for the {args.command} {args.id}; {args.out} is as it was"
                )
        elif args.command == "publish":
            publish(args.frame, args.ids, args.out)
        elif args.command == "report":
            files.write_text(args.out, page.render(content.gather(args.suites)))
        elif args.command == "show":
            show(args.places)
        elif args.command == "compare":
            found = comparison.compare(args.a, args.b)
            print(json.dumps(comparison.to_json(found), indent=2) if args.json else comparison.report(found))
        else:
            return check()
    except errors.KNOWN as error:
        print(f"error: {errors.describe(error)}", file=sys.stderr)
        return 1
    return 0


def publish(source: Path, ids: list[str], folder: Path) -> None:
    """Write tables and figures into the folder ``<suite>``, and the rows they are drawn from as ``<suite>.parquet``.

    What is there already is drawn again: all of it must come of the rows that are kept.
    """
    rows, drawn = frame.read(source), folder / source.stem
    names = sorted({*ids, *(path.stem for path in drawn.glob("*.*"))})
    if not names:
        raise FileNotFoundError(f"{drawn}: nothing is drawn here; name the tables and figures to draw")
    frame.write(rendering.publish(rows, names, drawn), folder / source.name)


def check() -> int:
    """Print the names of files that are missing or out of date; return 1 if there are any."""
    found = staleness.stale()
    if not found:
        print("nothing is missing; every collected frame, table and figure shows what the records say")
        return 0
    print("\n".join(line for lines in found.values() for line in lines))
    print(f"to make it again: snakemake --config suites={','.join(found)}")
    return 1


def show(places: list[Path]) -> None:
    """Print the first table of each collected suite at `places`, the files drawn from them, and where reports are."""
    frames = list(_files(places, "collected/*.parquet"))
    reports = list(_files(places, "reports/*.html"))
    if not frames and not reports:
        raise FileNotFoundError(f"{', '.join(map(str, places))}: nothing is collected here; run: snakemake")
    console = Console()
    for file in frames:
        table = rendering.build_table(frame.read(file), _first_table(file.stem))
        if table is None:
            console.print(f"{file}: no scores", markup=False)
            continue
        alone = dataclasses.replace(table, title=f"{file.stem}: {table.title}", reference=None)
        columns = max(1, console.width // CELL_WIDTH - table.num_keys)
        console.print(Markdown(rendering.to_markdown(alone, columns=columns)))
        for folder in (paths.tables(file.stem), paths.figures(file.stem)):
            for sidecar in sorted(folder.glob("*.json")):
                forms = sorted(other.suffix[1:] for other in folder.glob(f"{sidecar.stem}.*"))
                console.print(f"  {sidecar.with_suffix('')}.{{{','.join(forms)}}}", markup=False, soft_wrap=True)
    for report in reports:
        console.print(f"\nAll of it, to read in a browser: {report}", markup=False, soft_wrap=True)


def _files(places: list[Path], pattern: str) -> Iterator[Path]:
    """Give the files of a kind among `places`, and those in the results folders among them."""
    for place in places:
        yield from sorted(place.glob(pattern)) if place.is_dir() else [place] * (place.suffix == Path(pattern).suffix)


def _first_table(suite: str) -> str:
    """Name the table that says what a suite is about."""
    kind = suite.partition("@")[0]
    return "tuning" if kind == TUNING else "ablation" if kind.startswith(ABLATION) else "main_results"


if __name__ == "__main__":
    sys.exit(main())
