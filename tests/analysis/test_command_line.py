from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import synthetic

from analysis import artifacts
from analysis.__main__ import GROUPS, main, parser
from analysis.collect import collect
from analysis.frame import write
from engine import files, paths

# Everything in one process: imports are most of the time.
ALL = """
import sys
from analysis.__main__ import main
out = sys.argv[1]
status = 0
for name in ("quickstart", "trials"):
    status += main(["collect", f"results/suites/{name}.json", "--out", f"{out}/collected/{name}.parquet"])
    status += main(["draw", f"{out}/collected/{name}.parquet", "--out", out])
sys.exit(status)
"""


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
@pytest.mark.usefixtures("everything")
def test_same_results_same_bytes_in_any_process() -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ALL, f"out{seed}"],
            env={**os.environ, "PYTHONHASHSEED": seed, "SOURCE_DATE_EPOCH": seed, "TZ": f"UTC+{seed}"},
        )
        for seed in ("1", "2")
    ]
    assert [process.wait(timeout=600) for process in processes] == [0, 0]
    first, second = digests(Path("out1")), digests(Path("out2"))
    assert first == second
    drawn = {path.stem for path in Path("out1").glob("tables/*/*.csv")}
    assert drawn == set(artifacts.tables()), "the fixture has nothing for some"
    drawn = {path.stem for path in Path("out1").glob("figures/*/*.json")}
    assert drawn == set(artifacts.figures())
    smallest = min(Path("out1/figures").glob("*/*.png"), key=lambda path: path.stat().st_size)
    assert smallest.stat().st_size > 15_000, f"{smallest} shows nothing"


def test_what_is_current_stays_what_has_nothing_goes_and_a_suite_leaves_out(suite: Path) -> None:
    def draw(**said: object) -> set[str]:
        synthetic.write_json(suite, json.loads(suite.read_text()) | {"draw": said})
        assert main(["draw", str(paths.collected("quickstart")), "--out", str(paths.RESULTS)]) == 0
        told = artifacts.drawn("quickstart")
        assert {path.stem for path in paths.tables("quickstart").glob("*.csv")} == set(told.tables)
        assert {path.stem for path in paths.figures("quickstart").glob("*.json")} == set(told.figures)
        return {*told.tables, *told.figures}

    frame = collect(suite)
    write(frame, paths.collected("quickstart"))
    only = ["main_results", "cost", "step_time", "tuning"]
    assert draw(only=only) == {"main_results", "cost", "step_time"}
    kept = paths.tables("quickstart") / "main_results.csv"
    kept.write_text("as it was")
    (paths.tables("quickstart") / "cost.tex").unlink()
    # Runs that moved have no step time to draw; the main table shows no times.
    moved = frame["device"].mask(frame["kind"] == "cost", "cpu, gpu")
    write(frame.assign(device=moved), paths.collected("quickstart"))
    assert artifacts.lost("quickstart") == {paths.tables("quickstart") / "cost": ["cost.tex"]}
    assert draw(only=only) == {"main_results", "cost"}
    assert kept.read_text() == "as it was"
    assert artifacts.lost("quickstart") == {}
    assert draw(only=only, leave_out=["cost"]) == {"main_results"}


def test_a_sidecar_changes_with_the_rows_it_covers_and_no_others(suite: Path) -> None:
    def sidecar(name: str) -> dict[str, object]:
        write(collect(suite), Path("frame.parquet"))
        assert main(["table", "frame.parquet", name, "--out", "tables"]) == 0
        content: dict[str, object] = json.loads(Path(f"tables/{name}.json").read_text())
        return content

    before = {name: sidecar(name) for name in ("main_results", "cost")}
    record = next(paths.RESULTS.glob("runs/neuclip*/record.json"))
    record.write_text(json.dumps(json.loads(record.read_text()) | {"median_step_sec": 1.0}))
    assert sidecar("main_results") == before["main_results"]
    assert sidecar("cost")["rows_sha256"] != before["cost"]["rows_sha256"]
    assert before["cost"]["commits"] == ["0123456789abcdef"]
    assert before["cost"]["suites"] == ["quickstart"]


def test_a_hole_ends_with_its_name_and_no_file(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = next(paths.RESULTS.glob("runs/neuclip*/record.json"))
    missing.unlink()
    assert main(["collect", str(suite), "--out", "frame.parquet"]) == 1
    assert str(missing) in capsys.readouterr().err
    assert not Path("frame.parquet").exists()


def test_show_prints_the_main_table_and_where_files_are(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(collect(suite), paths.collected("quickstart"))
    assert main(["table", str(paths.collected("quickstart")), "cost", "--out", str(paths.tables("quickstart"))]) == 0
    for what in (paths.RESULTS, paths.collected("quickstart")):
        assert main(["show", str(what)]) == 0
        printed = capsys.readouterr().out
        assert "NeuCLIP" in printed
        assert "results/tables/quickstart/cost.{csv,json,md,tex}" in printed


def test_show_prints_of_an_ablation_the_ablation_and_of_reports_those_that_are_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    variants = {"1 update": [synthetic.run_spec("neuclip", seed, config={"num_updates": 1}) for seed in range(2)]}
    specs = [synthetic.run_spec("neuclip", seed) for seed in range(2)]
    name = "ablation_num_updates@quickstart"
    write(collect(synthetic.write_suite(specs, name=name, variants=variants)), paths.collected(name))
    for report in (name, "quickstart"):
        files.write_text(paths.report(report), "")
    assert main(["show", str(paths.collected(name)), str(paths.report(name))]) == 0
    printed = capsys.readouterr().out
    assert "1 update" in printed
    assert [line for line in printed.splitlines() if line.startswith("All of it")] == [
        f"All of it, to read in a browser: {paths.report(name)}"
    ]
    assert main(["show", str(paths.RESULTS)]) == 0
    assert capsys.readouterr().out.count("All of it, to read in a browser: ") == 2


def test_show_without_results_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "."]) == 1
    assert "run: snakemake" in capsys.readouterr().err


def test_help_lists_tables_and_figures(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    assert "main_results" in printed
    assert "training_curves" in printed


def test_without_a_command_all_are_listed_by_what_they_are_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines[1:] if line and not line.startswith(" ")] == list(GROUPS)
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(parser().get_default("commands"))
    assert any(line.split() and line.split()[0] == "check" and len(line.split()) > 5 for line in lines)


def test_a_frame_that_is_not_there_is_named_with_those_that_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.parquet").touch()
    assert main(["table", str(tmp_path / "mine.parquet"), "main_results", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert f"mine.parquet: there is no such file; {tmp_path} has other.parquet. Run snakemake, or collect" in said
