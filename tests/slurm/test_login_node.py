"""What becomes of jobs when Snakemake is killed, interrupted or started twice; commands that show and end jobs."""

import os
import signal

import pytest
from login_node import CONFIG, freeze, output_of, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture(autouse=True)
def _cluster(checkout):
    checkout.write_cluster()


def test_after_kill_9_of_snakemake_and_all_launchers_a_new_one_waits_for_the_same_job(checkout, reference, moments):
    run = checkout.training("neuclip")
    process = checkout.start("--profile", "slurm", run.record, *CONFIG)
    freeze({run: moments.randint(3, 40)})
    for pid in checkout.login_processes():
        os.kill(pid, signal.SIGKILL)
    process.wait()
    job = run.job
    assert run.state == "RUNNING"
    assert "Lock" in checkout.run("--profile", "slurm", run.record, *CONFIG, code=1)
    checkout.run("--unlock", *CONFIG)
    again = checkout.start("--profile", "slurm", run.record, *CONFIG)
    wait_for("attached", lambda: f"attached to job {job}" in checkout.log(run))
    run.thaw()
    output_of(again)
    assert run.final_states == ["COMPLETED"]
    assert run.attempts == [0]
    assert checkout.records()["neuclip"]["milestones"] == reference.records()["neuclip"]["milestones"]


def test_two_snakemakes_at_once_submit_one_job(checkout):
    run = checkout.training("openclip")
    both = [checkout.start("--profile", "slurm", "--nolock", run.record, *CONFIG) for _ in range(2)]
    for process in both:
        output_of(process)
    assert run.final_states == ["COMPLETED"]
    assert run.attempts == [0]


def test_ctrl_c_leaves_jobs_running_and_says_how_to_cancel_them(checkout, reference, moments):
    run = checkout.training("siglip")
    process = checkout.start("--profile", "slurm", run.record, *CONFIG)
    freeze({run: moments.randint(3, 40)})
    os.killpg(process.pid, signal.SIGINT)
    said = output_of(process, code=1)
    assert run.state == "RUNNING"
    assert f"python -m experiments cancel {run.run_id}" in said
    shown = checkout.experiments("jobs")
    assert run.run_id in shown
    assert "RUNNING" in shown
    assert run.job in shown
    checkout.experiments("cancel", run.run_id)
    wait_for("cancelled", lambda: run.state == "CANCELLED")
    checkout.run("--profile", "slurm", run.record, *CONFIG)
    assert len(run.attempts) == 2
    assert checkout.records()["siglip"]["milestones"] == reference.records()["siglip"]["milestones"]


def test_ctrl_c_cancels_jobs_where_that_is_asked_for(checkout, moments):
    run = checkout.training("fastclip")
    process = checkout.start("--profile", "slurm", run.record, *CONFIG, "on_interrupt=cancel")
    freeze({run: moments.randint(3, 40)})
    os.killpg(process.pid, signal.SIGINT)
    output_of(process, code=1)
    wait_for("cancelled", lambda: run.state == "CANCELLED")
