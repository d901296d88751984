"""What the pages say of temperature, normalizer and own pair, and of the lead over training, follows from the rows."""

from __future__ import annotations

import math

import pandas as pd
from published import AVERAGES, EVIDENCE, RESULTS, VERDICTS, averages, prose, shown

from analysis import stats
from analysis.attribution import OPENCLIP
from analysis.frame import read
from experiments.design.suite import expand

SUITE = "ablation_attribution_network@laptop_best_rates"
README = prose("../README.md")
SETTINGS = "batch, InfoNCE, own pair"
RULE = "batch, rho, own pair"
BOTH = "network, InfoNCE"


def changes(score: str = "Average") -> tuple[pd.DataFrame, pd.Series]:
    """Differences to NeuCLIP by seed, and Holm's p."""
    of = averages(SUITE, "variant", score)
    assert len(of) == 5
    assert of.notna().all(axis=None)
    differences = of.drop(columns="").sub(of[""], axis=0)
    return differences, stats.holm(differences.agg(stats.paired_t_test))


def test_each_half_brings_most_of_the_gain_and_five_seeds_do_not_show_what_the_other_adds() -> None:
    of = averages(SUITE, "variant")
    gain, rule, both = of[""] - of[SETTINGS], of[RULE] - of[SETTINGS], of[BOTH] - of[SETTINGS]
    assert all(stats.paired_t_test(difference) < 0.01 for difference in (gain, rule, both))
    assert f"gain over this OpenCLIP is {shown(gain)}. Rho's rule alone brings {shown(rule)}, network and" in EVIDENCE
    assert f"left-out pair together bring {shown(both)}." in EVIDENCE
    assert (
        f"{shown(rule)}, and network and left-out pair, the third difference, bring {shown(both)} together" in VERDICTS
    )
    assert f"All three bring {shown(gain)}" in VERDICTS
    assert f"rule for the temperature alone brings OpenCLIP {shown(rule)} of {shown(gain)} points" in README
    assert f"Its network without that rule brings {shown(both)}, but" in README
    differences, p = changes()
    assert (p[[BOTH, RULE]] > 0.05).all()
    left = shown(-differences[RULE])
    assert f"{shown(-differences[BOTH])} for the rule, {left} for network and left-out pair; in retrieval" in EVIDENCE
    assert f"points; what is left, {left}, five seeds cannot tell from nothing" in README
    retrieval, p = changes("Scenes & Variants")
    assert (p[[BOTH, RULE]] > 0.05).all()
    said = f"in retrieval {shown(-retrieval[BOTH])} (p {stats.paired_t_test(retrieval[BOTH]):.3f} by itself, "
    assert f"{said}{p[BOTH]:.3f} over the ten variants) and {shown(-retrieval[RULE])}." in EVIDENCE
    assert f"by {left}, in retrieval by {shown(-retrieval[RULE])}, at one learning rate" in VERDICTS


def test_with_the_own_pair_in_the_temperature_goes_as_far_as_its_rate_lets_it() -> None:
    # Adam steps about as far as the rate, in the logarithm; the rate warms up and then falls as a cosine.
    (spec,) = (run.spec for run in expand(SUITE).runs if run.spec.seed == 30 and run.variant == RULE)
    temperature = spec.method.config["temperature"]
    furthest = math.exp(temperature["lr"] * spec.num_steps / 2)
    rows = read(RESULTS / f"{SUITE}.parquet")
    rows = rows[rows["name"] == "temperature/value"].sort_values("samples_seen")
    last = rows.groupby(["variant", "seed"]).tail(1).groupby("variant")["value"].agg(["min", "max"])
    for variant in (RULE, "network, rho, own pair"):
        assert last.loc[variant, "min"] > 0.95 * temperature["init"] * furthest
    for variant in (SETTINGS, BOTH):
        assert last.loc[variant, "max"] < 1.06 * temperature["init"] / furthest
    between = last.loc[["", "queue, rho", "average, rho", "exact, rho"]]
    assert (between["min"] > 1.2 * temperature["init"] / furthest).all()
    assert (between["max"] < 0.9 * temperature["init"] * furthest).all()


def test_network_and_left_out_pair_need_each_other() -> None:
    of = averages(SUITE, "variant")
    network, left_out = of["network, InfoNCE, own pair"] - of[SETTINGS], of["batch, InfoNCE"] - of[SETTINGS]
    assert all(stats.paired_t_test(difference) < 0.01 for difference in (network, left_out))
    said = f"the network costs {shown(-network)} and the left-out pair {shown(-left_out)}."
    for page in (EVIDENCE, VERDICTS):
        assert said in page
    last = of[""] - of["batch, rho"]
    assert f"it changes {shown(network)} as the first of the three and {shown(last)} as the last." in EVIDENCE


