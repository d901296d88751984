"""States of jobs. Slurm's commands are played by scripts where a real Slurm cannot be made to misbehave at will."""

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support import toy

from engine import files, paths
from engine.jobs import scheduler
from engine.jobs.cluster import Cluster, Request
from engine.jobs.launcher import Launch, Launcher
from engine.jobs.scheduler import Job, find, is_locked, run_state, start_ticks, status
from experiments import jobs


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory, and a folder of commands that comes first on the PATH."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def command(here, name, script):
    path = here.parent / "bin" / name
    path.write_text(f'#!/bin/sh\necho {name} "$@" >> {here}/asked\n{script}\n')
    path.chmod(0o755)


def asked(here, name="squeue"):
    path = here / "asked"
    return [line for line in path.read_text().splitlines() if line.startswith(f"{name} ")] if path.exists() else []


def slurm_job(number="7", name="run-a"):
    return Job(
        scheduler="slurm",
        job_id=number,
        name=name,
        command=("work",),
        logs="logs",
        started_at=time.time(),
        host="login",
    )


def local_job(process, host=None):
    return Job(
        scheduler="local", job_id=str(process.pid), name="run-a", command=("work",), logs="logs",
        started_at=time.time(), host=host or scheduler.socket.gethostname(), start_ticks=start_ticks(process.pid),
    )  # fmt: skip


def answers(here, *lines):
    command(here, "squeue", "cat <<'END'\n" + "\n".join(lines) + "\nEND")


NO_ACCOUNTING = "echo 'Slurm accounting storage is disabled' >&2; exit 1"


def test_a_word_of_squeue_becomes_a_phase(here):
    answers(
        here,
        f"7|RUNNING|node1|None|run-a|{here}",
        f"8|PENDING||Resources|run-b|{here}",
        f"9|OUT_OF_MEMORY|node2|OutOfMemory|run-c|{here}",
        "10|COMPLETING|node2|None|odd|folder with | in it",
    )
    now = time.time()
    found = {number: status(slurm_job(number), not_before=now) for number in ("7", "8", "9", "10")}
    assert [found[number].phase for number in found] == ["running", "pending", "ended", "running"]
    assert (found["7"].node, found["7"].reason, found["8"].reason) == ("node1", "", "Resources")
    assert found["9"].word == "OUT_OF_MEMORY"


def test_many_launchers_ask_once(here):
    command(here, "squeue", f"sleep 0.2; echo '7|RUNNING|node1|None|run-a|{here}'")
    job = slurm_job()
    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(lambda _: status(job, not_before=job.started_at - 15).word, range(20)))
    assert found == ["RUNNING"] * 20
    assert len(asked(here)) == 1
    status(job, not_before=time.time())
    assert len(asked(here)) == 2


def test_an_answer_from_before_the_submission_does_not_end_a_job(here):
    answers(here, "")
    status(slurm_job("6"), not_before=0)
    answers(here, f"7|PENDING||Priority|run-a|{here}")
    assert status(slurm_job(), not_before=0).phase == "pending"


@pytest.mark.parametrize(
    "answer",
    [
        "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1",
        "echo '<html>502 Bad Gateway</html>'",
    ],
)
def test_a_controller_that_is_away_says_nothing_about_jobs(here, answer):
    command(here, "squeue", answer)
    assert status(slurm_job(), not_before=time.time()).phase == "unknown"
    with pytest.raises(ConnectionError, match="does not answer"):
        find("run-a", not_before=time.time())


@pytest.mark.parametrize(
    ("sacct", "word"),
    [
        ("echo 'CANCELLED by 1000|node1'", "CANCELLED"),
        (NO_ACCOUNTING, "GONE"),
        ("true", "GONE"),
        # Accounting lags behind: the controller, which has forgotten the job, knows better.
        ("echo 'RUNNING|node1'", "GONE"),
    ],
)
def test_a_job_that_the_controller_has_forgotten_has_ended(here, sacct, word):
    answers(here, "")
    command(here, "sacct", sacct)
    found = status(slurm_job(), not_before=time.time())
    assert (found.phase, found.word) == ("ended", word)


