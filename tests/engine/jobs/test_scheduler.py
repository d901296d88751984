"""States of jobs. Slurm's commands are played by scripts where a real Slurm cannot be made to misbehave at will."""

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support import toy

from engine import files, paths
from engine.jobs import launcher as launching
from engine.jobs import scheduler, slurm
from engine.jobs.cluster import Cluster, Request
from engine.jobs.launcher import JobFailedError, Launch, Launcher, interrupted
from engine.jobs.scheduler import Job, is_locked, run_state, start_ticks, status
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
        started_at=time.time(), host=host or scheduler.socket.gethostname(),
        processes=((process.pid, start_ticks(process.pid)),),
    )  # fmt: skip


ME = os.getuid()


def answers(here, *lines):
    command(here, "squeue", "cat <<'END'\n" + "\n".join(lines) + "\nEND")


NO_ACCOUNTING = "echo 'Slurm accounting storage is disabled' >&2; exit 1"


def test_a_word_of_squeue_becomes_a_phase(here):
    answers(
        here,
        f"7|{ME}|me|RUNNING|node1|None",
        f"8|{ME}|me|PENDING||Resources",
        f"9|{ME}|me|OUT_OF_MEMORY|node2|OutOfMemory",
        f"10|{ME}|me|COMPLETING|node2|None",
    )
    now = time.time()
    found = {number: status(slurm_job(number), not_before=now) for number in ("7", "8", "9", "10")}
    assert [found[number].phase for number in found] == ["running", "pending", "ended", "running"]
    assert (found["7"].node, found["7"].reason, found["8"].reason) == ("node1", "", "Resources")
    assert found["9"].word == "OUT_OF_MEMORY"


def test_many_launchers_ask_once(here):
    command(here, "squeue", f"sleep 0.2; echo '7|{ME}|me|RUNNING|node1|None'")
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
    answers(here, f"7|{ME}|me|PENDING||Priority")
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
    with pytest.raises(slurm.SlurmError, match=r"contact slurm controller|502 Bad Gateway"):
        slurm.find("run-a")


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


def test_a_job_is_found_by_its_results_from_any_clone_and_whoever_submitted_it(here, monkeypatch):
    (here / "results").mkdir()
    clone, other = here.parent / "clone", here.parent / "other"
    for folder in (clone, other):
        folder.mkdir()
    (clone / "results").symlink_to(here / "results")
    lines = [f"4|{ME}|me|FAILED|n1|None", f"6|{ME + 1}|anna|PENDING||None"]
    named = slurm.job_name("run-a")
    command(here, "squeue", f"case $* in *--name={named}*) cat <<'END'\n" + "\n".join(lines) + "\nEND\n;; esac")
    assert [slurm.find("run-a"), slurm.find("run-b")] == ["6", None]
    monkeypatch.chdir(clone)
    assert slurm.find("run-a") == "6"
    monkeypatch.chdir(other)
    assert slurm.find("run-a") is None


def test_a_machine_without_slurm_is_told_so(here, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert "there is no squeue here" in status(slurm_job(), not_before=time.time()).reason


def test_a_process_is_known_by_its_start_and_a_zombie_has_ended(here):
    process = subprocess.Popen(["sleep", "60"])
    job = local_job(process)
    assert status(job, not_before=0).phase == "running"
    reused = job.model_copy(update={"processes": ((process.pid, job.processes[0][1] - 1),)})
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
    answers(here, f"7|{ME}|me|PENDING||Priority")
    scheduler.write(folder, slurm_job(name=run_id))
    assert run_state(run_id) == "pending"
    answers(here, f"7|{ME}|me|RUNNING|node1|None")
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
    answers(here, *(f"{number}|{ME}|me|PENDING||Priority" for number in names))
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
        (
            "exec sleep 30",
            "scancel has not answered for 0.2 seconds; try again with python -m experiments cancel",
        ),
        ("echo 'Access denied' >&2; exit 1", "Access denied"),
    ],
)
def test_a_job_that_slurm_does_not_cancel_is_not_noted_as_cancelled(here, monkeypatch, script, why):
    command(here, "scancel", script)
    monkeypatch.setattr(slurm, "TIMEOUT_SEC", 0.2)
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
    answers(here, f"7|{ME}|me|RUNNING|node1|None")
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
    cluster = {"poll_sec": 0.01, **cluster}
    return Launcher(Launch(**place, cluster=Cluster(scheduler="slurm", **cluster), request=Request(timeout_min=60)))


