"""What the Snakefile asks, without Snakemake."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from engine import errors, paths
from engine.schema.base import fingerprint, parse
from engine.schema.run import RunSpec
from engine.schema.suite import ExpandedSuite
from experiments.design import expansion
from experiments.workflow import ABLATIONS, Workflow


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """A working directory, in which methods are asked once."""
    folder = tmp_path_factory.mktemp("workflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture
def smoke():
    return Workflow({"suites": "smoke"}, ["snakemake"], cores=3)


def test_a_suites_targets_are_all_that_is_made_of_it(smoke):
    assert list(smoke.targets) == ["runs", "tables", "figures", "report"]
    assert smoke.targets["tables"] == [paths.collected("smoke"), paths.drawn("smoke")]
    assert smoke.targets["figures"] == smoke.shown_in("smoke") == [paths.drawn("smoke")]
    assert smoke.targets["report"] == [paths.report("smoke")]
    of_runs = {paths.index("scenes_tiny"), *map(paths.record, smoke.runs), *smoke.evaluated("smoke")}
    assert set(smoke.targets["runs"]) == of_runs


def test_an_ablation_is_taken_up_when_the_command_line_names_it_and_otherwise_not(smoke):
    config = {"suites": "smoke"}
    asked = Workflow(config, ["snakemake", "-n", "ablation_objective"])
    assert paths.report("ablation_objective@smoke") in asked.ablation("ablation_objective")
    assert paths.drawn("ablation_objective@smoke") in asked.ablation("ablation_objective")
    assert asked.targets == smoke.targets
    assert asked.runs.keys() > smoke.runs.keys()
    for target in set(ABLATIONS) - {"ablation_objective"}:
        with pytest.raises(ValueError, match=f"'{target}' is no word of the command line: use --config suites="):
            asked.ablation(target)


@pytest.mark.parametrize(
    ("config", "asked"),
    [
        ({}, ["quickstart", "ablation_objective@laptop"]),
        ({"suites": "cc3m"}, ["cc3m", "ablation_objective@cc3m"]),
        ({"suites": "cc3m,cc12m"}, ["cc3m", "cc12m", "ablation_objective@cc3m", "ablation_objective@cc12m"]),
    ],
)
def test_the_target_of_an_ablation_is_for_the_suites_that_are_named(monkeypatch, config, asked):
    class AskedError(Exception):
        pass

    def load(names):
        raise AskedError(names)

    monkeypatch.setattr(expansion, "load", load)
    with pytest.raises(AskedError) as found:
        Workflow(config, ["snakemake", "ablation_objective"])
    assert found.value.args == (asked,)


def test_suites_are_listed_with_spaces_and_a_comma_at_the_end():
    assert Workflow({"suites": " smoke, "}, ["snakemake"]).suites.keys() == {"smoke"}
    with pytest.raises(ValueError, match=r"--config suites=' ,' names no suite: allowed are names, separated by comm"):
        Workflow({"suites": " ,"}, ["snakemake"])


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("ablation_restart_perod", "ablation_restart_period"),
        ("ablation_objective@cc3m", "ablation_objective"),
        ("fetch_cc3n", "fetch_cc3m"),
        ("repot", "report"),
    ],
)
def test_a_misspelt_target_is_named_with_those_that_there_are(word, meant):
    with pytest.raises(ValueError, match=f"unknown target '{word}'; did you mean '{meant}'.*--config suites=") as error:
        Workflow({"suites": "smoke"}, ["snakemake", "-n", word])
    assert all(target in str(error.value) for target in ABLATIONS)
    Path(word).mkdir()  # what exists is given to an option, as to --directory
    Workflow({"suites": "smoke"}, ["snakemake", "--directory", word])


def test_to_tune_is_to_run_the_trials_of_the_suites_that_are_asked_for():
    tuning = Workflow({"suites": "laptop"}, ["snakemake", "tune"])
    assert tuning.suites.keys() == {"tuning@laptop"}
    assert tuning.choosing == "tuning@laptop"
    assert {paths.drawn("tuning@laptop"), paths.report("tuning@laptop")} <= set(tuning.files)


def test_all_models_of_a_suite_are_evaluated(smoke):
    evaluated = smoke.evaluated("smoke")
    assert len(evaluated) == sum(len(spec.milestones) for spec in smoke.runs.values())
    (key,) = smoke.evaluations
    assert all(path.name == f"all-{key}.done" for path in evaluated)
    assert smoke.built_for[key] == ["data/scenes_tiny/manifest.json"]


def test_a_part_of_a_data_set_has_a_card_of_its_own():
    parts = Workflow({"suites": "ablation_dataset_size@smoke"})
    runs = {spec.dataset.name: spec.dataset.pairs for spec in parts.runs.values()}
    assert len(runs) > 1
    assert {name: parts.datasets[name].pairs for name in runs} == runs
    assert all(card.fraction < 1 for name, card in parts.datasets.items() if name.startswith("scenes_tiny-"))
    assert not any("-0." in arguments for arguments in parts.fetches().values())
    assert parts.builds() == Workflow({"suites": "smoke"}).builds()  # or they would be made again


def test_one_command_builds_all_that_it_makes_and_again_when_one_revision_changes(smoke):
    builds = {build.name: build for build in smoke.builds()}
    tiny = builds["build_scenes_tiny"]
    assert tiny.ready == "data/scenes_tiny/manifest.json"
    assert len(tiny.revisions) > 1
    assert tiny.revisions == sorted(tiny.revisions)
    assert f"scenes_tiny {smoke.datasets['scenes_tiny'].revision}" in tiny.revisions


def test_here_a_training_takes_its_processes_and_threads_and_data_are_prepared_on_all_cores():
    here = Workflow({"suites": "smoke", "train": {"tasks_per_node": 2}, "execution": {"threads": 2}}, cores=3)
    run = next(iter(here.runs))
    assert (here.train[run].threads, here.evaluate[run].threads, here.preparation_threads) == (4, 2, 3)
    assert not here.is_elsewhere
    assert here.preparation("index-x", "out") == "exec python -m"
    assert here.training(run).startswith(f"--name {run} --folder results/runs/{run}/jobs/train --cluster ")
    command = f"""-- engine.train --execution '{{"threads":2}}' {paths.spec(run)}"""
    assert here.training(run).endswith(f"--on-interrupt cancel {command}")


def test_elsewhere_jobs_take_no_core_here_and_data_are_prepared_by_jobs_if_the_cluster_says_so():
    there = Workflow({"suites": "smoke", "cluster": "example", "on_interrupt": "leave"}, cores=3)
    run, spec = next(iter(there.runs.items()))
    assert there.is_elsewhere
    assert (there.train[run].threads, there.evaluate[run].threads, there.preparation_threads) == (0, 0, 0)
    place = "--name index-x --folder results/jobs/index-x --output out"
    assert there.preparation("index-x", "out").startswith(f"exec python -m engine.launch {place} --cluster ")
    (key,) = there.evaluations
    arguments = there.evaluating(run, str(spec.milestones[-1]), key)
    assert arguments.startswith(f"--name eval-{run}-{spec.milestones[-1]}-{key} --folder ")
    assert "--on-interrupt leave -- engine.evaluate --execution " in arguments
    assert arguments.endswith(f" --milestone {spec.milestones[-1]} {paths.record(run)} {paths.evaluation(key)}")


def test_a_name_that_no_suite_of_the_command_has_is_one_clear_error(smoke):
    for lookup in (smoke.training, smoke.evaluated, smoke.shown_in, smoke.built_for.__getitem__):
        with pytest.raises(ValueError, match=r"unknown \w+ 'x'\. Known: .* Name its suite with --config suites="):
            lookup("x")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"suite": "smoke"}, "--config: suite: unknown key 'suite'; did you mean 'suites'"),
        ({"on_interrupt": "cancle"}, "--config: on_interrupt: Input should be 'leave' or 'cancel' (got 'cancle')"),
        ({"cluster": "exampel"}, "unknown cluster 'exampel'; did you mean 'example'"),
        ({"suites": "smoke", "train": {"nodes": 2}}, "this machine is one node"),
        (
            {"suites": "smoke", "train": {"tasks_per_node": 3}},
            "global_batch_size = 64 cannot be divided among 3 processes",
        ),
        (  # as Snakemake leaves what stands in braces
            {"suites": "smoke", "train": {"tasks_per_node": "3"}},
            "global_batch_size = 64 cannot be divided among 3 processes",
        ),
        ({"suites": "smoke", "train": {"tasks_per_node": "two"}}, "Input should be a valid integer (got 'two')"),
        ({"suites": ""}, "--config suites='' names no suite"),
        ({"suites": None}, "--config suites= names no suite"),
        ({"train": {"gpus_per_node:1": None}}, "a space after the colon, 'train={gpus_per_node: 1}'"),
        ({"suites": "smok"}, "unknown suite 'smok'; did you mean 'smoke'"),
    ],
)
def test_a_wrong_setting_is_named(config, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        Workflow(config)
    assert message in str(error.value)


def job(rule, output=(), log=(), **wildcards):
    rule, wildcards = SimpleNamespace(name=rule), SimpleNamespace(**wildcards)
    return SimpleNamespace(rule=rule, wildcards=wildcards, output=output, log=log)


def about_to_run(*jobs):
    """What of Snakemake's workflow is asked for its jobs."""
    return SimpleNamespace(dag=SimpleNamespace(needrun_jobs=lambda exclude_finished=True: iter(jobs)))


