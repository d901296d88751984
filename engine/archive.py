"""Read the member table of a tar archive, going on behind what is damaged. Nothing is extracted, no link followed.

The standard library's reader ends without a word at the first damaged header, and the rest of the shard is lost.
This one reports the place and looks for the next header. Source of the format: POSIX.1-2024, pax, and GNU tar's
long names.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BLOCK_BYTES = tarfile.BLOCKSIZE
_MAGIC, _MAGIC_OFFSET = b"ustar", 257
_EXTENSION_TYPES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)
_LARGEST_EXTENSION_BYTES = 2**20
_SEARCH_BYTES = 2**22
WINDOW_BYTES = 2**20
"""Headers are read with so much behind them: pictures are small, and a file system hands out long stretches best."""


@dataclass(frozen=True)
class Member:
    """One member: its name, where its data lie, and whether it has data of its own (links and devices have none)."""

    name: str
    offset: int
    num_bytes: int
    is_file: bool


@dataclass(frozen=True)
class Damage:
    """Something that is wrong with the archive as such."""

    reason: str


def read_members(path: Path, window_bytes: int = WINDOW_BYTES) -> Iterator[Member | Damage]:
    """Yield an archive's members in order, and what is wrong between them; folders are left out.

    A member whose data are cut off by the end of the file is not yielded, only reported.

    Args:
        path: The archive.
        window_bytes: Read so much with each header; little where the data are not wanted afterwards.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        yield from _read_members(file.fileno(), os.fstat(file.fileno()).st_size, window_bytes)


def member_name(descriptor: int, data_offset: int) -> str | None:
    """Return the name in the header before a member's data (long names are cut there), or None if there is none."""
    try:
        return _parse(os.pread(descriptor, BLOCK_BYTES, data_offset - BLOCK_BYTES)).name
    except tarfile.HeaderError:
        return None


class _Window:
    """Reads a file in long stretches, however short the pieces asked for."""

    def __init__(self, descriptor: int, num_bytes: int) -> None:
        self._descriptor, self._num_bytes = descriptor, num_bytes
        self._begin, self._data = 0, b""

    def read(self, offset: int, num_bytes: int) -> bytes:
        """Return bytes of the file; fewer at its end."""
        begin = offset - self._begin
        if not 0 <= begin <= len(self._data) - num_bytes:
            self._begin, self._data = offset, os.pread(self._descriptor, max(num_bytes, self._num_bytes), offset)
            begin = 0
        return self._data[begin : begin + num_bytes]


def _parse(block: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    if info.size < 0:
        raise tarfile.HeaderError("negative size")
    return info


def _read_members(descriptor: int, end: int, window_bytes: int) -> Iterator[Member | Damage]:
    offset, window = 0, _Window(descriptor, window_bytes)
    long_name: str | None = None
    long_size: int | None = None
    while offset < end:
        block = window.read(offset, BLOCK_BYTES)
        if len(block) == BLOCK_BYTES and not block.strip(b"\0"):
            following = _find_header(descriptor, offset + BLOCK_BYTES, end)
            if following >= end:
                return
            # The end mark is zeros too, but nothing follows that.
            yield Damage(f"a hole of zeros at byte {offset}; {following - offset} bytes were skipped")
            offset, long_name, long_size = following, None, None
            continue
        try:
            info = _parse(block)
            data = b""
            if info.type in _EXTENSION_TYPES:
                data = window.read(offset + BLOCK_BYTES, min(info.size, _LARGEST_EXTENSION_BYTES))
            if info.type == tarfile.GNUTYPE_LONGNAME:
                long_name = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif info.type == tarfile.XHDTYPE:
                records = _pax_records(data)
                long_name = records.get("path", long_name)
                long_size = int(records["size"]) if "size" in records else None
        except (tarfile.HeaderError, ValueError):
            following = _find_header(descriptor, offset + BLOCK_BYTES, end)
            yield Damage(f"damaged header at byte {offset}; {following - offset} bytes were skipped")
            offset, long_name, long_size = following, None, None
            continue
        size = info.size
        if info.type not in _EXTENSION_TYPES:
            name, size = long_name or info.name, info.size if long_size is None else long_size
            long_name = long_size = None
            is_file = info.isreg() and info.type != tarfile.GNUTYPE_SPARSE
            if not info.isreg() and info.type in tarfile.SUPPORTED_TYPES:
                # A link may state the size of what it points to, but no data follow it.
                size = 0
            if offset + BLOCK_BYTES + size > end:
                yield Damage(f"the archive ends within {name}")
                return
            if not info.isdir():
                yield Member(name, offset + BLOCK_BYTES, size, is_file)
        offset += BLOCK_BYTES + -(-size // BLOCK_BYTES) * BLOCK_BYTES
    yield Damage("no end mark: the archive may be cut off")


def _pax_records(data: bytes) -> dict[str, str]:
    """Read ``<length> <key>=<value>\\n`` records.

    Raises:
        ValueError: If that is not what they are.
    """
    records = {}
    while data.strip(b"\0"):
        digits, _, _ = data.partition(b" ")
        length = int(digits)
        if length <= len(digits):
            raise ValueError("a record shorter than its length")
        record, data = data[len(digits) + 1 : length - 1], data[length:]
        key, equals, value = record.partition(b"=")
        if not equals:
            raise ValueError("no key")
        records[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
    if int(records.get("size", "0")) < 0:
        raise ValueError("negative size")
    return records


def _find_header(descriptor: int, offset: int, end: int) -> int:
    """Return where the next valid header stands, in whole blocks from `offset`; `end` if there is none."""
    while offset < end:
        data = os.pread(descriptor, _SEARCH_BYTES, offset)
        found = data.find(_MAGIC)
        while found >= 0:
            start = found - _MAGIC_OFFSET
            if start >= 0 and start % BLOCK_BYTES == 0:
                try:
                    _parse(data[start : start + BLOCK_BYTES])
                except tarfile.HeaderError:
                    pass
                else:
                    return offset + start
            found = data.find(_MAGIC, found + 1)
        offset += _SEARCH_BYTES
    return end
