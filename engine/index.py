"""Index tar shards of image-text pairs, so that training can read any sample by its offset: see `engine.data.index`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from engine import errors
from engine.data.index import build_index, rejected_path
from engine.schema.base import parse
from engine.schema.run import CaptionSource


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m engine.index", description=__doc__)
    parser.add_argument("--name", required=True, help="name of the data set")
    parser.add_argument("--revision", required=True, help="revision from the data set's card")
    parser.add_argument("--shards", type=Path, required=True, help="folder of *.tar shards")
    parser.add_argument("--captions", default="{}", help='where captions lie, as JSON: {"member": ..., "field": ...}')
    parser.add_argument("--pairs", type=int, help="usable pairs that must be found")
    parser.add_argument("--digest", choices=["bytes", "members"], default="bytes", help="read all, or headers only")
    parser.add_argument("--fraction", type=float, default=1.0, help="share of the pairs that the set has, in (0, 1]")
    parser.add_argument("--out", type=Path, required=True, help="index.json to write")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    args = parser.parse_args(argv)
    if not 0 < args.fraction <= 1:
        parser.error(f"--fraction {args.fraction}: allowed is more than 0, at most 1")
    if args.jobs < 1:
        parser.error(f"--jobs {args.jobs}: allowed is 1 or more")
    with errors.explained():
        index = build_index(
            args.name,
            args.revision,
            args.shards,
            parse(CaptionSource, args.captions, "--captions"),
            args.out,
            pairs=args.pairs,
            digest=args.digest,
            fraction=args.fraction,
            jobs=args.jobs,
        )
    shards = len(index.shards.name)
    sys.stdout.write(f"{index.name}: {index.pairs} pairs in {shards} shards, {index.rejected} left out\n")
    if index.rejected:
        sys.stdout.write(f"what and why: {rejected_path(args.out)}\n")


if __name__ == "__main__":
    main()
