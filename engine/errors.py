"""Tell users of errors that they can mend in one sentence that names the file, in place of a traceback."""

from __future__ import annotations

import contextlib
import errno
import subprocess
import sys
from collections.abc import Iterator

KNOWN = (ValueError, OSError, subprocess.CalledProcessError)
"""Errors that a command line explains: bad input, and what the machine refuses. Others are bugs and keep their
traceback."""
_MARK = "error: "
_ADVICE = {
    errno.EACCES: "allow this user to do that, or work in another folder",
    errno.EPERM: "allow this user to do that, or work in another folder",
    errno.EROFS: "make it writable, or work in another folder",
    errno.EISDIR: "a file belongs there; move the folder away",
    errno.ENOTDIR: "a folder belongs there; move the file away",
    errno.EEXIST: "a folder belongs there; move the file away",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
}


def describe(error: Exception) -> str:
    """Return an error's text; with what to do, where it is the system's own."""
    if not isinstance(error, OSError) or error.errno is None:
        return str(error) or type(error).__name__
    advice = _ADVICE.get(error.errno)
    parts = (error.filename, error.strerror or type(error).__name__, advice)
    return ": ".join(str(part) for part in parts if part is not None)


def said(text: str) -> str:
    """Return what another command said of its error: what follows the mark that `explained` puts, if there is one."""
    return text.strip().rpartition(f"\n{_MARK}")[2].removeprefix(_MARK)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """End the process with ``error: ...`` and exit code 1 if the block raises one of `KNOWN`."""
    try:
        yield
    except KNOWN as error:
        sys.exit(f"{_MARK}{said(describe(error))}")
