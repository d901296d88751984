"""Write tar shards and PNG files whose bytes depend on their content only: built sets are compared by digest."""

from __future__ import annotations

import io
import itertools
import struct
import tarfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

Sample = dict[str, bytes]
"""The members of a sample: extension to content."""
_STORED_BLOCK_BYTES = 65535


def png(pixels: bytes, height: int, width: int) -> bytes:
    """Return a picture as PNG, uncompressed: a compressor's output would depend on the zlib at hand.

    Args:
        pixels: (height, width) grey or (height, width, 3) RGB, uint8 in C order.
        height: In pixels.
        width: In pixels.
    """
    stride = len(pixels) // height
    rows = b"".join(b"\0" + pixels[start : start + stride] for start in range(0, len(pixels), stride))
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if stride == 3 * width else 0, 0, 0, 0)
    return _chunks((b"IHDR", header), (b"IDAT", _stored(rows)))


def palette_png(codes: bytes, height: int, width: int, palette: bytes) -> bytes:
    """Return a picture of few colours as PNG, a third as large as `png`.

    Args:
        codes: (height, width) uint8 in C order: rows of the palette.
        height: In pixels.
        width: In pixels.
        palette: RGB of at most 256 colours.
    """
    rows = b"".join(b"\0" + codes[start : start + width] for start in range(0, len(codes), width))
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    return _chunks((b"IHDR", header), (b"PLTE", palette), (b"IDAT", _stored(rows)))


def _chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (*chunks, (b"IEND", b""))
    )


def _stored(data: bytes) -> bytes:
    """Return a zlib stream of stored blocks. Source: RFC 1950 and 1951."""
    starts = range(0, len(data), _STORED_BLOCK_BYTES)
    blocks = [data[start : start + _STORED_BLOCK_BYTES] for start in starts]
    heads = [
        struct.pack("<BHH", number == len(blocks), len(block), len(block) ^ 0xFFFF)
        for number, block in enumerate(blocks, start=1)
    ]
    stream = b"".join(head + block for head, block in zip(heads, blocks, strict=True))
    return b"\x78\x01" + stream + struct.pack(">I", zlib.adler32(data))


def write_shards(folder: Path, samples: Iterable[Sample], count: int, names: Sequence[str]) -> None:
    """Write samples, numbered in their order, evenly into the shards named.

    Args:
        folder: Where; made, and must not exist.
        samples: What is written; taken one by one.
        count: How many there are.
        names: The shards' file names.
    """
    folder.mkdir(parents=True)
    rest = enumerate(samples)
    for part, name in enumerate(names):
        first, last = (count * bound // len(names) for bound in (part, part + 1))
        with tarfile.open(folder / name, "w", format=tarfile.USTAR_FORMAT) as archive:
            for number, sample in itertools.islice(rest, last - first):
                for extension, content in sorted(sample.items()):
                    member = tarfile.TarInfo(f"{number:06d}.{extension}")  # owner and time are zero
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))


def read_shards(paths: Iterable[Path]) -> list[Sample]:
    """Return the samples of shards, in order."""
    samples: dict[str, Sample] = {}
    for path in paths:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                key, _, extension = member.name.partition(".")
                file = archive.extractfile(member)
                samples.setdefault(key, {})[extension] = file.read() if file else b""
    return list(samples.values())


def write_eval_set(
    folder: Path, samples: Iterable[Sample], count: int, num_shards: int, split: str, texts: Mapping[str, Sequence[str]]
) -> None:
    """Write an evaluation set as `engine.evaluation.reading` reads it.

    Args:
        folder: Folder of the set; may be there, without the split.
        samples: What is written; taken one by one.
        count: How many there are.
        num_shards: Number of shards.
        split: Folder of the shards.
        texts: Lines of further files, by name.
    """
    write_shards(folder / split, samples, count, [f"{shard}.tar" for shard in range(num_shards)])
    for name, lines in {f"{split}/nshards.txt": [str(num_shards)], **texts}.items():
        (folder / name).write_bytes("".join(f"{line}\n" for line in lines).encode())
