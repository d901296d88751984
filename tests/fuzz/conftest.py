"""Every test here works in a folder of its own, and counts its inputs."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fuzzing import Judge

# Results that numbers are known of.
sys.path.append(str(Path(__file__).resolve().parents[1] / "analysis"))


@pytest.fixture
def judge(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Judge]:
    """The judge of a test's inputs."""
    monkeypatch.chdir(tmp_path)
    found = Judge()
    yield found
    found.report(request.module.__name__.removeprefix("test_"), request.node.name)
