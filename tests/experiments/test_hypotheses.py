"""What a suite claims before its first run: which runs it is about, and what is refused."""

from pathlib import Path

import pytest
import yaml

from analysis.stats import MIN_PAIRS_TO_TEST
from experiments import cards, hypotheses
from experiments.suite import expand


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes the smoke suite with changes under a name of its own; returns the name to ask for."""
    monkeypatch.chdir(tmp_path)
    smoke = yaml.safe_load((cards.FOLDER / "suites" / "smoke.yaml").read_text())

    def written(name: str = "mine_confirmation", **changes: object) -> str:
        path = Path(f"{name}.yaml")
        path.write_text(yaml.safe_dump(smoke | {"seeds": [0, 1, 2]} | changes))
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


def test_an_ablation_of_the_suite_claims_nothing(write):
    name = write(hypotheses=["neuclip > siglip"])
    assert expand(f"ablation_objective@{name}").hypotheses == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hypotheses": ["neuclip beats openclip"]}, "allowed is METHOD > METHOD"),
        ({"hypotheses": ["neuclip > openclip@0"]}, "allowed is METHOD > METHOD"),
        ({"hypotheses": ["neuclip > clip"]}, r"no main run of clip@64: allowed are amorlip@64, .*openclip@64"),
        ({"hypotheses": ["neuclip > openclip@256"]}, r"no main run of openclip@256: allowed are"),
        ({"hypotheses": ["neuclip > neuclip"]}, "compares runs with themselves"),
        ({"hypotheses": ["neuclip > siglip", "neuclip@64 > siglip"]}, "'neuclip@64 > siglip': it occurs twice"),
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


def test_a_suite_of_another_name_would_have_no_table(write):
    with pytest.raises(ValueError, match="whose name ends with _confirmation: rename its file"):
        expand(write("mine", hypotheses=["neuclip > siglip"]))


def test_as_many_seeds_are_asked_for_as_a_test_needs():
    assert hypotheses.MIN_SEEDS == MIN_PAIRS_TO_TEST
