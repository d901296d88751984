"""Download the pictures of a list of links as shards: `python -m experiments.fetch.crawl LIST --out FOLDER`.

img2dataset does it, in an environment of its own beside the shards: it needs older packages than this project. Links
are first copied to parquet, which takes lists without a header and with quotes in captions, and keeps only what a
list of ids names. Run again, it goes on where it was stopped. A folder is whole once it has no `cards.UNFINISHED`.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.dataset as dataset
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field
from rich.console import Console

from engine import errors, files
from engine.schema.base import Frozen, parse, unknown_name
from experiments.design import cards
from experiments.fetch import download, parquet

PINS = Path(__file__).with_name("crawl.txt")
"""Packages that are installed beside the shards: img2dataset and all that it needs."""
ROWS_PER_FILE = 1_000_000
"""Links in a file; img2dataset holds one file at a time in memory."""
_UID = np.dtype("u8,u8")
_ASKED = "links.json"


class Links(Frozen):
    """The links that a folder is crawled from; others would mix with them."""

    source: str
    """A tab-separated file without a header, a parquet file, or a folder of these."""
    columns: tuple[str, ...] = ()
    """Of a tab-separated file: what its columns are, ``url`` among them."""
    caption: str = "caption"
    """Column of the captions."""
    keep: str | None = None
    """List of the ids that are kept, by their column ``uid``: sorted pairs of uint64 in a ``.npy``, as DataComp has."""
    boxes: str | None = None
    """Column of boxes in which faces are blurred."""
    limit: int | None = Field(default=None, ge=1)
    """Largest number of links, from the beginning of the list."""
    options: tuple[str, ...] = ()
    """Further options of img2dataset: with another size of shards, what is there would not be what is missing."""


class Crawled(Frozen):
    """The result of a crawl."""

    links: int
    pictures: int


def crawl(links: Links, out: Path, *, jobs: int, get: str | None = None) -> Crawled:
    """Download what is missing.

    Args:
        links: What to download.
        out: Folder of the shards.
        jobs: Processes.
        get: Where a list that is not here is from: an address to download it from, or what the user is to do.

    Raises:
        ValueError: If there is no list, if the folder is that of another, or if anything is still missing at the end.
    """
    unfinished = out / cards.UNFINISHED
    copied = unfinished.with_name("links")
    asked = copied / _ASKED
    if asked.exists() and parse(Links, files.read_text(asked), str(asked)) != links:
        raise ValueError(
            f"{out} has pictures of other links or options ({asked}): remove that folder, or name another with --out"
        )
    if not copied.exists() and any(out.glob("*.tar")):
        raise ValueError(f"{out} has shards that come from elsewhere: remove them, or name another folder with --out")
    _have(Path(links.source), get)
    if links.keep is not None:
        _have(Path(links.keep), None)
    if not copied.exists():
        _copy(links, copied)
    files.write_text(unfinished, "")
    retried = _without_pictures(out)
    for path in retried:
        path.unlink()  # img2dataset takes what has one for done
    num_links = sum(pq.ParquetFile(path).metadata.num_rows for path in copied.glob("*.parquet"))
    command = [
        *(str(_img2dataset(out.parent)), str(copied)),
        *("--input_format=parquet", "--url_col=url", "--caption_col=caption"),
        *("--output_format=webdataset", f"--output_folder={out}", "--incremental_mode=incremental"),
        *(f"--processes_count={jobs}", "--retries=1", *([f"--bbox_col={links.boxes}"] if links.boxes else [])),
        *links.options,
    ]
    quiet = {"NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled"}
    code = subprocess.run(command, env={**os.environ, **quiet}, check=False).returncode
    stats = [files.read_json(path) for path in out.glob("*_stats.json")]
    found = Crawled(links=sum(s["count"] for s in stats), pictures=sum(s["successes"] for s in stats))
    if found.links > num_links:
        raise ValueError(f"{out} has shards of {found.links:,} links, the list {num_links:,}: remove that folder")
    if code or found.links < num_links:
        raise ValueError(
            f"{found.links:,} of {num_links:,} links have been tried, {found.pictures:,} gave a picture"
            f"{f'; img2dataset ended with code {code}' if code else ''}: run this again to go on"
        )
    if not found.pictures:
        raise ValueError(f"none of {num_links:,} links gave a picture: is this machine online, are they links?")
    empty = [path for path in _without_pictures(out) if path not in retried]
    if empty:
        raise ValueError(
            f"{len(empty)} of {len(stats)} shards have no picture at all, as if this machine had been offline: run "
            "this again to try their links once more"
        )
    unfinished.unlink()
    return found


def _without_pictures(out: Path) -> list[Path]:
    """Return the stats of shards in which no link gave a picture."""
    return [path for path in out.glob("*_stats.json") if not files.read_json(path)["successes"]]


def _have(source: Path, get: str | None) -> None:
    """Make sure that a list of links is here."""
    if source.exists():
        return
    if get is None or not get.startswith(("http://", "https://")):
        raise ValueError(f"the list {source} is not there: {get or 'put it there'}")
    try:
        download.download(get, source, download.size_bytes(get))
    except download.ERRORS as error:
        if isinstance(error, files.DiskFullError):
            raise
        raise ValueError(
            f"{get} could not be downloaded ({error}): run this again to go on, or put {source} there"
        ) from None


def _copy(links: Links, folder: Path) -> None:
    """Write the links that are kept as parquet files, all of them or none."""
    half = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(half, ignore_errors=True)
    tables = (table for table in _tables(links) if len(table))
    first = next(tables, None)
    if first is None:
        raise ValueError(f"{links.source} has no links" + (f" that {links.keep} names" if links.keep else ""))
    batches = (batch for table in itertools.chain([first], tables) for batch in table.to_batches())
    dataset.write_dataset(
        pa.RecordBatchReader.from_batches(first.schema, batches),
        half,
        format="parquet",
        basename_template="{i}.parquet",
        max_rows_per_file=ROWS_PER_FILE,
        max_rows_per_group=ROWS_PER_FILE,
        use_threads=False,  # in their order
    )
    files.write_text(half / _ASKED, links.model_dump_json(indent=1) + "\n")
    half.replace(folder)


def _tables(links: Links) -> Iterator[pa.Table]:
    """Yield the links that are kept, with the columns url, caption, and those that the rest needs."""
    source = Path(links.source)
    keep = None if links.keep is None else _read_ids(Path(links.keep))
    further = [name for name in ("uid" if links.keep else None, links.boxes) if name]
    columns, left = ["url", links.caption, *further], links.limit
    for path in sorted(source.rglob("*.parquet")) if source.is_dir() else [source]:
        for batch in _batches(path, links, columns):
            table = pa.Table.from_batches([batch]).select(columns).rename_columns(["url", "caption", *further])
            if keep is not None:
                table = table.filter(pa.array(_are_in(keep, table["uid"])))
            if left is not None:
                table = table.slice(0, left)
                left -= len(table)
            yield table
            if left == 0:
                return


def _batches(path: Path, links: Links, wanted: list[str]) -> Iterator[pa.RecordBatch]:
    if path.suffix == ".parquet":
        yield from parquet.batches(path, wanted, batch_size=1 << 16)
        return
    for name in wanted:
        if name not in links.columns:
            raise ValueError(f"{path}: " + unknown_name("column", name, links.columns))
    with parquet.explained(path):
        yield from csv.open_csv(
            path,
            read_options=csv.ReadOptions(column_names=list(links.columns)),
            parse_options=csv.ParseOptions(delimiter="\t", quote_char=False),
            convert_options=csv.ConvertOptions(column_types=dict.fromkeys(links.columns, pa.string())),
        )


def _read_ids(path: Path) -> NDArray[np.void]:
    ids: NDArray[np.void] = np.load(path, mmap_mode="r", allow_pickle=False)
    if ids.dtype != _UID or ids.ndim != 1 or not len(ids):
        raise ValueError(f"{path}: {ids.dtype} of shape {ids.shape}; allowed is a list of ids, pairs of uint64")
    step = 1 << 24
    for start in range(0, len(ids), step):
        first = ids["f0"][start : start + step + 1]
        if (first[1:] < first[:-1]).any():
            raise ValueError(f"{path}: ids are not sorted")
    return ids


def _are_in(ids: NDArray[np.void], uids: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Tell which of some ids, 32 hexadecimal digits each, are in a sorted list."""
    if not pc.all(pc.match_substring_regex(uids, "^[0-9a-f]{32}$")).as_py():
        raise ValueError("column uid: allowed are 32 hexadecimal digits")
    halves = np.frombuffer(bytes.fromhex("".join(uids.to_pylist())), dtype=">u8").astype(np.uint64)
    wanted = halves.view(_UID)
    # In their order, so that the search stays near where it was: a long list lies on disk.
    order = np.argsort(wanted)
    places = np.empty(len(wanted), dtype=np.int64)
    places[order] = np.minimum(np.searchsorted(ids, wanted[order]), len(ids) - 1)
    found: NDArray[np.bool_] = ids[places] == wanted
    return found


