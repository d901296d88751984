"""Trainings struck in their middle by all that a cluster does to jobs: each goes on by itself to the same weights."""

from datetime import datetime

import pytest
from login_node import CONFIG, METHODS, freeze, output_of, same_tables, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture(scope="module")
def struck(checkout, slurm, moments):
    """The five runs at once, three on one node and two on the other, each frozen at a random step and then struck.

    Returns what struck each run, and the steps that it was at: one, or two for the runs of the second node.
    """
    checkout.write_cluster(train={"mem_gb": 30, "timeout_min": 10})
    runs = [checkout.training(method) for method in METHODS]
    process = checkout.start("--profile", "slurm", *(run.record for run in runs), *CONFIG)
    steps = freeze({run: moments.randint(3, 20) for run in runs})
    nodes = {run: slurm.run("squeue", "-h", "-o", "%N", "-j", run.job) for run in runs}
    first, second = ([run for run in runs if nodes[run] == node] for node in slurm.nodes)
    assert (len(first), len(second)) == (3, 2)
    requeued, signalled, late = moments.sample(first, 3)

    slurm.run("scontrol", "requeue", requeued.job)
    slurm.run("scancel", "--signal", "USR2", signalled.job)
    signalled.thaw()
    # They come back to their node: the other one is about to fail.
    keep(requeued, slurm.nodes[0])
    keep(signalled, slurm.nodes[0])
    urgent = ("sbatch", "--partition", "urgent", "--exclusive", "--chdir", str(slurm.folder), "--wrap", "sleep 1")
    slurm.run(*urgent, "--nodelist", slurm.nodes[1])
    for run in second:
        keep(run, slurm.nodes[1])
    again = freeze({run: moments.randint(25, 40) for run in second}, attempt=2)
    slurm.fail_node(slurm.nodes[1])
    slurm.restore_node(slurm.nodes[1])
    # The limit is moved to the next minute but half a one, so that nobody has to wait for it: Slurm warns at once.
    started = datetime.fromisoformat(slurm.run("squeue", "-h", "-o", "%S", "-j", late.job))
    limit_min = int((datetime.now() - started).total_seconds() + 35) // 60 + 1
    slurm.run("scontrol", "update", f"jobid={late.job}", f"timelimit={limit_min}")
    wait_for("queued again", lambda: late.state == "PENDING")
    slurm.run("scontrol", "update", f"jobid={late.job}", "timelimit=10")
    output_of(process)
    blows = {requeued: "requeue", signalled: "signal", late: "limit"}
    return {run: (blows.get(run, "preemption, then node failure"), steps[run], again.get(run)) for run in runs}


def keep(run, node):
    """Let a run that is being queued again start on a node only."""
    wait_for("queued again", lambda: run.state == "PENDING")
    run.checkout.slurm.run("scontrol", "update", f"jobid={run.job}", f"reqnodelist={node}")


def test_every_run_ends_with_the_weights_of_the_uninterrupted_one(struck, checkout, reference):
    expected, found = reference.records(), checkout.records()
    assert set(found) == set(METHODS)
    for method, record in found.items():
        for key in ("samples_seen", "first_indices", "milestones", "normalizer_error"):
            assert record[key] == expected[method][key], struck


def test_a_job_that_is_told_loses_nothing_and_every_start_is_on_record(struck):
    for run, (blow, step, again) in struck.items():
        start, resumed, *rest = run.attempts
        assert start == 0
        # It saves after the step under way; a few more may have been done between SIGCONT and SIGTERM, which follows.
        assert resumed >= step, (blow, step, run.attempts)
        # Nobody tells a job that its node fails: it goes back to what was saved last.
        assert rest == ([resumed] if again else []), (blow, step, run.attempts)


def test_every_run_kept_its_one_job(struck, checkout):
    for run, blow in struck.items():
        assert run.final_states == ["COMPLETED"], (blow, run.attempts, checkout.log(run))
    for record in checkout.records().values():
        (job,) = checkout.training(record["spec"]["method"]["name"]).jobs
        assert {attempt["job_id"] for attempt in record["attempts"]} == {job}


def test_all_tables_are_equal_to_those_of_the_undisturbed_runs_to_the_byte(struck, checkout, reference):
    checkout.run("--profile", "slurm", "all", *CONFIG)
    assert len(same_tables(checkout, reference)) >= 9
