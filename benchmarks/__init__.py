"""Measurements of cost, side by side in one run: ``python -m benchmarks.<name> --help``; `docs/benchmarks.md`."""

import os

# Read when torch is loaded: its profiler reports every start and stop otherwise.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")