def _img2dataset(folder: Path) -> Path:
    """Return the program; install it first if it is not there. Of several crawls at once, one installs it."""
    home = folder / f".img2dataset-{files.file_sha256(PINS)[:8]}"
    with files.locked(home.with_name(f"{home.name}.lock")):
        if not (home / "ready").exists():
            _install(home)
    return home / "bin" / "img2dataset"


def _install(home: Path) -> None:
    Console().print(f"installing img2dataset into {home}")
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(home)],
        [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps", "--requirement", str(PINS)],
    ):
        if subprocess.run(command, check=False).returncode:
            raise ValueError(f"img2dataset could not be installed: {' '.join(command)}")
    files.write_text(home / "ready", "")


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.fetch.crawl", description=__doc__, epilog="What follows -- goes to img2dataset."
    )
    parser.add_argument("source", metavar="LIST", help="of links: .tsv without a header, .parquet, or a folder of them")
    parser.add_argument("--columns", nargs="+", default=(), metavar="NAME", help="of a .tsv, in order, url among them")
    parser.add_argument("--caption", default="caption", help="column of the captions (default: %(default)s)")
    parser.add_argument("--keep", help=".npy of the ids to keep, as DataComp's resharder takes it")
    parser.add_argument("--boxes", help="column of the boxes in which faces are blurred")
    parser.add_argument("--limit", type=int, help="largest number of links")
    parser.add_argument("--get", help="where the list is from, if it is not there: its address, or what to do")
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)")
    given = sys.argv[1:] if argv is None else argv
    end = given.index("--") if "--" in given else len(given)
    args = parser.parse_args(given[:end], argparse.Namespace(options=given[end + 1 :]))
    try:
        with errors.explained():
            links = Links.model_validate({key: getattr(args, key) for key in Links.model_fields})
            found = crawl(links, args.out, jobs=args.jobs, get=args.get)
    except KeyboardInterrupt:
        sys.exit("stopped; what came so far is kept: run this again to go on")
    Console().print(f"{found.pictures:,} of {found.links:,} links gave a picture: {args.out}")


if __name__ == "__main__":
    main()