def test_the_network_beats_a_moving_average_and_random_pairs_but_not_the_queue() -> None:
    differences, p = changes()
    batch, average, exact = (f"{each}, rho" for each in ("batch", "average", "exact"))
    assert (p[[batch, average, exact]] < 0.05).all()
    assert (
        f"normalizer by {shown(-differences[batch])}, a moving average by {shown(-differences[average])} (p "
        in EVIDENCE
    )
    retrieval, p_retrieval = changes("Scenes & Variants")
    said = f"(p {p[average]:.3f}), 256 random pairs by {shown(-differences[exact])} (p {p[exact]:.3f}; in retrieval "
    assert f"{said}{p_retrieval[exact]:.3f})." in EVIDENCE
    assert f"each pair's own estimates | {shown(differences[average])} | {p[average]:.3f} |" in EVIDENCE
    assert f"the moving average {shown(differences[average])}, p {p[average]:.3f}, at NeuCLIP's settings (" in VERDICTS
    assert (
        f"is {shown(-differences[batch])} above the batch's own normalizer, and {shown(-differences[exact])} above"
        in (VERDICTS)
    )
    queue = "queue, rho"
    assert p[queue] > 0.05
    assert stats.paired_t_test(retrieval[queue]) < 0.05 < p_retrieval[queue]
    alone = stats.paired_t_test(retrieval[queue])
    assert len(p_retrieval) == 10
    said = (
        f"its mean is {shown(differences[queue])} above the network's, and in retrieval {shown(retrieval[queue])} (p "
    )
    assert f"{said}{alone:.3f} by itself, {p_retrieval[queue]:.3f} over the ten variants)" in EVIDENCE
    assert f"by {shown(differences[queue])}; in retrieval {shown(retrieval[queue])}, significant by itself" in VERDICTS


def test_the_scores_of_every_combination_stand_on_the_page() -> None:
    of = averages(SUITE, "variant")
    shown_here = of.agg(lambda values: f"{values.mean():.1f} ± {stats.half_width(values):.1f}")
    rows = {
        "in: with OpenCLIP's temperature, this is OpenCLIP": [SETTINGS, RULE],
        "out: decoupled contrastive learning": ["batch, InfoNCE", "batch, rho"],
        "| network | in": ["network, InfoNCE, own pair", "network, rho, own pair"],
        "out: by rho, this is NeuCLIP": [BOTH, ""],
    }
    for start, cells in rows.items():
        assert f"{start} | {' | '.join(shown_here[cell] for cell in cells)} |" in EVIDENCE
    for start, cell in {"own estimates": "average", "in each step": "exact", "batches, ours": "queue"}.items():
        assert f"{start} | out | | {shown_here[f'{cell}, rho']} |" in EVIDENCE
    assert str(OPENCLIP) == "batch, own pair, InfoNCE"
    for page in (README, VERDICTS):
        assert f"has {shown_here[SETTINGS]}" in page


def test_the_lead_over_openclip_at_its_better_rate_grows_late() -> None:
    rows = read(RESULTS / "laptop_over_training.parquet")
    assert {
        run.spec.optimizer.lr for run in expand("laptop_over_training").runs if run.spec.method.name == "openclip"
    } == {6.17e-4}
    of_score = {
        score: 100 * rows[rows["name"] == score].pivot(index=["samples_seen", "seed"], columns="method", values="value")
        for score in AVERAGES
    }
    first, last = rows["samples_seen"].min(), rows["samples_seen"].max()
    assert (first, last) == (25_600, 64_000)

    def lead(score: str, samples: int, other: str = "openclip") -> pd.Series:
        return (of_score[score]["neuclip"] - of_score[score][other]).loc[samples]

    early, late = (lead("Average", samples) for samples in (first, last))
    assert len(early) == len(late) == 10
    growth, p = {}, {}
    for score in ("Average", "Scenes & Variants"):
        growth[score] = pd.DataFrame(
            {each: lead(score, last, each) - lead(score, first, each) for each in ("openclip", "amorlip")}
        )
        p[score] = stats.holm(growth[score].agg(stats.paired_t_test))
        assert (p[score] < 0.05).all()
    average, retrieval = growth["Average"], growth["Scenes & Variants"]
    said = (
        f"from {shown(early)} after 40 % of the samples to {shown(late)} at the end: by {shown(average['openclip'])}, "
    )
    said += f"p {p['Average']['openclip']:.3f}, in retrieval by {shown(retrieval['openclip'])} ("
    assert said in EVIDENCE
    said = f"Over AmorLIP it grows by {shown(average['amorlip'])}, p {p['Average']['amorlip']:.3f}, in retrieval by "
    assert f"{said}{shown(retrieval['amorlip'])}, p {p['Scenes & Variants']['amorlip']:.3f}." in EVIDENCE
    assert f"over OpenCLIP by {shown(average['openclip'])} from 40 % of the samples on, p " in VERDICTS
    for score in ("Swapped Captions", "Zero-shot"):
        assert stats.paired_t_test(lead(score, last) - lead(score, first)) > 0.05
    assert f"it is {shown(late)}, ten seeds" in VERDICTS
    assert f"lead is {shown(late)} points in place of thirteen" in README


def test_amorlip_is_ahead_of_openclip_at_its_better_rate_and_not_by_much_of_openclip_at_neuclips_settings() -> None:
    of = averages("laptop_over_training", variant="")
    lead = of["amorlip"] - of["openclip"]
    assert len(lead) == 10
    assert stats.paired_t_test(lead) < 0.001
    assert f"{shown(lead)} at OpenCLIP's better rate" in VERDICTS
    amorlip = averages("laptop_second_confirmation")["amorlip"].loc[30:34]
    ours = averages(SUITE, "variant")[SETTINGS]
    assert list(ours.index) == list(amorlip.index)
    assert f"comes near it: {ours.mean():.1f}, AmorLIP {amorlip.mean():.1f}, five seeds, on other machines" in VERDICTS
