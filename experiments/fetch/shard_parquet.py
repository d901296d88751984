"""Write shards from parquet files that hold pictures, as the Hugging Face Hub has many sets.

``python -m experiments.fetch.shard_parquet FOLDER --caption caption --out data/rocov2``
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.progress import track

from engine import errors
from engine.data.index import IMAGE_EXTENSIONS
from experiments.fetch import parquet
from experiments.fetch.shards import Sample, write_shards

_BEGINNINGS = {b"\xff\xd8\xff": "jpg", b"\x89PNG\r\n\x1a\n": "png", b"RIFF": "webp"}


def write(source: Path, out: Path, *, image: str, caption: str, per_shard: int) -> int:
    """Write shards; a folder is whole or not there.

    Args:
        source: Parquet files are taken in the order of their names, from all folders below.
        out: Folder of the shards; may be there, empty, and be a link.
        image: Column of the pictures, files as bytes or as ``{bytes, path}``.
        caption: Column of captions: a text becomes ``key.txt``, a list of texts the field of that name of ``key.json``.
        per_shard: Pairs in a shard.

    Returns:
        How many pairs were written.

    Raises:
        ValueError: If there are no files, or no such columns, or if the folder holds something.
        OSError: If there is no room for the shards.
    """
    out = out.resolve()  # written beside where it really lies: its disk may be another
    files = sorted(source.rglob("*.parquet"))
    if not files:
        raise ValueError(f"no *.parquet files in {source}")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: remove what is there to write it anew")
    count: int = sum(parquet.open_file(path, [image, caption]).metadata.num_rows for path in files)
    half = out.with_name(f".{out.name}.part")
    shutil.rmtree(half, ignore_errors=True)
    samples = track(_samples(files, image, caption), total=count, description="pairs", disable=not sys.stderr.isatty())
    try:
        write_shards(half, samples, count, [f"{number:05d}.tar" for number in range(-(-count // per_shard))])
        half.replace(out)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return count


def _samples(files: list[Path], image: str, caption: str) -> Iterator[Sample]:
    for path in files:
        for batch in parquet.batches(path, [image, caption], batch_size=256):
            for row in batch.to_pylist():
                yield _sample(row[image], row[caption], caption, path)


def _sample(picture: Any, text: Any, field: str, path: Path) -> Sample:
    content: Any = picture.get("bytes") if isinstance(picture, dict) else picture
    is_file = isinstance(content, bytes)
    kind = next((kind for start, kind in _BEGINNINGS.items() if is_file and content.startswith(start)), None)
    if kind is None:
        raise ValueError(f"{path}: a picture that is none of {', '.join(IMAGE_EXTENSIONS)}")
    if isinstance(text, str):
        return {kind: content, "txt": text.encode()}
    return {kind: content, "json": json.dumps({field: text}).encode()}


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.fetch.shard_parquet", description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("--image", default="image", help="column (default: %(default)s)")
    parser.add_argument("--caption", required=True, help="column")
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards; it is written beside it first")
    parser.add_argument("--per-shard", type=int, default=1000, help="pairs (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        write(args.source, args.out, image=args.image, caption=args.caption, per_shard=args.per_shard)
    except OSError as error:
        sys.exit(f"error: {args.out} could not be written: {errors.describe(error)}; what was begun is removed")
    except errors.KNOWN as error:
        sys.exit(f"error: {errors.describe(error)}")


if __name__ == "__main__":
    main()
