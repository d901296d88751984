"""Read parquet files that come from elsewhere, so that one that is damaged is named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Name the file in the errors of a block that reads it, and in no others.

    Raises:
        ValueError: If it is damaged, or no such file at all.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    # A damaged description of the columns is also text that is none, or names none.
    except (pa.ArrowException, OSError, UnicodeDecodeError, KeyError) as error:
        (reason, *_) = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"{path} is damaged, or of another kind than its name says ({reason}): fetch it again"
        ) from None
