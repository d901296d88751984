import fcntl
import json
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from support import toy
from support.terminal import lines_of, run_on_terminal

from engine import files, paths
from engine.logs import RECENT_SEC, RecentRate, format_duration
from engine.schema.record import Attempt, Provenance
from engine.training.reporting import LOG_LINE_SEC, Clock, Reporter

ORIGIN = Provenance(
    commit="c", dirty_sha256=None, lock_sha256="l", dataset_sha256="d", device="Toy CPU", device_count=2, world_size=2,
    threads=1, python="3", platform="p", packages={},
)  # fmt: skip


@pytest.fixture
def root(tmp_path, monkeypatch):
    toy.build(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_on_a_terminal_a_bar_shows_loss_temperature_rate_and_time_left(root):
    path = toy.write_spec(root, toy.run_spec("openclip", steps=120))
    code, shown = run_on_terminal([sys.executable, "-m", "engine.train", str(path)])
    lines = lines_of(shown)
    assert code == 0, shown
    assert re.search(r"openclip, tiny-vit on 96 pairs of toy, 120 steps of 16 samples, .* from the start", lines[0])
    bars = [line for line in lines if "━" in line]
    facts = [line for line in lines if re.match(r"loss .* left", line)]
    assert bars
    assert all(re.search(r"[━╸╺] step \d+/120  \d+ %$", bar) and len(bar) <= 80 for bar in bars)
    assert all(
        re.fullmatch(r"loss \d\.\d{4}  temperature 0\.0\d{3}  [\d,]+ samples/s  0:\d\d:\d\d left", f) for f in facts
    )
    assert facts
    # The terminal is left as it was: a bar that is wiped out, a visible cursor, and the last line.
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    assert re.search(r"step 120/120  100 %  loss .*  1,920 samples in 0:00:\d\d, [\d,]+/s in all$", lines[-2])


def test_ctrl_c_on_a_terminal_saves_and_leaves_a_visible_cursor(root):
    path = toy.write_spec(root, toy.run_spec("openclip", steps=5000))
    code, shown = run_on_terminal([sys.executable, "-m", "engine.train", str(path)], press=("samples/s", b"\x03"))
    assert code == 128 + signal.SIGINT
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    assert "Traceback" not in shown
    assert re.search(r"stopped by SIGINT after step \d+, which is saved; started again, it goes on from there", shown)
    assert list(paths.checkpoints(path.parent.name).glob("step-*.json"))


def test_a_log_has_plain_lines_a_first_and_a_last_one(root):
    path = toy.write_spec(root, toy.run_spec("openclip", steps=40))
    command = [sys.executable, "-m", "engine.train", str(path)]
    log = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=True).stderr
    first, second, last, end = log.splitlines()
    # The log of two seconds: its first progress is told, the rest would be a line every few seconds.
    assert first.endswith("from the start")
    assert re.fullmatch(
        r"step 10/40  25 %  loss \d\.\d{4}  temperature 0\.0\d+  [\d,]+ samples/s  0:00:\d\d left", second
    )
    assert last.startswith("step 40/40  100 %  loss ")
    assert end.startswith(path.parent.name)
    assert "\x1b" not in log
    assert "\r" not in log


@pytest.fixture
def spec(tmp_path, monkeypatch):
    """A run of 1000 steps of 16 samples whose folder is there."""
    monkeypatch.chdir(tmp_path)
    spec = toy.run_spec("openclip", steps=1000)
    toy.write_spec(tmp_path, spec)
    return spec


def attempt(first_step):
    return Attempt(first_step=first_step, provenance=ORIGIN, host="node7", job_id="4711")


def metrics(step, **changes):
    return {"step": step, "samples_seen": 16 * step, "loss/total": 1.5, "temperature/value": 0.05, **changes}


@pytest.fixture
def clock(monkeypatch):
    """A clock that is moved by hand."""
    now = [1000.0]
    monkeypatch.setattr("engine.training.reporting.time.perf_counter", lambda: now[0])
    return now


def test_after_a_resume_place_rate_and_time_left_are_those_of_the_whole_run(spec, capsys, clock):
    files.write_text(paths.metrics(spec.run_id), "".join(json.dumps({"step": n}) + "\n" for n in (395, 400, 405)))
    with Reporter(spec, attempt(400)) as reporter:
        for step in range(401, 421):
            clock[0] += 20.0 if step == 401 else 0.5
            reporter.step(step, metrics(step) if step % 10 == 0 else None)
        clock[0] += LOG_LINE_SEC
    first, line, last = capsys.readouterr().err.splitlines()
    assert "2 processes on Toy CPU (node7, job 4711); goes on after step 400" in first
    # The first step loads and compiles: it is no part of the rate. 16 samples in half a second; 590 steps are left.
    assert line == "step 410/1,000  41 %  loss 1.5000  temperature 0.0500  32 samples/s  0:04:55 left"
    # 20 s, 19 steps of 0.5 s, and the wait at the end.
    assert last == "step 420/1,000  42 %  loss 1.5000  temperature 0.0500  320 samples in 0:00:44, 7/s in all"
    assert [json.loads(line)["step"] for line in paths.metrics(spec.run_id).open()] == [395, 400, 410, 420]