def test_of_the_suites_of_a_command_those_are_written_of_which_something_runs():
    both = Workflow({"suites": "smoke"}, ["snakemake", "ablation_objective"])
    name = "ablation_objective@smoke"
    mine = {run.spec.run_id for run in both.suites[name].runs}
    shared = next(iter(mine & {run.spec.run_id for run in both.suites["smoke"].runs}))
    other = next(run.spec.run_id for run in both.suites["smoke"].runs if run.spec.run_id not in mine)

    def about(*jobs):
        return [suite.name for suite in both._about(jobs)]

    assert about(job("train", run=shared), job("collect", suite=name)) == [name]
    assert about(job("train", run=other), job("collect", suite=name)) == ["smoke", name]
    assert about(job("train", run=shared)) == ["smoke", name]
    assert about(job("index", dataset="scenes_tiny")) == []


def test_at_the_end_the_suites_are_shown_that_were_drawn_and_the_reports_that_were_written():
    name = "ablation_objective@smoke"
    both = Workflow({"suites": "smoke"}, ["snakemake", "ablation_objective"])
    drawn = [job("collect", suite="smoke"), job("draw", suite=name), job("page", report=name)]
    assert both.made(about_to_run(*drawn)) == [paths.collected(name), paths.report(name)]
    assert both.made(about_to_run(job("index", dataset="scenes_tiny"))) == []


