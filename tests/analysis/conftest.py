"""Every test here works in a folder of its own, as the project's paths are relative to the working directory."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import synthetic

from analysis.collect import collect


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def suite() -> Path:
    """Five methods with three seeds; SigLIP's last seed diverged at three quarters."""
    return synthetic.write_suite(synthetic.main_specs(), diverged=(("siglip", 2),))


@pytest.fixture
def frame(suite: Path) -> pd.DataFrame:
    """The collected suite."""
    return collect(suite)
