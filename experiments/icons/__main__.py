"""Command line of the embedded data set's builder."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from experiments.icons import cards, sources
from experiments.icons.build import OutputError, build
from experiments.icons.sets import FULL, TINY


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.icons", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to build, e.g. data/icons")
    parser.add_argument("--tiny", action="store_true", help="build the small set for tests (data/icons_tiny)")
    parser.add_argument("--cache", type=Path, default=sources.default_cache(), help="folder of wheels (%(default)s)")
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1), help="processes (%(default)s)")
    parser.add_argument("--update-cards", action="store_true", help="rewrite the cards with what was built")
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error(f"--jobs {args.jobs}: give at least 1")
    size = TINY if args.tiny else FULL
    start_sec = time.monotonic()
    print(f"building {size.name} in {args.out}", flush=True)
    try:
        manifest = build(args.out, size=size, cache=args.cache, jobs=args.jobs, update_cards=args.update_cards)
    except (OutputError, sources.SourceError, cards.CardError) as error:
        sys.exit(f"error: {error}")
    print(f"  train: {manifest['train']['pairs']} pairs, {manifest['train']['concepts']} concepts")
    for name, found in manifest["evals"].items():
        counts = ", ".join(
            f"{len(found[count]) if count == 'families' else found[count]} {count}"
            for count in ("images", "classes", "families", "captions", "tasks")
            if count in found
        )
        print(f"  {name}: {counts}")
    print(f"done in {time.monotonic() - start_sec:.0f} s")


if __name__ == "__main__":
    main()
