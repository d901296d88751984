"""Jobs that end without a result: the error says which, how, and what they wrote last; only they are done again."""

import re
import signal

import pytest
from login_node import CONFIG, METHODS, freeze, output_of

from engine import paths

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
DRAWN = str(paths.drawn("smoke"))
STRIKE = """
_loss = SigLIP.loss


def _raise_in_the_middle(self, features, progress):
    if progress.step == 12:
        raise RuntimeError("the loss is on strike")
    return _loss(self, features, progress)


SigLIP.loss = _raise_in_the_middle
"""


@pytest.fixture(scope="module")
def failed(checkout, slurm, moments):
    """One training is cancelled, one killed as for its memory, one raises, two go on to evaluations without data.

    Returns what Snakemake said, and the steps that the two trainings were struck at.
    """
    checkout.write_cluster()
    with (checkout.folder / "baselines" / "siglip.py").open("a") as file:
        file.write(STRIKE)
    data = checkout.folder / "data" / "scenes_tiny" / "evals"
    data.rename(data.with_name("elsewhere"))
    process = checkout.start("--profile", "slurm", DRAWN, *CONFIG)
    cancelled, killed = checkout.training("amorlip"), checkout.training("neuclip")
    steps = freeze({run: moments.randint(3, 40) for run in (cancelled, killed)})
    slurm.run("scancel", cancelled.job)
    killed.signal(signal.SIGKILL)
    return output_of(process, code=1), steps


def error_of(output, run_id):
    """What the output says in the error about a run."""
    (error,) = re.findall(rf"^error: [^\n]*{run_id}.*?(?=^=====|\Z)", output, re.MULTILINE | re.DOTALL)
    return error


def test_a_cancelled_job_is_reported_with_its_state_and_the_end_of_its_log(failed, checkout):
    error = error_of(failed[0], checkout.training("amorlip").run_id)
    assert "CANCELLED" in error


def test_a_killed_job_is_reported(failed, checkout):
    error = error_of(failed[0], checkout.training("neuclip").run_id)
    assert re.search(r"has no result: FAILED: process 0: srun: error: \S+: task 0: Killed$", error, re.MULTILINE)


def test_an_exception_is_reported(failed, checkout):
    run = checkout.training("siglip")
    assert "has no result: FAILED: process 0: RuntimeError: the loss is on strike" in error_of(failed[0], run.run_id)
    assert run.final_states == ["FAILED"]


def test_missing_data_are_reported(failed, checkout):
    for method in ("fastclip", "openclip"):
        error = error_of(failed[0], checkout.training(method).run_id)
        assert "data/scenes_tiny/evals" in error


def test_the_other_runs_go_on_and_only_what_failed_is_done_again(failed, checkout, reference):
    steps = failed[1]
    done = checkout.records()
    assert set(done) == {"fastclip", "openclip"}
    siglip = checkout.folder / "baselines" / "siglip.py"
    siglip.write_text(siglip.read_text().removesuffix(STRIKE))
    elsewhere = checkout.folder / "data" / "scenes_tiny" / "elsewhere"
    elsewhere.rename(elsewhere.with_name("evals"))
    checkout.run("--profile", "slurm", DRAWN, *CONFIG)

    now, expected = checkout.records(), reference.records()
    assert {method: now[method] for method in done} == done
    for method in METHODS:
        assert now[method]["milestones"] == expected[method]["milestones"]
    for run, step in steps.items():
        first, second = run.attempts
        # A cancelled job is told and saves; a killed one is not, and had not saved yet.
        assert first == 0
        assert second >= step if run.run_id.startswith("amorlip") else second == 0
    for suffix in (".md", ".csv", ".tex"):
        table = (paths.tables("smoke") / "main_results").with_suffix(suffix)
        assert (checkout.folder / table).read_bytes() == (reference.folder / table).read_bytes()