def test_a_launcher_tells_a_jobs_number_state_and_reason_when_they_change(here, capsys):
    launcher = slurm_launcher(here)
    pending = ("PENDING||Priority", "PENDING||Priority", "PENDING||ReqNodeNotAvail, n7")
    for line in (*pending, "RUNNING|n7|None", "FAILED|n7|None"):
        answers(here, f"7|{ME}|me|{line}")
        launcher._status(slurm_job(), not_before=time.time())
    shown = capsys.readouterr()
    told = ["job 7 PENDING (Priority)", "job 7 PENDING (ReqNodeNotAvail, n7)", "job 7 RUNNING on n7"]
    assert [line.partition(" ")[2] for line in shown.out.splitlines()] == [f"{text}: run-a" for text in told]
    # How it ended is told by whoever looks for its output.
    assert [line.partition(" ")[2] for line in shown.err.splitlines()] == [*told, "job 7 FAILED on n7"]


def test_the_shared_answer_is_one_file_per_user_and_asked_again_where_that_is_damaged(here):
    answers(here, "")
    status(slurm_job(), not_before=0)
    cache = paths.scheduler() / f"queue-{os.getuid()}.json"
    for damage in ("", "{", '{"asked_at": 1}', "\udcff"):
        cache.write_text(damage, errors="surrogateescape")
        answers(here, f"7|{ME}|me|RUNNING|node1|None")
        assert status(slurm_job(), not_before=0).word == "RUNNING"
    assert {path.name for path in Path(paths.scheduler()).iterdir()} == {
        f"queue-{os.getuid()}.json",
        f"queue-{os.getuid()}.lock",
    }


def test_what_slurm_prints_may_be_in_any_encoding(here):
    answers(here, f"7|{ME}|me|RUNNING|node1|None")
    command(here, "squeue", f"printf '6|1|caf\\351|RUNNING|n1|caf\\351\\n7|{ME}|me|RUNNING|n1|None\\n'")
    assert status(slurm_job(), not_before=time.time()).word == "RUNNING"


def test_a_colleagues_job_is_no_other_than_mine_and_shown_as_hers(here):
    command(here, "squeue", f"case $* in *--me*) ;; *--jobs=7*) echo '7|{ME + 1}|anna|RUNNING|node1|None' ;; esac")
    command(here, "scancel", "echo 'scancel: error: Access/permission denied' >&2; exit 1")
    folder = paths.jobs("run-a") / "train"
    scheduler.write(folder, slurm_job())
    (view,) = jobs.look()
    assert (view.is_live, str(view.status)) == (True, "RUNNING of anna")
    with pytest.raises(ValueError, match="permission denied; it is a job of anna"):
        jobs.cancel(["run-a"])
    assert not scheduler.read(folder).is_cancelled


def test_the_users_environment_overrules_nothing_but_finds_the_cluster(here, monkeypatch):
    command(here, "squeue", "env | grep -E '^(SLURM|SBATCH|SQUEUE)_' >> found; true")
    kept = {"SLURM_CONF": "/etc/slurm.conf", "SLURM_CLUSTERS": "main"}
    for name in ("SBATCH_PARTITION", "SQUEUE_PARTITION", "SQUEUE_STATES", "SLURM_TIMELIMIT", "SBATCH_EXPORT"):
        monkeypatch.setenv(name, "NONE")
    for name, value in kept.items():
        monkeypatch.setenv(name, value)
    slurm.run("squeue")
    assert dict(line.split("=") for line in (here / "found").read_text().splitlines()) == kept


@pytest.fixture
def submits(here, monkeypatch):
    """A Slurm whose squeue knows job 7 by its name once `taken` is there; a function sets what sbatch does."""
    monkeypatch.setattr(launching, "_SLURM_POLL_SEC", 0.01)
    command(here, "srun", "true")
    command(here, "sacct", NO_ACCOUNTING)
    job = f"echo '7|{ME}|me|RUNNING|node1|None'"
    command(here, "squeue", f"case $* in *--name=*|*--jobs=7*) [ ! -e taken ] || {{ {job}; touch output; }} ;; esac")
    return lambda script: command(here, "sbatch", script)


def number_of(launcher):
    launcher.run()
    return scheduler.read(launcher.launch.folder).job_id


