"""The mirror of a real tiny run, read back with TensorBoard's own reader."""

import json
import math
import sys
import time
from types import SimpleNamespace

import pytest
from support import toy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine import files, paths
from engine.schema.evaluation import EvalResult
from engine.schema.run import Execution
from engine.schema.suite import ExpandedSuite, SuiteRun
from engine.training.loop import train
from experiments.__main__ import main
from experiments.tensorboard import mirror


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("tensorboard")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        toy.build(root)
        yield root


@pytest.fixture(scope="module")
def suite(root):
    """Two runs, of which the first is trained."""
    runs = tuple(SuiteRun(variant="", spec=toy.run_spec("neuclip", seed=seed)) for seed in (0, 1))
    train(runs[0].spec, Execution(log_every_steps=2))
    return ExpandedSuite(name="toy", title="Toy", runs=runs, evaluation=toy.build_evaluation(root))


def read(folder, **options):
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0}, **options)
    accumulator.Reload()
    return accumulator


def steps_of(folder):
    return [scalar.step for scalar in read(folder, purge_orphaned_data=False).Scalars("loss/total")]


def a_second_later():
    """Event files are read in the order of their names, which hold whole seconds: no run resumes within one."""
    time.sleep(1.0)


def logged(spec):
    return [json.loads(line) for line in paths.metrics(spec.run_id).read_text().splitlines()]


def test_every_metric_of_every_line_is_there_once(suite, tmp_path):
    spec = suite.runs[0].spec
    lines = logged(spec)
    assert mirror([suite], tmp_path, every_sec=None) == 1
    found = read(tmp_path / spec.run_id)
    assert set(found.Tags()["scalars"]) == set(lines[0]) - {"step", "samples_seen", "epoch", "unix_sec"}
    for name in ("loss/total", "temperature/value", "npn/gap_after", "time/step_sec"):
        scalars = found.Scalars(name)
        assert [scalar.step for scalar in scalars] == [2, 4, 6, 8, 10]
        # Events hold float32.
        assert [scalar.value for scalar in scalars] == pytest.approx([line[name] for line in lines], rel=1e-6)
        assert [scalar.wall_time for scalar in scalars] == [line["unix_sec"] for line in lines]
    assert spec.method.name in found.Tensors("spec/text_summary")[0].tensor_proto.string_val[0].decode()
    # A run that has logged nothing has no folder.
    assert [path.name for path in tmp_path.iterdir()] == [spec.run_id]


def test_a_later_command_writes_what_is_new_and_leaves_alone_what_is_not(suite, tmp_path):
    spec = suite.runs[1].spec
    path = paths.metrics(spec.run_id)
    lines = [json.dumps(line) + "\n" for line in logged(suite.runs[0].spec)]
    written = []
    for known in (2, 2, 5):
        files.write_text(path, "".join(lines[:known]))
        assert mirror([suite], tmp_path, every_sec=None) == 2
        (file,) = (path for path in (tmp_path / spec.run_id).iterdir() if path.stat().st_size)
        written.append(file.name)
        assert steps_of(tmp_path / spec.run_id) == [2, 4, 6, 8, 10][:known]
    path.unlink()
    assert written[0] == written[1] != written[2]


def follow(suite, folder, monkeypatch, *changes):
    """Follow a suite; between two looks one change each is made, then Ctrl-C is pressed."""
    rest = iter(changes)

    def wait(seconds):
        change = next(rest, None)
        if change is None:
            raise KeyboardInterrupt
        a_second_later()
        change()

    monkeypatch.setattr("experiments.tensorboard.time", SimpleNamespace(sleep=wait, time=time.time))
    return mirror([suite], folder, every_sec=1.0)


def test_what_a_run_logs_later_is_shown_and_a_cut_line_is_waited_for(suite, tmp_path, monkeypatch):
    spec = suite.runs[1].spec
    path = paths.metrics(spec.run_id)
    text = "".join(json.dumps(line) + "\n" for line in logged(suite.runs[0].spec))
    seen = []

    def append():
        seen.append(steps_of(tmp_path / spec.run_id))
        files.write_text(path, text)

    files.write_text(path, text[:3000])
    assert not text[:3000].endswith("\n")
    assert follow(suite, tmp_path, monkeypatch, append) == 2
    path.unlink()
    assert steps_of(tmp_path / spec.run_id) == [2, 4, 6, 8, 10]
    assert seen == [[2, 4, 6, 8, 10][: text[:3000].count("\n")]]


def test_a_resumed_run_replaces_what_it_takes_again_also_in_a_reader_that_is_running(suite, tmp_path, monkeypatch):
    spec = suite.runs[1].spec
    path = paths.metrics(spec.run_id)
    lines = logged(suite.runs[0].spec)
    files.write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
    reader = EventAccumulator(str(tmp_path / spec.run_id), size_guidance={"scalars": 0})
    seen = []

    def resume():
        seen.append([scalar.step for scalar in reader.Reload().Scalars("loss/total")])
        again = [*lines[:2], {**lines[2], "loss/total": 99.0}]
        files.write_text(path, "".join(json.dumps(line) + "\n" for line in again))

    follow(suite, tmp_path, monkeypatch, resume)
    path.unlink()
    assert seen == [[2, 4, 6, 8, 10]]
    for found in (reader.Reload(), read(tmp_path / spec.run_id)):
        scalars = found.Scalars("loss/total")
        assert [scalar.step for scalar in scalars] == [2, 4, 6]
        assert scalars[-1].value == 99.0


def test_what_was_not_finite_is_nan(suite, tmp_path):
    spec = suite.runs[1].spec
    path = paths.metrics(spec.run_id)
    files.write_text(path, '{"step": 1, "samples_seen": 16, "loss/total": null}\n')
    mirror([suite], tmp_path, every_sec=None)
    path.unlink()
    (scalar,) = read(tmp_path / spec.run_id).Scalars("loss/total")
    assert math.isnan(scalar.value)


def test_results_of_evaluations_stand_at_the_step_of_their_model(suite, tmp_path):
    spec = suite.runs[0].spec
    result = EvalResult(
        run_id=spec.run_id, milestone=160, eval_set="toy_colours", status="evaluated", metrics={"acc1": 0.75},
        main_metric="acc1", value=0.75, num_samples=16, weights_sha256="0", card_sha256="0", evaluator={},
    )  # fmt: skip
    files.write_text(paths.eval_result(spec.run_id, 160, "toy_colours"), result.model_dump_json())
    mirror([suite], tmp_path, every_sec=None)
    (scalar,) = read(tmp_path / spec.run_id).Scalars("eval/toy_colours/acc1")
    assert (scalar.step, scalar.value) == (10, 0.75)


def test_without_tensorboard_the_error_says_how_to_get_it(suite, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"TensorBoard is needed .* run `pip install -e '.\[tensorboard\]'`"):
        mirror([suite], tmp_path, every_sec=None)


def test_the_command_refuses_an_empty_mirror(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="none of these runs has logged anything yet"):
        main(["tensorboard", "smoke"])
    assert capsys.readouterr().out == ""
