"""Index tar shards of image-text pairs, so that training can read any sample by its offset.

One sidecar per shard (member offsets and sizes) and one `index.json` for the set. A sample's data set position is
its shard's start plus its row. Samples that cannot be used are reported and left out. Links inside an archive are
never followed, and nothing is ever extracted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tarfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from engine import paths
from engine.paths import file_sha256
from engine.spec import CaptionSource, Frozen, canonical_json, parse

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
COLUMNS = ("image_offset", "image_bytes", "caption_offset", "caption_bytes")


class Shard(Frozen):
    """One shard: file name, usable pairs, and the SHA-256 of the file."""

    name: str
    pairs: int
    sha256: str


class Rejected(Frozen):
    """A sample that was left out, and why."""

    shard: str
    key: str
    reason: str


class Index(Frozen):
    """The index of a training set."""

    name: str
    revision: str
    folder: str
    captions: CaptionSource
    pairs: int
    shards: tuple[Shard, ...]
    rejected: tuple[Rejected, ...]
    sha256: str

    @property
    def shard_sizes(self) -> list[int]:
        """Pairs in each shard, in order of position."""
        return [shard.pairs for shard in self.shards]


def read_index(path: Path) -> Index:
    """Load an index written by `build_index`."""
    return Index.model_validate_json(path.read_text(encoding="utf-8"))


def read_rows(index_path: Path, shard: Shard) -> NDArray[np.int64]:
    """Return the offsets and sizes of a shard's pairs, shape (pairs, 4), columns as in `COLUMNS`."""
    path = index_path.parent / f"{shard.name}.npy"
    # Mapped, not read: a billion pairs have 32 GB of them, in every process.
    rows: NDArray[np.int64] = np.load(path, mmap_mode="r" if shard.pairs else None, allow_pickle=False)
    return rows


def index_shard(path: Path, captions: CaptionSource) -> tuple[NDArray[np.int64], list[Rejected], str]:
    """Read one shard's member table.

    Returns:
        Offsets and sizes (pairs, 4), the rejected samples, and the SHA-256 (hex) of the file.
    """
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    rejected: list[Rejected] = []
    duplicates: set[str] = set()
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if not member.isreg():
                    continue
                # The key ends at the first dot of the file's name; folders may have dots of their own.
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                fields = samples.setdefault(key, {})
                if extension.lower() in fields:
                    duplicates.add(key)
                fields[extension.lower()] = (member.offset_data, member.size)
    except tarfile.ReadError as error:
        rejected.append(Rejected(shard=path.name, key="", reason=f"the archive ends early: {error}"))
    shard_bytes = path.stat().st_size
    rows: list[tuple[int, int, int, int]] = []
    for key, fields in samples.items():
        image = next((fields[e] for e in IMAGE_EXTENSIONS if e in fields), None)
        caption = fields.get(captions.member)
        reason = (
            "the key occurs twice" if key in duplicates
            else "no image" if image is None
            else f"no .{captions.member} caption" if caption is None or caption[1] == 0
            else "cut off" if max(image[0] + image[1], caption[0] + caption[1]) > shard_bytes
            else None
        )  # fmt: skip
        if reason is not None or image is None or caption is None:
            rejected.append(Rejected(shard=path.name, key=key, reason=reason or ""))
        else:
            rows.append((*image, *caption))
    return np.array(rows, dtype=np.int64).reshape(-1, 4), rejected, file_sha256(path)


def _write_sidecar(path: Path, out: Path, captions: CaptionSource) -> tuple[Shard, list[Rejected]]:
    rows, rejected, digest = index_shard(path, captions)
    with paths.atomic_write(out / f"{path.name}.npy") as temporary, temporary.open("wb") as file:
        np.save(file, rows, allow_pickle=False)
    return Shard(name=path.name, pairs=len(rows), sha256=digest), rejected


def build_index(
    name: str, revision: str, folder: Path, captions: CaptionSource, out: Path, *, pairs: int | None, jobs: int = 1
) -> Index:
    """Index every ``*.tar`` of `folder` into the folder of `out`, and write `out` last.

    Args:
        name: Name of the data set.
        revision: The card's revision, carried along so that training can compare.
        folder: Where the shards lie.
        captions: Where captions lie.
        out: Path of the `index.json` to write; sidecars go beside it.
        pairs: Pairs that the card promises; None skips the comparison.
        jobs: Processes.

    Raises:
        FileNotFoundError: If there are no shards.
        ValueError: If the number of usable pairs is not the promised one.
    """
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        raise FileNotFoundError(
            f"data set {name!r}: no *.tar shards in {folder}. Fetch the data there, or correct 'shards' in its card."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(jobs) as pool:
        results = pool.map(_write_sidecar, shards, [out.parent] * len(shards), [captions] * len(shards))
        indexed = list(track(results, f"index {name}", len(shards), disable=not sys.stderr.isatty()))
    found = [shard for shard, _ in indexed]
    rejected = [sample for _, samples in indexed for sample in samples]
    total = sum(shard.pairs for shard in found)
    if pairs is not None and total != pairs:
        examples = "".join(f"\n  {r.shard}: {r.key or '(whole)'}: {r.reason}" for r in rejected[:5])
        raise ValueError(
            f"data set {name!r}: {folder} holds {total} usable pairs, its card says {pairs}. Fetch what is missing, "
            f"or set 'pairs' in the card to what you have. Left out: {len(rejected)}{examples}"
        )
    index = Index(
        name=name,
        revision=revision,
        folder=str(folder),
        captions=captions,
        pairs=total,
        shards=tuple(found),
        rejected=tuple(rejected),
        sha256=hashlib.sha256(canonical_json([shard.sha256 for shard in found]).encode()).hexdigest(),
    )
    paths.write_text(out, json.dumps(index.model_dump(mode="json"), indent=1) + "\n")
    return index


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m engine.index", description=__doc__)
    parser.add_argument("--name", required=True, help="name of the data set")
    parser.add_argument("--revision", required=True, help="revision from the data set's card")
    parser.add_argument("--shards", type=Path, required=True, help="folder of *.tar shards")
    parser.add_argument("--captions", default="{}", help='where captions lie, as JSON: {"member": ..., "field": ...}')
    parser.add_argument("--pairs", type=int, help="usable pairs that must be found")
    parser.add_argument("--out", type=Path, required=True, help="index.json to write")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    args = parser.parse_args(argv)
    try:
        captions = parse(CaptionSource, args.captions, "--captions")
        index = build_index(args.name, args.revision, args.shards, captions, args.out, pairs=args.pairs, jobs=args.jobs)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(
        f"{index.name}: {index.pairs} pairs in {len(index.shards)} shards, {len(index.rejected)} left out\n"
    )


if __name__ == "__main__":
    main()