def test_a_folder_that_cannot_be_written_is_named_before_any_job(smoke, make_read_only):
    kept = Path("kept")
    kept.mkdir()
    make_read_only(kept)
    for kind in ("output", "log"):
        with pytest.raises(OSError, match="kept") as caught:
            smoke.start(about_to_run(job("collect", suite="smoke", **{kind: ["kept/new/file"]})))
        assert errors.describe(caught.value).startswith("kept: Permission denied: allow this user")
    assert not paths.suite("smoke").exists()


def test_data_that_are_missing_are_named_for_the_jobs_that_will_run_and_for_no_others(smoke):
    run, spec = next(iter(smoke.runs.items()))
    assert fingerprint(spec)[:8] in run
    (key,) = smoke.evaluations
    with pytest.raises(ValueError, match=r"training set 'cc3m': no \*\.tar shards in data/cc3m"):
        smoke.start(about_to_run(job("index", dataset="cc3m")))
    smoke.start(about_to_run(job("build_scenes_tiny")))
    assert not paths.suite("smoke").exists()
    smoke.start(about_to_run(job("all"), job("train", run=run), job("evaluate", run=run, evaluation=key)))
    assert parse(ExpandedSuite, paths.suite("smoke").read_text(), "smoke") == smoke.suites["smoke"].sealed()
    assert parse(RunSpec, paths.spec(run).read_text(), "spec") == spec