def test_lines_in_a_log_are_some_seconds_apart(spec, capsys, clock):
    with Reporter(spec, attempt(0)) as reporter:
        for step in range(1, 601):
            clock[0] += 0.125
            reporter.step(step, metrics(step))
    steps = [int(line.split()[1].partition("/")[0]) for line in capsys.readouterr().err.splitlines()[1:]]
    assert steps == [1, 121, 241, 361, 481, 600]


def test_what_is_not_finite_is_shown_and_written_as_null(spec, capsys):
    before = time.time()
    with Reporter(spec, attempt(0)) as reporter:
        reporter.step(1, metrics(1, **{"loss/total": float("nan")}))
    line = json.loads(paths.metrics(spec.run_id).read_text())
    assert line["loss/total"] is None
    assert before - 0.001 <= line["unix_sec"] <= time.time() + 0.001
    assert "loss nan" in capsys.readouterr().err


def test_an_error_in_the_block_ends_the_report_and_goes_on(spec, capsys):
    def fail():
        with Reporter(spec, attempt(0)) as reporter:
            reporter.step(300, metrics(300))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert capsys.readouterr().err.splitlines()[-1].startswith("step 300/1,000  30 %")


def test_other_processes_than_the_first_say_and_write_nothing(spec, capsys):
    with Reporter(spec, None) as reporter:
        reporter.step(1, metrics(1))
    assert capsys.readouterr().err == ""
    assert not paths.metrics(spec.run_id).exists()


@pytest.mark.slow
def test_of_two_processes_one_speaks(root):
    path = toy.write_spec(root, toy.run_spec("openclip"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    log = subprocess.run([*command, "-m", "engine.train", str(path)], stderr=subprocess.PIPE, text=True, check=True)
    ours = [line for line in log.stderr.splitlines() if path.parent.name in line or line.startswith("step ")]
    assert len(ours) == 4, log.stderr
    assert "; 2 processes on " in ours[0]


def test_a_second_process_says_that_it_waits_for_the_first(root):
    path = toy.write_spec(root, toy.run_spec("openclip", steps=20))
    with (path.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [sys.executable, "-m", "engine.train", str(path)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert "another process trains it; waiting for that to end" in process.stderr.readline()
    assert "from the start" in process.stderr.readline()
    assert process.wait() == 0
    process.stderr.close()


def test_a_rate_follows_the_last_seconds():
    rate = RecentRate()
    assert rate.per_sec is None
    for second in range(1000):
        rate.mark(second, 10 * second)
    assert rate.per_sec == pytest.approx(10)
    for second in range(1000, 1000 + int(RECENT_SEC) + 1):
        rate.mark(second, 10_000 + 2 * (second - 1000))
    assert rate.per_sec == pytest.approx(2)


def test_a_rate_of_steps_longer_than_its_window_is_that_of_the_last_step():
    rate = RecentRate()
    for number, second in enumerate((0, 10, 200, 400)):
        rate.mark(second, number)
    assert rate.per_sec == pytest.approx(1 / 200)


def test_a_rate_of_quick_steps_keeps_few_marks():
    rate = RecentRate()
    for number in range(100_000):
        rate.mark(number / 1000, number)
    assert rate.per_sec == pytest.approx(1000, rel=1e-3)
    assert len(rate._marks) < 2 * RECENT_SEC


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0:00:00"), (59.6, "0:01:00"), (3725, "1:02:05"), (86_399, "23:59:59"), (200_000, "2 d 7 h")],
)
def test_durations_are_short(seconds, text):
    assert format_duration(seconds) == text


# Clock ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_step_takes_the_time_between_lines_without_what_happens_between_steps(monkeypatch, device):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    clock = Clock(torch.device(device))

    def pass_by(sec, phase):
        with clock.phase(phase):
            now[0] += sec

    told = []
    for step in range(6):
        is_line = step % 2 == 1
        clock.start_step(timing=is_line)
        # Starts take long, and a GPU that is waited for is slower.
        pass_by(50.0 if step == 0 else 1.0, "data")
        pass_by(4.0 if is_line else 2.0, "method")
        told.append(clock.end_step(is_line=is_line))
        pass_by(100.0, "checkpoint")
    assert told[0] == told[2] == {}
    assert [line["time/step_sec"] for line in told[1::2]] == [28.5, 4.0, 4.0]
    assert clock.median_step_sec == 4.0
    shares = {"time/data_share": 0.2, "time/method_share": 0.8}
    assert told[5] == {"time/step_sec": 4.0} | shares
    assert clock.total_sec["checkpoint"] == 600.0
    if device == "cuda":
        assert clock.total_sec["method"] == pytest.approx(0.8 * (57 + 8 + 8))
    else:
        assert clock.total_sec["method"] == 18.0
