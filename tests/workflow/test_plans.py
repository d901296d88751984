"""What the workflow would do: dry runs over everything there is, and from a finished suite after a change."""

import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import evalsets
import pytest
import yaml

from engine import paths
from experiments import cards

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
MAX_CPU_SEC = 15
pytestmark = pytest.mark.slow


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
    return set(re.findall(r"^rule train:.*?^    wildcards: run=(\S+)$", plan, re.MULTILINE | re.DOTALL))


def cpu_sec():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_the_page_says_how_many_jobs_everything_is_and_they_are_planned_in_seconds(tmp_path):
    (asked,) = re.findall(r"^snakemake (-n -q rules --config suites=\S+)$", PAGE, re.MULTILINE)
    suites = asked.partition("=")[2].split(",")
    assert set(suites) >= set(cards.names("suites"))
    datasets = {"cc3m", "cc12m", "dfn14m", "dfn192m", "dfn1b"}
    assert {f"ablations@{name}" for name in datasets} < set(suites)
    (table,) = re.findall(r"^\| rule \| jobs \|\n\| --- \| --- \|\n(.*?)\n\n", PAGE, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| (\w+) \| ([\d,]+) \|$", table, re.MULTILINE)
    stated = {rule: int(count.replace(",", "")) for rule, count in rows}
    assert counts(snakemake(tmp_path, *asked.split())) == stated

    # Suites are expanded by now. By the processor's time, and once more if need be: what else the machine does is to
    # have no say.
    def seconds():
        before = cpu_sec()
        snakemake(tmp_path, *asked.split())
        return cpu_sec() - before

    assert any(seconds() < MAX_CPU_SEC for _ in range(3))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A copy of this repository: what is edited here meanwhile does not matter."""
    folder = tmp_path_factory.mktemp("original") / "checkout"
    unwanted = shutil.ignore_patterns(".*", "__pycache__", "results", "data", "tests", "docs", "build", "shared")
    shutil.copytree(ROOT, folder, ignore=unwanted)
    return folder


@pytest.fixture(scope="module")
def finished(original, tmp_path_factory):
    """The smoke suite, run from nothing."""
    folder = tmp_path_factory.mktemp("smoke")
    snakemake(folder, "--config", "suites=smoke", checkout=original)
    return folder


@pytest.fixture
def checkout(original, tmp_path):
    """Another copy, to be changed."""
    return shutil.copytree(original, tmp_path / "checkout")


def smoke_with(folder, change):
    """The smoke suite under another name, changed."""
    suite = yaml.safe_load((cards.FOLDER / "suites" / "smoke.yaml").read_text())
    change(suite)
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(suite))
    return f"suites={path}"


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


def test_an_ablation_after_its_main_suite_trains_only_what_differs(original, finished):
    plan = snakemake(
        finished, "-n", "ablation_objective", "--config", "suites=smoke", "dataset=smoke", checkout=original
    )
    (run,) = trained(plan)
    assert run.startswith("neuclip-")
    assert not (finished / paths.record(run)).exists()
    # The main run is in its table all the same.
    assert counts(plan)["collect"] == 1
    assert counts(plan)["evaluate"] == 1


def test_another_seed_trains_only_its_runs(original, finished, tmp_path):
    mine = smoke_with(tmp_path, lambda suite: suite.update(seeds=[0, 1]))
    new = trained(snakemake(finished, "-n", "--config", mine, checkout=original))
    assert len(new) == 5
    assert all("-s1-" in run for run in new)


def test_another_method_trains_only_its_run(original, finished, tmp_path):
    mine = smoke_with(tmp_path, lambda suite: suite["methods"].update(memory_queue={}))
    (new,) = trained(snakemake(finished, "-n", "--config", mine, checkout=original))
    assert new.startswith("memory_queue-")


@pytest.mark.parametrize(
    ("change", "methods"),
    [
        (lambda suite: suite["methods"]["neuclip"]["options"].update(npn_lr=0.02), {"neuclip"}),
        (lambda suite: suite["methods"]["fastclip"].update(training={"optimizer": {"lr": 1e-3}}), {"fastclip"}),
        (lambda suite: suite["training"].update(epochs=3), {"amorlip", "fastclip", "neuclip", "openclip", "siglip"}),
        (lambda suite: suite.update(title="Another title", methods=dict(reversed(suite["methods"].items()))), set()),
    ],
    ids=["an option", "a rate of one method", "what all have in common", "the title"],
)
def test_a_changed_setting_trains_exactly_the_runs_that_it_touches(original, finished, tmp_path, change, methods):
    new = trained(snakemake(finished, "-n", "--config", smoke_with(tmp_path, change), checkout=original))
    assert {run.partition("-")[0] for run in new} == methods
    assert len(new) == len(methods)


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


def test_a_new_ablation_is_one_new_file(finished, checkout):
    (checkout / "experiments" / "ablations" / "eps.yaml").write_text(
        "title: The constant in the logarithm\n"
        "methods: [neuclip]\n"
        "variants:\n"
        "  - {}\n"
        '  - {label: "eps {eps}", options_times: {eps: 100}}\n'
    )
    asked = ["-n", "ablation_eps", "--config", "suites=smoke", "dataset=smoke"]
    plan = snakemake(finished, *asked, checkout=checkout)
    assert len(trained(plan)) == 1
    assert "results/tables/ablation_eps@smoke/ablation.json" in plan
