"""What a suite claims before its first run: which runs it is about, and what is refused."""

import json
from pathlib import Path

import pytest
import yaml

from analysis.stats import MIN_PAIRS_TO_TEST
from engine.schema.base import canonical_json, parse
from engine.schema.suite import ExpandedSuite
from experiments.__main__ import main
from experiments.design import cards, hypotheses
from experiments.design.suite import expand

SMOKE = yaml.safe_load((cards.FOLDER / "suites" / "smoke.yaml").read_text())


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes the smoke suite with changes under a name of its own; returns the name to ask for."""
    monkeypatch.chdir(tmp_path)

    def written(name: str = "mine_confirmation", **changes: object) -> str:
        path = Path(f"{name}.yaml")
        path.write_text(yaml.safe_dump(SMOKE | {"seeds": [0, 1, 2]} | changes))
        return str(path)

    return written


def test_a_side_has_the_suites_batch_or_the_one_that_it_names(write):
    larger = {"methods": ["openclip"], "training_times": {"global_batch_size": 2}}
    suite = expand(write(variants=[{}, larger], hypotheses=["neuclip > openclip", "neuclip > openclip@128"]))
    (batch,) = {run.spec.global_batch_size for run in suite.runs if run.spec.method.name == "neuclip"}
    sides = [(one.higher, one.lower) for one in suite.hypotheses]
    assert [(a.method, a.global_batch_size, b.method, b.global_batch_size) for a, b in sides] == [
        ("neuclip", batch, "openclip", batch),
        ("neuclip", batch, "openclip", 2 * batch),
    ]


def test_ids_of_runs_do_not_depend_on_what_is_claimed(write):
    plain = expand(write())
    assert expand(write(hypotheses=["neuclip > siglip"])).runs == plain.runs


@pytest.mark.parametrize("part", ["ablation_objective", "tuning"])
def test_an_ablation_or_a_tuning_of_the_suite_claims_nothing(write, part):
    tuning = {"trials": 2, "seeds": [100], "score": ["scenes_tiny_validation"]}
    tuning["space"] = {"training.optimizer.lr": {"low": 1.0e-4, "high": 1.0e-2, "scale": "log"}}
    training = SMOKE["training"] | {"optimizer": {"lr": 1.0e-3}}
    name = write(hypotheses=["neuclip > siglip"], tuning=tuning, training=training)
    assert len(expand(name).hypotheses) == 1
    assert expand(f"{part}@{name}").hypotheses == ()


def test_an_expanded_suite_is_read_again_with_its_hypotheses(write):
    suite = expand(write(hypotheses=["neuclip>siglip"]))
    assert parse(ExpandedSuite, canonical_json(suite), "suite") == suite
    assert str(suite.hypotheses[0]) == "neuclip@64 > siglip@64"


def test_a_suites_list_of_runs_ends_with_what_it_claims(write, capsys):
    name = write(hypotheses=["neuclip > siglip"])
    main(["list", name])
    assert f"\n{name} claims neuclip@64 > siglip@64\n" in capsys.readouterr().out
    main(["list", name, "--json"])
    assert json.loads(capsys.readouterr().out)[0]["hypotheses"] == ["neuclip@64 > siglip@64"]


def test_sides_need_not_have_the_same_seeds(write):
    more = {"methods": ["neuclip"], "seeds": [1, 2, 3, 4, 5], "training_times": {"global_batch_size": 0.5}}
    assert (
        len(expand(write(variants=[{}, more], hypotheses=["neuclip@32 > openclip"], seeds=[0, 1, 2, 3])).hypotheses)
        == 1
    )
    with pytest.raises(ValueError, match="2 seeds in common"):
        expand(write(variants=[{}, more], hypotheses=["neuclip@32 > openclip"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hypotheses": ["neuclip beats openclip"]}, "allowed is METHOD > METHOD"),
        ({"hypotheses": ["neuclip > openclip@0"]}, "allowed is METHOD > METHOD"),
        ({"hypotheses": ["neuclip > clip"]}, r"no main run of clip@64: allowed are amorlip@64, .*openclip@64"),
        ({"hypotheses": ["neuclip > openclip@256"]}, r"no main run of openclip@256: allowed are"),
        ({"hypotheses": ["neuclip > neuclip"]}, "compares runs with themselves"),
        ({"hypotheses": ["neuclip > siglip", "neuclip@64 > siglip"]}, "or its opposite is said twice"),
        ({"hypotheses": ["neuclip > siglip", "siglip > neuclip"]}, "or its opposite is said twice"),
        ({"hypotheses": ["neuclip > siglip"], "seeds": [0, 1]}, "2 seeds in common: a test needs 3"),
        (
            {"hypotheses": ["neuclip > siglip"], "variants": [{}, {"data_fraction": 0.5}]},
            "allowed is one data set and one model",
        ),
    ],
)
def test_a_hypothesis_that_cannot_be_tested_is_refused(write, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        expand(write(**changes))
    assert "mine_confirmation" in str(caught.value)


def test_all_that_are_wrong_are_named_at_once(write):
    with pytest.raises(ValueError, match=r"(?s)clip@64: allowed.*compares runs with themselves"):
        expand(write(hypotheses=["neuclip > clip", "neuclip > openclip", "siglip > siglip"]))


def test_where_each_method_has_a_batch_of_its_own_a_hypothesis_names_both(write):
    training = dict(SMOKE["training"])
    batch = training.pop("global_batch_size")
    methods = {
        name: {**(entry or {}), "training": {"global_batch_size": batch}} for name, entry in SMOKE["methods"].items()
    }
    parts = {"training": training, "methods": methods}
    assert expand(write(**parts)).hypotheses == ()
    assert len(expand(write(**parts, hypotheses=["neuclip@64 > siglip@64"])).hypotheses) == 1
    with pytest.raises(ValueError, match="write METHOD@BATCH on both sides"):
        expand(write(**parts, hypotheses=["neuclip@64 > siglip"]))


def test_a_suite_of_another_name_would_have_no_table(write):
    with pytest.raises(ValueError, match="whose name ends with _confirmation: rename its file"):
        expand(write("mine", hypotheses=["neuclip > siglip"]))


def test_as_many_seeds_are_asked_for_as_a_test_needs():
    assert hypotheses.MIN_SEEDS == MIN_PAIRS_TO_TEST
