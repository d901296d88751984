"""Command line of the builder of compositional data sets."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from engine import errors
from experiments.icons import sources
from experiments.scenes.build import build
from experiments.scenes.scenes import LEVELS


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.scenes", description=__doc__)
    parser.add_argument("--level", choices=LEVELS, default="easy", help="which set to build (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder to build, e.g. data/scenes")
    parser.add_argument("--cache", type=Path, default=sources.default_cache(), help="folder of wheels (%(default)s)")
    parser.add_argument("--update-cards", action="store_true", help="rewrite the cards with what was built")
    args = parser.parse_args(argv)
    level, start_sec = LEVELS[args.level], time.monotonic()
    print(f"building {level.name} in {args.out}", flush=True)
    with errors.explained():
        manifest = build(args.out, args.cache, level, update_cards=args.update_cards)
    for name, counts in {"train": manifest["train"], **manifest["evals"]}.items():
        print(
            f"  {name}: " + ", ".join(f"{number} {what}" for what, number in counts.items() if isinstance(number, int))
        )
    print(f"done in {time.monotonic() - start_sec:.0f} s")


if __name__ == "__main__":
    main()
