"""Download one file from its address. A download that broke off goes on where it was."""

from __future__ import annotations

import http.client
import os
import shutil
import urllib.request
from pathlib import Path
from typing import Any, BinaryIO

from rich.progress import wrap_file

from engine import files

ERRORS: tuple[type[Exception], ...] = (OSError, http.client.HTTPException)
"""Errors of the network and of servers."""


def size_bytes(url: str) -> int:
    """Ask how large a file is.

    Raises:
        Exception: One of `ERRORS`, also if its server does not say.
    """
    with _open(url, "HEAD") as response:
        said = response.headers["Content-Length"]
    if said is None:
        raise OSError(f"the server of {url} does not say how large it is")
    return int(said)


def download(url: str, path: Path, num_bytes: int) -> None:
    """Download a file. What came lies beside its place until it is whole, and the next call goes on with it.

    Args:
        url: Its address.
        path: Its place.
        num_bytes: Its size.

    Raises:
        Exception: One of `ERRORS`, if nothing more comes.
        DiskFullError: If there is no room for it.
    """
    part = path.with_name(f".{path.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    with files.explain_full_disk(path, temporary=part, num_bytes=num_bytes), part.open("ab") as file:
        if file.tell() > num_bytes:
            _empty(file)
        while (start := file.tell()) < num_bytes:
            with _open(url, "GET", start) as response:
                if response.status != http.HTTPStatus.PARTIAL_CONTENT:
                    _empty(file)  # it comes from its beginning
                with wrap_file(response, response.length, description=path.name) as source:
                    shutil.copyfileobj(source, file)
            if not start < file.tell() <= num_bytes:
                raise OSError(f"{file.tell():,} of {num_bytes:,} bytes came")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _empty(file: BinaryIO) -> None:
    file.seek(0)
    file.truncate()


def _open(url: str, method: str, first_byte: int = 0) -> Any:
    headers = {"User-Agent": "neuclip-suite", **({"Range": f"bytes={first_byte}-"} if first_byte else {})}
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers, method=method), timeout=60)
