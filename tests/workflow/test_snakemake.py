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
import yaml
from support.checkout import COPIED

from engine import files, paths
from engine.jobs.cluster import load
from engine.origin import ORIGIN

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
PROFILE = ["--workflow-profile", str(ROOT / "profiles" / "default")]
SLURM = ["--profile", str(ROOT / "slurm")]


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
def finished(smoke, tmp_path_factory):
    """A copy of the finished smoke suite, times and all: nothing looks newer than what was made of it."""
    return shutil.copytree(smoke, tmp_path_factory.mktemp("finished") / "smoke")


@pytest.fixture(scope="module")
def killed(original, finished, tmp_path_factory):
    """The smoke suite in another folder, with every training killed once in its middle and then run again."""
    folder = tmp_path_factory.mktemp("killed")
    # The pictures are not what is tested here: built once is enough. Their times stay, so nothing looks newer.
    shutil.copytree(finished / "data", folder / "data")
    config = ["--config", "suites=smoke", 'execution={"save_every_min": 0}']
    # Tables say which commit they are of: that of the finished suite.
    env = {**os.environ, "PYTHONPATH": str(original)}
    process = subprocess.Popen(
        [*COMMAND, *PROFILE, "--keep-going", *config],
        cwd=folder,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
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
    snakemake(folder, *config, env=env)
    return folder


def processes_of(run):
    """Pids of the job's own processes: they work in the run's results folder, and their command line names the run."""
    folder, relative = run.parents[2], run.relative_to(run.parents[2])
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command, place = (entry / "cmdline").read_bytes(), (entry / "cwd").resolve()
            except OSError:
                continue
            is_of_run = f"{relative}/jobs/train".encode() in command and place == folder.resolve()
            if b"engine.jobs.process" in command and is_of_run:
                yield int(entry.name)


def test_every_table_and_figure_is_written_and_not_empty(finished):
    for kind in ("tables", "figures"):
        files = list((finished / paths.RESULTS / kind / "smoke").iterdir())
        assert len(files) >= 12
        assert all(file.stat().st_size > 100 for file in files)
    assert "Report: smoke" in (finished / paths.report("smoke")).read_text()
    main = (finished / paths.tables("smoke") / "main_results.md").read_text()
    assert all(name in main for name in ("NeuCLIP", "OpenCLIP", "FastCLIP", "SigLIP", "AmorLIP"))


def test_a_second_run_does_nothing(finished):
    again = snakemake(finished, "--config", "suites=smoke")
    assert "Nothing to be done" in again.stdout


@pytest.mark.slow
def test_a_killed_training_resumes_to_the_same_weights(finished, killed):
    expected, found = records(finished), records(killed)
    assert set(found) == {"amorlip", "fastclip", "neuclip", "openclip", "siglip"}
    for method, record in found.items():
        assert [attempt["first_step"] > 0 for attempt in record["attempts"]] == [False, True]
        assert record["milestones"] == expected[method]["milestones"], method
        assert record["normalizer_error"] == expected[method]["normalizer_error"], method


@pytest.mark.slow
def test_two_runs_from_nothing_give_the_same_tables_to_the_byte(finished, killed):
    first, second = (folder / paths.tables("smoke") for folder in (finished, killed))
    names = [path.name for path in first.glob("*.*") if path.suffix != ".json" and path.stem != "cost"]
    assert len(names) >= 9
    _, different, missing = filecmp.cmpfiles(first, second, names, shallow=False)
    assert not different
    assert not missing


@pytest.mark.slow
def test_a_training_rule_that_is_run_again_puts_back_what_was_finished(finished):
    run = next(path for path in sorted((finished / paths.RESULTS / "runs").glob("openclip-*")))
    before = (run / "record.json").read_bytes()
    # As after Ctrl-C, when a job finished while no Snakemake was there: Snakemake removes the output and starts anew.
    snakemake(finished, "--config", "suites=smoke", "--force", str((run / "record.json").relative_to(finished)))
    assert (run / "record.json").read_bytes() == before


@pytest.mark.slow
def test_how_a_run_is_carried_out_retrains_nothing(finished):
    how = ['execution={"log_every_steps": 3}', 'train={"timeout_min": 99}', "on_interrupt=leave"]
    assert "Nothing to be done" in snakemake(finished, "-n", "--config", "suites=smoke", *how).stdout
    plan = snakemake(finished, "-n", *SLURM, "--config", "suites=smoke", *how)
    assert "Nothing to be done" in plan.stdout


def test_every_job_has_a_folder_in_its_run_and_ran_the_code_of_a_snapshot(finished):
    for record in records(finished).values():
        jobs = finished / paths.jobs(record["run_id"])
        assert {path.name.partition("-")[0] for path in jobs.iterdir()} == {"train", "evaluate"}
        assert all(json.loads(paths.job(folder).read_text())["end"] == "COMPLETED" for folder in jobs.iterdir())
    snapshots = [json.loads((path / ORIGIN).read_text()) for path in (finished / paths.code()).iterdir()]
    assert COPIED.model_dump() in snapshots
    for record in records(finished).values():
        provenance = record["attempts"][0]["provenance"]
        assert {key: provenance[key] for key in ("commit", "dirty_sha256")} == COPIED.model_dump()


@pytest.mark.slow
def test_the_slurm_profile_submits_to_slurm_whatever_else_the_command_line_changes(tmp_path):
    plan = snakemake(tmp_path, "-np", *SLURM, "--config", "suites=smoke", "--", "all").stdout
    commands = re.findall(r"^Shell command: exec python -m (engine\.launch .*)$", plan, re.MULTILINE)
    assert len(commands) == 12
    for command in commands:
        assert '--cluster \'{"scheduler":"slurm"' in command
        assert "--on-interrupt leave" in command


def test_the_slurm_profile_alone_means_the_papers_suites_on_the_example_cluster():
    settings = yaml.safe_load((ROOT / "slurm" / "settings.yaml").read_text())
    assert settings["suites"].split(",") == ["cc3m", "cc12m", "dfn14m", "dfn192m", "dfn1b"]
    assert (settings["cluster"], settings["on_interrupt"]) == ("example", "leave")
    assert load(settings["cluster"]).scheduler == "slurm"
    # Settings in the default profile would override those of slurm/; `jobs` beside `cores` bounds jobs that only wait.
    default = yaml.safe_load((ROOT / "profiles" / "default" / "config.yaml").read_text())
    profile = yaml.safe_load((ROOT / "slurm" / "config.yaml").read_text())
    assert not {"jobs", "config", "configfile", "resources"} & default.keys()
    assert not {"jobs", "cores"} & profile.keys()


@pytest.mark.slow
def test_ctrl_c_ends_the_jobs_on_this_machine_and_the_next_call_goes_on_where_they_were(finished, tmp_path):
    shutil.copytree(finished / "data", tmp_path / "data")
    shutil.copytree(finished / paths.RESULTS / "index", tmp_path / paths.RESULTS / "index")
    run = next((finished / paths.RESULTS / "runs").glob("openclip-*")).name
    command = [
        *COMMAND,
        *PROFILE,
        str(paths.record(run)),
        "--config",
        "suites=smoke",
        'execution={"log_every_steps": 1}',
    ]
    process = subprocess.Popen(command, cwd=tmp_path, start_new_session=True, stdout=subprocess.PIPE, text=True)
    log = tmp_path / paths.metrics(run)
    while not (log.exists() and log.read_bytes().count(b"\n") >= 5):
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate()
    assert process.returncode == 1
    assert "was cancelled" in said
    assert not list(processes_of(tmp_path / paths.run(run)))
    snakemake(tmp_path, str(paths.record(run)), "--config", "suites=smoke")
    _, second = json.loads((tmp_path / paths.record(run)).read_text())["attempts"]
    assert second["first_step"] >= 5
    assert records(tmp_path)["openclip"]["milestones"] == records(finished)["openclip"]["milestones"]


@pytest.mark.slow
def test_an_ablation_is_a_target_for_any_suite(tmp_path):
    plan = snakemake(tmp_path, "-n", "ablation_dataset_size", "--config", "suites=cc3m").stdout
    assert "draw the tables and figures of ablation_dataset_size@cc3m" in plan
    assert "index 3 train 27" in " ".join(plan.split())
    index = str(paths.index("scenes-0.02"))
    assert "--fraction 0.02" in snakemake(tmp_path, "-np", index, "--config", "suites=ablation_dataset_size").stdout
    wrong = snakemake(tmp_path, "-n", "ablation_updates", "--config", "suites=cc3", check=False)
    assert "unknown suite 'cc3'; did you mean 'cc3m'" in wrong.stdout


def test_missing_data_are_named_before_any_job_starts(tmp_path):
    result = snakemake(tmp_path, "--config", "suites=cc3m", check=False)
    assert result.returncode == 1
    assert "training set 'cc3m': no *.tar shards in data/cc3m. To fetch it, `snakemake fetch_cc3m`" in result.stdout
    assert "evaluation set 'cars': data/datacomp/wds_cars_test is not there" in result.stdout
    assert "`python -m experiments evaluation-data NAME...` fetches them" in result.stdout
    assert "Traceback" not in result.stdout
    assert not list(tmp_path.glob("results/logs/**/*.log"))


@pytest.mark.slow
def test_an_index_alone_is_not_made_of_a_set_that_is_half_fetched(tmp_path):
    for name in ("cc3m/00000.tar", ".cc3m.fetching"):
        files.write_text(tmp_path / "data" / name, "")
    result = snakemake(tmp_path, str(paths.index("cc3m")), "--config", "suites=cc3m", check=False)
    assert result.returncode == 1
    assert "training set 'cc3m': not all shards are in data/cc3m" in result.stdout
    assert not list(tmp_path.glob("results/logs/**/*.log"))


@pytest.mark.slow
def test_the_rule_that_fetches_evaluation_sets_takes_those_of_the_suites_and_needs_no_other_data(tmp_path):
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    result = snakemake(tmp_path, "evaluation_data", "--config", "suites=cc3m", check=False, env=offline)
    assert "evaluation set 'vtab-caltech101': the Hugging Face Hub is switched off by HF_HUB_OFFLINE" in result.stdout
    assert not (tmp_path / "data").exists()
    made = snakemake(tmp_path, "evaluation_data", "--config", "suites=smoke", env=offline).stdout
    assert "none of these sets is fetched: the workflow makes it" in made


@pytest.mark.slow
def test_snakemake_alone_means_the_quickstart(tmp_path):
    assert "draw the tables and figures of quickstart" in snakemake(tmp_path, "-n").stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("suites=smok", "unknown suite 'smok'; did you mean 'smoke'"),
        ("suite=smoke", "--config: suite: unknown key 'suite'; did you mean 'suites'"),
        ('execution={"thread": 2}', "unknown key 'thread'; did you mean 'threads'"),
        ('train={"node": 2}', "--config train: node: unknown key 'node'; did you mean 'nodes'"),
        ('train={"nodes": 2}', "this machine is one node"),
        ("cluster=exampel", "unknown cluster 'exampel'; did you mean 'example'"),
        ("on_interrupt=cancle", "--config: on_interrupt: Input should be 'leave' or 'cancel' (got 'cancle')"),
    ],
)
def test_a_typo_is_one_clear_error_before_anything_runs(tmp_path, config, message):
    result = snakemake(tmp_path, "--config", config, check=False)
    assert result.returncode == 1
    assert message in result.stdout
    assert "Traceback" not in result.stdout
    assert not list(tmp_path.glob("results/runs/*/jobs"))


