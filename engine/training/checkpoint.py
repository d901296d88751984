"""Keep a run's last two checkpoints: written atomically, verified when read.

A checkpoint is a ``.pt`` of tensors and plain values, and a manifest: a ``.json`` of the same name with its digest. The
manifest is written last: without a valid one a checkpoint does not exist. What processes after the first keep of their
own lies in parts, ``.1.pt`` and so on, whose digests are in the manifest as well.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import re
import shutil
import struct
import sys
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor
from torch.utils.serialization import config

from engine import files
from engine.distributed import Collectives
from engine.schema.base import fingerprint

KEEP = 2
_WRONG_CONTENT = (
    pickle.UnpicklingError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, EOFError, OverflowError,
    AssertionError, struct.error, zipfile.BadZipFile,
)  # fmt: skip
"""What torch raises for a file, or a state, of another kind than is asked for."""
_SEAL = "manifest_sha256"
"""Key of a manifest's digest of all else that it says; not in old ones."""
SCHEMA_VERSION = 2
"""Raised when the meaning of a checkpoint's content changes, so that no run goes on from content it would misread."""


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], collectives: Collectives | None = None) -> None:
    """Write the state after `step` optimiser steps and remove all but the last two checkpoints.

    Every process calls this: the first with the state of the run, the others with what they alone keep, if anything.

    Raises:
        DiskFullError: On every process, if one has no room; the earlier checkpoints are then untouched.
    """
    ours, digest, full = collectives or Collectives(), bytes(32), None
    is_first = ours.rank == 0
    if is_first:
        # Files that a killed process left must not take the room.
        _remove_all_but(folder, _complete(folder)[-KEEP:])
    ours.barrier()
    try:
        if state:
            digest = _write(_data(folder, step, ours.rank), state)
    except files.DiskFullError as error:
        full = error
    told = ours.gather(torch.tensor([[full is not None, *digest]], dtype=torch.int64)).tolist()
    is_full = any(said[0] for said in told)
    if is_first and not is_full:
        sha256, *parts = (bytes(said[1:]).hex() for said in told if any(said[1:]))
        try:
            _write_manifest(folder, step, sha256, parts)
        except files.DiskFullError as error:
            full = error
    if ours.all_reduce(torch.tensor(is_full or full is not None, dtype=torch.int64), "max"):
        raise full or files.DiskFullError("no room for a checkpoint: another process says how much it needs")
    if is_first:
        _remove_all_but(folder, _complete(folder)[-KEEP:])


def _write(data: Path, state: dict[str, Any]) -> bytes:
    """Write a file of a checkpoint; returns its SHA-256."""
    # A file of Python's says why it could not be written; torch's own does not.
    with (
        files.atomic_write(data, num_bytes=_num_bytes(state)) as temporary,
        temporary.open("wb") as file,
        # The manifest's digest covers the file. Torch's checksums would take as long again, and nobody reads them.
        config.patch("save.compute_crc32", False),  # type: ignore[attr-defined]
    ):
        torch.save(state, file)
    return bytes.fromhex(files.file_sha256(data))


def _write_manifest(folder: Path, step: int, sha256: str, parts: list[str]) -> None:
    data = _data(folder, step)
    manifest: dict[str, JsonValue] = {
        "schema_version": SCHEMA_VERSION,
        "torch": torch.__version__,
        "step": step,
        "sha256": sha256,
        "num_bytes": data.stat().st_size,
        "parts": list(parts),
    }
    files.write_text(data.with_suffix(".json"), json.dumps({**manifest, _SEAL: fingerprint(manifest)}) + "\n")


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
    data = _data(folder, step)
    manifest = json.loads(data.with_suffix(".json").read_text(encoding="utf-8"))
    written_by = (manifest.get("schema_version"), manifest.get("torch"))
    if written_by != (SCHEMA_VERSION, torch.__version__):
        raise ValueError(
            f"{data} was written by torch {written_by[1]} with schema {written_by[0]}; here are torch "
            f"{torch.__version__} and schema {SCHEMA_VERSION}, which may go on with other numbers: "
            f"go back to those versions, or {_anew(folder)}"
        )
    state = _load(data)
    lacking = sorted(set(keys) - state.keys())
    if lacking:
        raise ValueError(f"{data} is no checkpoint of a run, it lacks {', '.join(lacking)}: {_anew(folder)}")
    return state


