import json
import subprocess
import sys

import pytest
import toy

from engine import paths
from engine.launch import main
from engine.spec import Execution
from engine.train import train


@pytest.fixture
def root(tmp_path, monkeypatch):
    toy.build(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_job_trains_as_the_process_itself_would(root):
    spec = toy.run_spec("openclip")
    main(["engine.train", str(toy.write_spec(root, spec))])
    submitted = json.loads(paths.record(spec.run_id).read_text())
    paths.run(spec.run_id).rename(root / "submitted")
    here = train(spec, Execution())
    assert submitted["milestones"] == json.loads(here.model_dump_json())["milestones"]


def test_a_failing_job_shows_the_end_of_its_log(root):
    spec = toy.run_spec("openclip", dataset={"name": "toy", "revision": "2", "pairs": toy.NUM_PAIRS})
    with pytest.raises(SystemExit) as stop:
        main(["engine.train", str(toy.write_spec(root, spec))])
    assert f"(train-{spec.run_id}) failed" in str(stop.value)
    assert "the run wants revision 2" in str(stop.value)
    assert not paths.record(spec.run_id).exists()


def test_wrong_execution_settings_are_refused_before_anything_is_submitted(root):
    path = toy.write_spec(root, toy.run_spec("openclip"))
    with pytest.raises(SystemExit, match="unknown key 'thread'; did you mean 'threads'"):
        main(["engine.train", str(path), "--execution", '{"thread": 2}'])
    assert not (path.parent / "jobs").exists() or not list((path.parent / "jobs").rglob("*.pkl"))


def test_two_launchers_of_one_run_train_it_once(root):
    spec = toy.run_spec("openclip")
    command = [sys.executable, "-m", "engine.launch", "engine.train", str(toy.write_spec(root, spec))]
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert json.loads(paths.record(spec.run_id).read_text())["attempts"][0]["first_step"] == 0
    assert len(json.loads(paths.record(spec.run_id).read_text())["attempts"]) == 1
