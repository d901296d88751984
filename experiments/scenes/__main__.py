"""Command line of the builder of compositional data sets."""

from __future__ import annotations

import functools

from experiments.icons.__main__ import common_parser, run
from experiments.scenes.build import fill
from experiments.scenes.scenes import LEVELS


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = common_parser("experiments.scenes", __doc__)
    parser.add_argument("--level", choices=LEVELS, default="easy", help="which set to build (%(default)s)")
    args = parser.parse_args(argv)
    level = LEVELS[args.level]
    run(level.name, args, functools.partial(fill, level=level))


if __name__ == "__main__":
    main()
