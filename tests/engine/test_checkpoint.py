import errno

import pytest
import torch

from engine import paths
from engine.checkpoint import load_checkpoint, newest_step, remove_checkpoints, save_checkpoint

CPU = torch.device("cpu")


def test_the_newest_checkpoint_is_loaded_and_the_last_two_are_kept(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {"step": step, "x": torch.full((3,), float(step))})
    assert newest_step(tmp_path) == 3
    assert load_checkpoint(tmp_path, 3, CPU)["step"] == 3
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == ["step-000000002.pt", "step-000000003.pt"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "unfinished", "manifest"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"step": step, "x": torch.arange(1000.0)})
    newest = tmp_path / "step-000000002.pt"
    data = newest.read_bytes()
    if damage == "cut":
        newest.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        newest.write_bytes(data[:700] + bytes([data[700] ^ 1]) + data[701:])
    elif damage == "gone":
        newest.unlink()
    elif damage == "unfinished":
        newest.with_suffix(".json").unlink()
    else:
        newest.with_suffix(".json").write_text("{")
    assert newest_step(tmp_path) == 1


def test_no_checkpoint_is_no_error(tmp_path):
    assert newest_step(tmp_path / "nothing") is None
    remove_checkpoints(tmp_path / "nothing")


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, {"step": 1})

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, 2, {"step": 2})
    assert newest_step(tmp_path) == 1
    assert not list(tmp_path.glob(".*.tmp"))


def test_equal_text_is_not_written_again(tmp_path):
    path = tmp_path / "a" / "b.json"
    paths.write_text(path, "x")
    before = path.stat().st_mtime_ns
    paths.write_text(path, "x")
    assert path.stat().st_mtime_ns == before
