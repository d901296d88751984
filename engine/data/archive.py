"""Read the member table of a tar archive, going on behind what is damaged. Nothing is extracted, no link followed.

The standard library reads each header. Its own loop over an archive ends silently at the first damaged one, and the
rest of the shard is lost. The loop here tries the next block, and reports what it skipped.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

WINDOW_BYTES = 2**20
"""Bytes that are read at a time: pictures are small, and file systems read long stretches fastest."""
_DAMAGED = (tarfile.HeaderError, ValueError, IndexError, OverflowError, MemoryError, RecursionError)
"""Errors of the standard library for a damaged header, an impossibly long name, or a list of holes that is cut off."""


@dataclass(frozen=True)
class Member:
    """One member: its name, where its data lie, and whether it has data of its own (links and devices have none)."""

    name: str
    offset: int
    num_bytes: int
    is_file: bool

    @property
    def key_and_extension(self) -> tuple[str, str]:
        """The key of its sample, and its extension in lower case.

        The key ends at the first dot of the file's name; folders may have dots of their own.
        """
        folder, _, name = self.name.rpartition("/")
        stem, _, extension = name.partition(".")
        return (f"{folder}/{stem}" if folder else stem), extension.lower()


@dataclass(frozen=True)
class Damage:
    """A fault of the archive itself."""

    reason: str


class _Archive(tarfile.TarFile):
    """The state that headers are read with."""

    def next(self) -> None:
        """Read nothing: the standard library asks for the first member on opening, and raises if it is damaged."""


def read_members(path: Path, window_bytes: int = WINDOW_BYTES) -> Iterator[Member | Damage]:
    """Yield an archive's members in order, and what is wrong between them; folders are left out.

    A member whose data are cut off by the end of the file is not yielded, only reported.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb", buffering=window_bytes) as file, _Archive(fileobj=file, encoding="utf-8") as archive:
        end = os.fstat(file.fileno()).st_size
        offset, damage, begin = 0, "", 0
        while offset < end:
            file.seek(offset)
            try:
                header = tarfile.TarInfo.fromtarfile(archive)
                # Of a size in a pax record that is no number, the standard library makes 0.
                if min(header.size, int(header.pax_headers.get("size", 0))) < 0 or archive.offset <= offset:
                    raise tarfile.HeaderError("negative size")
            except _DAMAGED:
                if not damage:
                    file.seek(offset)
                    is_zeros = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
                    damage, begin = "a hole of zeros" if is_zeros else "damaged header", offset
                offset += tarfile.BLOCKSIZE
                continue
            if damage:
                yield Damage(f"{damage} at byte {begin}; {offset - begin} bytes were skipped")
                damage = ""
            is_file = header.isreg() and not header.issparse()
            # A link may state the size of what it points to, but no data follow it.
            num_bytes = header.size if is_file else 0
            if header.offset_data + num_bytes > end:
                yield Damage(f"the archive ends within {header.name}")
                return
            if not header.isdir():
                yield Member(header.name, header.offset_data, num_bytes, is_file)
            offset = archive.offset
        # The end mark is zeros too, but nothing follows that.
        if damage == "a hole of zeros":
            return
        if damage:
            yield Damage(f"{damage} at byte {begin}; {end - begin} bytes were skipped")
        yield Damage("no end mark: the archive may be cut off")


def member_name(descriptor: int, data_offset: int) -> str | None:
    """Return the name in the header before a member's data (long names are cut there), or None if there is none."""
    block = os.pread(descriptor, tarfile.BLOCKSIZE, data_offset - tarfile.BLOCKSIZE)
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape").name
    except tarfile.HeaderError:
        return None
