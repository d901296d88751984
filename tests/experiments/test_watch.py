"""Watching suites: real tiny runs, and what they leave behind when they are killed."""

import io
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from support import toy
from support.terminal import lines_of, run_on_terminal

from engine import files, paths
from engine.jobs import scheduler
from engine.jobs.scheduler import Job
from engine.logs import RECENT_SEC
from engine.schema.record import Attempt
from engine.schema.run import Execution
from engine.schema.suite import ExpandedSuite, SuiteRun
from engine.training.loop import train
from engine.training.provenance import provenance
from experiments.__main__ import main
from experiments.watch import STATES, TAIL_BYTES, Overview, RunView, Watcher, show

METHODS = ("neuclip", "openclip", "siglip")


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    toy.build(tmp_path)
    return tmp_path


def make_suite(*specs, name="toy", variant=""):
    evaluation = toy.build_evaluation(Path.cwd())
    runs = tuple(SuiteRun(variant=variant, spec=spec) for spec in specs)
    for spec in specs:
        toy.write_spec(Path.cwd(), spec)
    return ExpandedSuite(name=name, title="Toy", runs=runs, evaluation=evaluation)


def look(*suites):
    overview = Watcher(suites).look()
    return overview, {run.run_id: run for run in overview.runs}


def write_log(spec, steps, *, seconds_a_step=1.0, start_sec=1e9, first_step=0):
    """What a run would have logged, and its starts."""
    lines = [
        {"unix_sec": start_sec + seconds_a_step * step, "step": step, "samples_seen": step * 16, "loss/total": 1 / step}
        for step in steps
    ]
    path = paths.metrics(spec.run_id)
    files.write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
    note_starts(spec, *([0, first_step] if first_step else [0]))
    return path


def note_starts(spec, *steps):
    origin = provenance(dataset_sha256="0", device=torch.device("cpu"), world_size=1)
    starts = (Attempt(first_step=step, provenance=origin, host="here") for step in steps)
    files.write_text(paths.attempts(spec.run_id), "".join(f"{start.model_dump_json()}\n" for start in starts))


def note_job(spec, kind="train", *, pid=None, end=None):
    """The record of a job on this machine: of this process, or of one that is gone."""
    pid = pid or os.getpid()
    job = Job(
        scheduler="local", job_id=str(pid), name="toy", command=("engine.train",), logs=f"logs-{kind}", started_at=0.0,
        host=socket.gethostname(), processes=((pid, scheduler.start_ticks(pid) or 0),), end=end,
    )  # fmt: skip
    scheduler.write(paths.jobs(spec.run_id) / kind, job)
    return job


def test_a_real_run_is_seen_to_do_running_killed_and_done(root):
    spec = toy.run_spec("openclip", steps=3000)
    suite = make_suite(spec)
    run_id = spec.run_id
    watcher = Watcher([suite])
    (run,) = watcher.look().runs
    assert (run.state, run.samples_seen, run.attempts, run.left_sec) == ("to do", 0, 0, None)
    command = [sys.executable, "-m", "engine.train", str(paths.spec(run_id)), "--execution", '{"save_every_min": 0.01}']
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while (run := watcher.look().runs[0]).samples_per_sec is None and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    assert run.state == "running"
    assert run.attempts == 1
    assert 0 < run.samples_seen < 3000 * 16
    lines = [json.loads(line) for line in paths.metrics(run_id).read_text().splitlines() if line.endswith("}")]
    seen = [line for line in lines if line["samples_seen"] <= run.samples_seen]
    elapsed_sec = seen[-1]["unix_sec"] - seen[0]["unix_sec"]
    assert run.samples_per_sec == pytest.approx((seen[-1]["samples_seen"] - seen[0]["samples_seen"]) / elapsed_sec)
    assert run.left_sec == pytest.approx((3000 * 16 - run.samples_seen) / run.samples_per_sec)
    # Killed by hand, with no job that could have failed: it can be started again.
    (run,) = watcher.look().runs
    assert (run.state, run.samples_per_sec) == ("to do", None)


def test_a_run_is_complete_when_its_models_are_evaluated_too(root):
    spec = toy.run_spec("openclip", milestones=(80, 160))
    suite = make_suite(spec)
    train(spec, Execution())
    _, runs = look(suite)
    run = runs[spec.run_id]
    assert (run.state, run.samples_seen, run.milestones_evaluated, run.milestones) == ("done", 160, 0, 2)
    assert not run.is_complete
    for number, milestone in enumerate(spec.milestones, start=1):
        files.write_text(paths.evaluated(spec.run_id, milestone, suite.evaluation.key), "[]")
        _, runs = look(suite)
        assert runs[spec.run_id].milestones_evaluated == number
    assert runs[spec.run_id].is_complete


