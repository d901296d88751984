"""The launcher on this machine. What a job does is of no matter to it, so most jobs here only count."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support import toy

from engine import paths
from engine.jobs import scheduler
from engine.jobs.cluster import Cluster, Request, configure, resolve
from engine.jobs.launcher import explain
from engine.jobs.process import Ending, ending_path, rendezvous_port
from engine.jobs.submission import parameters
from engine.launch import main
from engine.schema.run import Execution
from engine.training.loop import train

FOLDER = Path("jobs")
WORK = """
import os, pathlib, time
from engine.stop import Stopped, stop_signals_noted

def main(argv):
    "Count to a number in hundredths of a second, from what was saved; save when told to stop."
    starts, saved, output = map(pathlib.Path, ("starts", "saved", "output"))
    first = int(saved.read_text()) if saved.exists() else 0
    with starts.open("a") as file:
        file.write(f"{first}\\n")
    with stop_signals_noted() as seen:
        for step in range(first, int(argv[0])):
            time.sleep(0.01)
            pathlib.Path("step").write_text(str(step + 1))
            if any(seen):
                time.sleep(float(os.environ.get("SAVING_SEC", "0")))
                saved.write_text(str(step + 1))
                raise Stopped.by(seen, step + 1)
    print("counted")
    output.write_text(os.environ["NEUCLIP_JOB_ID"])
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    (tmp_path / "work.py").write_text(WORK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def arguments(*options, steps=100):
    return ["--name", "count", "--folder", str(FOLDER), "--output", "output", *options, "--", "work", str(steps)]


def start(*options, steps=100):
    """A launcher in a process of its own, in a process group of its own as a shell would start it."""
    command = [sys.executable, "-m", "engine.launch", *arguments(*options, steps=steps)]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(is_true, timeout_sec=120):
    deadline = time.monotonic() + timeout_sec
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_step(number=1):
    wait_until(lambda: Path("step").exists() and int(Path("step").read_text() or 0) >= number)


def starts():
    """The step that every start of the job went on from."""
    return [int(line) for line in Path("starts").read_text().splitlines()]


def test_a_job_trains_as_the_process_itself_would(root):
    toy.build(root)
    spec = toy.run_spec("openclip")
    toy.write_spec(root, spec)
    folder, record = paths.jobs(spec.run_id) / "train", paths.record(spec.run_id)
    place = ["--name", spec.run_id, "--folder", str(folder), "--output", str(record)]
    main([*place, "--", "engine.train", str(paths.spec(spec.run_id))])
    submitted = json.loads(record.read_text())
    job = scheduler.read(folder)
    assert job.end == "COMPLETED"
    assert submitted["attempts"][0]["job_id"] == job.job_id
    assert scheduler.run_state(spec.run_id) == "done"
    paths.run(spec.run_id).rename(root / "submitted")
    here = json.loads(train(spec, Execution()).model_dump_json())
    assert submitted["milestones"] == here["milestones"]


def test_a_job_that_is_done_is_not_submitted(root):
    Path("output").touch()
    main(arguments())
    assert scheduler.read(FOLDER) is None


def test_a_failing_job_shows_the_end_of_its_log(root):
    (root / "work.py").write_text("import sys\ndef main(argv):\n    sys.exit('error: the run wants revision 2')\n")
    with pytest.raises(SystemExit) as stop:
        main(arguments())
    assert "(count) has no result: FAILED" in str(stop.value)
    assert "the run wants revision 2" in str(stop.value)
    assert "Traceback" not in str(stop.value)
    assert scheduler.read(FOLDER).end == "FAILED"


def test_of_several_processes_the_one_that_failed_first_is_shown(root):
    # The second process fails; the first one only notices that it is alone.
    (root / "work.py").write_text(
        "import os, time\ndef main(argv):\n    if os.environ['RANK'] == '1':\n        raise OSError('no space left')\n"
        "    time.sleep(1)\n    raise RuntimeError('connection closed by peer')\n"
    )
    with pytest.raises(SystemExit) as stop:
        main(arguments("--request", '{"tasks_per_node": 2}'))
    assert "process 1: OSError: no space left" in str(stop.value)
    assert "in main" in str(stop.value)


def test_of_several_processes_the_one_that_was_killed_is_shown(root):
    # The second process is killed; the first one only notices that it is alone.
    (root / "work.py").write_text(
        "import os, signal, time\ndef main(argv):\n    if os.environ['RANK'] == '1':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    time.sleep(1)\n    raise RuntimeError('connection closed by peer')\n"
    )
    with pytest.raises(SystemExit) as stop:
        main(arguments("--request", '{"tasks_per_node": 2}'))
    assert "has no result: FAILED: process 1: killed by SIGKILL" in str(stop.value)


SRUN = {
    "killed": "srun: error: n1: task 1: Killed",
    "noticed": "srun: error: n1: task 0: Exited with exit code 1",
    "ends the rest": "srun: Terminating StepId=7.0",
    "ended": "slurmstepd-n1: error: *** STEP 7.0 ON n1 CANCELLED AT 2026-11-27T19:36:41 ***",
    "killed elsewhere": "srun: error: n2: task 1: Killed",
}


@pytest.mark.parametrize(
    ("lines", "first"),
    [
        (["killed", "ends the rest", "noticed"], f"process 1: {SRUN['killed']}"),
        (["noticed", "ends the rest", "killed"], f"process 1: {SRUN['killed']}"),
        # The others of a job whose process 0 failed are killed by Slurm; those of another node are told of without it.
        (["noticed", "ends the rest", "ended", "killed"], "process 0: RuntimeError: connection closed by peer"),
        (["noticed", "ends the rest", "killed elsewhere"], "process 0: RuntimeError: connection closed by peer"),
    ],
)
def test_a_killed_process_is_shown_whichever_srun_reports_first(tmp_path, lines, first):
    job = scheduler.Job(
        scheduler="slurm", job_id="7", name="count", command=("work",), logs=str(tmp_path), started_at=0.0, host="here"
    )  # fmt: skip
    text = ["start of job 7 on n1", *(SRUN[line] for line in lines)]
    job.log(0, "err").write_text("".join(f"{line}\n" for line in text))
    ending = Ending(at=1.0, message="RuntimeError: connection closed by peer")
    ending_path(tmp_path, "7", 0).write_text(ending.model_dump_json())
    assert explain(job, "FAILED").splitlines()[0] == f"job 7 (count) has no result: FAILED: {first}"


def test_a_process_that_failed_ends_those_that_wait_for_it(root):
    (root / "work.py").write_text(
        "import os, time\ndef main(argv):\n    if os.environ['RANK'] == '1':\n        os._exit(3)\n"
        "    time.sleep(10_000)\n"
    )
    begin = time.monotonic()
    with pytest.raises(SystemExit) as stop:
        main(arguments("--request", '{"tasks_per_node": 2}'))
    assert "FAILED: process 1: it ended with exit code 3 and said nothing" in str(stop.value)
    assert time.monotonic() - begin < 60


def test_wrong_settings_are_refused_before_anything_is_submitted(root):
    with pytest.raises(SystemExit, match="unknown key 'node'; did you mean 'nodes'"):
        main(arguments("--request", '{"node": 2}'))
    with pytest.raises(SystemExit, match="unknown key 'partion'; did you mean 'partition'"):
        main(arguments("--cluster", '{"partion": "gpu"}'))
    assert not FOLDER.exists()


def test_two_launchers_of_one_job_submit_it_once(root):
    both = [start() for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert starts() == [0]


def test_a_launcher_whose_predecessor_was_killed_waits_for_the_same_job(root):
    first = start(steps=400)
    wait_for_step()
    first.kill()
    first.wait()
    second = start(steps=400)
    assert second.wait() == 0
    assert f"attached to job {scheduler.read(FOLDER).job_id}" in second.stderr.read()
    assert starts() == [0]


def test_a_launcher_that_waits_behind_another_says_so_and_tells_the_jobs_state(root):
    first = start(steps=300)
    wait_for_step()
    second = start(steps=300)
    said, log = second.communicate()
    assert (first.wait(), second.returncode) == (0, 0)
    state = f"job {scheduler.read(FOLDER).job_id} RUNNING on {scheduler.socket.gethostname()}"
    waits = "another launcher sees to this, perhaps that of a Snakemake that was killed; waiting for it"
    assert [line.partition(" ")[2] for line in log.splitlines()] == [waits, state]
    assert [line.partition(" ")[2] for line in said.splitlines()] == [f"{waits}: count", f"{state}: count"]
    assert starts() == [0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_job_goes_on_when_its_launcher_is_interrupted_and_told_to_leave_it(root, number):
    launcher = start("--on-interrupt", "leave", steps=300)
    wait_for_step()
    os.killpg(launcher.pid, number)
    said, _ = launcher.communicate()
    assert launcher.returncode == 128 + number
    assert "python -m experiments cancel count" in said
    assert not Path("output").exists()
    wait_until(Path("output").exists)
    assert start().wait() == 0
    assert starts() == [0]


def test_a_job_saves_and_ends_when_its_launcher_is_interrupted_and_told_to_cancel_it(root):
    launcher = start("--on-interrupt", "cancel", steps=100_000)
    wait_for_step()
    os.killpg(launcher.pid, signal.SIGINT)
    assert launcher.wait() == 128 + signal.SIGINT
    assert scheduler.status(scheduler.read(FOLDER), not_before=0).phase == "ended"
    assert Path("saved").exists()


def test_a_cancelled_job_is_told_from_a_failed_one_and_its_successor_goes_on_where_it_was(root):
    launcher = start(steps=300)
    wait_for_step()
    scheduler.cancel(FOLDER, scheduler.read(FOLDER))
    _, said = launcher.communicate()
    assert launcher.returncode == 75
    assert "has no result: CANCELLED" in said
    assert scheduler.read(FOLDER).end == "CANCELLED"
    assert start(steps=300).wait() == 0
    assert starts() == [0, int(Path("saved").read_text())]


def read_until(stream, words):
    for line in stream:
        if words in line:
            return
    raise AssertionError(f"the stream has ended without {words!r}")


def test_a_job_that_is_cancelled_is_not_submitted_again_by_a_launcher_that_had_attached_to_it(root):
    first = start(steps=100_000)
    wait_for_step()
    first.kill()
    first.wait()
    second = start(steps=100_000)
    read_until(second.stderr, "RUNNING")
    scheduler.cancel(FOLDER, scheduler.read(FOLDER))
    _, said = second.communicate()
    assert second.returncode == 75
    assert "has no result: CANCELLED" in said
    assert starts() == [0]


def test_a_job_that_is_cancelled_is_not_submitted_again_by_a_launcher_that_waited_behind_another(root):
    first = start(steps=100_000)
    wait_for_step()
    second = start(steps=100_000)
    read_until(second.stderr, "RUNNING")
    scheduler.cancel(FOLDER, scheduler.read(FOLDER))
    for launcher in (first, second):
        _, said = launcher.communicate()
        assert launcher.returncode == 75
        assert "has no result: CANCELLED" in said
    assert starts() == [0]


def test_a_second_interrupt_does_not_cut_the_ending_of_a_job_short(root, monkeypatch):
    monkeypatch.setenv("SAVING_SEC", "3")
    launcher = start("--on-interrupt", "cancel", steps=100_000)
    wait_for_step()
    for _ in range(2):
        os.killpg(launcher.pid, signal.SIGINT)
        time.sleep(1)
    said, log = launcher.communicate()
    assert launcher.returncode == 128 + signal.SIGINT
    assert "(count) was cancelled" in said
    assert "Traceback" not in log
    assert scheduler.status(scheduler.read(FOLDER), not_before=0).phase == "ended"
    assert Path("saved").exists()


def test_a_job_that_did_not_end_by_itself_when_it_was_cancelled_has_not_failed(root):
    launcher = start(steps=100_000)
    wait_for_step()
    job = scheduler.read(FOLDER)
    scheduler.write(FOLDER, job.model_copy(update={"is_cancelled": True}))  # what `cancel` does, and then
    scheduler.send(scheduler.read(FOLDER), signal.SIGKILL)
    _, said = launcher.communicate()
    assert launcher.returncode == 75
    assert "has no result: CANCELLED" in said
    assert scheduler.read(FOLDER).end == "CANCELLED"


def test_a_job_that_is_warned_of_its_time_limit_saves_and_is_started_again(root):
    launcher = start(steps=300)
    wait_for_step()
    job = scheduler.read(FOLDER)
    scheduler.send(scheduler.read(FOLDER), signal.SIGUSR2)
    assert launcher.wait() == 0
    assert starts() == [0, int(Path("saved").read_text())]
    assert scheduler.read(FOLDER).job_id == job.job_id


@pytest.mark.slow
def test_a_job_starts_as_often_as_its_settings_allow(root):
    launcher = start(steps=100_000)
    for number in range(1, 9):  # submitit by itself stops after six
        wait_until(lambda number=number: Path("starts").exists() and len(starts()) == number)
        before = Path("saved").read_text() if number > 1 else "0"
        wait_for_step(int(before) + 1)
        scheduler.send(scheduler.read(FOLDER), signal.SIGUSR2)
    wait_until(lambda: len(starts()) == 9)
    scheduler.cancel(FOLDER, scheduler.read(FOLDER))
    assert launcher.wait() == 75


def test_a_job_that_was_killed_is_noticed_and_reported(root):
    launcher = start(steps=100_000)
    wait_for_step()
    scheduler.send(scheduler.read(FOLDER), signal.SIGKILL)
    _, said = launcher.communicate()
    assert launcher.returncode == 1
    assert "has no result: FAILED: process 0: killed by SIGKILL, as the system does when memory runs out" in said


def test_jobs_share_the_gpus_of_this_machine_without_sharing_one(root, monkeypatch):
    # Three jobs for two GPUs, each of which says what it was given.
    (root / "work.py").write_text(
        "import os, pathlib, sys, time\ndef main(argv):\n    gpu = os.environ['CUDA_VISIBLE_DEVICES']\n"
        "    busy = pathlib.Path('busy-' + gpu)\n    busy.mkdir()\n    time.sleep(0.5)\n    busy.rmdir()\n"
        "    pathlib.Path(argv[0]).write_text(gpu)\n"
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    command = [sys.executable, "-m", "engine.launch", "--request", '{"gpus_per_node": 1}']
    jobs = [
        subprocess.Popen([*command, "--name", n, "--folder", f"jobs/{n}", "--output", n, "--", "work", n])
        for n in "abc"
    ]
    assert [job.wait() for job in jobs] == [0, 0, 0]
    given = [(root / name).read_text() for name in "abc"]
    assert set(given) == {"4", "7"}
    assert [scheduler.read(FOLDER / name).gpus for name in "abc"] == [(int(gpu),) for gpu in given]


def test_a_job_that_asks_for_more_gpus_than_there_are_is_refused(root, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(SystemExit, match="asks for 3 GPUs, this machine has 2"):
        main(arguments("--request", '{"gpus_per_node": 3}'))


def test_a_machine_without_gpus_says_so_with_torch_s_build_and_the_driver(root, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    why = rf"torch sees none\. It is {re.escape(torch.__version__)}, built .*; NVIDIA driver .*"
    with pytest.raises(SystemExit, match=f"count asks for 1 GPUs, this machine has 0: {why}"):
        main(arguments("--request", '{"gpus_per_node": 1}'))


def test_a_training_whose_gpu_is_not_there_fails_instead_of_training_on_the_cpu(root, monkeypatch):
    spec = toy.run_spec("openclip")
    path = toy.write_spec(root, spec)
    # A number that no machine has: the job is started, and torch sees nothing.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "99")
    cluster = configure(Cluster(), {"train": {"gpus_per_node": 1}}, "--config")
    request, execution = resolve(cluster, "train", spec)
    options = ["--name", "t", "--folder", "jobs", "--output", "o", "--request", request.model_dump_json()]
    with pytest.raises(SystemExit) as end:
        main([*options, "--", "engine.train", str(path), "--execution", execution.model_dump_json()])
    assert re.search(
        r"has no result: FAILED: process 0: a GPU was asked for .* CUDA_VISIBLE_DEVICES '99'", end.value.code
    )
    assert "Traceback" not in end.value.code


def test_gres_stands_in_for_gpus_per_node_only_where_a_job_wants_gpus():
    cluster = Cluster(scheduler="slurm", gres="gpu:h100:{gpus_per_node}")
    wanted = parameters(cluster, Request(gpus_per_node=4))
    assert (wanted["gres"], wanted.get("gpus_per_node"), wanted["ntasks_per_node"]) == ("gpu:h100:4", None, 4)
    assert "gres" not in parameters(cluster, Request())


def test_processes_meet_at_a_port_that_no_connection_is_lent():
    ports = [rendezvous_port(str(job_id)) for job_id in range(1000)]
    assert min(ports) > 1023
    assert max(ports) < 32768
    assert len(set(ports)) > 950
    assert ports[7] == rendezvous_port("7")
