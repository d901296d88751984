"""Keep a run's last two checkpoints: written atomically, verified when read.

A checkpoint is a ``.pt`` of tensors and plain values, and a manifest: a ``.json`` of the same name with its digest. The
manifest is written last: without a valid one a checkpoint does not exist.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import re
import shutil
import sys
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.serialization import config

from engine import files

KEEP = 2
SCHEMA_VERSION = 2
"""Raised when the meaning of a checkpoint's content changes, so that no run goes on from content it would misread."""


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write the state after `step` optimiser steps and remove all but the last two checkpoints.

    Raises:
        DiskFullError: If there is no room; the earlier checkpoints are then untouched.
    """
    # Files that a killed process left must not take the room.
    _remove_all_but(folder, _complete(folder)[-KEEP:])
    data = folder / f"step-{step:09d}.pt"
    # A file of Python's says why it could not be written; torch's own does not.
    with (
        files.atomic_write(data, num_bytes=_num_bytes(state)) as temporary,
        temporary.open("wb") as file,
        # The manifest's digest covers the file. Torch's checksums would take as long again, and nobody reads them.
        config.patch("save.compute_crc32", False),  # type: ignore[attr-defined]
    ):
        torch.save(state, file)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "torch": torch.__version__,
        "step": step,
        "sha256": files.file_sha256(data),
        "num_bytes": data.stat().st_size,
    }
    files.write_text(data.with_suffix(".json"), json.dumps(manifest) + "\n")
    _remove_all_but(folder, _complete(folder)[-KEEP:])


def newest_step(folder: Path) -> int | None:
    """Return the step of the newest checkpoint that verifies, or None if there is none.

    Passes over checkpoints that do not verify, and files of other names, with a line in the log.
    """
    for path in sorted(set(folder.glob("step-*")) - set(_files(folder))):
        sys.stderr.write(f"{path} is passed over: checkpoints are called step-000000010.pt and .json\n")
    for manifest in reversed(_complete(folder)):
        damage = _damage(manifest)
        if damage is None:
            return _step(manifest)
        sys.stderr.write(f"{manifest.with_suffix('.pt')} is passed over: {damage}\n")
    return None


def load_checkpoint(folder: Path, step: int, keys: Collection[str] = ()) -> dict[str, Any]:
    """Return the state after `step` steps. Its tensors lie in the file: copy those that are kept, see `copy_to`.

    Args:
        folder: The folder of the run's checkpoints.
        step: The newest step that verifies.
        keys: Keys that the state must have.

    Raises:
        ValueError: If another version of this code or of torch wrote the file, or if it is no checkpoint of a run.
    """
    data = folder / f"step-{step:09d}.pt"
    manifest = json.loads(data.with_suffix(".json").read_text(encoding="utf-8"))
    written_by = (manifest.get("schema_version"), manifest.get("torch"))
    if written_by != (SCHEMA_VERSION, torch.__version__):
        raise ValueError(
            f"{data} was written by torch {written_by[1]} with schema {written_by[0]}; here are torch "
            f"{torch.__version__} and schema {SCHEMA_VERSION}, which may go on with other numbers: "
            f"go back to those versions, or {_anew(folder)}"
        )
    state: Any = None
    with contextlib.suppress(pickle.UnpicklingError, RuntimeError):  # an archive, but of something else
        if zipfile.is_zipfile(data):
            state = torch.load(data, map_location="cpu", mmap=True, weights_only=True)
    if not isinstance(state, dict):
        raise ValueError(f"{data} is no checkpoint, but another kind of file: {_anew(folder)}")
    lacking = sorted(set(keys) - state.keys())
    if lacking:
        raise ValueError(f"{data} is no checkpoint of a run, it lacks {', '.join(lacking)}: {_anew(folder)}")
    return state


def copy_to(device: torch.device, state: Any) -> Any:
    """Return a nested state with its tensors copied to a device."""
    if isinstance(state, Tensor):
        return state.to(device, copy=True)
    if isinstance(state, dict):
        return {key: copy_to(device, value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(copy_to(device, value) for value in state)
    return state


def remove_newer(folder: Path, step: int) -> None:
    """Delete checkpoints after `step`: they were passed over, and would take the place of others."""
    _remove_all_but(folder, [manifest for manifest in _complete(folder) if _step(manifest) <= step])


def remove_checkpoints(folder: Path) -> None:
    """Delete all checkpoints of a run that is done; leave files that cannot be deleted."""
    shutil.rmtree(folder, ignore_errors=True)


def _files(folder: Path) -> list[Path]:
    """List the files with names of checkpoints, oldest first, manifests before their data."""
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{9,}\.(json|pt)", path.name))


def _complete(folder: Path) -> list[Path]:
    """List the manifests, oldest first."""
    return [path for path in _files(folder) if path.suffix == ".json"]


def _anew(folder: Path) -> str:
    return f"remove {folder} to train the run again from its start"


def _step(manifest: Path) -> int:
    return int(manifest.stem.removeprefix("step-"))


def _damage(manifest: Path) -> str | None:
    """Return the damage of a checkpoint in words; None without any."""
    data = manifest.with_suffix(".pt")
    try:
        digest = json.loads(manifest.read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, TypeError, KeyError):
        return f"{manifest.name} cannot be read"
    try:
        return None if files.file_sha256(data) == digest else f"its content is not what {manifest.name} says"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"


def _remove_all_but(folder: Path, manifests: list[Path]) -> None:
    kept = {path for manifest in manifests for path in (manifest, manifest.with_suffix(".pt"))}
    # Manifests first: without its manifest a checkpoint does not exist, without its data it is damaged.
    for path in _files(folder):
        if path not in kept:
            path.unlink()


def _num_bytes(state: Any) -> int:
    """Return the size of all tensors in a nested state."""
    if isinstance(state, Tensor):
        return state.nbytes
    values = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    return sum(_num_bytes(value) for value in values)
