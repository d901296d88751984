"""Train one run from its spec: the loop that every method shares.

By hand: ``python -m engine.train results/runs/<run_id>/spec.json``, also under ``torchrun``. A run that was stopped
goes on from its newest checkpoint and ends with the same weights.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from engine import distributed, errors
from engine.schema.base import parse
from engine.schema.run import Execution
from engine.stop import Stopped
from engine.training.loop import read_spec, train


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m engine.train", description=__doc__)
    parser.add_argument("spec", type=Path, help="spec.json of the run")
    parser.add_argument("--execution", default="{}", help='execution settings as JSON, e.g. \'{"device": "cuda"}\'')
    args = parser.parse_args(argv)
    try:
        record = train(read_spec(args.spec), parse(Execution, args.execution, "execution", strict=True))
    except errors.KNOWN as error:
        # The group is left as it is: to end it in order takes the other processes, which know nothing of this.
        sys.exit(f"error: {errors.describe(error)}")
    except Stopped:
        distributed.stop()
        raise
    distributed.stop()
    if os.environ.get("RANK", "0") != "0":
        return  # The first process says it for all.
    why = f", in step {record.divergence.step}: {record.divergence.reason}" if record.divergence else ""
    sys.stderr.write(f"{record.run_id}: {record.status} after {record.samples_seen:,} samples{why}\n")
    if record.num_replaced:
        sys.stderr.write(
            f"warning: {record.num_replaced:,} of {record.samples_seen:,} samples could not be decoded and were "
            "replaced by their neighbours; with max_replaced_fraction 0 a run stops at the first one and names it\n"
        )
    for sign in record.signatures:
        sys.stderr.write(f"{sign.name}, steps {sign.first_step} to {sign.last_step}: {sign.advice}\n")


if __name__ == "__main__":
    main()
