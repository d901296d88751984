"""Command line of the embedded data set's builder."""

from __future__ import annotations

import argparse
import functools
import os
import time
from pathlib import Path

from engine import errors
from experiments.icons import sources
from experiments.icons.build import fill
from experiments.icons.folder import Fill, publish
from experiments.icons.sets import FULL, TINY


def common_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that the builder of every embedded data set has."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--out", type=Path, required=True, help="folder to build, e.g. data/icons")
    parser.add_argument("--cache", type=Path, default=sources.default_cache(), help="folder of wheels (%(default)s)")
    parser.add_argument("--update-cards", action="store_true", help="rewrite the cards with what was built")
    return parser


def run(name: str, args: argparse.Namespace, fill: Fill) -> None:
    """Build a data set as the options of `common_parser` say, and say what is in it."""
    start_sec = time.monotonic()
    print(f"building {name} in {args.out}", flush=True)
    with errors.explained():
        manifest = publish(args.out, args.cache, fill, update_cards=args.update_cards)
    print("  train: " + ", ".join(f"{count} {what}" for what, count in manifest["train"].items() if what != "shards"))
    for key, found in manifest["evals"].items():
        counts = ", ".join(
            f"{len(found[count]) if count == 'families' else found[count]} {count}"
            for count in ("images", "classes", "families", "captions", "tasks")
            if count in found
        )
        print(f"  {key}: {counts}")
    print(f"done in {time.monotonic() - start_sec:.0f} s")


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = common_parser("experiments.icons", __doc__)
    parser.add_argument("--tiny", action="store_true", help="build the small set for tests (data/icons_tiny)")
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1), help="processes (%(default)s)")
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error(f"--jobs {args.jobs}: give at least 1")
    size = TINY if args.tiny else FULL
    run(size.name, args, functools.partial(fill, size=size, jobs=args.jobs))


if __name__ == "__main__":
    main()
