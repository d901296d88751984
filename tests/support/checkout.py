"""Copies of this checkout to run the workflow from: what is edited here meanwhile does not matter."""

import shutil
from pathlib import Path

from engine import files
from engine.origin import ORIGIN, CodeOrigin

ROOT = Path(__file__).resolve().parents[2]
NOT_COPIED = {"build", "data", "docs", "results", "shared", "tests"}
"""Folders of the checkout itself: `engine/data` is code."""
COPIED = CodeOrigin(commit="0123456789" * 4, dirty_sha256=None)
"""Where a copy, which has no git, says that it comes from."""


def copy_checkout(folder: Path) -> None:
    """Copy what the workflow needs of this checkout into a folder."""
    hidden = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info")

    def ignored(place: str, names: list[str]) -> set[str]:
        return hidden(place, names) | (NOT_COPIED if Path(place) == ROOT else set())

    shutil.copytree(ROOT, folder, ignore=ignored, dirs_exist_ok=True)
    files.write_text(folder / ORIGIN, COPIED.model_dump_json())