def test_a_run_is_complete_when_what_its_suites_ask_for_is_evaluated(root):
    spec = toy.run_spec("openclip", milestones=(80, 160))
    (run,) = make_suite(spec).runs
    suite = make_suite(spec).model_copy(update={"runs": (run.model_copy(update={"over_training": False}),)})
    train(spec, Execution())
    assert look(suite)[1][spec.run_id].milestones == 1
    files.write_text(paths.evaluated(spec.run_id, 160, suite.evaluation.key), "[]")
    assert look(suite)[1][spec.run_id].is_complete


def test_a_rate_is_that_of_the_last_seconds_and_of_this_start(root):
    spec = toy.run_spec("openclip", steps=1000)
    suite = make_suite(spec)
    note_job(spec)
    # Slow until step 500, then ten times as fast: only the last lines count.
    slow = [json.loads(line) for line in write_log(spec, range(10, 501, 10)).open()]
    fast = [json.loads(line) for line in write_log(spec, range(1, 401), seconds_a_step=0.1).open()]
    for line in fast:
        line["unix_sec"] += 500
        line["samples_seen"] += 500 * 16
        line["step"] += 500
    files.write_text(paths.metrics(spec.run_id), "".join(json.dumps(line) + "\n" for line in slow + fast))
    assert look(suite)[1][spec.run_id].samples_per_sec == pytest.approx(160)
    # After a resume at step 500, an hour later, the time between is no training time.
    for line in fast:
        line["unix_sec"] += 3600
    files.write_text(paths.metrics(spec.run_id), "".join(json.dumps(line) + "\n" for line in slow + fast[:3]))
    note_starts(spec, 0, 500)
    run = look(suite)[1][spec.run_id]
    assert (run.samples_per_sec, run.attempts) == (pytest.approx(160), 2)
    assert run.left_sec == pytest.approx((1000 - 503) / 10)
    files.write_text(paths.metrics(spec.run_id), "".join(json.dumps(line) + "\n" for line in slow + fast[:1]))
    assert look(suite)[1][spec.run_id].samples_per_sec is None


def test_lines_that_are_further_apart_than_the_window_give_the_rate_between_the_last_two(root):
    spec = toy.run_spec("openclip", steps=1000)
    suite = make_suite(spec)
    note_job(spec)
    write_log(spec, range(10, 101, 10), seconds_a_step=RECENT_SEC)
    assert look(suite)[1][spec.run_id].samples_per_sec == pytest.approx(16 / RECENT_SEC)


def test_only_the_end_of_a_log_is_read_and_only_whole_lines_of_it(root):
    spec = toy.run_spec("openclip", steps=1000)
    suite = make_suite(spec)
    note_job(spec)
    path = write_log(spec, range(1, 400), seconds_a_step=0.1)
    lines = path.read_bytes()
    assert len(lines) > TAIL_BYTES
    # A gigabyte that is no JSON before it, and a line that is being written after it.
    with path.open("wb") as file:
        file.seek(2**30)
        file.write(b"\n" + lines + b'{"unix_sec": 1000000040.0, "step": 400, "sam')
    run = look(suite)[1][spec.run_id]
    assert (run.samples_seen, run.samples_per_sec) == (399 * 16, pytest.approx(160))


def test_failed_jobs_are_named_with_their_logs(root):
    specs = [toy.run_spec("openclip", seed=seed) for seed in range(3)]
    suite = make_suite(*specs)
    training = note_job(specs[0], end="OUT_OF_MEMORY")
    train(specs[1], Execution())
    evaluating = note_job(specs[1], f"evaluate-160-{suite.evaluation.key}", end="FAILED")
    overview, runs = look(suite)
    first, second, third = (runs[spec.run_id] for spec in specs)
    assert (first.state, first.failed_logs) == ("failed", (str(training.log(0, "err")),))
    assert (second.state, second.failed_logs) == ("done", (str(evaluating.log(0, "err")),))
    assert (third.state, third.failed_logs) == ("to do", ())
    text = drawn(overview)
    assert f"failed: {training.log(0, 'err')}" in text
    assert f"failed: {evaluating.log(0, 'err')}" in text