def test_a_job_is_found_by_name_only_in_the_folder_that_submitted_it(here):
    elsewhere = here.parent / "elsewhere"
    answers(
        here,
        f"3|RUNNING|node1|None|run-a|{elsewhere}",
        f"4|FAILED|node1|None|run-a|{here}",
        f"5|PENDING||None|run-a-2|{here}",
        f"6|PENDING||None|run-a|{here}",
    )
    assert find("run-a", not_before=time.time()) == "6"
    assert find("run-b", not_before=0) is None


def test_a_machine_without_slurm_is_told_so(here, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ValueError, match="there is no squeue here"):
        status(slurm_job(), not_before=time.time())


def test_a_process_is_known_by_its_start_and_a_zombie_has_ended(here):
    process = subprocess.Popen(["sleep", "60"])
    job = local_job(process)
    assert status(job, not_before=0).phase == "running"
    reused = job.model_copy(update={"start_ticks": job.start_ticks - 1})
    assert status(reused, not_before=0).phase == "ended"
    assert status(local_job(process, host="another"), not_before=0).phase == "ended"
    process.kill()
    deadline = time.monotonic() + 30
    while start_ticks(process.pid) is not None:  # it is not waited for, and so stays a zombie
        assert time.monotonic() < deadline
    assert status(job, not_before=0).phase == "ended"
    process.wait()


def test_a_lock_is_seen_by_others_while_it_is_held(here):
    path = here / "lock"
    assert not is_locked(path)
    with files.locked(path):
        code = "import sys, pathlib, engine.jobs.scheduler as s; sys.exit(s.is_locked(pathlib.Path('lock')))"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 1
    assert not is_locked(path)


def test_the_state_of_a_run_follows_its_files(here):
    spec = toy.run_spec("openclip")
    toy.write_spec(here, spec)
    run_id, folder = spec.run_id, paths.jobs(spec.run_id) / "train"
    assert run_state(run_id) == "to do"
    with files.locked(paths.run(run_id) / "lock"):
        assert run_state(run_id) == "running"  # by hand
    answers(here, f"7|PENDING||Priority|{run_id}|{here}")
    scheduler.write(folder, slurm_job(name=run_id))
    assert run_state(run_id) == "pending"
    answers(here, f"7|RUNNING|node1|None|{run_id}|{here}")
    scheduler.write(folder, slurm_job(name=run_id))
    assert run_state(run_id) == "running"
    scheduler.write(folder, slurm_job(name=run_id).model_copy(update={"end": "TIMEOUT"}))
    assert run_state(run_id) == "failed"


def test_jobs_are_shown_and_cancelled_by_run_or_by_name(here):
    command(here, "scancel", "true")
    names = {"7": "run-a", "8": "eval-run-a-10-toy-1", "9": "run-b", "10": "index-toy"}
    folders = [
        paths.jobs("run-a") / "train",
        paths.evaluate_jobs("run-a", 10, "toy-1"),
        paths.jobs("run-b") / "train",
    ]
    for (number, name), folder in zip(names.items(), [*folders, paths.prepare_jobs("index-toy")], strict=True):
        scheduler.write(folder, slurm_job(number, name))
    answers(here, *(f"{number}|PENDING||Priority|{name}|{here}" for number, name in names.items()))
    assert {(view.run_id, view.job.name, str(view.status)) for view in jobs.look()} == {
        ("run-a", "run-a", "PENDING (Priority)"),
        ("run-a", "eval-run-a-10-toy-1", "PENDING (Priority)"),
        ("run-b", "run-b", "PENDING (Priority)"),
        ("", "index-toy", "PENDING (Priority)"),
    }
    assert all(view.is_live for view in jobs.look())
    assert {job.job_id for job in jobs.cancel(["run-a", "index-toy"])} == {"7", "8", "10"}
    assert sorted(asked(here, "scancel")) == ["scancel 10", "scancel 7", "scancel 8"]
    with pytest.raises(ValueError, match="no job of 'run-c' is queued or running"):
        jobs.cancel(["run-b", "run-c"])
    assert len(asked(here, "scancel")) == 3


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("exec sleep 30", "Slurm has not answered for 0.2 seconds; try again with python -m experiments cancel run-a"),
        ("echo 'Access denied' >&2; exit 1", "Access denied"),
    ],
)
def test_a_job_that_slurm_does_not_cancel_is_not_noted_as_cancelled(here, monkeypatch, script, why):
    command(here, "scancel", script)
    monkeypatch.setattr(scheduler, "_COMMAND_SEC", 0.2)
    folder = paths.jobs("run-a") / "train"
    scheduler.write(folder, slurm_job())
    with pytest.raises(ValueError, match=re.escape(f"job 7 (run-a) could not be cancelled: {why}")):
        scheduler.cancel(folder, scheduler.read(folder))
    assert not scheduler.read(folder).is_cancelled


