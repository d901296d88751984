"""Equal tuning: the space, the points, what a suite makes of them, and a whole tuning on a tiny set."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from engine import files, paths
from engine.schema.suite import DEFAULTS
from experiments.design import cards, names
from experiments.design.suite import expand
from experiments.design.tuning import Chosen, Range, Tuned, choose, points, write

ROOT = Path(__file__).resolve().parents[2]
SPACE = {
    "training.optimizer.lr": Range(low=2.5e-4, high=4e-3, scale="log"),
    "options.gamma": Range(low=0.2, high=1.0),
    "options.num_updates": Range(low=1, high=4, integer=True),
    "options.rho": Range(choices=([1.0, -1.0], [2.0, -2.0], [3.0, -3.0])),
}
SUITE = {
    "title": "Two methods",
    "dataset": "scenes_tiny",
    "model": "tiny-vit",
    "evaluation": "scenes_tiny",
    "seeds": [0],
    "training": {
        "global_batch_size": 64,
        "epochs": 2,
        "milestones": [0.5],
        "optimizer": {"lr": 2e-3, "weight_decay": 0.1},
        "augmentation": {"kind": "none"},
        "normalizer_error": {"num_anchors": 64, "control_size": 32},
    },
    "methods": {"openclip": {}, "amorlip": {"options": {"init_output_bias": True}}},
    "tuning": {
        "trials": 2,
        "seeds": [100],
        "score": ["scenes_tiny_validation"],
        "training": {"epochs": 1},
        "space": {"training.optimizer.lr": {"low": 1e-3, "high": 4e-3, "scale": "log"}},
        "methods": {"amorlip": {"options.rho": {"choices": [[1.0, -1.0, -1.0], [2.0, -2.0, -2.0], [3.0, -3.0, -3.0]]}}},
    },
}


def suite_with(folder=Path(), name="mine", **changes):
    """Write the suite with keys changed, dotted ones inside; returns its path."""
    content = json.loads(json.dumps(SUITE))
    for key, value in changes.items():
        *parents, last = key.split("__")
        place = content
        for parent in parents:
            place = place[parent]
        place[last] = value
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tune(path, **settings):
    """Write what the tuning of a suite would, had its second trial been the best."""
    trials = expand(f"tuning@{path}")
    chosen = {
        run.spec.method.name: Chosen(
            settings={name: setting.value for name, setting in run.settings.items()} | settings,
            trial=2,
            score=0.5,
            seed_scores=(0.5,),
            defaults_score=0.4,
            diverged=0,
            digest=trials.digests[run.spec.method.name],
        )
        for run in trials.runs
        if run.variant == "trial 2"
    }
    tuned = Tuned(
        suite=trials.name.partition("@")[2], trials=2, seeds=(100,), score=("scenes_tiny_validation",), commit="c",
        device="d", methods=chosen,
    )  # fmt: skip
    write(tuned, names.split(path).tuned)
    return chosen


def test_more_trials_go_on_where_fewer_end():
    assert points(SPACE, 5) == points(SPACE, 21)[:5]
    assert points(SPACE, 21) == points(SPACE, 21)


def test_trials_keep_to_their_ranges_and_spread_over_them():
    tried = points(SPACE, 64)
    assert len({json.dumps(point) for point in tried}) == 64
    rates = np.array([point["training.optimizer.lr"] for point in tried])
    assert 2.5e-4 <= rates.min() < 3e-4
    assert 3.4e-3 < rates.max() <= 4e-3
    # Evenly on its scale: a quarter of the trials in each factor of two.
    assert np.histogram(np.log2(rates / 2.5e-4), bins=[0, 1, 2, 3, 4])[0].tolist() == pytest.approx([16] * 4, abs=2)
    gammas = np.array([point["options.gamma"] for point in tried])
    assert np.histogram(gammas, bins=[0.2, 0.4, 0.6, 0.8, 1.0])[0].tolist() == pytest.approx([16] * 4, abs=2)
    counts = [point["options.num_updates"] for point in tried]
    assert {type(count) for count in counts} == {int}
    assert [counts.count(number) for number in (1, 2, 3, 4)] == pytest.approx([16] * 4, abs=2)
    assert [sum(point["options.rho"][0] == rho for point in tried) for rho in (1, 2, 3)] == pytest.approx(
        [64 / 3] * 3, abs=2
    )
    assert all(float(f"{rate:.3g}") == rate for rate in rates)


def test_a_setting_is_tried_only_where_it_matters():
    learned = {"options.learnable": True}
    space = {
        "options.learnable": Range(choices=(True, False)),
        "options.lr": Range(low=1e-4, high=1e-2, scale="log", when=learned),
    }
    tried = points(space, 8)
    assert [("options.lr" in point) for point in tried] == [point["options.learnable"] for point in tried]
    # Without the rate all fixed ones are alike: tried once.
    assert sum(not point["options.learnable"] for point in tried) == 1


def test_what_is_left_out_takes_with_it_what_depends_on_it():
    space = {
        "options.learnable": Range(choices=(True, False)),
        "options.schedule": Range(choices=("cosine", "step"), when={"options.learnable": True}),
        "options.steps": Range(low=1, high=9, when={"options.schedule": "step"}),
    }
    tried = points(space, 6)
    assert {"options.learnable": False} in tried
    for point in tried:
        assert ("options.schedule" in point) == point["options.learnable"]
        assert ("options.steps" in point) == (point.get("options.schedule") == "step")


def test_a_space_with_too_few_points_says_so():
    space = {"options.learnable": Range(choices=(True, False))}
    assert len(points(space, 2)) == 2
    with pytest.raises(ValueError, match="2 different settings, 3 trials: widen the space, or ask for fewer trials"):
        points(space, 3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"low": 1.0}, "give either low and high, or choices"),
        ({"low": 1.0, "high": 2.0, "choices": [1, 2]}, "give either low and high, or choices"),
        ({"low": 2.0, "high": 1.0}, "low = 2, high = 1: allowed is low < high"),
        ({"low": 0.0, "high": 1.0, "scale": "log"}, "with scale log also 0 < low"),
        ({"low": 0.5, "high": 3.0, "integer": True}, "make both whole numbers"),
        ({"choices": [1]}, "give at least two, each once"),
        ({"choices": [1, 2, 1]}, "give at least two, each once"),
        ({"choices": [1, 2], "scale": "log"}, "choices have neither scale nor integer"),
    ],
)
def test_a_range_that_makes_no_sense_is_refused(wrong, message):
    with pytest.raises(ValidationError, match=message):
        Range.model_validate(wrong)


def test_places_in_a_range_are_on_its_scale():
    assert Range(low=1e-4, high=1e-2, scale="log").place(1e-3) == pytest.approx(0.5)
    assert Range(low=1.0, high=3.0).place(1.5) == 0.25
    rising = Range(choices=([1.0, -1.0], [2.0, -2.0], [3.0, -3.0]))
    assert [rising.place(choice) for choice in rising.choices] == [0, 0.5, 1]
    for unordered in ((True, False), ("a", "b", "c"), (3, 1, 2), (1, 2)):
        assert Range(choices=unordered).place(unordered[0]) is None


def test_every_method_gets_as_many_trials_and_its_own_defaults(here):
    suite = expand(f"tuning@{suite_with(tuning__trials=5, tuning__seeds=[100, 101])}")
    assert suite.name == "tuning@mine"
    found = {}
    for run in suite.runs:
        found.setdefault((run.spec.method.name, run.spec.seed), set()).add(run.variant)
    labels = {*(f"trial {number}" for number in range(1, 6)), DEFAULTS}
    assert found == {(method, seed): labels for method in ("openclip", "amorlip") for seed in (100, 101)}
    rates = {
        (run.spec.method.name, run.variant): run.spec.optimizer.lr for run in suite.runs if run.variant != DEFAULTS
    }
    # What all share is tried at the same values.
    assert all(rates["openclip", label] == rates["amorlip", label] for _, label in rates)
    assert len(set(rates.values())) == 5
    for run in suite.runs:
        assert run.spec.milestones == (run.spec.samples_seen,)
        assert run.spec.num_steps == 23  # one epoch, where the suite has two
        assert run.spec.normalizer_error is None
        if run.spec.method.name == "amorlip":
            assert run.spec.method.config["init_output_bias"] is (run.variant != DEFAULTS)
        if run.variant == DEFAULTS:
            assert not run.settings
            assert run.spec.optimizer.lr == 2e-3


def test_trials_are_evaluated_on_nothing_that_is_reported(here):
    path = suite_with()
    tuning, reported = expand(f"tuning@{path}").evaluation, expand(path).evaluation
    assert set(tuning.sets) == {"scenes_tiny_validation"}
    assert not set(tuning.sets) & {name for average in reported.averages.values() for name in average}
    assert tuning.key != reported.key


def test_a_set_that_judges_trials_must_be_there_before_they_are_trained(here):
    listed = "sets: [scenes_tiny_sketched]\naverages: {Average: [scenes_tiny_sketched]}\nwhen_missing: no_average\n"
    (here / "list.yaml").write_text(listed)
    path = suite_with(evaluation="list.yaml")
    assert expand(path).evaluation.when_missing == "no_average"
    assert expand(f"tuning@{path}").evaluation.when_missing == "refuse"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tuning__seeds": [0, 100]}, r"tuning: seeds = \[0\] are the suite's: take others"),
        (
            {"tuning__score": ["scenes_tiny_sketched", "scenes_tiny_validation"]},
            r"tuning: score: methods are compared by scenes_tiny_sketched \(average 'Average'\): judge trials by sets",
        ),
        ({"tuning__score": ["scenes_tiny_validatio"]}, "did you mean 'scenes_tiny_validation'"),
        ({"tuning__methods__amorlp": {}}, "tuning: unknown method 'amorlp'; did you mean 'amorlip'"),
        ({"tuning__space": {}}, "tuning of openclip: nothing to try"),
        ({"tuning__space": {"lr": {"choices": [1, 2]}}}, "setting 'lr': write training.NAME or options.NAME"),
        ({"tuning__space": {"training.optimizer.rate": {"choices": [1, 2]}}}, "unknown key 'rate'"),
        ({"tuning__methods__openclip": {"options.roh": {"choices": [1, 2]}}}, "method 'openclip': roh: unknown key"),
        ({"tuning__methods__amorlip": {"options.rho": {"choice": [1, 2]}}}, "unknown key 'choice'; did you mean"),
        ({"tuning__trails": 3}, "unknown key 'trails'; did you mean 'trials'"),
        (
            {"tuning__methods__amorlip": {"options.rho": {"low": 1, "high": 2, "when": {"options.x": True}}}},
            "when of 'options.rho': unknown setting 'options.x'",
        ),
        (
            {"tuning__space__options.rho": {"low": 1, "high": 2, "when": {"training.optimizer.lr": 1e-3}}},
            "training.optimizer.lr = 0.001, allowed is none, it has no choices",
        ),
        ({"training__optimizer__grad_clip_norm": 1.0}, "tuning: training.optimizer.grad_clip_norm clips methods whose"),
    ],
)
def test_a_mistake_in_a_tuning_is_one_clear_error(here, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        expand(f"tuning@{suite_with(**changes)}")
    assert len(str(caught.value).splitlines()) == 1


def test_only_a_suite_with_a_tuning_can_be_tuned():
    with pytest.raises(ValueError, match=r"suite 'tuning@smoke': .*smoke\.yaml has no `tuning`: see docs/tuning\.md"):
        expand("tuning@smoke")
    with pytest.raises(ValueError, match="tuning@smok: unknown suite 'smok'; did you mean 'smoke'"):
        names.resolve(["tuning@smok"])
    assert names.resolve(["tuning@smoke"]) == ["tuning@smoke"]


def test_a_file_of_chosen_settings_that_is_missing_is_one_clear_error(here):
    path = suite_with(tuned="mine")
    message = r"suite 'mine': there is no tuned/mine\.yaml: run `snakemake tune --config suites=mine\.yaml`"
    with pytest.raises(ValueError, match=f"^{message}$"):
        expand(path)
    assert len(expand(f"tuning@{path}").runs) == 6


def test_chosen_settings_lie_over_what_the_suite_says(here):
    path = suite_with(tuned="mine")
    chosen = tune(path)
    for run in expand(path).runs:
        settings = chosen[run.spec.method.name].settings
        assert run.spec.optimizer.lr == settings["training.optimizer.lr"] != 2e-3
        assert run.spec.optimizer.weight_decay == 0.1
        assert run.spec.num_steps == 46
        if run.spec.method.name == "amorlip":
            assert run.spec.method.config["rho"] == settings["options.rho"]
            assert run.spec.method.config["init_output_bias"]


def test_what_a_variant_says_lies_over_what_was_chosen(here):
    smaller = {"label": "smaller", "training": {"optimizer": {"lr": 1e-5}}, "seeds": [1]}
    path = suite_with(tuned="mine", variants=[{}, smaller])
    chosen = tune(path)
    rates = {(run.spec.method.name, run.variant): run.spec.optimizer.lr for run in expand(path).runs}
    for method in ("openclip", "amorlip"):
        assert rates[method, ""] == chosen[method].settings["training.optimizer.lr"]
        assert rates[method, "smaller"] == 1e-5


BOTH = {"amorlip", "openclip"}
OTHERS = {
    "the space": (BOTH, {"tuning__space": {"training.optimizer.lr": {"low": 1e-3, "high": 5e-3}}}),
    "the space of one": ({"amorlip"}, {"tuning__methods": {"amorlip": {"options.rho": {"choices": [[1.0], [2.0]]}}}}),
    "more trials": (BOTH, {"tuning__trials": 3}),
    "the trials' seeds": (BOTH, {"tuning__seeds": [101]}),
    "the score": (BOTH, {"tuning__score": ["scenes_tiny_validation_swapped"]}),
    "the trials' length": (BOTH, {"tuning__training": {"epochs": 2}}),
    "the batch": (BOTH, {"training__global_batch_size": 32}),
    "the data set": (BOTH, {"dataset": "scenes_simple"}),
    "the model": (BOTH, {"model": "tiny-resnet"}),
    "an option": ({"openclip"}, {"methods__openclip": {"options": {"chunk_rows": 64}}}),
    "a training of one": ({"openclip"}, {"methods__openclip": {"training": {"optimizer": {"eps": 1e-8}}}}),
    "another method": ({"siglip"}, {"methods__siglip": {}}),
    "title and seeds": (set(), {"title": "Other", "seeds": [1, 2]}),
    "what is measured": (set(), {"training__milestones": [0.25], "training__normalizer_error": None}),
    "the length of the suite's runs": (set(), {"training__epochs": 3}),
}


@pytest.mark.parametrize("what", OTHERS)
def test_the_file_is_stale_exactly_for_methods_whose_trials_would_be_others(here, what):
    stale, changes = OTHERS[what]
    tune(suite_with(tuned="mine"))
    path = suite_with(tuned="mine", **changes)
    if not stale:
        assert expand(path).runs
        return
    with pytest.raises(ValueError, match="is of other trials than those of") as caught:
        expand(path)
    (named,) = re.findall("those of (.*) here:", str(caught.value))
    assert set(named.split(", ")) == stale
    assert str(caught.value).endswith("run `snakemake tune --config suites=mine.yaml`")


def test_another_suite_takes_the_settings_if_its_trials_would_be_the_same(here):
    chosen = tune(suite_with())
    other = suite_with(name="other", tuned="mine.yaml", tuning=None, seeds=[5], training__epochs=4)
    for run in expand(other).runs:
        assert run.spec.optimizer.lr == chosen[run.spec.method.name].settings["training.optimizer.lr"]
    # Its path is relative to the file that names it.
    (here / "deep").mkdir()
    deep = suite_with(here / "deep", "deep", tuned="../mine.yaml", tuning=None, seeds=[5], training__epochs=4)
    assert expand(deep).runs == expand(other).runs
    other = suite_with(name="other", tuned="mine.yaml", tuning=None, training__optimizer__weight_decay=0.2)
    with pytest.raises(
        ValueError, match=r"tuned/mine\.yaml is of other trials .*, or write here what suite 'mine' says$"
    ):
        expand(other)
    # Nor one that reports what it was tuned on.
    with pytest.raises(ValueError, match=r"tuned: mine: seeds = \[100\] are the suite's"):
        expand(suite_with(name="other", tuned="mine.yaml", tuning=None, seeds=[100]))
    with pytest.raises(ValueError, match="tuned: unknown suite 'smoek'; did you mean 'smoke'"):
        expand(suite_with(name="other", tuned="smoek", tuning=None))
    with pytest.raises(ValueError, match="suite 'smoke' has no `tuning`: write it, and run"):
        expand(suite_with(name="other", tuned="smoke", tuning=None))


def test_a_control_is_tuned_by_a_suite_of_its_own(here):
    large = {"training__global_batch_size": 128, "methods": {"openclip": {}}, "tuning__methods": {}}
    rate = 3.21e-3
    tune(suite_with(name="large", **large), **{"training.optimizer.lr": rate})
    control = {"label": "large", "methods": ["openclip"], "tuned": "large.yaml", "training": {"global_batch_size": 128}}
    path = suite_with(tuned="mine", variants=[{}, control])
    tune(path)
    found = {run.variant: run.spec for run in expand(path).runs if run.spec.method.name == "openclip"}
    assert (found["large"].global_batch_size, found["large"].optimizer.lr) == (128, rate)
    assert found[""].optimizer.lr != rate
    # What the variant must say to be that suite's run does not outdo what was chosen.
    large["training__optimizer__lr"] = 9.0e-3
    tune(suite_with(name="large", **large), **{"training.optimizer.lr": rate})
    control["training"] = {"global_batch_size": 128, "optimizer": {"lr": 9.0e-3}}
    path = suite_with(tuned="mine", variants=[{}, control])
    assert {run.spec.optimizer.lr for run in expand(path).runs if run.variant == "large"} == {rate}
    for change in ({"training": {"global_batch_size": 256}}, {"data_fraction": 0.5}):
        with pytest.raises(ValueError, match=r"tuned/large\.yaml is of other trials than those of openclip"):
            expand(suite_with(tuned="mine", variants=[{}, control | change]))


def test_a_variant_has_its_methods_defaults_or_what_was_chosen(here):
    path = suite_with(variants=[{}, {"label": "both", "defaults": True, "tuned": "mine.yaml"}])
    with pytest.raises(ValueError, match=r"leaves out what tuned = 'mine\.yaml' would choose: give one of them"):
        expand(path)


def write_results(suite, scores):
    """Write records and results of a tuning's runs: `scores` by method and variant, one per seed, None if diverged."""
    for run in suite.runs:
        spec = run.spec
        value = scores[spec.method.name][run.variant][spec.seed - 100]
        origin = {
            "commit": "0123abcd", "dirty_sha256": None, "lock_sha256": "", "dataset_sha256": "", "device": "cpu",
            "device_count": 1, "world_size": 1, "threads": 1, "python": "", "platform": "", "packages": {},
        }  # fmt: skip
        record = {
            "run_id": spec.run_id, "fingerprint": "", "spec": spec.model_dump(mode="json"), "milestones": {},
            "status": "diverged" if value is None else "finished", "samples_seen": 0, "normalizer_error": [],
            "clock_sec": {}, "median_step_sec": None, "peak_memory_bytes": 0, "first_indices": [], "divergence": None,
            "attempts": [{"first_step": 0, "provenance": origin, "host": ""}],
        }  # fmt: skip
        files.write_text(paths.record(spec.run_id), json.dumps(record))
        result = {
            "run_id": spec.run_id, "milestone": spec.samples_seen, "eval_set": "scenes_tiny_validation", "metrics": {},
            "status": "absent" if value is None else "evaluated", "main_metric": "mean_recall@1", "value": value,
            "num_samples": None, "weights_sha256": None, "evaluator": {},
            "card_sha256": suite.evaluation.sets["scenes_tiny_validation"].identity,
        }  # fmt: skip
        path = paths.eval_result(spec.run_id, spec.samples_seen, "scenes_tiny_validation")
        files.write_text(path, json.dumps(result))


