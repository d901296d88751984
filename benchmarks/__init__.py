"""Benchmarks that measure contestants side by side in one run; see `docs/benchmarks.md`."""

import os

# Torch's profiler reads this when torch is loaded; without it, it reports every start and stop.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")
