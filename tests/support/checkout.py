"""Copies of this checkout to run the workflow from: what is edited here meanwhile does not matter."""

import shutil
from pathlib import Path

from engine import files
from engine.origin import ORIGIN, CodeOrigin

ROOT = Path(__file__).resolve().parents[2]
NOT_COPIED = shutil.ignore_patterns(
    ".*", "__pycache__", "*.egg-info", "build", "data", "docs", "results", "shared", "tests"
)
"""Of the checkout's own folder: packages may have folders of these names."""
COPIED = CodeOrigin(commit="0123456789" * 4, dirty_sha256=None)
"""Where a copy, which has no git, says that it comes from."""


def copy_checkout(folder: Path) -> None:
    """Copy what the workflow needs of this checkout into a folder."""

    def ignore(place: str, names: list[str]) -> set[str]:
        return NOT_COPIED(place, names) if Path(place) == ROOT else {"__pycache__"}

    shutil.copytree(ROOT, folder, ignore=ignore, dirs_exist_ok=True)
    files.write_text(folder / ORIGIN, COPIED.model_dump_json())
