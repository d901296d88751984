"""What the workflow would do: dry runs over everything there is, and from a finished suite after a change or a loss."""

import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support import evalsets

from engine import paths
from experiments.design import cards, expansion
from experiments.design.suite import expand

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")


def snakemake(folder, *args, checkout=ROOT, returncode=0):
    """Run the Snakemake of a checkout in a folder; return what it says."""
    result = subprocess.run(
        [sys.executable, "-m", "snakemake", "--snakefile", checkout / "Snakefile"]
        + ["--workflow-profile", checkout / "profiles" / "default", *args],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == returncode, result.stdout[-6000:]
    return result.stdout


def counts(plan):
    """Number of jobs by rule."""
    stats, *_ = re.findall(r"^job +count\n[- ]+\n(.*?)\n\n", plan, re.MULTILINE | re.DOTALL)
    return {rule: int(count) for rule, count in map(str.split, stats.splitlines())}


def trained(plan):
    """Runs that would be trained."""
    return set(re.findall(r"^Job \d+: train (\S+)$", plan, re.MULTILINE))


def files_of(folder):
    """All results with their times, but for what is remembered of suites."""
    found = (path for path in (folder / paths.RESULTS).rglob("*") if path.name != paths.answers().name)
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in found}


@pytest.mark.slow
def test_everything_there_is_can_be_planned_and_what_suites_share_is_trained_once(tmp_path, monkeypatch):
    (asked,) = re.findall(r"^snakemake (-n -q rules --config suites=\S+)$", PAGE, re.MULTILINE)
    suites = asked.partition("=")[2].split(",")
    assert set(suites) >= set(cards.names("suites"))
    datasets = {"cc3m", "cc12m", "dfn14m", "dfn192m", "dfn1b"}
    assert {f"ablations@{name}" for name in datasets} < set(suites)
    planned = counts(snakemake(tmp_path, *asked.split()))
    monkeypatch.chdir(tmp_path)
    found = expansion.load(suites).values()
    assert planned["train"] == len({run.spec.run_id for suite in found for run in suite.runs})


@pytest.fixture(scope="module")
def finished(smoke, tmp_path_factory):
    """A copy of the finished smoke suite, times and all: nothing looks newer than what was made of it."""
    return shutil.copytree(smoke, tmp_path_factory.mktemp("finished") / "smoke")


@pytest.fixture
def checkout(original, tmp_path):
    """Another copy, to be changed."""
    return shutil.copytree(original, tmp_path / "checkout")


def smoke_with(folder, *changes):
    """The smoke suite under another name, changed; returns the path of its file."""
    suite = yaml.safe_load((cards.FOLDER / "suites" / "smoke.yaml").read_text())
    for change in changes:
        change(suite)
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(suite))
    return path


@pytest.mark.slow
def test_wrong_counts_of_evaluation_sets_are_named_together_before_the_first_training(finished, checkout):
    mine, kept = finished.with_name("mine"), checkout / "experiments"
    shutil.copytree(finished / "data", mine / "data", symlinks=True)
    for name in ("one", "two"):
        evalsets.classification(mine / name, 6)
        facts = evalsets.card(Path(name), images=5, classes=7).model_dump(mode="json", exclude_defaults=True)
        (kept / "evals" / f"{name}.yaml").write_text(yaml.safe_dump({**facts, "name": name}))
    (kept / "evaluations" / "both.yaml").write_text("sets: [one, two]\naverages: {Average: [one, two]}\n")
    suite = kept / "suites" / "smoke.yaml"
    suite.write_text(re.sub("^evaluation: .*$", "evaluation: both", suite.read_text(), flags=re.MULTILINE))
    said = snakemake(mine, "--config", "suites=smoke", checkout=checkout, returncode=1)
    for name in ("one", "two"):
        assert f"{name} has 6 images, its card says 5: edit the card, experiments/evals/{name}.yaml (images: 6)" in said
    assert "Traceback" not in said
    assert not list(mine.glob("results/logs/**/*.log"))


CHANGES = {
    "an option": lambda suite: suite["methods"]["neuclip"]["options"].update(npn_lr=0.02),
    "a rate of one method": lambda suite: suite["methods"]["fastclip"].update(training={"optimizer": {"lr": 1e-3}}),
    "another method": lambda suite: suite["methods"].update(memory_queue={}),
    "another seed": lambda suite: suite.update(seeds=[0, 1]),
    "the title": lambda suite: suite.update(title="Another", methods=dict(reversed(suite["methods"].items()))),
    "what all have in common": lambda suite: suite["training"].update(epochs=3),
}


@pytest.mark.parametrize(
    ("change", "new"),
    [
        ("an option", {"neuclip 0"}),
        ("a rate of one method", {"fastclip 0"}),
        ("another method", {"memory_queue 0"}),
        ("another seed", {"amorlip 1", "fastclip 1", "neuclip 1", "openclip 1", "siglip 1"}),
        ("the title", set()),
        ("what all have in common", {"amorlip 0", "fastclip 0", "neuclip 0", "openclip 0", "siglip 0"}),
    ],
)
def test_a_changed_setting_makes_new_runs_of_exactly_what_it_touches(tmp_path, monkeypatch, change, new):
    monkeypatch.chdir(tmp_path)
    before = {run.spec.run_id for run in expand("smoke").runs}
    after = {run.spec.run_id: run.spec for run in expand(str(smoke_with(tmp_path, CHANGES[change]))).runs}
    assert {f"{after[run].method.name} {after[run].seed}" for run in after.keys() - before} == new


