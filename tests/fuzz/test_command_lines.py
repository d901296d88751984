"""Command lines of any words: what they print, or one error on the last line, without a traceback.

Only commands that read, or write into the folder of the test: none that trains, fetches, submits, cancels or moves.
"""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import synthetic
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from support import toy
from support.fuzzing import Refused, changed, controls, judge_command, share, texts

from analysis import __main__ as analysis
from analysis.collect import collect
from analysis.frame import write
from engine import evaluate, index, paths, train
from engine.schema.run import RunSpec
from experiments import __main__ as experiments

pytestmark = pytest.mark.slow

SPEC = RunSpec.model_validate(synthetic.run_spec("neuclip", 0))
RUN, OTHER = SPEC.run_id, RunSpec.model_validate(synthetic.run_spec("openclip", 0)).run_id
FRAME, SUITE = str(paths.collected("quickstart")), str(paths.suite("quickstart"))
END = str(SPEC.samples_seen)

INDEX = "--name toy --revision 1 --shards train --out index/toy/index.json"
MAINS: dict[str, Any] = {
    "experiments": experiments.main, "analysis": analysis.main, "train": train.main, "evaluate": evaluate.main,
    "index": index.main,
}  # fmt: skip
LINES = {
    "experiments": f"""
        list smoke --json
        explain {RUN}
        explain results/runs/{RUN} --json
        diff {RUN} {OTHER}
        jobs
        watch --once
        choose tuning@nowhere
        check-method nowhere.py:DCL
        card train --out made.yaml --captions txt
        """,
    "analysis": f"""
        collect {SUITE} --out frame.parquet
        table {FRAME} main_results --out tables
        report quickstart --out report.html
        publish {FRAME} main_results --out published
        show results
        check
        compare results results --json
        """,
    "train": f"""{paths.spec(RUN)} --execution '{{"device": "cpu"}}'""",
    "evaluate": f"""
        {paths.record(RUN)} evaluation.json --milestone {END} --sets digits --execution '{{"device": "cpu"}}'
        --open-clip no-such-model --random-weights --evaluation smoke --out scores --precision fp32
        """,
    "index": f"""
        {INDEX}
        {INDEX} --pairs 96 --captions '{{"member": "txt"}}' --digest members --fraction 0.5 --jobs 2
        """,
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        suite = synthetic.write_suite(
            [synthetic.run_spec(method, seed) for method in ("neuclip", "openclip") for seed in range(2)]
        )
        for run in json.loads(suite.read_text())["runs"]:
            toy.write_spec(Path(), RunSpec.model_validate(run["spec"]))
        Path("evaluation.json").write_text(json.dumps(json.loads(suite.read_text())["evaluation"]))
        write(collect(suite), paths.collected("quickstart"))
        toy.write_shards(Path("train"))
        yield root


def words() -> st.SearchStrategy[str]:
    """Words that a user may write, names of files that are no text among them; no controls, which argparse repeats."""
    odd = (
        "\udcff", "--", "-", "--json", "--help", "-h", "nan", "inf", "@", "tuning@nowhere", "ablations@nowhere",
        "ablation_x@smoke", "results", ".",
    )  # fmt: skip
    return st.one_of(st.sampled_from(odd), texts()).filter(lambda word: not controls(word) and len(word) < 2000)


@st.composite
def lines(draw: st.DrawFn, program: str) -> list[str]:
    line = shlex.split(draw(st.sampled_from(LINES[program].strip().splitlines())))
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, max(0, len(line) - 1)))
        how = draw(st.sampled_from(("word", "word", "insert", "drop", "double")))
        if not line or how == "insert":
            line.insert(place, draw(words()))
        elif how == "word":
            line[place] = draw(words())
        elif how == "drop":
            del line[place]
        else:
            line.insert(place, line[place])
    return line


def is_of_all_suites(line: list[str]) -> bool:
    """Tell if a line lists all suites there are, which takes long."""
    return "list" in line and all(word.startswith("-") or word == "list" for word in line)


def run(program: str, line: list[str]) -> str | Refused:
    assume(not is_of_all_suites(line))
    folder = Path.cwd()
    Path("made.yaml").unlink(missing_ok=True)
    try:
        return judge_command(MAINS[program], line)
    finally:
        torch.set_num_threads(1)
        assert Path.cwd() == folder


@pytest.mark.parametrize("program", LINES)
def test_the_lines_as_they_are_do_what_they_say_or_refuse(results, monkeypatch, program):
    monkeypatch.chdir(results)
    for line in LINES[program].strip().splitlines():
        run(program, shlex.split(line))


def any_line() -> st.SearchStrategy[tuple[str, list[str]]]:
    programs = st.sampled_from(["experiments", "analysis"] * 3 + ["train", "evaluate", "index"])
    return programs.flatmap(lambda program: st.tuples(st.just(program), lines(program)))


@share(0.14)
@given(asked=any_line())
@example(asked=("experiments", ["explain", "\x1b[2J"]))
@example(asked=("experiments", ["list", "~no-such-user/x.yaml"]))
@example(asked=("experiments", ["list", "a" * 300]))
@example(asked=("experiments", ["watch", "\udcff"]))
@example(asked=("experiments", ["card", "train", "--out", "~no-such-user/x.yaml"]))
@example(asked=("analysis", ["report", "../../x", "--out", "x.html"]))
@example(asked=("analysis", ["table", FRAME, "main_results", "--out", FRAME]))
@example(asked=("index", [*shlex.split(INDEX), "--jobs", "0"]))
@example(asked=("index", [*shlex.split(INDEX), "--jobs", "100000"]))
@example(asked=("index", [*shlex.split(INDEX), "--fraction", "1e-320"]))
@example(asked=("index", [*shlex.split(INDEX), "--captions", '{"member": "\\u0000"}']))
def test_a_command_with_any_words_prints_its_result_or_one_error(results, monkeypatch, asked):
    monkeypatch.chdir(results)
    run(*asked)


EXECUTION = {"device": "cpu", "threads": 1, "num_workers": 2, "cache_gib": 1.0, "max_replaced_fraction": 0.1}


@share(0.014)
@given(settings=changed(EXECUTION))
@example(settings={**EXECUTION, "threads": 2**40})
@example(settings={**EXECUTION, "num_workers": 2**40})
@example(settings={**EXECUTION, "threads": True})
def test_train_with_any_settings(results, monkeypatch, settings):
    monkeypatch.chdir(results)
    argv = [str(paths.spec(RUN)), "--execution", json.dumps(settings)]
    try:
        said = judge_command(train.main, argv, "execution", "device")
    finally:
        torch.set_num_threads(1)
    if not isinstance(said, Refused):
        assert set(settings) <= set(EXECUTION)
        assert max(int(settings.get("threads", 1)), int(settings.get("num_workers", 0))) <= 4096
