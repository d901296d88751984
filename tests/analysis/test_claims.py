from __future__ import annotations

import math
from collections.abc import Collection

import pandas as pd
import pytest
import synthetic
from drawn import build_table

from analysis import style
from analysis.claims import claims
from analysis.collect import collect


def said(frame: pd.DataFrame, averaged: Collection[str] = ("digits", "flickr")) -> tuple[str, ...]:
    """What is claimed of a suite whose first average is over these sets."""
    return claims(frame, averaged)


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
    assert said(scored(frame, neuclip=[31, 32.2, 33.4], openclip=[30, 31, 32])) == (
        "NeuCLIP is better than OpenCLIP by 1.2 points on Average (95 % interval 0.7 to 1.7, n = 3 seeds, paired t "
        "test, Holm-corrected p = 0.009).",
    )


def test_what_is_worse_is_said_as_such_with_the_interval_of_its_number(frame: pd.DataFrame) -> None:
    assert said(scored(frame, neuclip=[30, 31, 32], openclip=[31, 32.2, 33.4])) == (
        "NeuCLIP is worse than OpenCLIP by 1.2 points on Average (95 % interval 0.7 to 1.7, n = 3 seeds, paired t "
        "test, Holm-corrected p = 0.009).",
    )


def test_a_difference_within_noise_is_called_none(frame: pd.DataFrame) -> None:
    (sentence,) = said(scored(frame, neuclip=[31, 30, 33], openclip=[30, 31, 32]))
    # Differences of 1, -1, 1: mean 0.333, half-width 4.302653 * 1.1547 / sqrt(3) = 2.868, t = 0.5, p = 0.667.
    assert sentence == (
        "No significant difference between NeuCLIP and OpenCLIP on Average: +0.3 points (95 % interval -2.5 to 3.2, "
        "n = 3 seeds, paired t test, Holm-corrected p = 0.667)."
    )


@pytest.mark.parametrize(
    ("p", "text"),
    [(2e-5, "p < 0.001"), (0.0096, "p = 0.010"), (0.0496, "p = 0.0496"), (0.0504, "p = 0.050"), (0.67, "p = 0.670")],
)
def test_a_p_is_never_rounded_across_the_level(p: float, text: str) -> None:
    assert style.p_value(p) == text


def test_p_is_corrected_for_the_number_of_baselines(frame: pd.DataFrame) -> None:
    ours, theirs = [31, 32.2, 33.4], [30, 31, 32]
    first, second = said(scored(frame, neuclip=ours, openclip=theirs, siglip=theirs))
    # Two tests at p = 0.0091: Holm doubles both.
    assert "better than OpenCLIP" in first
    assert "better than SigLIP" in second
    assert all("p = 0.018" in sentence for sentence in (first, second))


def test_equal_runs_have_no_spread_to_test_by(frame: pd.DataFrame) -> None:
    assert said(scored(frame, neuclip=[30, 31, 32], openclip=[30, 31, 32])) == (
        "No statement on NeuCLIP and OpenCLIP on Average: +0.0 points in each of 3 seeds, without any spread to test "
        "by.",
    )


@pytest.mark.parametrize(
    ("seeds", "beginning"), [(1, "One seed: no statement on NeuCLIP and "), (2, "No statement on NeuCLIP and ")]
)
def test_few_seeds_make_no_statement(seeds: int, beginning: str) -> None:
    sentences = said(collect(synthetic.write_suite(synthetic.main_specs(seeds))))
    assert len(sentences) == 4
    assert all(sentence.startswith(beginning) for sentence in sentences)
    assert not any("better" in sentence or "worse" in sentence for sentence in sentences)


def test_diverged_runs_are_counted_and_leave_their_pair(frame: pd.DataFrame) -> None:
    *_, of_siglip, _, last = said(frame)
    assert of_siglip.startswith("No significant difference between NeuCLIP and SigLIP on Average: +20.4 points")
    assert last == "Diverged, and counted as guessing in every mean of scores: 1 of 15 runs (SigLIP 1 of 3)."


def test_without_baselines_nothing_is_claimed(frame: pd.DataFrame) -> None:
    ours = frame[frame["method"] == "neuclip"]
    assert said(ours) == ("No statement on Average: no runs of baselines to compare.",)
    assert said(frame[:0]) == ("No statement: this suite has no scores.",)


