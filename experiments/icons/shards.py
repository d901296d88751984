"""Tar shards and PNG files whose bytes depend on their content only, and the check of a written set."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from experiments.icons.render import SIDE_PX

NUM_EVAL_SHARDS = 4
"""clip_benchmark's command line reads with four workers, and webdataset refuses more workers than shards."""
PAIRS_PER_SHARD = 1000

Sample = dict[str, bytes]
"""The members of a sample: extension to content."""


class LayoutError(ValueError):
    """A written set is not what its readers expect."""


def png(pixels: bytes) -> bytes:
    """Return a picture as PNG, uncompressed: a compressor's output would depend on the zlib at hand.

    Args:
        pixels: (SIDE_PX, SIDE_PX, 3) uint8 in C order.
    """
    stride = SIDE_PX * 3
    rows = b"".join(b"\0" + pixels[start : start + stride] for start in range(0, len(pixels), stride))
    # A zlib stream of one stored block: RFC 1950 and 1951.
    stored = struct.pack("<BHH", 1, len(rows), len(rows) ^ 0xFFFF) + rows
    stream = b"\x78\x01" + stored + struct.pack(">I", zlib.adler32(rows))
    header = struct.pack(">IIBBBBB", SIDE_PX, SIDE_PX, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", stream), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def write_shards(folder: Path, samples: Sequence[Sample], names: Sequence[str]) -> None:
    """Write samples, numbered in their order, evenly into the shards named."""
    folder.mkdir(parents=True)
    for part, name in enumerate(names):
        first, last = (len(samples) * bound // len(names) for bound in (part, part + 1))
        with tarfile.open(folder / name, "w", format=tarfile.USTAR_FORMAT) as archive:
            for number in range(first, last):
                for extension, content in sorted(samples[number].items()):
                    member = tarfile.TarInfo(f"{number:06d}.{extension}")  # owner and time are zero
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))


def read_shards(folder: Path, names: Sequence[str]) -> list[Sample]:
    """Return the samples of the shards named, in order."""
    samples: dict[str, Sample] = {}
    for name in names:
        with tarfile.open(folder / name, "r:") as archive:
            for member in archive:
                key, _, extension = member.name.partition(".")
                file = archive.extractfile(member)
                samples.setdefault(key, {})[extension] = file.read() if file else b""
    return list(samples.values())


def write_eval_set(
    folder: Path, samples: Sequence[Sample], *, classes: Sequence[str] = (), templates: Sequence[str] = ()
) -> None:
    """Write a set in clip_benchmark's layout: for classification if there are classes, else for retrieval."""
    write_shards(folder / "test", samples, [f"{shard}.tar" for shard in range(NUM_EVAL_SHARDS)])
    files: dict[str, Sequence[str]] = {"test/nshards.txt": [str(NUM_EVAL_SHARDS)]}
    if classes:
        files |= {"classnames.txt": classes, "zeroshot_classification_templates.txt": templates}
    else:
        files["dataset_type.txt"] = ["retrieval"]
    for name, lines in files.items():
        (folder / name).write_bytes("".join(f"{line}\n" for line in lines).encode())


def check_eval_set(folder: Path) -> dict[str, int]:
    """Read a set as clip_benchmark does and check all that it would pass over in silence.

    Returns:
        Number of ``images``, and of ``classes`` or ``captions``.

    Raises:
        LayoutError: Naming the folder and what is wrong with it.
    """

    def lines(name: str) -> list[str]:
        return (folder / name).read_text(encoding="utf-8").splitlines()

    def require(condition: bool, problem: str) -> None:
        if not condition:
            raise LayoutError(f"{folder}: {problem}. This is a fault of the builder: report it")

    shards = [f"{shard}.tar" for shard in range(int(lines("test/nshards.txt")[0]))]
    found = sorted(path.name for path in (folder / "test").glob("*.tar"))
    require(found == sorted(shards), f"test/nshards.txt says {len(shards)}, there are {found}")
    samples = read_shards(folder / "test", shards)
    require(bool(samples), "it holds no pictures")
    for number, sample in enumerate(samples):
        with Image.open(io.BytesIO(sample["png"])) as picture:
            shape = (picture.mode, *picture.size)
            picture.load()  # checks the sums
        require(shape == ("RGB", SIDE_PX, SIDE_PX), f"picture {number} is {shape}")
    if (folder / "dataset_type.txt").exists():
        require(lines("dataset_type.txt") == ["retrieval"], f"dataset_type.txt says {lines('dataset_type.txt')}")
        captions = [sample["txt"].decode() for sample in samples]
        require(all(caption.strip() and "\n" not in caption for caption in captions), "a picture has not one caption")
        require(len(set(captions)) == len(captions), "two pictures have the same caption")
        return {"images": len(samples), "captions": len(captions)}
    classes, templates = lines("classnames.txt"), lines("zeroshot_classification_templates.txt")
    labels = {int(sample["cls"]) for sample in samples}
    require(all(name.strip() for name in classes) and len(set(classes)) == len(classes), "a class is blank or twice")
    require(labels == set(range(len(classes))), f"{len(classes)} classes, but labels {sorted(labels)}")
    require(
        bool(templates) and all("{c}" in template for template in templates), f"a template without {{c}} in {templates}"
    )
    return {"images": len(samples), "classes": len(classes)}
