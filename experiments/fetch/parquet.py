"""Read parquet files of other people, so that one that is damaged is named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from engine.schema.base import unknown_name


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


def open_file(path: Path, columns: Sequence[str]) -> pq.ParquetFile:
    """Open a file that has some columns.

    Raises:
        ValueError: If it lacks one, or is damaged.
    """
    with explained(path):
        file = pq.ParquetFile(path, page_checksum_verification=True)
        known = file.schema_arrow.names
    for name in columns:
        if name not in known:
            raise ValueError(f"{path}: " + unknown_name("column", name, known))
    return file


def batches(path: Path, columns: Sequence[str], batch_size: int) -> Iterator[pa.RecordBatch]:
    """Yield some columns of a file; errors as `open_file`."""
    file = open_file(path, columns)
    with explained(path):
        yield from file.iter_batches(columns=columns, batch_size=batch_size)