def test_what_was_cancelled_is_to_do_and_has_not_failed(root):
    specs = [toy.run_spec("openclip", seed=seed) for seed in range(2)]
    suite = make_suite(*specs)
    note_job(specs[0], end="CANCELLED")
    train(specs[1], Execution())
    note_job(specs[1], f"evaluate-160-{suite.evaluation.key}", end="CANCELLED")
    _, runs = look(suite)
    assert [runs[spec.run_id].state for spec in specs] == ["to do", "done"]
    assert all(run.failed_logs == () for run in runs.values())


def test_the_time_left_of_a_suite_is_that_of_all_it_has_still_to_train_at_the_present_rate(root):
    specs = [toy.run_spec("openclip", seed=seed, steps=100) for seed in range(4)]
    suite = make_suite(*specs)
    for spec, seconds_a_step in zip(specs[:2], (1.0, 0.5), strict=True):
        note_job(spec)
        write_log(spec, range(10, 51, 10), seconds_a_step=seconds_a_step)
    note_job(specs[2], end="FAILED")
    overview, _ = look(suite)
    (view,) = overview.suites
    assert view.states == {"running": 2, "failed": 1, "to do": 1}
    assert view.trained == pytest.approx(100 / 400)
    assert view.samples_per_sec == pytest.approx(16 + 32)
    # 50 + 50 steps of the running ones and 100 that are to do; the failed one will not go on by itself.
    assert view.left_sec == pytest.approx(200 * 16 / 48)
    # With the slow run alone on its own, that is what remains.
    overview, _ = look(make_suite(*specs[:2]))
    assert overview.suites[0].left_sec == pytest.approx(50)


def test_a_run_of_two_suites_is_listed_once_and_counted_in_both(root):
    shared, other = toy.run_spec("openclip"), toy.run_spec("siglip")
    suites = make_suite(shared, name="a"), make_suite(shared, other, name="b", variant="never")
    overview, runs = look(*suites)
    assert len(overview.runs) == 2
    assert (runs[shared.run_id].variant, runs[other.run_id].variant) == ("", "never")
    assert [sum(suite.states.values()) for suite in overview.suites] == [1, 2]
    # Both suites evaluate on the same sets: one model, one evaluation.
    assert runs[shared.run_id].milestones == 1


def view(number, **changes):
    values = {
        "run_id": f"neuclip-imagenet-vit-b-32-s{number}-{number:08x}", "variant": "", "state": "to do",
        "samples_seen": 0, "samples_total": 10**9, "samples_per_sec": None, "left_sec": None, "loss": None,
        "num_skipped": 0, "loss_scale": None, "updated_at": None, "attempts": 0,
        "milestones_evaluated": 0, "milestones": 5, "failed_logs": (),
    }  # fmt: skip
    return RunView(**values | changes)


def drawn(overview, width=200, **options):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(show(overview, width=width, **options))
    return console.export_text()


BUSY = {
    "state": "running", "samples_seen": 123_456_789, "samples_per_sec": 98_765.4, "left_sec": 200_000.0,
    "loss": 7.12345, "updated_at": 1000.0, "attempts": 12,
}  # fmt: skip


@pytest.mark.parametrize("width", [80, 100, 144, 200])
def test_the_table_fits_its_terminal_and_shows_what_matters(width):
    text = drawn(Overview(suites=(), runs=(view(0, **BUSY), view(1))), width, now=1060.0)
    rows = text.splitlines()
    assert len(rows) == 3
    assert all(len(row.rstrip()) <= width for row in rows)
    for shown in ("neuclip", "s0-00000000", "running", "98,765", "2 d 7 h", "7.1235", "0/5"):
        assert shown in rows[1]
    assert ("123,456,789/1,000,000,000" in text) == ("0:01:00 ago" in text) == (width >= 144)


@pytest.mark.parametrize("width", [80, 100, 144, 200])
def test_skipped_steps_and_the_loss_scale_have_columns_where_there_are_some_and_room_for_them(width):
    skipping = view(0, **BUSY, num_skipped=12_345, loss_scale=0.5)
    rows = drawn(Overview(suites=(), runs=(skipping, view(1, loss_scale=65536.0))), width, now=1060.0).splitlines()
    assert len(rows) == 3
    assert all(len(row.rstrip()) <= width for row in rows)
    has_room = width >= 100
    assert ("skipped" in rows[0]) == ("12345" in rows[1]) == ("0.5 " in rows[1]) == ("65536" in rows[2]) == has_room
    assert "7.1235" in rows[1]


