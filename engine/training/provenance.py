"""Describe the origin of a run's numbers. Asked once, when a run starts: later the files may have changed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path

import torch

from engine.distributed import nvidia_driver
from engine.origin import code_origin
from engine.schema.record import Provenance
from engine.versions import ROOT

_PACKAGES = ("torch", "torchvision", "open_clip_torch", "clip_benchmark", "numpy", "pillow", "submitit", "snakemake")


def provenance(*, dataset_sha256: str, device: torch.device, world_size: int) -> Provenance:
    """Describe the code, data, device and versions of this process."""
    origin = code_origin()
    return Provenance(
        commit=origin.commit,
        dirty_sha256=origin.dirty_sha256,
        lock_sha256=hashlib.sha256((ROOT / "requirements.lock").read_bytes()).hexdigest(),
        dataset_sha256=dataset_sha256,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        device_count=torch.cuda.device_count() if device.type == "cuda" else os.cpu_count() or 1,
        world_size=world_size,
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        platform=platform.platform(),
        packages={name: _version(name) for name in _PACKAGES},
        libraries=_libraries(),
    )


def _version(package: str) -> str | None:
    # Training runs without packages that it does not import, such as the scheduler's.
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _libraries() -> dict[str, str | None]:
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    nccl = torch.cuda.nccl.version() if torch.distributed.is_nccl_available() else None  # type: ignore[no-untyped-call]
    return {
        "cuda": torch.version.cuda,
        "cudnn": None if cudnn is None else str(cudnn),
        "nccl": None if nccl is None else ".".join(map(str, nccl)),
        "driver": nvidia_driver(),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    return cpu_name(info.read_text(encoding="utf-8") if info.exists() else "")


def cpu_name(info: str) -> str:
    """Name the processor of a ``/proc/cpuinfo``, with its generation: virtual ones of several have one name.

    Generations round sums differently, so runs of two need not be equal to the bit.
    """
    said: dict[str, str] = {}
    for line in info.splitlines():
        key, _, value = line.partition(":")
        said.setdefault(key.strip(), value.strip())
    name = said.get("model name") or platform.processor() or platform.machine()
    # No comma: results of several machines join their names with it.
    generation = [f"{word} {said[key]}" for key, word in (("cpu family", "family"), ("model", "model")) if key in said]
    return f"{name} ({' '.join(generation)})" if generation else name
