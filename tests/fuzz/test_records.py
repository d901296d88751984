"""Damaged or edited results: exactly the numbers that were written, or one clear error."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import synthetic
from hypothesis import example, given
from hypothesis import strategies as st
from support.fuzzing import Judge, Refused, at, changed, damaged, places, share

from analysis.collect import collect
from analysis.frame import digest
from engine import files, paths
from engine.schema.base import parse
from engine.schema.evaluation import EvalResult
from engine.schema.record import Record
from engine.schema.run import RunSpec
from engine.schema.suite import ExpandedSuite

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, pd.DataFrame]]:
    """A suite's results, written as training and evaluation write them, and their frame."""
    root = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        specs = [synthetic.run_spec(method, seed) for method in ("neuclip", "openclip") for seed in range(2)]
        suite = synthetic.write_suite(specs, diverged=(("openclip", 1),))
        for path in paths.RESULTS.glob("runs/*/record.json"):
            log = files.file_sha256(path.with_name("metrics.jsonl"))
            record = parse(Record, path.read_text(), str(path)).model_copy(update={"log_sha256": log})
            path.write_text(record.sealed().model_dump_json(indent=1))
        for path in paths.RESULTS.glob("evals/*/*/*.json"):
            path.write_text(parse(EvalResult, path.read_text(), str(path)).sealed().model_dump_json(indent=1))
        suite.write_text(parse(ExpandedSuite, suite.read_text(), str(suite)).sealed().model_dump_json(indent=1))
        yield root, collect(suite)


KINDS = {
    "record": "runs/neuclip*/record.json",
    "a record that diverged": "runs/openclip*s1*/record.json",
    "result": "evals/neuclip*/*/digits.json",
    "suite": "suites/*.json",
    "log": "runs/neuclip*/metrics.jsonl",
    "log-normalizers": "runs/neuclip*/normalizer_error/*.safetensors",
}


def file(kind: str) -> Path:
    return sorted(paths.RESULTS.glob(KINDS[kind]))[0]


def judged(judge: Judge, results: tuple[Path, pd.DataFrame], path: Path, content: bytes) -> None:
    whole = path.read_bytes()
    try:
        path.write_bytes(content)
        found = judge(lambda: collect(paths.suite("quickstart")), path, "suite 'quickstart'")
        if not isinstance(found, Refused):
            assert digest(found) == digest(results[1]), "other numbers, and nobody says so"
    finally:
        path.write_bytes(whole)


@share(0.048)
@given(kind=st.sampled_from(sorted(KINDS)), data=st.data())
def test_a_damaged_result_is_refused_or_gives_the_same_numbers(results, judge, monkeypatch, kind, data):
    monkeypatch.chdir(results[0])
    path = file(kind)
    judged(judge, results, path, data.draw(damaged(path.read_bytes())))


@share(0.029)
@given(kind=st.sampled_from(("record", "a record that diverged", "result", "suite")), data=st.data())
def test_an_edited_result_is_refused_or_gives_the_same_numbers(results, judge, monkeypatch, kind, data):
    monkeypatch.chdir(results[0])
    path = file(kind)
    said = json.loads(path.read_text())
    seal = said.pop("content_sha256")
    tree = data.draw(changed(said))
    judged(
        judge, results, path, json.dumps({**tree, "content_sha256": seal} if isinstance(tree, dict) else tree).encode()
    )


EDITS = [
    ("result", "metrics", "acc5"),
    ("result", "value"),
    ("record", "median_step_sec"),
    ("record", "clock_sec", "data"),
    ("record", "normalizer_error", 0, "image_mse"),
    ("record", "peak_memory_bytes"),
    ("suite", "evaluation", "sets", "digits", "chance"),
]


@pytest.mark.parametrize("place", EDITS, ids=lambda place: ".".join(map(str, place)))
def test_a_number_that_another_number_stands_for_is_noticed(results, judge, monkeypatch, place):
    monkeypatch.chdir(results[0])
    path = file(place[0])
    said = json.loads(path.read_text())
    owner = at(said, place[1:-1])
    owner[place[-1]] = owner[place[-1]] * 0.5
    whole = path.read_bytes()
    try:
        path.write_text(json.dumps(said))
        assert isinstance(judge(lambda: collect(paths.suite("quickstart")), path), Refused)
    finally:
        path.write_bytes(whole)


def test_a_digit_of_a_log_is_noticed(results, judge, monkeypatch):
    monkeypatch.chdir(results[0])
    path = file("log")
    whole = path.read_bytes()
    place = whole.index(b'"loss/total": ') + len(b'"loss/total": ')
    try:
        path.write_bytes(whole[:place] + (b"7" if whole[place : place + 1] != b"7" else b"3") + whole[place + 1 :])
        assert isinstance(judge(lambda: collect(paths.suite("quickstart")), path), Refused)
    finally:
        path.write_bytes(whole)


@share(0.014)
@given(data=st.data())
@example(data=None)
def test_a_damaged_spec_is_refused_or_the_same_run(judge, data):
    from engine.training.loop import read_spec

    spec = RunSpec.model_validate(synthetic.run_spec("neuclip", 0, config={"rho": 1.5, "note": "x"}))
    path = paths.spec(spec.run_id)
    whole = spec.model_dump_json(indent=1).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    if data is None:
        path.write_bytes(whole.replace(b"1.5", b"2.5"))
    elif data.draw(st.booleans()):
        path.write_bytes(data.draw(damaged(whole)))
    else:
        path.write_text(json.dumps(data.draw(changed(json.loads(whole)))))
    found = judge(lambda: read_spec(path), path)
    if not isinstance(found, Refused):
        assert found == spec


def test_every_number_of_a_record_is_covered(results, monkeypatch, judge):
    """Of each number that a record or a result states, another one is refused."""
    monkeypatch.chdir(results[0])
    for kind, model in (("record", Record), ("result", EvalResult)):
        path = file(kind)
        said = json.loads(path.read_text())
        numbers = [place for place in places(said) if type(at(said, place)) in (int, float)]
        for place in numbers:
            tree = json.loads(path.read_text())
            at(tree, place[:-1])[place[-1]] += 1
            text = json.dumps(tree)
            assert isinstance(judge(lambda text=text, model=model: parse(model, text, "x.json"), "x.json"), Refused), (
                place
            )


def test_results_from_before_there_was_a_digest_are_read(judge, results, tmp_path, monkeypatch):
    shutil.copytree(results[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for pattern in KINDS.values():
        for path in paths.RESULTS.glob(pattern):
            if path.suffix == ".json":
                said: dict[str, Any] = json.loads(path.read_text())
                said.pop("content_sha256")
                said.pop("log_sha256", None)
                path.write_text(json.dumps(said))
    assert digest(collect(paths.suite("quickstart"))) == digest(results[1])