def test_a_run_in_half_precision_is_seen_with_its_skipped_steps_and_its_loss_scale(root):
    spec = toy.run_spec("openclip", precision="fp16", normalizer_error=None)
    suite = make_suite(spec, toy.run_spec("openclip"))
    record = train(spec, Execution())
    _, runs = look(suite)
    line = json.loads(paths.metrics(spec.run_id).read_text().splitlines()[-1])
    run = runs[spec.run_id]
    assert (run.num_skipped, run.loss_scale) == (record.num_skipped, record.loss_scale)
    assert (run.num_skipped, run.loss_scale) == (line["scaler/num_skipped"], line["scaler/scale"])
    assert record.loss_scale == 2.0 ** (16 - record.num_skipped)
    other = runs[suite.runs[1].spec.run_id]
    assert (other.num_skipped, other.loss_scale) == (0, None)


def test_a_terminal_too_low_for_all_runs_shows_the_first_and_counts_the_rest():
    runs = tuple(view(number) for number in range(40))
    rows = drawn(Overview(suites=(), runs=runs), max_rows=10).splitlines()
    assert len(rows) == 12
    assert rows[-1].strip() == "... and 30 more: --once shows all"


WATCH = """
import sys
from pathlib import Path
from rich.console import Console
from engine.schema.suite import ExpandedSuite
from experiments.watch import watch
watch([ExpandedSuite.model_validate_json(Path("suite.json").read_text())], Console(), every_sec=0.2)
"""


@pytest.mark.slow
def test_on_a_terminal_it_refreshes_until_everything_is_done(root):
    spec = toy.run_spec("openclip", steps=200)
    suite = make_suite(spec)
    Path("suite.json").write_text(suite.model_dump_json())
    work = f"""
import subprocess, sys, pathlib, time
while not pathlib.Path("watching").exists():
    time.sleep(0.05)
subprocess.run([sys.executable, "-m", "engine.train", {str(paths.spec(spec.run_id))!r}], check=True)
path = pathlib.Path({str(paths.evaluated(spec.run_id, spec.samples_seen, suite.evaluation.key))!r})
path.parent.mkdir(parents=True)
path.touch()
"""
    process = subprocess.Popen([sys.executable, "-c", work], stderr=subprocess.DEVNULL)
    try:
        # Training starts when the first look was shown.
        begin = "import threading\nthreading.Timer(1, Path('watching').touch).start()\nwatch("
        code, shown = run_on_terminal([sys.executable, "-c", WATCH.replace("watch(", begin)], timeout_sec=120)
    finally:
        Path("watching").touch()
        assert process.wait() == 0
    assert code == 0, shown
    lines = lines_of(shown)
    assert any(line.startswith("toy: 1 to do; 0 % trained; 0/1 models evaluated") for line in lines)
    assert any("1 running" in line for line in lines)
    assert lines[-3] == "toy: 1 done; 100 % trained; 1/1 models evaluated"
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def test_ctrl_c_ends_watching_quietly(root):
    Path("suite.json").write_text(make_suite(toy.run_spec("openclip")).model_dump_json())
    code, shown = run_on_terminal([sys.executable, "-c", WATCH], press=("to do", b"\x03"))
    assert code == 0
    assert "Traceback" not in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def test_the_command_prints_json_and_in_a_pipe_one_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["watch", "smoke", "--json"])
    overview = Overview.model_validate_json(capsys.readouterr().out)
    assert overview.suites[0].states == {"to do": 5}
    # Without a name: what was started in this folder, as a workflow wrote it.
    with pytest.raises(SystemExit, match=r"no run of a suite has been started here \(none in results/suites\)"):
        main(["watch"])
    main(["expand", "smoke"])
    paths.jobs(overview.runs[0].run_id).mkdir(parents=True)
    main(["watch"])
    text = capsys.readouterr().out
    assert text.startswith("smoke: 5 to do; 0 % trained; 0/5 models evaluated\n")
    assert all(run.run_id in text for run in overview.runs)
    assert "\x1b" not in text


def test_every_state_of_a_run_has_its_place_in_the_table():
    assert set(STATES) == {"to do", "pending", "running", "done", "diverged", "failed"}