def test_the_best_mean_is_chosen_the_first_of_equals_and_nothing_that_diverged(here):
    suite = expand(f"tuning@{suite_with(tuning__trials=4, tuning__seeds=[100, 101])}")
    scores = {
        "openclip": {
            "trial 1": (0.9, 0.1),
            "trial 2": (0.6, 0.8),
            "trial 3": (0.8, 0.6),
            "trial 4": (0.99, None),
            DEFAULTS: (0.95, 0.95),
        },
        "amorlip": {
            **{f"trial {number}": (number / 10, number / 10) for number in range(1, 5)},
            DEFAULTS: (None, 0.1),
        },
    }
    write_results(suite, scores)
    tuned = choose(suite)
    first, second = tuned.methods["openclip"], tuned.methods["amorlip"]
    assert (first.trial, first.score, first.seed_scores) == (2, 0.7, (0.6, 0.8))
    assert (first.defaults_score, first.diverged) == (0.95, 1)
    assert (second.trial, second.defaults_score, second.diverged) == (4, None, 0)
    (run,) = [r for r in suite.runs if (r.spec.method.name, r.variant, r.spec.seed) == ("amorlip", "trial 4", 100)]
    assert second.settings == {name: setting.value for name, setting in run.settings.items()}
    assert (tuned.suite, tuned.trials, tuned.seeds, tuned.commit) == ("mine", 4, (100, 101), "0123abcd")
    write(tuned, Path("tuned.yaml"))
    assert cards.read_yaml(Path("tuned.yaml"), Tuned) == tuned

    scores["amorlip"] |= {f"trial {number}": (None, 0.5) for number in range(1, 5)}
    write_results(suite, scores)
    with pytest.raises(ValueError, match="all trials of amorlip have diverged: mend its space, and tune it again"):
        choose(suite)
    path = paths.eval_result(run.spec.run_id, run.spec.samples_seen, "scenes_tiny_validation")
    before = path.read_text()
    for changed in ({"card_sha256": "another"}, {"evaluator": {"precision": "bf16"}}):
        path.write_text(json.dumps(json.loads(before) | changed))
        with pytest.raises(
            ValueError, match=r"is the result of card and precision .*; remove .* and run snakemake tune"
        ):
            choose(suite)
    path.unlink()
    with pytest.raises(ValueError, match=r"scenes_tiny_validation\.json is missing: run snakemake tune"):
        choose(suite)