def test_a_method_that_one_setting_lacks_is_named_there(frame: pd.DataFrame) -> None:
    small = frame.assign(global_batch_size=32, run_id=frame["run_id"] + "small")
    both = pd.concat([frame, small[small["method"] != "fastclip"]])
    sentences = said(both)
    assert "batch 32: No statement on NeuCLIP and FastCLIP: no runs of FastCLIP." in sentences
    assert any(s.startswith("batch 64: NeuCLIP is better than FastCLIP by 6.0 points on Average (") for s in sentences)


def test_a_set_that_is_not_there_is_named() -> None:
    suite = synthetic.write_suite(synthetic.main_specs(1))
    lost = collect(synthetic.lose_set(suite, "digits", when_missing="average_of_available"))
    assert said(lost)[-1] == "Evaluation sets that were not there, and are in no average: Digits."
    assert "on Average (1 of 2 sets)" in said(lost)[0]


def many_sets(name: str, diverged: tuple[tuple[str, int], ...] = ()) -> pd.DataFrame:
    """One seed of each method, baselines backwards, on nine sets; NeuCLIP is worse on the first two."""
    cards = {f"set{i}": {**synthetic.CARDS["digits"], "title": f"Set {i}"} for i in range(9)}
    specs = synthetic.main_specs(1)[::-1]
    frame = collect(
        synthetic.write_suite(specs, name=name, cards=cards, averages={"All": list(cards)}, diverged=diverged)
    )
    worse = (frame["method"] == "neuclip") & frame["name"].isin(["set0", "set1"])
    return frame.assign(value=frame["value"] - 0.3 * worse)


def test_one_seed_on_many_sets_is_tested_over_those_of_the_average() -> None:
    averaged = [f"set{i}" for i in range(1, 9)]
    sentences = [sentence for sentence in said(many_sets("cc3m"), averaged) if sentence.startswith("Over ")]
    # Wilcoxon with 8 sets, one against: the rank sum of the one is 8, its exact p 0.195 before the correction.
    for sentence, name in zip(sentences, ("OpenCLIP", "FastCLIP", "SigLIP", "AmorLIP"), strict=True):
        assert sentence.startswith(
            f"Over 8 evaluation sets NeuCLIP is better on 7, equal on 0, worse on 1 against {name}: no significant "
        )
        assert "Wilcoxon's signed-rank test, sets taken as independent, Holm-corrected p = " in sentence


def test_a_method_that_diverged_silences_no_other_over_sets() -> None:
    frame = many_sets("cc3m", diverged=(("siglip", 0),))
    sentences = said(frame, [f"set{i}" for i in range(9)])
    assert [sentence.split(" against ")[1].split(":")[0] for sentence in sentences if sentence.startswith("Over ")] == [
        "OpenCLIP", "FastCLIP", "SigLIP", "AmorLIP",
    ]  # fmt: skip


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
    assert said(frame)[-1] == (
        "Variants of NeuCLIP against its main run on Average: 1 worse (period=20 by 2.9 points), 1 without a "
        "significant difference, 1 not tested (fewer than 3 common seeds, or no spread); paired t test over seeds, "
        "Holm-corrected over variants."
    )


def test_variants_that_no_seed_tells_apart_or_without_a_main_run_are_not_called_tested(frame: pd.DataFrame) -> None:
    alike = frame[frame["method"] == "neuclip"].assign(variant="alike", run_id=lambda rows: rows["run_id"] + "alike")
    assert said(pd.concat([frame, alike]))[-2] == (
        "Variants that were not tested against their main run on Average (fewer than 3 common seeds, or no spread): "
        "1 of NeuCLIP."
    )
    assert not any(s.startswith("Variants") for s in said(pd.concat([frame[frame["method"] != "neuclip"], alike])))


def test_without_neuclip_a_method_of_ones_own_is_compared(frame: pd.DataFrame) -> None:
    renamed = frame.assign(method=frame["method"].replace("neuclip", "mine"))
    assert said(renamed)[0].startswith("mine is better than OpenCLIP by 10.0 points on Average")
    table = build_table(renamed, "paired_differences")
    assert next(row[1:3] for row in table.rows if row[0] == "Digits") == ("mine", "OpenCLIP")
    assert "* mine is better than this baseline" in " ".join(build_table(renamed, "main_results").notes)
    # Of one method there is nothing to mark.
    alone = build_table(renamed[renamed["method"] == "mine"], "main_results")
    assert not any(note.startswith("*") for note in alone.notes)


