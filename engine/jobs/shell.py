"""Run a shell command as a job: ``python -m engine.jobs.shell 'python -m experiments.scenes --out data/scenes'``."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m engine.jobs.shell", description=__doc__)
    parser.add_argument("command")
    args = parser.parse_args(argv)
    # `python` is the interpreter that runs this, whatever comes first on the node's PATH.
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    code = subprocess.run(args.command, shell=True, env=environment, check=False).returncode
    if code:
        sys.exit(f"error: exit code {code} of: {args.command}")


if __name__ == "__main__":
    main()
