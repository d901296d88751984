import os

import pandas as pd
import pytest
import torch
from support import toy

from analysis import frame
from engine import files, paths
from engine.schema.run import Execution
from engine.training.checkpoint import save_checkpoint
from engine.training.loop import train


@pytest.fixture(params=[0o002, 0o027], ids=["group may write", "group may read"])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_every_file_of_a_results_folder_is_as_the_umask_says(tmp_path, monkeypatch, umask):
    monkeypatch.chdir(tmp_path)
    toy.build(tmp_path)
    spec = toy.run_spec("openclip", steps=2)
    train(spec, Execution())
    save_checkpoint(paths.checkpoints(spec.run_id), 2, {"weights": torch.zeros(2)})
    frame.write(pd.DataFrame({"value": [1.0]}), paths.collected("toy"))
    with files.locked(paths.scheduler() / "gpus.lock"):
        pass
    written = [path for path in paths.RESULTS.rglob("*") if path.is_file()]
    expected = {"00000.tar.safetensors", "open_clip_model.safetensors", "32.safetensors", "step-000000002.pt"}
    expected |= {"toy.parquet", "record.json", "metrics.jsonl", "index.json", "rejected.csv", "lock", "gpus.lock"}
    assert expected <= {path.name for path in written}
    assert {oct(path.stat().st_mode & 0o777) for path in written} == {oct(0o666 & ~umask)}
    folders = [path for path in paths.RESULTS.rglob("*") if path.is_dir()]
    assert {oct(path.stat().st_mode & 0o777) for path in folders} == {oct(0o777 & ~umask)}


def test_a_file_that_is_written_again_takes_the_umask_of_today(tmp_path, umask):
    path = tmp_path / "a.txt"
    path.touch(0o600)
    files.write_text(path, "text")
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