@pytest.mark.parametrize(
    "script",
    [
        "touch taken; echo 7",
        "touch taken; echo 'You have 1000 hours left, job 12345 is next'; echo '7;main'",
        "touch taken; echo '<html>502 Bad Gateway</html>'",
        "touch taken; echo 12345",
        "touch taken; echo 'Socket timed out on send/recv operation' >&2; exit 1",
        "touch taken; exec sleep 30",
    ],
    ids=["plain", "a line before it", "garbage", "another number", "no answer", "hangs"],
)
def test_a_job_that_slurm_has_taken_is_found_whatever_sbatch_prints(here, submits, monkeypatch, script):
    monkeypatch.setattr(slurm, "TIMEOUT_SEC", 1)
    submits(script)
    assert number_of(slurm_launcher(here)) == "7"
    (call,) = asked(here, "sbatch")
    assert "--parsable" in call


def test_a_number_that_squeue_has_never_known_is_an_error(here, submits):
    submits("echo 12345")
    with pytest.raises(JobFailedError, match="sbatch gave number 12345, which squeue has never known"):
        slurm_launcher(here).run()


@pytest.mark.parametrize(
    "limit", ["QOSMaxSubmitJobPerUserLimit", "AssocMaxSubmitJobLimit", "temporarily unable to accept job"]
)
def test_a_submit_limit_is_waited_for_with_a_line_that_says_so(here, submits, capsys, limit):
    submits(f"[ -e once ] || {{ touch once; echo 'sbatch: error: {limit}' >&2; exit 1; }}; touch taken; echo 7")
    assert number_of(slurm_launcher(here)) == "7"
    assert re.search(rf"Slurm takes no more jobs now \(.*{limit}\); waiting: run-a", capsys.readouterr().out)


def test_gpus_that_a_cluster_lacks_are_said_once_with_what_to_write(here, submits):
    submits("echo 'sbatch: error: Invalid generic resource (gres) specification' >&2; exit 1")
    said = []
    for _ in range(3):
        with pytest.raises(JobFailedError) as error:
            slurm_launcher(here).run()
        said.append(str(error.value))
    assert "write gpus_per_node: 0 in the cluster file" in said[0]
    assert said[1:] == ["job run-a was not submitted, as run-a was not"] * 2


def test_a_hanging_sbatch_is_interrupted_and_the_job_found_by_its_name(here, submits):
    submits("touch taken; exec sleep 60")
    code = (
        "import sys\nfrom engine.launch import main\nmain(['--name', 'run-a', '--folder', 'jobs', '--output', 'never', "
        "'--cluster', '{\"scheduler\": \"slurm\"}', '--', 'work'])"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (here / "taken").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(launcher.pid, signal.SIGINT)
    said, _ = launcher.communicate(timeout=30)
    assert launcher.returncode == 128 + signal.SIGINT
    assert "job 7 (run-a) goes on" in said
    assert scheduler.read(here / "jobs").job_id == "7"


def test_an_interrupted_submission_of_which_slurm_says_nothing_is_said_to_be_in_doubt(here, submits, monkeypatch):
    launcher = slurm_launcher(here)
    assert interrupted(launcher, "leave") == "no job was submitted\n"
    submits("kill -INT $PPID; exec sleep 30")
    with pytest.raises(KeyboardInterrupt):
        launcher.run()
    command(here, "squeue", "exit 1")
    assert "Slurm does not say whether it took the job" in interrupted(launcher, "leave")


def test_a_silent_slurm_is_told_on_the_terminal_and_ends_the_launch_after_a_limit(here, submits, monkeypatch, capsys):
    command(here, "squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    monkeypatch.setattr(launching, "_SILENT_SEC", 0.1)
    monkeypatch.setattr(launching, "_LONGEST_SILENCE_SEC", 0.5)
    scheduler.write(here / "jobs", slurm_job())
    with pytest.raises(JobFailedError, match=r"Slurm has not answered for .*Unable to contact.*goes on"):
        slurm_launcher(here).run()
    assert "Slurm does not answer (slurm_load_jobs error: Unable to contact" in capsys.readouterr().out
    assert scheduler.read(here / "jobs").end is None


def test_a_job_whose_folder_is_gone_says_what_may_have_happened(here, submits):
    submits("touch taken; rm -r jobs/1; echo 7")
    command(here, "squeue", f"[ ! -e taken ] || echo '7|{ME}|me|FAILED|node1|None'")
    with pytest.raises(JobFailedError, match=r"was jobs/1 removed, or the project's folder moved"):
        slurm_launcher(here).run()
