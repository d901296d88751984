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
from support.fuzzing import HTML, NUMBERS, TEXTS, Judge, Refused, changed, controls, share, texts

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
LINES: dict[str, tuple[Any, list[list[str]]]] = {
    program: (main, [shlex.split(line) for line in known.strip().splitlines()])
    for program, main, known in (
        (
            "experiments",
            experiments.main,
            f"""
            list smoke
            list smoke --json
            explain {RUN}
            explain results/runs/{RUN} --json
            diff {RUN} {OTHER}
            diff {RUN} {RUN} --json
            jobs
            watch --once
            watch --json
            choose tuning@nowhere
            check-method nowhere.py:DCL
            card train --out made.yaml --captions txt
            card train --task zeroshot_retrieval --split test
            """,
        ),
        (
            "analysis",
            analysis.main,
            f"""
            collect {SUITE} --out frame.parquet
            table {FRAME} main_results --out tables
            table {FRAME} cost --out tables
            report quickstart --out report.html
            publish {FRAME} main_results --out published
            show results
            show {FRAME}
            check
            compare results results
            compare results results --json
            """,
        ),
        (
            "train",
            train.main,
            f"""
            {paths.spec(RUN)}
            {paths.spec(RUN)} --execution '{{"device": "cpu"}}'
            """,
        ),
        (
            "evaluate",
            evaluate.main,
            f"""
            {paths.record(RUN)} evaluation.json --milestone {END}
            {paths.record(RUN)} evaluation.json --milestone {END} --sets digits --execution '{{"device": "cpu"}}'
            --open-clip no-such-model --random-weights --evaluation smoke --out scores --precision fp32
            """,
        ),
        (
            "index",
            index.main,
            f"""
            {INDEX}
            {INDEX} --pairs 96 --captions '{{"member": "txt"}}' --digest members --fraction 0.5 --jobs 2
            """,
        ),
    )
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
    known = st.sampled_from([*TEXTS, *HTML, *map(str, NUMBERS)])
    return st.one_of(st.sampled_from(odd), known, texts()).filter(lambda word: not controls(word) and len(word) < 2000)


@st.composite
def lines(draw: st.DrawFn, program: str) -> list[str]:
    line = list(draw(st.sampled_from(LINES[program][1])))
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, max(0, len(line) - 1)))
        how = draw(st.sampled_from(("word", "word", "insert", "drop", "double", "swap")))
        if not line or how == "insert":
            line.insert(place, draw(words()))
        elif how == "word":
            line[place] = draw(words())
        elif how == "drop":
            del line[place]
        elif how == "double":
            line.insert(place, line[place])
        else:
            other = draw(st.integers(0, len(line) - 1))
            line[place], line[other] = line[other], line[place]
    return line


def is_of_all_suites(line: list[str]) -> bool:
    """Tell if a line lists all suites there are, which takes long."""
    return "list" in line and all(word.startswith("-") or word == "list" for word in line)


@pytest.mark.parametrize("program", LINES)
@pytest.mark.parametrize("number", range(3))
def test_the_lines_as_they_are_do_what_they_say_or_refuse(results, judge, monkeypatch, program, number):
    main, known = LINES[program]
    monkeypatch.chdir(results)
    for line in known[number::3]:
        judge.command(main, line)


def run(results: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch, program: str, line: list[str]) -> None:
    assume(not is_of_all_suites(line))
    monkeypatch.chdir(results)
    Path("made.yaml").unlink(missing_ok=True)
    try:
        judge.command(LINES[program][0], line)
    finally:
        torch.set_num_threads(1)
        assert Path.cwd() == results


@share(0.058)
@given(line=lines("experiments"))
@example(line=["explain", "\x1b[2J"])
@example(line=["list", "~no-such-user/x.yaml"])
@example(line=["list", "**"])
@example(line=["list", "a" * 300])
@example(line=["watch", "\udcff"])
@example(line=["card", "train", "--out", "~no-such-user/x.yaml"])
def test_experiments_with_any_words(results, judge, monkeypatch, line):
    run(results, judge, monkeypatch, "experiments", line)


@share(0.048)
@given(line=lines("analysis"))
@example(line=["collect", "a" * 300, "--out", "x"])
@example(line=["show", "\udcff"])
@example(line=["report", "../../x", "--out", "x.html"])
@example(line=["table", FRAME, "main_results", "--out", FRAME])
def test_analysis_with_any_words(results, judge, monkeypatch, line):
    run(results, judge, monkeypatch, "analysis", line)


@share(0.014)
@given(line=lines("train"))
def test_train_with_any_words(results, judge, monkeypatch, line):
    run(results, judge, monkeypatch, "train", line)


EXECUTION = {
    "device": "cpu",
    "threads": 1,
    "num_workers": 2,
    "cache_gib": 1.0,
    "accumulation_steps": 1,
    "max_replaced_fraction": 0.1,
    "save_every_min": 1.0,
}


@share(0.014)
@given(settings=changed(EXECUTION))
@example(settings={**EXECUTION, "threads": 2**40})
@example(settings={**EXECUTION, "num_workers": 2**40})
@example(settings={**EXECUTION, "threads": True})
def test_train_with_any_settings(results, judge, monkeypatch, settings):
    monkeypatch.chdir(results)
    try:
        said = judge.command(
            train.main, [str(paths.spec(RUN)), "--execution", json.dumps(settings)], "execution", "device"
        )
        if not isinstance(said, Refused):
            assert set(settings) <= set(EXECUTION)
            assert int(settings.get("threads", 1)) <= 4096
            assert int(settings.get("num_workers", 0)) <= 4096
    finally:
        torch.set_num_threads(1)


@share(0.014)
@given(line=lines("evaluate"))
def test_evaluate_with_any_words(results, judge, monkeypatch, line):
    run(results, judge, monkeypatch, "evaluate", line)


@share(0.014)
@given(line=lines("index"))
@example(line=[*LINES["index"][1][0], "--jobs", "0"])
@example(line=[*LINES["index"][1][0], "--jobs", "100000"])
@example(line=[*LINES["index"][1][0], "--fraction", "1e-320"])
@example(line=[*LINES["index"][1][0], "--captions", '{"member": "\\u0000"}'])
def test_index_with_any_words(results, judge, monkeypatch, line):
    run(results, judge, monkeypatch, "index", line)
