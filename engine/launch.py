"""Run a module's command line as a job and wait for it: on this machine or on Slurm, by configuration.

``python -m engine.launch --name RUN --folder results/runs/RUN/jobs/train --output results/runs/RUN/record.json --
engine.train results/runs/RUN/spec.json``. A job has succeeded when its output is there. A launcher that was ended
anywhere can be started again: it finds the job that its predecessor submitted, and waits for that one.

Exit codes: 0 the output is there; 1 the job failed; 75 it was cancelled; 128 + n this launcher got signal n.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from engine import errors
from engine.jobs import interrupts
from engine.jobs.cluster import Cluster, Request
from engine.jobs.launcher import EXIT_CANCELLED, JobCancelledError, JobFailedError, Launch, Launcher, interrupted
from engine.schema.base import parse


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m engine.launch", description=__doc__)
    parser.add_argument("--name", required=True, help="name of the job")
    parser.add_argument("--folder", type=Path, required=True, help="folder for the job's record and logs")
    parser.add_argument("--output", type=Path, required=True, help="file whose existence means success")
    parser.add_argument("--cluster", default="{}", help="where the job runs: engine.jobs.cluster.Cluster as JSON")
    parser.add_argument("--request", default="{}", help="what it asks for: engine.jobs.cluster.Request as JSON")
    parser.add_argument("--on-interrupt", choices=("leave", "cancel"), default="leave", help="what becomes of the job")
    parser.add_argument("command", nargs="+", help="module and its arguments, after --")
    args = parser.parse_args(argv)
    try:
        launcher = Launcher(
            Launch(
                name=args.name,
                folder=args.folder,
                output=args.output,
                command=tuple(args.command),
                cluster=parse(Cluster, args.cluster, "--cluster"),
                request=parse(Request, args.request, "--request"),
            )
        )
        with interrupts.raising():
            try:
                launcher.run()
            except interrupts.Interrupted as interrupt:
                with interrupts.ignored():  # a second Ctrl-C must not cut the ending of the job short
                    sys.stdout.write(interrupted(launcher, args.on_interrupt))
                sys.exit(128 + interrupt.number)
    except JobCancelledError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(EXIT_CANCELLED)
    except (JobFailedError, *errors.KNOWN) as error:
        sys.exit(f"error: {errors.describe(error)}")


if __name__ == "__main__":
    main()
