"""Checkpoints: written atomically, verified when read, the last two kept.

A checkpoint is a ``.pt`` of tensors and plain values and a ``.json`` beside it with the digest, renamed into place
last: what has no valid ``.json`` does not exist.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from engine import paths

KEEP = 2


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
        json.dumps({"step": step, "sha256": paths.file_sha256(data), "num_bytes": data.stat().st_size}) + "\n",
    )
    for old in sorted(folder.glob("step-*.json"))[:-KEEP]:
        old.unlink()
        old.with_suffix(".pt").unlink(missing_ok=True)


def newest_step(folder: Path) -> int | None:
    """Return the step of the newest checkpoint that verifies, or None if there is none."""
    for manifest in sorted(folder.glob("step-*.json"), reverse=True):
        data = manifest.with_suffix(".pt")
        try:
            said = json.loads(manifest.read_text(encoding="utf-8"))
        except ValueError:
            continue
        if data.exists() and said.get("sha256") == paths.file_sha256(data):
            return int(said["step"])
    return None


def load_checkpoint(folder: Path, step: int, device: torch.device) -> dict[str, Any]:
    """Return the state after `step` steps."""
    state: dict[str, Any] = torch.load(folder / f"step-{step:09d}.pt", map_location=device, weights_only=True)
    return state


def remove_checkpoints(folder: Path) -> None:
    """Delete all checkpoints of a run that is done. What cannot be deleted is left: the run is done all the same."""
    shutil.rmtree(folder, ignore_errors=True)
