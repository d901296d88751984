"""Tell users of errors that they can mend in one sentence that names the file, in place of a traceback."""

from __future__ import annotations

import contextlib
import errno
import re
import subprocess
import sys
from collections.abc import Iterator

KNOWN = (ValueError, OSError, subprocess.CalledProcessError)
"""Errors that a command line explains: bad input, and what the machine refuses. Others are bugs and keep their
traceback."""
_MARK = "error: "
_LONG = re.compile(r"(\S{200})\S{200,}(\S{100})")
_ADVICE = {
    errno.EACCES: "allow this user to do that, or work in another folder",
    errno.EPERM: "allow this user to do that, or work in another folder",
    errno.EROFS: "make it writable, or work in another folder",
    errno.EISDIR: "a file belongs there; move the folder away",
    errno.ENOTDIR: "a folder belongs there; move the file away",
    errno.EEXIST: "a folder belongs there; move the file away",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOLCK: "its file system gives no locks: mount it with flock, or work in another folder",
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
}


def describe(error: Exception) -> str:
    """Return an error's text; with what to do, where it is the system's own.

    Names in it come from anywhere: a terminal obeys none of its characters, and none of its words is of any length.
    """
    text = str(error)
    if isinstance(error, OSError) and error.errno is not None:
        advice = _ADVICE.get(error.errno)
        parts = (error.filename, error.strerror or type(error).__name__, advice)
        text = ": ".join(str(part) for part in parts if part is not None)
    shown = "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
    return re.sub(_LONG, r"\1...\2", shown) or type(error).__name__


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
