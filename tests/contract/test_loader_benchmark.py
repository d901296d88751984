"""The loader's benchmark runs, and what it says of reads is true."""

import contextlib
import json
import os
from pathlib import Path

import pytest

from benchmarks import loader, shards


def test_both_readers_are_measured_cold_and_warm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "loader.json"
    small = ["--pairs", "64", "--shards", "4", "--stored-size", "32", "--image-size", "24", "--batch", "16"]
    loader.main([*small, "--workers", "0", "2", "--rounds", "2", "--folder", str(tmp_path), "--json", str(file)])

    measured = json.loads(file.read_text())
    *speeds, reads = measured["rows"]
    assert [(row["workers"], row["cache"]) for row in speeds] == [(0, "cold"), (0, "warm"), (2, "cold"), (2, "warm")]
    assert all(row[f"{name}_pairs_per_sec"] > 0 for row in speeds for name in (*loader.OURS, "webdataset"))
    assert all({"wall", "cpu"} == row[f"{name}_to_{other}"].keys() for row in speeds for name, other in loader.COMPARED)
    # One read a pair.
    assert reads["reads"] == 64
    assert {"date", "provenance", "arguments"} < measured.keys()
    assert "window: 16" in capsys.readouterr().out
    # The shards are gone.
    assert os.listdir(tmp_path) == ["loader.json"]


def test_both_readers_see_an_epoch_of_the_same_pairs(tmp_path: Path) -> None:
    with contextlib.chdir(tmp_path):
        files = shards.write_shards(48, 32, 4)
        ours = loader.our_loader(24, 16, "ViT-B-32")
        theirs = loader.webdataset_reader(files, 24, 16, "ViT-B-32")
        assert ours(3, 0) == theirs(3, 0) == 48
        with pytest.raises(ValueError, match=r"--batches 4: webdataset read 48 pairs of 64"):
            theirs(4, 0)


def test_a_read_pattern_tells_sequential_reads_from_jumps() -> None:
    sequential = [(1, 1000 * number, 900) for number in range(10)]
    assert loader.read_pattern(sequential, 1)["sequential_share"] == 1
    back = [(1, 0, 100), (1, 50_000, 100), (2, 0, 100), (1, 0, 100)]
    pattern = loader.read_pattern(back, 2)
    assert (pattern["forward_share"], pattern["sequential_share"]) == (0.5, 0)
    assert pattern["mean_jump_bytes"] == (49_900 + 50_100) / 2
