"""What came out of a run: the schema of `record.json`, and its provenance."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Literal

import torch

from engine.spec import SCHEMA_VERSION, Frozen, RunSpec

_ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("torch", "torchvision", "open_clip_torch", "clip_benchmark", "numpy", "pillow", "submitit", "snakemake")


class Provenance(Frozen):
    """Where numbers come from: code, data, device, versions."""

    commit: str
    """Commit of the checkout, or "unknown" outside one."""
    dirty_sha256: str | None
    """Digest of the uncommitted difference; None when there is none."""
    lock_sha256: str
    dataset_sha256: str
    device: str
    device_count: int
    world_size: int
    threads: int
    python: str
    platform: str
    packages: dict[str, str]


class Milestone(Frozen):
    """Weights kept on the way."""

    weights: str
    """Path below the run's folder."""
    sha256: str


class NormalizerError(Frozen):
    """How far a method's log-normalizers are from the exact ones, at one milestone."""

    samples_seen: int
    temperature: float
    num_anchors: int
    """Anchors on each side."""
    num_without_estimate: int
    """Anchors, of both sides together, for which the method has no estimate yet; left out of the errors."""
    image_mse: float | None
    text_mse: float | None
    image_bias: float | None
    text_bias: float | None
    control_mse: float
    """Error of the plain mean over as many fresh random pairs as `control_size`, both sides together."""
    control_size: int


class Divergence(Frozen):
    """Where and how training stopped being finite."""

    step: int
    reason: str
    temperature: float
    indices: list[int]
    """Data set positions of the first pairs of the batch."""


class Record(Frozen):
    """The result of a run. Scheduler and code failures write none; divergence is a result and does."""

    schema_version: int = SCHEMA_VERSION
    run_id: str
    fingerprint: str
    spec: RunSpec
    status: Literal["finished", "diverged"]
    samples_seen: int
    milestones: dict[str, Milestone]
    normalizer_error: list[NormalizerError]
    clock_sec: dict[str, float]
    """Seconds by phase over the steps that were timed (all on CPU, the logged ones on a GPU)."""
    median_step_sec: float | None
    peak_memory_bytes: int
    attempts: int
    first_indices: list[int]
    """Data set positions of the first pairs of the run, to compare orders."""
    divergence: Divergence | None
    provenance: Provenance


def _git(*args: str) -> str | None:
    result = subprocess.run(["git", "-C", str(_ROOT), *args], capture_output=True, text=True, check=False)
    return result.stdout if result.returncode == 0 else None


@functools.cache
def lock_sha256() -> str:
    """Digest of the lock file that pins what moves numbers."""
    return hashlib.sha256((_ROOT / "requirements.lock").read_bytes()).hexdigest()


def provenance(*, dataset_sha256: str, device: torch.device, world_size: int) -> Provenance:
    """Describe the code, data, device and versions of this process."""
    difference = _git("diff", "HEAD") if (_ROOT / ".git").exists() else None
    commit = _git("rev-parse", "HEAD") if (_ROOT / ".git").exists() else None
    return Provenance(
        commit=(commit or "unknown").strip(),
        dirty_sha256=hashlib.sha256(difference.encode()).hexdigest() if difference else None,
        lock_sha256=lock_sha256(),
        dataset_sha256=dataset_sha256,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        device_count=torch.cuda.device_count() if device.type == "cuda" else os.cpu_count() or 1,
        world_size=world_size,
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        platform=platform.platform(),
        packages={name: importlib.metadata.version(name) for name in _PACKAGES},
    )


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
