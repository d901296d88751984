"""Every test here works in a folder of its own, as the project's paths are relative to the working directory."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import pytest

mpl.use("agg")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