def test_a_run_whose_job_was_cancelled_is_to_do_whatever_slurm_remembers(here):
    command(here, "scancel", "true")
    command(here, "sacct", NO_ACCOUNTING)
    folder = paths.jobs("run-a") / "train"
    scheduler.write(folder, slurm_job())
    answers(here, f"7|RUNNING|node1|None|run-a|{here}")
    jobs.cancel(["run-a"])
    assert run_state("run-a") == "running"  # it may save first
    answers(here, "")
    scheduler.write(folder, scheduler.read(folder).model_copy(update={"started_at": time.time()}))
    assert run_state("run-a") == "to do"
    assert not any(view.has_failed for view in jobs.look())
    # Another one in its place, which nobody cancelled.
    scheduler.write(folder, slurm_job("8"))
    assert run_state("run-a") == "failed"


def slurm_launcher(here, **cluster):
    place = {"name": "run-a", "folder": here / "jobs", "output": here / "output", "command": ("work",)}
    return Launcher(Launch(**place, cluster=Cluster(scheduler="slurm", **cluster), request=Request()))


def test_a_launcher_asks_again_until_the_controller_answers(here, capsys):
    (here / "away").touch()
    command(here, "squeue", "[ ! -e away ] || { rm away; exit 1; }; echo " + f"'7|RUNNING|n7|None|run-a|{here}'")
    assert slurm_launcher(here, poll_sec=0.01)._find() == "7"
    assert "does not answer; asking again" in capsys.readouterr().err
    assert len(asked(here)) == 2


def test_a_launcher_tells_a_jobs_number_state_and_reason_when_they_change(here, capsys):
    launcher = slurm_launcher(here)
    pending = ("PENDING||Priority", "PENDING||Priority", "PENDING||ReqNodeNotAvail, n7")
    for line in (*pending, "RUNNING|n7|None", "FAILED|n7|None"):
        answers(here, f"7|{line}|run-a|{here}")
        launcher._status(slurm_job(), not_before=time.time())
    shown = capsys.readouterr()
    told = ["job 7 PENDING (Priority)", "job 7 PENDING (ReqNodeNotAvail, n7)", "job 7 RUNNING on n7"]
    assert [line.partition(" ")[2] for line in shown.out.splitlines()] == [f"{text}: run-a" for text in told]
    # How it ended is told by whoever looks for its output.
    assert [line.partition(" ")[2] for line in shown.err.splitlines()] == [*told, "job 7 FAILED on n7"]


def test_what_slurm_refuses_to_cancel_is_an_error(here):
    command(here, "scancel", "echo 'Access denied' >&2; exit 1")
    with pytest.raises(ValueError, match="Access denied"):
        scheduler.cancel(here / "jobs", slurm_job())
    assert scheduler.read(here / "jobs") is None


def test_the_share_of_the_answer_is_one_file_per_user(here):
    answers(here, "")
    status(slurm_job(), not_before=0)
    assert {path.name for path in Path(paths.scheduler()).iterdir()} == {
        f"queue-{os.getuid()}.json",
        f"queue-{os.getuid()}.lock",
    }
