"""A job that stands still is ended by those of its processes that can still say which one is to blame."""

import os
import signal
import subprocess
import sys
import time

from support import toy

from engine import paths
from engine.stop import EXIT_REQUEUE

WORK = """
import sys, time, pathlib
from engine.heartbeat import Heartbeat
folder, rank, num_steps, stops_at, step_sec = pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:5]), float(sys.argv[5])
with Heartbeat(1.0, folder if rank >= 0 else None, max(rank, 0)).watching() as heartbeat:
    for step in range(num_steps):
        heartbeat.beat(f"step {step}")
        if step == 2:
            (folder.parent / f"goes{rank}").touch()
        time.sleep(60 if step == stops_at else step_sec)
"""


def start(folder, rank=-1, num_steps=12, stops_at=-1, step_sec=0.1):
    numbers = map(str, (rank, num_steps, stops_at, step_sec))
    command = [sys.executable, "-c", WORK, str(folder / "signs"), *numbers]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(folder / f"goes{rank}")
    return process


def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)


def end(process):
    _, said = process.communicate(timeout=60)
    return process.returncode, said


def test_a_single_process_that_gets_no_further_ends_to_be_started_again(tmp_path):
    code, said = end(start(tmp_path, stops_at=4))
    assert code == EXIT_REQUEUE
    assert "process 0 on " in said
    assert "does not get beyond step 4" in said


def test_the_others_name_the_process_that_is_frozen(tmp_path):
    second = start(tmp_path, 1, num_steps=10_000)
    # The first waits for the second, as in a collective.
    first = start(tmp_path, 0, stops_at=5)
    second.send_signal(signal.SIGSTOP)
    try:
        code, said = end(first)
    finally:
        second.kill()
        end(second)
    assert code == EXIT_REQUEUE
    assert "process 0" not in said
    assert f"process id {second.pid}, gives no sign of life since step" in said


def test_a_job_that_was_suspended_as_a_whole_goes_on(tmp_path):
    process = start(tmp_path)
    process.send_signal(signal.SIGSTOP)
    time.sleep(3)
    process.send_signal(signal.SIGCONT)
    assert end(process) == (0, "")


def test_steps_that_are_slow_are_no_standstill(tmp_path):
    assert end(start(tmp_path, num_steps=4, step_sec=1.3)) == (0, "")


def test_a_training_with_a_frozen_process_ends_to_be_started_again(tmp_path, monkeypatch):
    toy.build(tmp_path)
    monkeypatch.chdir(tmp_path)
    spec = toy.run_spec("openclip", steps=3000, normalizer_error=None)
    path = toy.write_spec(tmp_path, spec)
    command = [sys.executable, "-m", "engine.train", str(path), "--execution", '{"stall_sec": 4, "log_every_steps": 1}']
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29751"}
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        wait_for(paths.heartbeat(spec.run_id) / "1")
        wait_for(paths.metrics(spec.run_id))
        while paths.metrics(spec.run_id).read_text().count("\n") < 20:
            time.sleep(0.1)
        processes[1].send_signal(signal.SIGSTOP)
        code, said = end(processes[0])
    finally:
        for process in processes:
            process.kill()
    assert code == EXIT_REQUEUE
    assert f"process id {processes[1].pid}, gives no sign of life since" in said
