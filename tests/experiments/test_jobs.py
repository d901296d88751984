"""`python -m experiments jobs` and `retrain`: what is shown of jobs, and runs that are trained again on purpose."""

import io
import os
import socket
import time

import pytest
from rich.console import Console
from support import toy

from engine import files, paths
from engine.jobs import scheduler
from engine.jobs.scheduler import Job
from engine.schema.run import Execution
from engine.schema.suite import ExpandedSuite, SuiteRun
from engine.training.loop import train
from experiments import jobs
from experiments.__main__ import main
from experiments.design import expansion


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    toy.build(tmp_path)
    return tmp_path


@pytest.fixture
def suite(root):
    runs = tuple(SuiteRun(variant="", spec=toy.run_spec("openclip", seed=seed)) for seed in range(2))
    made = ExpandedSuite(name="toy", title="Toy", runs=runs, evaluation=toy.build_evaluation(root))
    expansion.write(made)
    return made


def note(folder, name, end=None):
    """A job on this machine: this process, or one that has ended."""
    job = Job(
        scheduler="local", job_id=str(os.getpid()), name=name, command=("work",), logs=str(folder / "1"),
        started_at=time.time(), host=socket.gethostname(), end=end,
        processes=((os.getpid(), scheduler.start_ticks(os.getpid())),),
    )  # fmt: skip
    scheduler.write(folder, job)


def drawn(views, width):
    console = Console(width=width, file=io.StringIO())
    console.print(jobs.show(views, width=width))
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 100, 144, 200])
def test_every_column_of_jobs_has_room_and_logs_are_named(suite, width):
    run_id, key = suite.runs[0].spec.run_id, suite.evaluation.key
    note(paths.jobs(run_id) / "train", run_id)
    failed = paths.evaluate_jobs(run_id, 160, key)
    note(failed, f"eval-{run_id}-160-{key}", end="OUT_OF_MEMORY")
    lines = drawn(jobs.look(), width)
    assert all(len(line) <= width for line in lines)
    head = lines[0].split()
    assert head[:4] == ["job", "number", "state", "submitted"]
    text = "\n".join(lines)
    for shown in (str(os.getpid()), "RUNNING", "OUT_OF_MEMORY", time.strftime("%d %b")):
        assert shown in text
    assert (
        str(failed / "1" / f"{os.getpid()}_0_log.err") in "".join(line.strip() for line in lines[-2:]) or width >= 144
    )


def test_of_jobs_that_failed_those_are_shown_whose_result_is_missing_and_still_asked_for(suite, capsys):
    first, second = (run.spec for run in suite.runs)
    key = suite.evaluation.key
    wanted = {
        "live": paths.jobs(first.run_id) / "train",
        "failed": paths.evaluate_jobs(first.run_id, first.milestones[-1], key),
        "index": paths.prepare_jobs("index-toy"),
    }
    others = {
        "of another card": paths.evaluate_jobs(first.run_id, first.milestones[-1], "toy-01234567"),
        "done since": paths.jobs(second.run_id) / "train",
        "cancelled": paths.evaluate_jobs(second.run_id, second.milestones[-1], key),
        "of a run that no suite has": paths.jobs("openclip-toy-s9-01234567") / "train",
    }
    files.write_text(paths.record(second.run_id), "")
    for name, folder in (wanted | others).items():
        note(folder, name, end={"live": None, "cancelled": "CANCELLED"}.get(name, "FAILED"))
    assert {view.job.name for view in jobs.in_need(jobs.look(), expansion.written())} == wanted.keys()
    main(["jobs"])
    assert "4 jobs that have ended are not shown: name suites to see theirs" in capsys.readouterr().out


def test_a_run_is_trained_again_when_it_was_moved_away_on_purpose(suite, capsys):
    spec = suite.runs[0].spec
    before = train(spec, Execution())
    main(["retrain", spec.run_id])
    moved = paths.RESULTS / "replaced" / spec.run_id / "1"
    assert f"moved {paths.run(spec.run_id)} to {moved}" in (said := capsys.readouterr().out)
    assert "to train anew: snakemake --config suites=toy" in said
    assert (moved / "record.json").exists()
    assert not paths.run(spec.run_id).exists()
    expansion.write(suite)  # as a workflow does when it starts
    after = train(spec, Execution())
    assert after.clock_sec != before.clock_sec
    assert after.milestones == before.milestones
    assert paths.replaced(spec.run_id) == moved.with_name("2")


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_no_name_is_no_name_of_jobs_that_belong_to_no_run(name, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["cancel", name])
    assert f"came {name!r}, allowed is a run's id or folder" in capsys.readouterr().err


def test_a_run_that_is_being_trained_is_not_moved_away(suite, capsys):
    run_id = suite.runs[0].spec.run_id
    note(paths.jobs(run_id) / "train", run_id)
    for wrong, message in {
        run_id: f"run {run_id} is running: `python -m experiments cancel {run_id}`",
        "x": "no run 'x'",
    }.items():
        with pytest.raises(SystemExit, match=message):
            main(["retrain", wrong])
    assert paths.run(run_id).exists()
