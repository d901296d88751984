"""The smoke suite through the Slurm profile, undisturbed but for an edit of the checkout."""

import re

import pytest
from login_node import CONFIG, METHODS, output_of, same_tables, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture(scope="module")
def finished(checkout, slurm):
    """The whole suite; while its trainings are queued, the checkout is edited so that none could start from it."""
    checkout.write_cluster()
    with slurm.held():
        process = checkout.start("--profile", "slurm", "all", *CONFIG)
        wait_for("5 queued jobs", lambda: list(checkout.states().values()) == ["PENDING"] * 5)
        with (checkout.folder / "engine" / "train.py").open("a") as file:
            file.write('\nraise RuntimeError("edited while jobs were queued")\n')
    return output_of(process)


def test_the_terminal_tells_each_jobs_number_state_and_reason_and_no_settings(finished):
    waiting = re.findall(r"^[\d:]{8} job (\d+) PENDING \(\w+\): (\w+)-scenes_tiny-\S+$", finished, re.MULTILINE)
    assert {method for _, method in waiting} == set(METHODS)
    assert len({number for number, _ in waiting}) == len(METHODS)
    for number, method in waiting:
        assert re.search(rf"^[\d:]{{8}} job {number} RUNNING on \S+: {method}-scenes_tiny-", finished, re.MULTILINE)
    assert "engine.launch" not in finished
    assert '{"' not in finished


def test_all_tables_are_equal_to_the_local_runs_to_the_byte(finished, checkout, reference):
    assert len(same_tables(checkout, reference)) >= 9


def test_editing_the_checkout_does_not_change_a_queued_job(finished, checkout):
    assert "edited while jobs were queued" in (checkout.folder / "engine" / "train.py").read_text()
    assert all(len(checkout.training(method).attempts) == 1 for method in METHODS)
