"""The benchmarks run, on every method that there is."""

import functools
import importlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from benchmarks import cases, gpu, method_step, trainer_speed
from engine.registry import method_class, method_names

SMALL = ["--batch", "128", "--dim", "8", "--set", "neuclip.num_prototypes=16", "neuclip.num_updates=1"]


def test_memory_of_every_method_with_chunks_grows_with_them_and_not_with_the_whole_matrix() -> None:
    for name in method_names(controls=False):
        if "chunk_rows" not in method_class(name).Config.model_fields:
            continue

        def peak(chunk: int, batch: int, name: str = name) -> int:
            sizes: dict[str, Any] = {"batch": batch, "dim": 8, "device": cases.CPU}
            settings = [f"{name}.chunk_rows={chunk}", "neuclip.num_prototypes=16", "neuclip.num_updates=1"]
            make = functools.partial(method_step.make_call, name, settings=settings, **sizes)
            return cases.peak_bytes(make, cases.CPU)

        assert 0 < peak(16, 128) < peak(128, 128)
        # O(B x chunk): with twice the pairs about twice, where whole matrices would take four times.
        if name != "memory_queue":  # whose queue has 64 batches
            assert peak(16, 512) < 2.5 * peak(16, 256)


def test_time_is_measured_for_every_method_beside_an_encoder_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "step.json"
    sizes = ["--prototypes", "16", "--updates", "2", "--rounds", "2", "--precision", "fp32", "bf16", "fp16"]
    method_step.main([*SMALL, *sizes, "--json", str(file)])

    measured = json.loads(file.read_text())
    assert {row["what"] for row in measured["rows"]} == {
        *("encoder step", "as written", "npn"),
        *method_names(controls=False),
    }
    encoders = [row["encoders"] for row in measured["rows"] if row["what"] == "encoder step"]
    assert encoders == ["fp32", "bf16", "fp16"]
    assert all((row["peak_bytes"] or 0) > 0 for row in measured["rows"] if row["what"] in method_names(controls=False))
    (npn,) = (row for row in measured["rows"] if row["what"] == "npn")
    # Two forms of one computation; AdaGrad's first step magnifies rounding.
    assert npn["largest_difference"] < 1e-3
    assert {"date", "provenance", "arguments"} < measured.keys()
    assert "encoder step" in capsys.readouterr().out


def test_an_entry_that_fails_is_named_and_the_others_are_measured(tmp_path, monkeypatch, capsys):
    broken = gpu.ENTRIES[0]._replace(toy="--no-such-option")
    monkeypatch.setattr(gpu, "ENTRIES", (broken, gpu.ENTRIES[2]))
    with pytest.raises(SystemExit) as end:
        gpu.main(["--dry-run", "--out", str(tmp_path / "gpu")])
    assert end.value.code == 1
    failed, done = json.loads((tmp_path / "gpu.json").read_text())["entries"]
    assert "unrecognized arguments: --no-such-option" in failed["problem"]
    assert failed["measured"] is None
    assert {row["workers"] for row in done["measured"]["rows"] if "workers" in row} == {1}
    page = (tmp_path / "gpu.md").read_text()
    assert "Failed: " in page
    assert "pairs/s" in page
    assert "loader: " in capsys.readouterr().out


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


OLD_WEBDATASET = Version(importlib.metadata.version("webdataset")) <= Version("0.2.86")


@pytest.mark.slow
@pytest.mark.skipif(not OLD_WEBDATASET, reason="open_clip's trainer needs the extra 'benchmarks': an older webdataset")
def test_a_dry_run_goes_through_every_entry(tmp_path):
    gpu.main(["--dry-run", "--out", str(tmp_path / "gpu")])
    found = {entry["title"]: entry for entry in json.loads((tmp_path / "gpu.json").read_text())["entries"]}
    assert {entry["problem"] for entry in found.values()} == {""}
    assert all(entry["measured"]["rows"] and entry["printed"] for entry in found.values())
    (row,) = found["Against open_clip's trainer"]["measured"]["rows"]
    assert row["turns"] == 3
    assert row["here_pairs_per_sec"] > 0
    assert row["open_clip_pairs_per_sec"] > 0


def test_the_last_contestant_begins_every_other_round() -> None:
    called: list[str] = []
    calls = {name: functools.partial(called.append, name) for name in "ab"}
    assert {name: len(turns) for name, turns in cases.take_turns(calls, 2).items()} == {"a": 2, "b": 2}
    assert "".join(called) == "abbaab"


def test_a_webdataset_that_open_clips_trainer_cannot_use_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0.2")
    with pytest.raises(SystemExit):
        trainer_speed.main([])
    assert "needs webdataset 0.2.86 or older, and 1.0.2 is installed" in capsys.readouterr().err
