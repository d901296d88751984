"""Fetch a training set as its card says: `python -m experiments training-data NAME`, or `snakemake fetch_NAME`.

Nothing else does: it may be terabytes and days. What it is, under which terms and how large is said first.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from engine import files
from engine.jobs import shell
from experiments.design import cards


def run(name: str, console: Console, *, anew: bool = False) -> None:
    """Say what a training set is, then run the command of its card.

    Args:
        name: Of the card.
        console: Where it is said.
        anew: Download the pictures from their links rather than a copy of them.

    Raises:
        ValueError: If there is no such card or command, no room, if its links are being crawled, or if no shards came.
    """
    card = cards.dataset(name)
    if cards.is_there(card):
        console.print(f"training set {name!r} is there: {card.shards}")
        return
    command = card.crawl if anew else card.fetch or card.crawl
    if command is None:
        way = f"`{card.build}` makes it" if card.build else f"no command does; see {card.source}"
        raise ValueError(f"training set {name!r}: {way}")
    folder = Path(card.shards).resolve()
    if command != card.crawl and card.crawl and (folder / cards.UNFINISHED).exists():
        raise ValueError(
            f"training set {name!r}: {card.shards} has a part of a crawl, which a copy would mix with: run "
            f"`snakemake crawl_{name}` to go on, or remove the folder"
        )
    here = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(place).free / 1e9
    size = "unknown" if card.gigabytes is None else f"about {card.gigabytes:,.0f} GB"
    room = f"{here:,.0f} GB of it are there, {free:,.0f} GB are free in {place}"
    table = Table("", Column(card.title, overflow="fold"))
    for row in (
        ("pairs", f"{card.pairs:,} in the card; yours may differ, the index step counts them"),
        ("size", f"{size}; {room}"),
        ("licence", card.licence),
        ("source", card.source),
        ("command", command),
    ):
        table.add_row(*row)
    console.print(table)
    if card.gigabytes is not None and card.gigabytes - here > free:
        raise ValueError(
            f"training set {name!r} takes {size}, {room}: make {card.shards} a link to a folder on a larger disk"
        )
    files.write_text(cards.fetching(card), "")
    shell.main([command])
    cards.fetching(card).unlink()
    if not cards.is_there(card):
        raise ValueError(
            f"training set {name!r}: no *.tar shards are in {card.shards}, though its command ended well: look at what "
            f"it said, and at the command in {card.place}"
        )
