"""Checkpoints: written atomically, verified when read, the last two kept.

A checkpoint is a ``.pt`` of tensors and plain values and a ``.json`` beside it with the digest, renamed into place
last: what has no valid ``.json`` does not exist.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from engine import paths

KEEP = 2


def file_sha256(path: Path) -> str:
    """Return the SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write the state after `step` optimiser steps and remove all but the last two checkpoints.

    Raises:
        OSError: If the disk is full; the earlier checkpoints are then untouched.
    """
    data = folder / f"step-{step:09d}.pt"
    with paths.atomic_write(data) as temporary:
        torch.save(state, temporary)
    paths.write_text(
        data.with_suffix(".json"),
        json.dumps({"step": step, "sha256": file_sha256(data), "num_bytes": data.stat().st_size}) + "\n",
    )
    for old in sorted(folder.glob("step-*.json"))[:-KEEP]:
        old.unlink()
        old.with_suffix(".pt").unlink(missing_ok=True)


def load_newest(folder: Path, device: torch.device) -> dict[str, Any] | None:
    """Return the newest checkpoint that verifies, or None if there is none."""
    for manifest in sorted(folder.glob("step-*.json"), reverse=True):
        data = manifest.with_suffix(".pt")
        if data.exists() and json.loads(manifest.read_text(encoding="utf-8"))["sha256"] == file_sha256(data):
            state: dict[str, Any] = torch.load(data, map_location=device, weights_only=True)
            return state
    return None


def remove_checkpoints(folder: Path) -> None:
    """Delete all checkpoints of a run that is done."""
    for path in [*folder.glob("step-*.json"), *folder.glob("step-*.pt"), *folder.glob(".step-*.tmp")]:
        path.unlink()
    if folder.exists():
        folder.rmdir()
