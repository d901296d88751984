"""The loader's benchmark runs."""

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
    speeds = measured["rows"]
    assert [(row["workers"], row["cache"]) for row in speeds] == [(0, "cold"), (0, "warm"), (2, "cold"), (2, "warm")]
    assert all(row[f"{name}_pairs_per_sec"] > 0 for row in speeds for name in (*loader.OURS, "webdataset"))
    assert all({"wall", "cpu"} == row[f"{name}_to_{other}"].keys() for row in speeds for name, other in loader.COMPARED)
    assert {"date", "provenance", "arguments"} < measured.keys()
    assert "webdataset" in capsys.readouterr().out
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