def load_parts(folder: Path, step: int) -> list[dict[str, Any]]:
    """Return what each process after the first alone kept after `step` steps; its tensors lie in the files."""
    manifest = _data(folder, step).with_suffix(".json")
    _, *parts = _digests(manifest)
    return [_load(part) for part in parts]


def _load(data: Path) -> dict[str, Any]:
    state: Any = None
    with contextlib.suppress(*_WRONG_CONTENT):  # an archive, but of something else
        if zipfile.is_zipfile(data):
            state = torch.load(data, map_location="cpu", mmap=True, weights_only=True)
    if not isinstance(state, dict):
        raise ValueError(f"{data} is no checkpoint, but another kind of file: {_anew(data.parent)}")
    return state


@contextlib.contextmanager
def of_this_run(folder: Path, step: int) -> Iterator[None]:
    """Say of errors in the block, which takes over a checkpoint's content, that it is none of this run's.

    Raises:
        ValueError: In place of what torch raises for other names, shapes and types.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except _WRONG_CONTENT as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{_data(folder, step)} is no checkpoint of this run ({reason}): {_anew(folder)}") from error


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
    """List the files with names of checkpoints, oldest first."""
    names = re.compile(r"step-\d{9,}\.(json|pt|\d+\.pt)")
    return sorted(path for path in folder.glob("step-*") if names.fullmatch(path.name))


def _complete(folder: Path) -> list[Path]:
    """List the manifests, oldest first."""
    return [path for path in _files(folder) if path.suffix == ".json"]


def _data(folder: Path, step: int, rank: int = 0) -> Path:
    """Return the file that a process writes."""
    return folder / f"step-{step:09d}{f'.{rank}' if rank else ''}.pt"


def _digests(manifest: Path) -> dict[Path, str]:
    """Return the files of a checkpoint with the digests that its manifest says, the first process's first."""
    said = json.loads(manifest.read_text(encoding="utf-8"))
    seal = said.pop(_SEAL, None)
    if seal not in (None, fingerprint(said)) or said["step"] != _step(manifest):
        raise ValueError("changed, or of another step")
    digests = [said["sha256"], *said.get("parts", [])]  # without parts: of before there were any
    return {_data(manifest.parent, _step(manifest), rank): digest for rank, digest in enumerate(digests)}


def _anew(folder: Path) -> str:
    return f"remove {folder} to train the run again from its start"


def _step(file: Path) -> int:
    return int(file.name.removeprefix("step-").partition(".")[0])


def _damage(manifest: Path) -> str | None:
    """Return the damage of a checkpoint in words; None without any."""
    try:
        digests = _digests(manifest)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return f"{manifest.name} cannot be read"
    for data, digest in digests.items():
        name = "" if data == _data(manifest.parent, _step(manifest)) else f"part {data.name}: "
        try:
            if files.file_sha256(data) != digest:
                return f"{name}its content is not what {manifest.name} says"
        except OSError as error:
            return f"{name}it cannot be read ({error.strerror})"
    return None


def _remove_all_but(folder: Path, manifests: list[Path]) -> None:
    steps = {_step(manifest) for manifest in manifests}
    # Manifests first: without its manifest a checkpoint does not exist, without its data it is damaged.
    for path in sorted(_files(folder), key=lambda path: path.suffix != ".json"):
        if _step(path) not in steps:
            path.unlink()


def _num_bytes(state: Any) -> int:
    """Return the size of all tensors in a nested state."""
    if isinstance(state, Tensor):
        return state.nbytes
    values = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    return sum(_num_bytes(value) for value in values)
