"""Count the faults that a report notes, as a table: ``python tests/chaos/count.py faults.jsonl``."""

import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def table(lines: Iterable[str]) -> str:
    """Return a Markdown table of the faults that struck, and how many rounds there were."""
    notes = [json.loads(line) for line in lines]
    struck = [note for note in notes if note["what"] == "fault" and note["has_struck"]]
    rows = [row(name, [note for note in struck if note["family"] == name]) for name in {n["family"]: 0 for n in struck}]
    rounds = [note for note in notes if note["what"] == "round"]
    broken = sum(not note["is_kept"] for note in rounds)
    head = "| struck | here | on Slurm | how |\n| --- | --: | --: | --- |\n"
    total = f"{len(struck):,} faults in {len(rounds)} rounds; {broken} broke a promise."
    return f"{head}{''.join(sorted(rows))}{row('all', struck)}\n{total}\n"


def row(name: str, notes: list[dict[str, Any]]) -> str:
    """Return the row of some faults."""
    where = Counter(note["where"] for note in notes)
    how = Counter(note["how"] for note in notes if note["how"] and name != "all")
    said = ", ".join(f"{way} {number}" for way, number in sorted(how.items()))
    return f"| {name} | {where['local']:,} | {where['slurm']:,} | {said} |\n"


if __name__ == "__main__":
    with Path(sys.argv[1]).open(encoding="utf-8") as report:
        sys.stdout.write(table(report))
