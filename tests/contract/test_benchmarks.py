"""The benchmarks run, on every method that there is."""

import functools
import importlib
import importlib.metadata
import json
from pathlib import Path

import pytest
from packaging.version import Version

from benchmarks import cases, gpu, memory, method_step, planning, step_phases, trainer_speed
from engine.registry import method_names

SMALL = ["--batch", "128", "--dim", "8", "--set", "neuclip.num_prototypes=16", "neuclip.num_updates=1"]


def test_memory_is_measured_for_every_method_and_grows_with_the_chunk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    memory.main([*SMALL, "--chunk", "16", "128", "--json", str(tmp_path / "memory.json")])

    rows = json.loads((tmp_path / "memory.json").read_text())["rows"]
    peaks = {(row["method"], row["chunk"]): row["peak_bytes"] for row in rows}
    assert {method for method, _ in peaks} == {"dense", *method_names(controls=False)}
    # At least one float32 matrix of all pairs.
    assert peaks["dense", None] > 4 * 128**2
    assert all(peaks[name, 16] < peaks[name, 128] for name in method_names(controls=False) if (name, 16) in peaks)
    assert "peak MiB" in capsys.readouterr().out


def test_time_is_measured_for_every_method_beside_an_encoder_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "step.json"
    sizes = ["--prototypes", "16", "--updates", "2", "--rounds", "2", "--precision", "fp32", "bf16", "fp16"]
    method_step.main([*SMALL, *sizes, "--json", str(file)])

    measured = json.loads(file.read_text())
    assert {row["what"] for row in measured["rows"]} == {"encoder step", "npn", *method_names(controls=False)}
    encoders = [row["encoders"] for row in measured["rows"] if row["what"] == "encoder step"]
    assert encoders == ["fp32", "bf16", "fp16"]
    (npn,) = (row for row in measured["rows"] if row["what"] == "npn")
    # Two forms of one computation; AdaGrad's first step magnifies rounding.
    assert npn["largest_difference"] < 1e-3
    assert {"date", "provenance", "arguments"} < measured.keys()
    assert "encoder step" in capsys.readouterr().out


def test_the_phases_of_a_step_are_measured_with_and_without_accumulation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "phases.json"
    sizes = ["--batch", "64", "--accumulation", "1", "4", "--methods", "neuclip", "--set", "neuclip.num_prototypes=16"]
    step_phases.main([*sizes, "--precision", "fp32", "bf16", "--rounds", "2", "--saves", "1", "--json", str(file)])

    every = json.loads(file.read_text())["rows"]
    rows = [row for row in every if row["precision"] == "fp32"]
    assert len(every) == 2 * len(rows)
    assert {(row["method"], row["accumulation"]) for row in rows} == {
        (m, a) for m in ("openclip", "neuclip") for a in (1, 4)
    }
    for row in rows:
        seconds = row["median_sec"]
        assert set(seconds) == {*step_phases.PHASES, "step", "checkpoint"}
        assert all(sec > 0 for sec in seconds.values())
        # Weights, and two moments of AdamW, of about 1.6 million numbers.
        assert row["state_bytes"] > 4 * 3 * 1_600_000
    peaks = {(row["method"], row["accumulation"]): row["peak_bytes"] for row in rows}
    assert all(peaks[name, 4]["forward"] < peaks[name, 1]["forward"] / 2 for name in ("openclip", "neuclip"))
    assert "/ openclip" in capsys.readouterr().out


def test_a_plan_is_measured_beside_as_many_bare_jobs(tmp_path, capsys):
    planning.main(["--suites", "smoke", "--rounds", "1", "--json", str(tmp_path / "planning.json")])
    (row,) = json.loads((tmp_path / "planning.json").read_text())["rows"]
    assert row["jobs"] == 26
    assert row["ours_to_bare"][1] == row["ours_sec"][0] / row["bare_sec"][0] > 0
    assert "/ bare" in capsys.readouterr().out


def test_an_entry_that_fails_is_named_and_the_others_are_measured(tmp_path, monkeypatch, capsys):
    broken = gpu.ENTRIES[0]._replace(toy="--no-such-option")
    monkeypatch.setattr(gpu, "ENTRIES", (broken, gpu.ENTRIES[1]))
    with pytest.raises(SystemExit) as end:
        gpu.main(["--dry-run", "--out", str(tmp_path / "gpu")])
    assert end.value.code == 1
    failed, done = json.loads((tmp_path / "gpu.json").read_text())["entries"]
    assert "unrecognized arguments: --no-such-option" in failed["problem"]
    assert failed["measured"] is None
    assert {"dense", *method_names(controls=False)} == {row["method"] for row in done["measured"]["rows"]}
    page = (tmp_path / "gpu.md").read_text()
    assert "Failed: " in page
    assert "peak MiB" in page
    assert "memory: " in capsys.readouterr().out


def test_an_entry_that_takes_too_long_is_ended(tmp_path):
    entry = gpu.ENTRIES[1]._replace(minutes=0.001)
    assert gpu.run(entry, is_dry=True, folder=tmp_path)["problem"] == "not done after 0.001 minutes"


def test_all_entries_for_a_gpu_have_options_that_their_benchmarks_know(capsys):
    assert sum(entry.minutes for entry in gpu.ENTRIES) <= 40
    for entry in gpu.ENTRIES:
        known = importlib.import_module(f"benchmarks.{entry.module}")
        words = gpu.command(entry, is_dry=False)[3:]
        with pytest.raises(SystemExit):
            known.main([*words, "--another"])
        assert capsys.readouterr().err.endswith("error: unrecognized arguments: --another\n")


@pytest.mark.slow
def test_a_dry_run_goes_through_every_entry(tmp_path):
    gpu.main(["--dry-run", "--out", str(tmp_path / "gpu")])
    found = json.loads((tmp_path / "gpu.json").read_text())["entries"]
    assert [entry["problem"] for entry in found] == [""] * len(gpu.ENTRIES)
    assert all(entry["measured"]["rows"] and entry["printed"] for entry in found)


def test_a_turn_of_less_than_a_clock_tick_has_its_processor_time() -> None:
    seconds = cases.take_turns({"quick": lambda: sum(range(20_000))}, rounds=20)
    assert all(turn.processor > 0 for turn in seconds["quick"])


def test_the_last_contestant_begins_every_other_round() -> None:
    called: list[str] = []
    calls = {name: functools.partial(called.append, name) for name in "ab"}
    assert {name: len(turns) for name, turns in cases.take_turns(calls, 2).items()} == {"a": 2, "b": 2}
    assert "".join(called) == "abbaab"


OLD_WEBDATASET = Version(importlib.metadata.version("webdataset")) <= Version("0.2.86")


@pytest.mark.slow
@pytest.mark.skipif(not OLD_WEBDATASET, reason="open_clip's trainer needs the extra 'benchmarks': an older webdataset")
def test_the_trainer_and_open_clips_take_turns_on_the_same_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "speed.json"
    trainer_speed.main(["--case", "tiny-vit:16:2", "--seconds", "0", "--warmup", "2", "--json", str(file)])

    (row,) = json.loads(file.read_text())["rows"]
    assert row["turns"] == 3
    assert row["here_pairs_per_sec"] > 0
    assert row["open_clip_pairs_per_sec"] > 0
    assert "by processor time" in capsys.readouterr().out


def test_a_webdataset_that_open_clips_trainer_cannot_use_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0.2")
    with pytest.raises(SystemExit):
        trainer_speed.main([])
    assert "needs webdataset 0.2.86 or older, and 1.0.2 is installed" in capsys.readouterr().err
