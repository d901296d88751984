"""Where numbers come from: asked once, when a run starts, so that it describes the code that runs."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

from engine.record import Provenance

ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("torch", "torchvision", "open_clip_torch", "clip_benchmark", "numpy", "pillow", "submitit", "snakemake")


def provenance(*, dataset_sha256: str, device: torch.device, world_size: int) -> Provenance:
    """Describe the code, data, device and versions of this process."""
    commit = _git("rev-parse", "HEAD")
    return Provenance(
        commit=commit.decode().strip() if commit else "unknown",
        dirty_sha256=_dirty_sha256(),
        lock_sha256=hashlib.sha256((ROOT / "requirements.lock").read_bytes()).hexdigest(),
        dataset_sha256=dataset_sha256,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        device_count=torch.cuda.device_count() if device.type == "cuda" else os.cpu_count() or 1,
        world_size=world_size,
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        platform=platform.platform(),
        packages={name: importlib.metadata.version(name) for name in _PACKAGES},
    )


def _git(*args: str) -> bytes | None:
    """Return what git prints about this checkout; None where it cannot say (no git, no checkout, not allowed)."""
    if not (ROOT / ".git").exists():
        return None
    try:
        return subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def _dirty_sha256() -> str | None:
    difference = _git("diff", "HEAD")
    untracked = _git("ls-files", "--others", "--exclude-standard", "-z")
    if difference is None or untracked is None:
        return "unknown"
    if not difference and not untracked:
        return None
    digest = hashlib.sha256(difference)
    for name in sorted(filter(None, untracked.split(b"\0"))):
        path = ROOT / os.fsdecode(name)
        digest.update(name + b"\0" + (path.read_bytes() if path.is_file() else b""))
    return digest.hexdigest()


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
