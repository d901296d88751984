"""The benchmarks run, on every method that there is."""

import json
from pathlib import Path

import pytest

from benchmarks import memory, method_step
from engine.registry import method_names

SMALL = ["--batch", "128", "--dim", "8", "--set", "neuclip.num_prototypes=16", "neuclip.num_updates=1"]


def test_memory_is_measured_for_every_method_and_grows_with_the_chunk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    memory.main([*SMALL, "--chunk", "16", "128", "--json", str(tmp_path / "memory.json")])

    rows = json.loads((tmp_path / "memory.json").read_text())["rows"]
    peaks = {(row["method"], row["chunk"]): row["peak_bytes"] for row in rows}
    assert {method for method, _ in peaks} == {"dense", *method_names()}
    # At least one float32 matrix of all pairs.
    assert peaks["dense", None] > 4 * 128**2
    assert all(peaks[name, 16] < peaks[name, 128] for name in method_names() if (name, 16) in peaks)
    assert "peak MiB" in capsys.readouterr().out


def test_time_is_measured_for_every_method_beside_an_encoder_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "step.json"
    method_step.main([*SMALL, "--prototypes", "16", "--updates", "2", "--rounds", "2", "--json", str(file)])

    measured = json.loads(file.read_text())
    assert {row["what"] for row in measured["rows"]} == {"encoder step", "npn", *method_names()}
    (npn,) = (row for row in measured["rows"] if row["what"] == "npn")
    # Two forms of one computation; AdaGrad's first step magnifies rounding.
    assert npn["largest_difference"] < 1e-3
    assert {"date", "machine", "versions", "arguments"} < measured.keys()
    assert "encoder step" in capsys.readouterr().out
