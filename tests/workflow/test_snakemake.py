"""The workflow as users run it: Snakemake in a process of its own, on the smoke suite."""

import filecmp
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine import paths
from experiments import cards

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
PROFILE = ["--workflow-profile", str(ROOT / "profiles" / "default")]
pytestmark = pytest.mark.slow


def snakemake(folder, *args, check=True, env=None):
    result = subprocess.run(
        [*COMMAND, *PROFILE, *args],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=env,
    )
    assert not check or result.returncode == 0, result.stdout[-6000:]
    return result


def records(folder):
    found = [json.loads(path.read_text()) for path in sorted((folder / paths.RESULTS / "runs").glob("*/record.json"))]
    return {record["spec"]["method"]["name"]: record for record in found}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The smoke suite, run from nothing."""
    folder = tmp_path_factory.mktemp("smoke")
    snakemake(folder, "--config", "suites=smoke")
    return folder


@pytest.fixture(scope="module")
def killed(finished, tmp_path_factory):
    """The smoke suite in another folder, with every training killed once in its middle and then run again."""
    folder = tmp_path_factory.mktemp("killed")
    # The pictures are not what is tested here: built once is enough. Their times stay, so nothing looks newer.
    shutil.copytree(finished / "data", folder / "data")
    config = ["--config", "suites=smoke", 'execution={"save_every_min": 0}']
    process = subprocess.Popen(
        [*COMMAND, *PROFILE, "--keep-going", *config], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    struck = set()
    while process.poll() is None:
        for checkpoint in (folder / paths.RESULTS / "runs").glob("*/checkpoints/step-*.json"):
            run = checkpoint.parent.parent
            if run not in struck and int(checkpoint.stem.removeprefix("step-")) >= 5:
                struck.add(run)
                for pid in processes_of(run):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    assert process.returncode == 1
    assert not records(folder)
    assert len(struck) == 5
    snakemake(folder, *config)
    return folder


def processes_of(run):
    """Pids of the job's own processes: their command line names the run's folder of jobs."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if f"runs/{run.name}/jobs/train".encode() in command:
                yield int(entry.name)


def test_every_table_and_figure_is_written_and_not_empty(finished):
    for kind in ("tables", "figures"):
        files = list((finished / paths.RESULTS / kind / "smoke").iterdir())
        assert len(files) >= 12
        assert all(file.stat().st_size > 100 for file in files)
    main = (finished / paths.tables("smoke") / "main_results.md").read_text()
    assert all(name in main for name in ("NeuCLIP", "OpenCLIP", "FastCLIP", "SigLIP", "AmorLIP"))


def test_a_second_run_does_nothing(finished):
    again = snakemake(finished, "--config", "suites=smoke")
    assert "Nothing to be done" in again.stdout


def test_a_killed_training_resumes_to_the_same_weights(finished, killed):
    expected, found = records(finished), records(killed)
    assert set(found) == {"amorlip", "fastclip", "neuclip", "openclip", "siglip"}
    for method, record in found.items():
        assert [attempt["first_step"] > 0 for attempt in record["attempts"]] == [False, True]
        assert record["milestones"] == expected[method]["milestones"], method
        assert record["normalizer_error"] == expected[method]["normalizer_error"], method


def test_two_runs_from_nothing_give_the_same_tables_to_the_byte(finished, killed):
    first, second = (folder / paths.tables("smoke") for folder in (finished, killed))
    names = [path.name for path in first.glob("*.*") if path.suffix != ".json" and path.stem != "cost"]
    assert len(names) >= 9
    _, different, missing = filecmp.cmpfiles(first, second, names, shallow=False)
    assert not different
    assert not missing


def test_how_a_run_is_carried_out_retrains_nothing(finished):
    plan = snakemake(finished, "-n", "--config", "suites=smoke", 'execution={"log_every_steps": 3, "timeout_min": 99}')
    assert "Nothing to be done" in plan.stdout


@pytest.mark.parametrize("suite", cards.names("suites"))
def test_a_dry_run_of_every_suite_plans_training_for_each_run(tmp_path, suite):
    plan = snakemake(tmp_path, "-n", "--config", f"suites={suite}").stdout
    num_runs = len(json.loads((tmp_path / paths.suite(suite)).read_text())["runs"])
    assert f"train {num_runs}" in " ".join(plan.split())


def test_snakemake_alone_means_the_quickstart(tmp_path):
    assert "results/tables/quickstart/main_results.json" in snakemake(tmp_path, "-n").stdout


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("suites=smok", "unknown suite 'smok'; did you mean 'smoke'"),
        ("suite=smoke", "unknown --config key 'suite'"),
        ('execution={"thread": 2}', "unknown key 'thread'; did you mean 'threads'"),
    ],
)
def test_a_typo_is_one_clear_error_before_anything_runs(tmp_path, config, message):
    result = snakemake(tmp_path, "--config", config, check=False)
    assert result.returncode == 1
    assert message in result.stdout
    assert "Traceback" not in result.stdout
    assert not (tmp_path / "results" / "runs").exists()


def test_a_missing_package_is_one_clear_error_before_anything_runs(tmp_path):
    # A Python that cannot find clip_benchmark, as on a machine where it was never installed.
    (tmp_path / "sitecustomize.py").write_text(
        "from importlib import metadata\n"
        "honest = metadata.version\n"
        "def version(name):\n"
        "    if name == 'clip_benchmark':\n"
        "        raise metadata.PackageNotFoundError(name)\n"
        "    return honest(name)\n"
        "metadata.version = version\n"
    )
    result = snakemake(tmp_path, "-n", check=False, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert result.returncode == 1
    assert "clip_benchmark is missing: run `pip install -e" in result.stdout
    assert "Traceback" not in result.stdout


def test_snakemakes_own_lint_finds_only_what_is_so_on_purpose(tmp_path):
    # One virtual environment serves all rules, which lint does not know; building data shows its progress bar.
    findings = re.findall(r"^    \* (.*):$", snakemake(tmp_path, "--lint", check=False).stdout, re.MULTILINE)
    known = {"Specify a conda environment or container for each rule.", "No log directive defined"}
    assert set(findings) <= known