def with_large_batch(frame: pd.DataFrame, *by_seed: float) -> pd.DataFrame:
    """Add OpenCLIP at eight times the batch, with these averages in percent."""
    large = frame[frame["method"] == "openclip"].copy()
    large["value"] = large["seed"].map(dict(enumerate(by_seed))) / 100
    large["run_id"] += "-large"
    large["global_batch_size"] *= 8
    return pd.concat([frame, large], ignore_index=True)


def test_what_a_larger_batch_is_worth_is_said_and_how_much_of_it_neuclip_gets(frame: pd.DataFrame) -> None:
    of = with_large_batch(scored(frame, neuclip=[32, 33.2, 34.4], openclip=[30, 31, 32]), 34, 35.2, 36.4)
    # Gaps of 4, 4.2, 4.4 points: mean 4.2, half-width 0.497, t = 36.4, p = 0.00075. Gains of 2, 2.2, 2.4: 2.2 / 4.2 is
    # 52 %, between (2.2 - 0.497) / (4.2 - 0.497) and (2.2 + 0.497) / (4.2 + 0.497).
    assert said(of) == (
        "batch 64: NeuCLIP is better than OpenCLIP by 2.2 points on Average (95 % interval 1.7 to 2.7, n = 3 seeds, "
        "paired t test, Holm-corrected p = 0.003).",
        "OpenCLIP, 8 \N{MULTIPLICATION SIGN} the batch, is better than OpenCLIP by 4.2 points on Average (95 % "
        "interval 3.7 to 4.7, n = 3 seeds, paired t test, Holm-corrected p < 0.001).",
        "NeuCLIP closes 52 % of that gap (95 % interval 46 to 57 %, n = 3 seeds).",
    )


@pytest.mark.parametrize(
    ("large", "beginning"),
    [
        (
            (31, 30, 33),
            "No significant difference between OpenCLIP, 8 \N{MULTIPLICATION SIGN} the batch, and OpenCLIP on ",
        ),
        ((20, 20.8, 22), "OpenCLIP, 8 \N{MULTIPLICATION SIGN} the batch, is worse than OpenCLIP by 10.1 points on "),
        ((34,), "One seed: no statement on OpenCLIP, 8 \N{MULTIPLICATION SIGN} the batch, and OpenCLIP on "),
    ],
    ids=["within noise", "worse", "one seed"],
)
def test_no_share_is_said_of_a_gap_that_does_not_show(
    frame: pd.DataFrame, large: tuple[float, ...], beginning: str
) -> None:
    *_, last = said(with_large_batch(scored(frame, neuclip=[32, 33.2, 34.4], openclip=[30, 31, 32]), *large))
    assert last.startswith(beginning)


@pytest.mark.parametrize("diverged", [1, 2, 3])
def test_no_share_is_said_where_neuclips_seeds_do_not_show_the_gap(frame: pd.DataFrame, diverged: int) -> None:
    of = with_large_batch(scored(frame, neuclip=[32, 33.2, 34.4], openclip=[30, 31, 32]), 34, 37.2, 36.4)
    of.loc[(of["method"] == "neuclip") & (of["seed"] < diverged), "value"] = math.nan
    *_, gap, share = said(of)
    assert " is better than OpenCLIP by " in gap
    assert share.startswith(
        f"No statement on how much of that gap NeuCLIP closes: over their {3 - diverged} common seeds"
    )


def test_p_is_corrected_for_the_number_of_small_batches(frame: pd.DataFrame) -> None:
    small = scored(frame, openclip=[30, 31, 32])
    smaller = small.assign(global_batch_size=small["global_batch_size"] // 2, run_id=small["run_id"] + "-small")
    of = with_large_batch(small, 31, 32.2, 33.4)
    *_, first, second = said(pd.concat([of, smaller], ignore_index=True))
    # Twice a gap of 1.2 points with p = 0.0091.
    assert first.startswith("batch 32: OpenCLIP, 16 ")
    assert second.startswith("batch 64: OpenCLIP, 8 ")
    assert all("Holm-corrected p = 0.018" in sentence for sentence in (first, second))
