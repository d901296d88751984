"""Every command in the README and on the pages: run as it stands, or named here with the test that does."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.checkout import ROOT

from engine import paths

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = ("python", "python3.11", "snakemake", "make", "pip", "pytest", "clip_benchmark", "tensorboard", "hf", "git")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)

ELSEWHERE = {
    # Environments and other programs.
    r"(make|pip|git|hf|tensorboard|python3\.11) .*|pip install .*": "",
    # Too long to run; their form is that of commands which are.
    r"([A-Z_]+=\S+ )*pytest .*|python tests/chaos/count\.py .*": "",
    r"snakemake( report)?|snakemake all": "tests/workflow/test_snakemake.py::test_a_second_run_does_nothing",
    r"python docs/images/.*": "",
    # These download, or need what is downloaded.
    r"snakemake (fetch|crawl)_cc3m|hf download .*": "tests/experiments/fetch/test_crawl.py::"
    "test_a_copy_that_was_stopped_is_no_training_set_until_it_has_come_to_its_end",
    r"(snakemake evaluation_data|python -m experiments evaluation-data).*": "tests/experiments/fetch/"
    "test_evaluation_data.py::test_sizes_are_said_first_and_a_dry_run_fetches_nothing",
    r"python -m engine\.evaluate .*": "tests/engine/evaluation/test_loading.py::"
    "test_the_command_line_evaluates_any_model_and_goes_on_where_it_stopped",
    # What is a reader's own.
    r".*(mine/|card FOLDER|card <path>).*|clip_benchmark eval.*": "tests/experiments/test_bring_your_own.py::"
    "test_the_page_leads_from_folders_to_a_report_and_to_stock_tools",
    r".*path/to/mine\.yaml|python -m experiments watch mine": "tests/experiments/test_own_methods.py::"
    "test_the_pages_suite_runs_into_the_tables_beside_ours",
    r"python -m experiments check-method dcl\.py:DCL": "tests/experiments/test_own_methods.py::"
    "test_the_pages_methods_pass_its_check",
    r"python -m experiments tensorboard .*": "tests/experiments/test_tensorboard.py::"
    "test_every_metric_of_every_line_is_there_once",
    r"python -m open_clip_train\.main.*": "tests/standalone/test_use_a_loss_elsewhere.py::"
    "test_open_clip_trains_with_neuclip",
    # What takes minutes.
    r"python -m neuclip\.check.*": "tests/neuclip/test_check.py::"
    "test_the_command_prints_every_measure_and_draws_the_figure",
    r"python -m benchmarks\..*": "tests/contract/test_benchmarks.py::test_a_dry_run_goes_through_every_entry",
    r"python -m experiments\.scenes .*": "tests/experiments/test_scenes.py::"
    "test_two_builds_are_equal_to_the_byte_whatever_the_hash_seed",
    r"snakemake -n -q rules --config suites=cc3m,cc12m,.*": "tests/workflow/test_plans.py::"
    "test_everything_there_is_can_be_planned_and_what_suites_share_is_trained_once",
    r"UPDATE_GOLDEN=1 python -m pytest .*": "",
    r"python -m analysis compare results docs/results": "tests/analysis/test_published.py::"
    "test_results_of_ones_own_are_compared_with_what_is_committed",
    r"python -m experiments cancel.*": "tests/engine/jobs/test_scheduler.py::"
    "test_jobs_are_shown_and_cancelled_by_run_or_by_name",
    r"snakemake --forcerun evaluate \.\.\.|python -m engine\.train": "",  # parts of sentences
}
"""Patterns of commands that are not run here, and what runs them or stands for them."""


def commands() -> dict[str, list[str]]:
    """Find commands in blocks and in sentences; returns the pages of each."""
    found: dict[str, list[str]] = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        lines = [
            line
            for language, block in BLOCK.findall(text)
            if not language
            for line in block.replace("\\\n", "").splitlines()
        ]
        lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", BLOCK.sub("", text))]
        for line in lines:
            command = re.sub(r"\s+(#.*|&)$", "", line).strip()
            program, *rest = re.sub(r"^([A-Z_]+=\S+ )*", "", command).split(" ")
            if program in PROGRAMS and (rest or program == "snakemake"):
                found.setdefault(command, []).append(str(page.relative_to(ROOT)))
    return found


def elsewhere(command: str) -> str | None:
    return next((test for pattern, test in ELSEWHERE.items() if re.fullmatch(pattern, command)), None)


COMMANDS = commands()
HERE = sorted(command for command in COMMANDS if elsewhere(command) is None)


def test_commands_are_found_and_most_kinds_of_them_are_run() -> None:
    assert len(COMMANDS) > 100
    assert len(HERE) > 40


@pytest.mark.parametrize("pattern", ELSEWHERE)
def test_what_runs_a_command_elsewhere_is_there(pattern: str) -> None:
    assert any(re.fullmatch(pattern, command) for command in COMMANDS), "no page has such a command any more"
    if ELSEWHERE[pattern]:
        file, _, test = ELSEWHERE[pattern].partition("::")
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(smoke: Path, original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished suite under the names that the pages use, with a cluster file of the reader's."""
    here = shutil.copytree(smoke, tmp_path_factory.mktemp("documented") / "checkout", symlinks=True)
    shutil.copytree(original, here, dirs_exist_ok=True, symlinks=True)
    shutil.copy(here / "slurm" / "clusters" / "example.yaml", here / "slurm" / "clusters" / "mine.yaml")
    shutil.copytree(here / "results", here.with_name("other") / "results", symlinks=True)
    return here


@pytest.mark.slow
@pytest.mark.parametrize("command", HERE)
def test_a_documented_command_runs(command: str, folder: Path, tmp_path: Path) -> None:
    runs = sorted(path.parent.name for path in (folder / paths.RESULTS / "runs").glob("*/record.json"))
    pages = COMMANDS[command]
    # What pages call by a name that stands for one's own, or by that of a suite which takes days.
    stands_for = {"RUN_ID": runs[0], "RUN_A": runs[0], "RUN_B": runs[1], "DIR": str(tmp_path), "SUITE": "smoke"}
    stands_for |= {"/other/checkout": str(folder.with_name("other")), " A B": " results results"}
    if not command.startswith("snakemake") and " plan " not in command:
        stands_for |= {"cc3m cc12m": "smoke", "cc3m": "smoke", "quickstart": "smoke"}
    for word, meaning in stands_for.items():
        command = command.replace(word, meaning)
    command = re.sub(r"<\w+>", "scenes_tiny" if "index" in command else "num_updates", command)
    program, *arguments = shlex.split(command)
    if program == "snakemake":
        # What would be done: to do it takes days for some.
        planned = [] if "--unlock" in arguments else ["--dry-run"]
        arguments = ["-m", program, *planned, *arguments]
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, (pages, result.stdout[-3000:])