@pytest.mark.slow
def test_exactly_the_new_runs_of_a_changed_suite_are_trained(original, finished, tmp_path):
    mine = smoke_with(tmp_path, *(change for what, change in CHANGES.items() if what != "what all have in common"))
    before = files_of(finished)
    plan = snakemake(finished, "-n", "--config", f"suites={mine}", checkout=original)
    assert files_of(finished) == before
    found = [re.match(r"(\w+)-.*-s(\d)-\w+$", run).groups() for run in trained(plan)]
    old = {("amorlip", "0"), ("openclip", "0"), ("siglip", "0")}
    methods = ("amorlip", "fastclip", "memory_queue", "neuclip", "openclip", "siglip")
    assert set(found) == set(itertools.product(methods, "01")) - old
    assert len(found) == counts(plan)["evaluate"] == 9


@pytest.mark.slow
def test_comments_and_formatting_of_code_train_and_evaluate_nothing(finished, checkout):
    assert "Nothing to be done" in snakemake(finished, "-n", "--config", "suites=smoke", checkout=checkout)
    for package in ("engine", "neuclip", "baselines", "experiments"):
        for path in (checkout / package).rglob("*.py"):
            path.write_text("# A comment.\n\n" + path.read_text() + "\n\n# Another.\n")
    suite = checkout / "experiments" / "suites" / "smoke.yaml"
    suite.write_text("# A comment.\n" + suite.read_text().replace("seeds: [0]", "seeds:\n  - 0"))
    workflow = checkout / "Snakefile"
    workflow.write_text(re.sub(r"^(rule \w+:)$", r"# A comment.\n\n\1", workflow.read_text(), flags=re.MULTILINE))
    assert "Nothing to be done" in snakemake(finished, "-n", "--config", "suites=smoke", checkout=checkout)
    # Tables and figures are drawn anew when the code that draws them is another, to the letter: that takes seconds.
    for path in (checkout / "analysis").glob("*.py"):
        path.write_text(path.read_text() + "\n# A comment.\n")
    plan = snakemake(finished, "-n", "--config", "suites=smoke", checkout=checkout)
    assert not {"train", "evaluate", "index"} & counts(plan).keys()


@pytest.mark.slow
def test_a_new_ablation_is_one_new_file_and_trains_only_what_differs_from_its_suite(finished, checkout):
    (checkout / "experiments" / "ablations" / "eps.yaml").write_text(
        "title: The constant in the logarithm\n"
        "methods: [neuclip]\n"
        "variants:\n"
        "  - {}\n"
        '  - {label: "eps {eps}", options_times: {eps: 100}}\n'
    )
    asked = ["-n", "ablation_eps", "--config", "suites=smoke"]
    plan = snakemake(finished, *asked, checkout=checkout)
    (run,) = trained(plan)
    assert run.startswith("neuclip-")
    assert not (finished / paths.record(run)).exists()
    # The main run is in its table all the same.
    assert counts(plan)["collect"] == 1
    assert counts(plan)["evaluate"] == 1
    assert counts(plan)["draw"] == 1


def content(folder, *patterns):
    """What files say, by their paths."""
    found = (path for pattern in patterns for path in (folder / paths.RESULTS).glob(pattern) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def check(folder, checkout):
    """What `analysis check` says of a folder."""
    command = [sys.executable, "-m", "analysis", "check"]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False).stdout


DRAWN = ("tables/**/*", "figures/**/*", "reports/*")
MEASURED = ("runs/*/weights/**/*", "runs/*/spec.json", "evals/**/*", "evaluations/*", "suites/*", "index/**/*")


@pytest.mark.slow
def test_a_lost_table_or_figure_comes_back_in_every_format_and_is_named_before(original, finished):
    assert check(finished, original).startswith("nothing is missing")
    before = content(finished, *DRAWN)
    for name in ("tables/smoke/main_results.md", "figures/smoke/results_by_method_column.pdf"):
        (finished / paths.RESULTS / name).unlink()
    assert check(finished, original).splitlines() == [
        "results/tables/smoke/main_results: lacks main_results.md",
        "results/figures/smoke/results_by_method: lacks results_by_method_column.pdf",
        "to make it again: snakemake --config suites=smoke",
    ]
    asked = ["--config", "suites=smoke"]
    assert counts(snakemake(finished, "-n", *asked, checkout=original)) == {
        "all": 1, "draw": 1, "page": 1, "total": 3
    }  # fmt: skip
    snakemake(finished, *asked, checkout=original)
    assert content(finished, *DRAWN) == before
    assert "Nothing to be done" in snakemake(finished, *asked, checkout=original)


@pytest.mark.slow
def test_what_is_lost_of_runs_and_evaluations_is_made_again_and_nothing_else_is_trained(original, finished):
    asked = ["--config", "suites=smoke"]
    before = content(finished, *MEASURED, *DRAWN)
    runs = {path.name.partition("-")[0]: path for path in (finished / paths.RESULTS / "runs").iterdir()}
    shutil.rmtree(runs["openclip"])
    shutil.rmtree(runs["siglip"] / "weights")
    (runs["amorlip"] / "metrics.jsonl").unlink()
    min((finished / paths.RESULTS / "evals" / runs["fastclip"].name).glob("*/*.json")).unlink()
    for name in ("suites", "evaluations", "collected"):
        shutil.rmtree(finished / paths.RESULTS / name)
    plan = snakemake(finished, "-n", *asked, checkout=original)
    assert trained(plan) == {runs[method].name for method in ("openclip", "siglip", "amorlip")}
    snakemake(finished, *asked, checkout=original)
    after = content(finished, *MEASURED, *DRAWN)
    assert after.keys() == before.keys()
    changed = {name for name in before if after[name] != before[name]}
    assert changed <= {str(paths.report("smoke"))}  # it has dates and starts
    assert "Nothing to be done" in snakemake(finished, *asked, checkout=original)
    assert check(finished, original).startswith("nothing is missing")
