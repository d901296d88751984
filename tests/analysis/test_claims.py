from __future__ import annotations

import pandas as pd
import pytest
import synthetic

from analysis.claims import claims
from analysis.collect import collect


def scored(frame: pd.DataFrame, **values: list[float]) -> pd.DataFrame:
    """Give each method its averages in percent, seed by seed; methods without values go."""
    frame = frame[frame["method"].isin(list(values)) & (frame["kind"] == "average")].copy()
    for method, by_seed in values.items():
        for seed, value in enumerate(by_seed):
            frame.loc[(frame["method"] == method) & (frame["seed"] == seed), "value"] = value / 100
    return frame.assign(status="evaluated")


def test_what_is_better_is_said_with_difference_interval_seeds_and_p(frame: pd.DataFrame) -> None:
    # Differences of 1, 1.2, 1.4 points: mean 1.2, sd 0.2, half-width 4.302653 * 0.2 / sqrt(3) = 0.497;
    # t = 10.39 with two degrees of freedom, p = 0.0091.
    assert claims(scored(frame, neuclip=[31, 32.2, 33.4], openclip=[30, 31, 32])) == (
        "NeuCLIP is better than OpenCLIP by 1.2 points on Average (95 % interval 0.7 to 1.7, n = 3 seeds, paired t "
        "test, Holm-corrected p = 0.009).",
    )


def test_what_is_worse_is_said_as_such_with_the_interval_of_its_number(frame: pd.DataFrame) -> None:
    assert claims(scored(frame, neuclip=[30, 31, 32], openclip=[31, 32.2, 33.4])) == (
        "NeuCLIP is worse than OpenCLIP by 1.2 points on Average (95 % interval 0.7 to 1.7, n = 3 seeds, paired t "
        "test, Holm-corrected p = 0.009).",
    )


def test_a_difference_within_noise_is_called_none(frame: pd.DataFrame) -> None:
    (sentence,) = claims(scored(frame, neuclip=[31, 30, 33], openclip=[30, 31, 32]))
    # Differences of 1, -1, 1: mean 0.333, half-width 4.302653 * 1.1547 / sqrt(3) = 2.868, t = 0.5, p = 0.667.
    assert sentence == (
        "No significant difference between NeuCLIP and OpenCLIP on Average: +0.3 points (95 % interval -2.5 to 3.2, "
        "n = 3 seeds, paired t test, Holm-corrected p = 0.67)."
    )


def test_p_is_corrected_for_the_number_of_baselines(frame: pd.DataFrame) -> None:
    ours, theirs = [31, 32.2, 33.4], [30, 31, 32]
    first, second = claims(scored(frame, neuclip=ours, openclip=theirs, siglip=theirs))
    # Two tests at p = 0.0091: Holm doubles both.
    assert "better than OpenCLIP" in first
    assert "better than SigLIP" in second
    assert all("p = 0.018" in sentence for sentence in (first, second))


def test_equal_runs_have_no_spread_to_test_by(frame: pd.DataFrame) -> None:
    assert claims(scored(frame, neuclip=[30, 31, 32], openclip=[30, 31, 32])) == (
        "No statement on NeuCLIP and OpenCLIP on Average: +0.0 points in each of 3 seeds, without any spread to test "
        "by.",
    )


@pytest.mark.parametrize(
    ("seeds", "beginning"), [(1, "One seed: no statement on NeuCLIP and "), (2, "No statement on NeuCLIP and ")]
)
def test_few_seeds_make_no_statement(seeds: int, beginning: str) -> None:
    sentences = claims(collect(synthetic.write_suite(synthetic.main_specs(seeds))))
    assert len(sentences) == 4
    assert all(sentence.startswith(beginning) for sentence in sentences)
    assert not any("better" in sentence or "worse" in sentence for sentence in sentences)


def test_diverged_runs_are_counted_and_leave_their_pair(frame: pd.DataFrame) -> None:
    *_, of_siglip, _, last = claims(frame)
    assert of_siglip.startswith("No statement on NeuCLIP and SigLIP on Average: 2 seeds are too few to test")
    assert last == "Diverged, and in no mean: 1 of 15 runs (SigLIP 1 of 3)."


def test_a_method_whose_runs_all_diverged_makes_no_statement() -> None:
    suite = synthetic.write_suite(synthetic.main_specs(1), diverged=(("siglip", 0),))
    sentence = "No statement on NeuCLIP and SigLIP on Average: they share no seed that has a score."
    assert sentence in claims(collect(suite))


def test_without_our_method_or_without_baselines_nothing_is_claimed(frame: pd.DataFrame) -> None:
    theirs = frame[frame["method"] != "neuclip"]
    assert claims(theirs)[0] == "No statement on Average: no runs of NeuCLIP to compare."
    ours = frame[frame["method"] == "neuclip"]
    assert claims(ours) == ("No statement on Average: no runs of baselines to compare.",)
    assert claims(frame[:0]) == ("No statement: this suite has no scores.",)


def test_a_method_that_one_setting_lacks_is_named_there(frame: pd.DataFrame) -> None:
    small = frame.assign(global_batch_size=32, run_id=frame["run_id"] + "small")
    both = pd.concat([frame, small[small["method"] != "fastclip"]])
    sentences = claims(both)
    assert "batch 32: No statement on NeuCLIP and FastCLIP: no runs of FastCLIP." in sentences
    assert any(s.startswith("batch 64: NeuCLIP is better than FastCLIP by 6.0 points on Average (") for s in sentences)


def test_a_set_that_is_not_there_is_named() -> None:
    suite = synthetic.write_suite(synthetic.main_specs(1))
    lost = collect(synthetic.lose_set(suite, "digits", when_missing="average_of_available"))
    assert claims(lost)[-1] == "Evaluation sets that were not there, and are in no average: Digits."
    assert "on Average (1 of 2 sets)" in claims(lost)[0]


def test_one_seed_on_many_sets_is_tested_over_sets() -> None:
    cards = {f"set{i}": {**synthetic.CARDS["digits"], "title": f"Set {i}"} for i in range(8)}
    suite = synthetic.write_suite(synthetic.main_specs(1), cards=cards, averages={"Average": list(cards)})
    frame = collect(suite)
    worse = (frame["method"] == "neuclip") & (frame["name"] == "set0")
    frame["value"] = frame["value"] - 0.3 * worse
    # Wilcoxon with 8 sets, one against: the rank sum of the one is 8, its exact p 0.195 before the correction.
    sentences = [sentence for sentence in claims(frame) if sentence.startswith("Over 8 evaluation sets")]
    assert len(sentences) == 4
    assert all("NeuCLIP is better on 7, equal on 0, worse on 1 against " in sentence for sentence in sentences)
    assert all("no significant difference" in sentence for sentence in sentences)


def test_variants_are_counted_by_outcome_and_those_apart_are_named() -> None:
    variants = {
        label: [synthetic.run_spec("neuclip", seed, config={"period": number}) for seed in range(seeds)]
        for number, (label, seeds) in enumerate({"period=20": 3, "period=100": 3, "never": 1}.items())
    }
    frame = collect(synthetic.write_suite(synthetic.main_specs(), variants=variants))
    change = 0.001 * frame["seed"]
    frame["value"] += (frame["variant"] == "period=20") * (change - 0.03) + (frame["variant"] == "period=100") * (
        2 * change - 0.002
    )
    assert claims(frame)[-1] == (
        "Variants of NeuCLIP against its main run on Average: 0 better, 1 worse (period=20 by 2.9 points), 1 without a "
        "significant difference, 1 not tested (fewer than 3 seeds); paired t test over seeds, Holm-corrected over "
        "variants."
    )