@pytest.mark.slow
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


READ = """
import sys
from snakemake.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    print("modules:", *sys.modules)
    raise
"""


def test_reading_the_snakefile_imports_neither_torch_nor_open_clip(finished):
    command = [sys.executable, "-c", READ, "--snakefile", str(ROOT / "Snakefile"), *PROFILE]
    arguments = ["-n", "-q", "all", "--config", "suites=smoke"]
    result = subprocess.run([*command, *arguments], cwd=finished, capture_output=True, text=True, check=True)
    modules = result.stdout.partition("modules:")[2].split()
    assert "experiments.workflow" in modules
    # Snakemake itself imports pandas.
    assert {"torch", "open_clip", "clip_benchmark", "matplotlib"} & set(modules) == set()


WAITING = """
from experiments.workflow import jobs_that_ran, jobs_to_run, make_again, wait_for_many

wait_for_many(workflow)

rule all:
    input: lambda wildcards: make_again(workflow, ["3.done"]) or expand("{n}.done", n=range(12))

rule wait:
    output: "{n}.done"
    threads: 0
    shell: "touch {wildcards.n}.here; for i in $(seq 200); do [ $(ls *.here | wc -l) = 12 ] && break; sleep 0.1; done;"
        " [ $(ls *.here | wc -l) = 12 ] && touch {output}"

onstart:
    print("to run:", sorted((job.rule.name, *job.wildcards) for job in jobs_to_run(workflow)))

onsuccess:
    print("ran:", sorted((job.rule.name, *job.wildcards) for job in jobs_that_ran(workflow)))
"""


def test_what_the_workflow_takes_from_inside_snakemake_is_there_in_the_pinned_version(tmp_path):
    # Twelve jobs that take no core run at once, though there is one core; Snakemake alone has threads for six of them.
    (tmp_path / "Snakefile").write_text(WAITING)
    command = [sys.executable, "-m", "snakemake", "--cores", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run():
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr[-4000:]
        return result.stdout + result.stderr

    expected = sorted([("all",), *(("wait", str(n)) for n in range(12))])
    said = run()
    assert f"to run: {expected}" in said
    assert f"ran: {expected}" in said
    # Of what is there, what has to be made again, and nothing else.
    assert "to run: [('all',), ('wait', '3')]" in run()


@pytest.mark.slow
def test_snakemakes_own_lint_finds_only_what_is_so_on_purpose(tmp_path):
    # One virtual environment serves all rules, which lint does not know; building data shows its progress bar.
    findings = re.findall(r"^    \* (.*):$", snakemake(tmp_path, "--lint", check=False).stdout, re.MULTILINE)
    known = {"Specify a conda environment or container for each rule.", "No log directive defined"}
    assert set(findings) <= known
