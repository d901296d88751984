"""`python -m analysis check`: what is older than its records."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from analysis.__main__ import main
from analysis.collect import collect
from analysis.frame import write
from analysis.staleness import of_suite
from engine import paths


@pytest.fixture(autouse=True)
def _made(suite: Path) -> None:
    """A collected suite with two tables."""
    write(collect(suite), paths.collected("quickstart"))
    for name in ("main_results", "cost"):
        command = ["table", str(paths.collected("quickstart")), name, "--out", str(paths.tables("quickstart"))]
        assert main(command) == 0


def check(capsys: pytest.CaptureFixture[str], *, status: int) -> list[str]:
    capsys.readouterr()
    assert main(["check"]) == status
    return capsys.readouterr().out.splitlines()


def test_what_was_just_made_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = check(capsys, status=0)
    assert line.startswith("every collected frame, table and figure shows")


def test_other_times_make_the_frame_and_the_cost_table_old_and_nothing_else(
    capsys: pytest.CaptureFixture[str],
) -> None:
    record = next(paths.RESULTS.glob("runs/neuclip*/record.json"))
    record.write_text(json.dumps(json.loads(record.read_text()) | {"median_step_sec": 1.0}))
    frame, cost = check(capsys, status=1)
    assert frame.startswith("results/collected/quickstart.parquet: records, or what is collected of them, changed")
    assert cost.startswith("results/tables/quickstart/cost: older than its records")


def test_a_table_drawn_by_other_code_or_by_none_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    sidecar = paths.tables("quickstart") / "cost.json"
    content = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps(content | {"code_sha256": "0" * 64}))
    sidecar.with_name("gone.json").write_text(json.dumps(content))
    cost, gone = check(capsys, status=1)
    assert "cost: drawn by other code" in cost
    assert "gone: there is no table of this name" in gone


def test_each_file_of_a_suite_has_its_own_reason() -> None:
    assert of_suite("quickstart") == {}
    record = next(paths.RESULTS.glob("runs/neuclip*/record.json"))
    record.write_text(json.dumps(json.loads(record.read_text()) | {"median_step_sec": 1.0}))
    found = of_suite("quickstart")
    assert list(found) == [paths.collected("quickstart"), paths.tables("quickstart") / "cost"]
    assert found[paths.tables("quickstart") / "cost"] == "older than its records; draw it again"


def test_a_frame_of_another_version_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    file = paths.collected("quickstart")
    pd.read_parquet(file).drop(columns="title").to_parquet(file)
    (line,) = check(capsys, status=1)
    assert line.startswith("results/collected/quickstart.parquet: collected by another version")


def test_results_that_no_longer_fit_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    record = next(paths.RESULTS.glob("runs/neuclip*/record.json"))
    record.unlink()
    line, *_ = check(capsys, status=1)
    assert "do not fit together any more" in line


def test_without_anything_collected_there_is_nothing_to_check(capsys: pytest.CaptureFixture[str]) -> None:
    paths.collected("quickstart").unlink()
    assert main(["check"]) == 1
    assert "run: snakemake" in capsys.readouterr().err
