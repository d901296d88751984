"""Command line of the builder of compositional data sets."""

from __future__ import annotations

from experiments.icons.__main__ import common_parser, run
from experiments.scenes.build import build
from experiments.scenes.scenes import LEVELS


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = common_parser("experiments.scenes", __doc__)
    parser.add_argument("--level", choices=LEVELS, default="easy", help="which set to build (%(default)s)")
    args = parser.parse_args(argv)
    level = LEVELS[args.level]
    options = {"level": level, "cache": args.cache, "update_cards": args.update_cards}
    run(level.name, args.out, lambda: build(args.out, **options))


if __name__ == "__main__":
    main()
