"""`python -m analysis check`: what is older than its records."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import synthetic

from analysis.__main__ import main
from analysis.collect import collect
from analysis.frame import write
from analysis.staleness import MAX_LOST, of_suite
from engine import files, paths
from engine.schema.base import parse
from engine.schema.results import lost
from engine.schema.suite import ExpandedSuite

MADE = ("main_results", "cost")


def expanded() -> ExpandedSuite:
    return parse(ExpandedSuite, files.read_text(paths.suite("quickstart")), "quickstart")


@pytest.fixture(autouse=True)
def _made(suite: Path) -> None:
    """A collected suite with two tables, and with all files that its records and evaluations stand for."""
    for _ in range(2):  # marks of evaluations first, then what they stand for
        for missing in lost(expanded()).values():
            for path in missing:
                files.write_text(path, "")
    synthetic.write_json(suite, json.loads(suite.read_text()) | {"draw": {"only": MADE}})
    write(collect(suite), paths.collected("quickstart"))
    assert main(["draw", str(paths.collected("quickstart")), "--out", str(paths.RESULTS)]) == 0


def check(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What is said, but for the report, which was never made."""
    capsys.readouterr()
    assert main(["check"]) == 1
    *lines, advice = capsys.readouterr().out.splitlines()
    assert advice == "to make it again: snakemake --config suites=quickstart"
    never = f"{paths.report('quickstart')}: missing"
    assert never in lines
    return [line for line in lines if line != never]


def test_what_was_just_made_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert check(capsys) == []


def test_what_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    suite = expanded()
    spec, sets = suite.runs[0].spec, list(suite.evaluation.sets)
    results = [paths.eval_result(spec.run_id, spec.milestones[0], name) for name in sets]
    gone = [
        paths.tables("quickstart") / "cost.csv",
        paths.collected("quickstart"),
        paths.metrics(spec.run_id),
        *results,
    ]
    for path in gone:
        path.unlink()
    assert set(check(capsys)) == {
        f"{paths.tables('quickstart') / 'cost'}: lacks cost.csv",
        f"{paths.collected('quickstart')}: missing",
        f"{paths.record(spec.run_id)}: lacks {paths.metrics(spec.run_id)}",
        f"{paths.evaluated(spec.run_id, spec.milestones[0], suite.evaluation.key)}: lacks {results[0]} and "
        f"{len(results) - 1} more",
    }


def test_of_many_runs_that_are_missing_the_first_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    records = list(paths.RESULTS.glob("runs/*/record.json"))
    for record in records:
        record.unlink()
    lines = check(capsys)
    assert len(lines) == MAX_LOST + 1
    assert lines[-1] == f"... and {len(records) - MAX_LOST} more of its results"


def test_other_times_make_the_frame_and_the_cost_table_old_and_nothing_else(
    capsys: pytest.CaptureFixture[str],
) -> None:
    record = next(paths.RESULTS.glob("runs/neuclip*/record.json"))
    record.write_text(json.dumps(json.loads(record.read_text()) | {"median_step_sec": 1.0}))
    frame, cost = check(capsys)
    assert frame.startswith("results/collected/quickstart.parquet: records, or what is collected of them, changed")
    assert cost.startswith("results/tables/quickstart/cost: older than its records")


def test_what_other_code_drew_is_named_and_what_was_never_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    sidecar = paths.tables("quickstart") / "cost.json"
    content = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps(content | {"code_sha256": "0" * 64}))
    (cost,) = check(capsys)
    assert cost.endswith("cost: drawn by other code than this checkout's; draw it again")
    paths.drawn("quickstart").unlink()
    assert check(capsys) == [f"{paths.drawn('quickstart')}: missing"]


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
    (line,) = check(capsys)
    assert line.startswith("results/collected/quickstart.parquet: collected by another version")


def test_results_that_no_longer_fit_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    record = next(paths.RESULTS.glob("runs/neuclip*/record.json"))
    record.write_text(json.dumps(json.loads(record.read_text()) | {"fingerprint": "0"}))
    (line,) = check(capsys)
    assert "do not fit together any more" in line


def test_without_results_there_is_nothing_to_check(capsys: pytest.CaptureFixture[str]) -> None:
    paths.collected("quickstart").unlink()
    paths.suite("quickstart").unlink()
    assert main(["check"]) == 1
    assert "run: snakemake" in capsys.readouterr().err
