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


@pytest.fixture(scope="session")
def _collected(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("results"))
        return collect(synthetic.write_suite(synthetic.main_specs(), diverged=(("siglip", 2),)))


@pytest.fixture
def frame(_collected: pd.DataFrame) -> pd.DataFrame:
    """What collecting `suite` gives."""
    return _collected.copy()