@pytest.mark.parametrize("name", names.tunings())
def test_every_committed_tuning_gives_all_methods_the_same_trials(name):
    counts = Counter(run.method for run in expand(name).runs)
    assert set(counts) == {run.method for run in expand(name.partition("@")[2]).runs}
    assert len(set(counts.values())) == 1


@pytest.mark.slow
def test_a_tuning_runs_is_written_and_is_taken_up_by_its_suite(smoke, here):
    # The pictures are built already; their times stay, so nothing looks newer.
    shutil.copytree(smoke / "data", here / "data")
    path = suite_with(tuned="mine", tuning__training={"samples_seen": 256, "epochs": None})

    def snakemake(*args):
        command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile"]
        command += ["--workflow-profile", ROOT / "profiles" / "default", *args, "--config", f"suites={path}"]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        result = subprocess.run(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        return result.returncode, result.stdout

    assert snakemake("tune", "--dry-run")[0] == 0
    assert not Path("tuned").exists()
    status, said = snakemake("tune")
    assert status == 0, said[-6000:]
    tuned = cards.read_yaml(Path("tuned/mine.yaml"), Tuned)
    assert {name: len(chosen.settings) for name, chosen in tuned.methods.items()} == {"openclip": 1, "amorlip": 2}
    assert "Chosen settings" in said
    table = (paths.tables("tuning@mine") / "tuning.csv").read_text()
    for method, chosen in tuned.methods.items():
        row = next(row for row in csv.DictReader(table.splitlines()) if row["Method"].lower() == method)
        assert row["Chosen"] == str(chosen.settings["training.optimizer.lr"])
        assert float(row["Validation, %"]) == pytest.approx(100 * chosen.score, abs=1e-3)
    assert paths.report("tuning@mine").exists()
    rates = {run.spec.method.name: run.spec.optimizer.lr for run in expand(path).runs}
    assert rates == {name: chosen.settings["training.optimizer.lr"] for name, chosen in tuned.methods.items()}
    status, said = snakemake("all", "--dry-run")
    assert status == 0
    assert re.search(r"^train +2$", said, re.MULTILINE)
