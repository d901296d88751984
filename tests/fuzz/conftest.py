"""Every test here works in a folder of its own."""

import sys
from pathlib import Path

import pytest

# Results that numbers are known of.
sys.path.append(str(Path(__file__).resolve().parents[1] / "analysis"))


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
