"""What the pages say of fixed temperatures follows from the committed rows."""

from __future__ import annotations

import pandas as pd
import pytest
from published import AVERAGES, CONFIRMATIONS, EVIDENCE, RESULTS, VERDICTS, averages, prose, shown

from analysis import hypotheses, stats
from analysis.frame import final_scores, read
from experiments.design.suite import expand


def test_of_five_methods_openclip_alone_gains_from_a_fixed_temperature() -> None:
    at = {run.spec.method.name: run.spec.method.config["temperature"] for run in expand("laptop_fixed").runs}
    assert not any(temperature["learnable"] for temperature in at.values())
    fixed, moves = averages("laptop_fixed"), averages("laptop_second_confirmation")
    moves = moves.loc[fixed.index]
    assert list(fixed.index) == list(range(30, 35))
    change = fixed - moves
    assert [name for name in change if stats.paired_t_test(change[name]) < 0.05] == ["openclip"]
    others = ["openclip", "amorlip", "fastclip", "siglip"]
    assert set(fixed) == {"neuclip", *others}
    p = {}
    for score in AVERAGES:
        of = averages("laptop_fixed", score=score)
        p[score] = stats.holm((-of[others].sub(of["neuclip"], axis=0)).agg(stats.paired_t_test))
        assert (of[others].mean() < of["neuclip"].mean()).all()
    lead = -fixed[others].sub(fixed["neuclip"], axis=0)
    titles = {
        "neuclip": "NeuCLIP",
        "openclip": "OpenCLIP",
        "amorlip": "AmorLIP",
        "fastclip": "FastCLIP",
        "siglip": "SigLIP",
    }
    for method, title in titles.items():
        ours = method == "neuclip"
        led = " | |" if ours else f" {shown(lead[method])} | {p['Average'][method]:.3f} |"
        cells = f"{shown(moves[method])} | {shown(fixed[method])} | {at[method]['init']} | {shown(change[method])} |"
        assert f"| {title} | {cells}{led}" in EVIDENCE
    assert (p["Average"] < 0.028).all()
    retrieval = p["Scenes & Variants"]
    assert set(retrieval.index[retrieval < 0.028]) == {"fastclip", "siglip"}
    nearly = f"over OpenCLIP (p {retrieval['openclip']:.3f}) and AmorLIP (p {retrieval['amorlip']:.3f}) nearly"
    assert f"beyond noise; in retrieval over FastCLIP and SigLIP, and {nearly}." in EVIDENCE
    second = -fixed.drop(columns=["neuclip", "openclip"]).sub(fixed["openclip"], axis=0)
    p_second = stats.holm(second.agg(stats.paired_t_test))
    # These seeds were looked at before: docs/statistics.md says why it is 0.028 then.
    assert set(p_second.index[p_second < 0.028]) == {"fastclip", "siglip"}
    said = f"ahead of FastCLIP's by {shown(second['fastclip'])} and of SigLIP's by {shown(second['siglip'])}."
    assert f"Its mean is second then: {said}" in EVIDENCE
    assert f"AmorLIP, {shown(second['amorlip'])} (p {p_second['amorlip']:.3f}), does not decide" in EVIDENCE
    assert (second.mean() > 0).all()
    smallest, largest = lead.mean().min(), lead.mean().max()
    assert f"At fixed temperatures by {smallest:.1f} to {largest:.1f}, all p < 0.03" in VERDICTS


def test_fixing_the_temperature_on_one_machine() -> None:
    moves, fixed = (averages("laptop_best_rates", variant=each) for each in ("", "fixed temperature"))
    change, lead, left = fixed - moves, moves["neuclip"] - moves["openclip"], moves["neuclip"] - fixed["openclip"]
    p = {name: stats.paired_t_test(change[name]) for name in change}
    assert f"NeuCLIP changes by {shown(change['neuclip'])} (p {p['neuclip']:.3f})" in EVIDENCE
    assert f"OpenCLIP by {shown(change['openclip'])} (p {p['openclip']:.3f})" in EVIDENCE
    assert all(shown(change[name]) in VERDICTS for name in change)
    assert stats.paired_t_test(lead) < 0.05
    assert f"leads OpenCLIP by {shown(lead)}, with five seeds" in VERDICTS
    assert f"temperature moves it is {shown(lead)}, five seeds" in VERDICTS
    assert f"lead is {shown(lead)} over OpenCLIP whose temperature moves" in EVIDENCE
    assert f"and {shown(left)} over OpenCLIP at 0.1, p {stats.paired_t_test(left):.3f}." in EVIDENCE
    assert f"takes the lead from {lead.mean():.1f} to {left.mean():.1f} points, on one machine" in EVIDENCE
    both = fixed["neuclip"] - fixed["openclip"]
    of_both = f"{shown(both)} there, p {stats.paired_t_test(both):.3f} ("
    assert f"With both at 0.1 it is {of_both}" in EVIDENCE
    assert f"on another it is {shown(both)} over OpenCLIP, p {stats.paired_t_test(both):.3f}." in VERDICTS
    on_the_other = averages("laptop_fixed")
    assert f"and {shown(on_the_other['neuclip'] - on_the_other['openclip'])} above: five seeds" in EVIDENCE


def test_on_harder_scenes_the_temperature_says_who_is_ahead() -> None:
    fixed_at = {0.1: "fixed temperature", 0.07: "fixed at 0.07"}

    def of(batch: int, temperature: float | None = None, score: str = "Average") -> pd.DataFrame:
        return averages("laptop_hard_fixed", score=score, batch=batch, variant=fixed_at.get(temperature or 0, ""))

    def lead(frame: pd.DataFrame, over: pd.DataFrame | None = None) -> pd.Series:
        return frame["neuclip"] - (frame if over is None else over)["openclip"]

    for method, title in {"neuclip": "NeuCLIP", "openclip": "OpenCLIP"}.items():
        small = " | ".join(shown(of(32, at)[method]) for at in (None, 0.1))
        large = " | ".join(shown(of(256, at)[method]) for at in (None, 0.1, 0.07))
        assert f"| {title} | 32 | {small} | |" in EVIDENCE
        assert f"| {title} | 256 | {large} |" in EVIDENCE

    gain = of(32, 0.1)["openclip"] - of(32)["openclip"]
    in_zero_shot = (of(32, 0.1, "Zero-shot") - of(32, None, "Zero-shot"))["openclip"]
    p = stats.paired_t_test(gain)
    assert p < 0.05
    assert f"brings OpenCLIP {shown(gain)} (p {p:.3f}), all of it in zero-shot" in EVIDENCE
    assert f"which gains {shown(in_zero_shot)}." in EVIDENCE
    for score in ("Scenes & Variants", "Swapped Captions"):
        change = (of(32, 0.1, score) - of(32, None, score))["openclip"]
        assert stats.paired_t_test(change) > 0.05

    moving, both = lead(of(32), over=of(32, 0.1)), lead(of(32, 0.1))
    assert stats.paired_t_test(moving) > 0.05
    assert stats.paired_t_test(both) < 0.001
    in_retrieval = lead(of(32, 0.1, "Scenes & Variants"))
    assert stats.paired_t_test(in_retrieval) < 0.05
    assert (
        f"over it is {shown(moving)}; with both at 0.1 it is {shown(both)} (p < 0.001), and {shown(in_retrieval)} in"
        in EVIDENCE
    )
    assert f"On harder scenes it is {shown(moving)}, and {shown(both)} with both fixed (p < 0.001)" in VERDICTS

    here = lead(of(32))
    assert stats.paired_t_test(here) > 0.05
    before = averages("laptop_hard", variant="")
    assert f"does not show here**: {shown(here)}, where `laptop_hard` has {shown(lead(before))}." in EVIDENCE
    assert f"and other seeds over it by {shown(here)}; with 256" in VERDICTS
    low = of(32, None, "Zero-shot")["neuclip"]
    assert (low < low.max() - 9).sum() == 2

    behind = lead(of(256))
    p = stats.paired_t_test(behind)
    assert p < 0.05
    assert f"behind again**, by {shown(-behind)} (p {p:.3f})" in EVIDENCE
    assert f"with other seeds, {shown(behind)} ([why]" in VERDICTS
    changes = {at: of(256, at) - of(256) for at in fixed_at}
    p = stats.holm(pd.Series({at: stats.paired_t_test(changes[at]["neuclip"]) for at in fixed_at}))
    assert f"it gains {shown(changes[0.07]['neuclip'])} (p {p[0.07]:.3f})" in EVIDENCE
    assert f"fixed at 0.07 it gains {shown(changes[0.07]['neuclip'])}" in VERDICTS
    assert p[0.1] < 0.05
    lower = lead(of(256, 0.07))
    assert f"Over OpenCLIP at 0.07 it is {shown(lower)} (p {stats.paired_t_test(lower):.3f})" in EVIDENCE
    costs = [shown(-changes[0.1][method]) for method in ("openclip", "neuclip")]
    assert f"costs OpenCLIP {costs[0]} with 256, and NeuCLIP {costs[1]}." in EVIDENCE
    assert of(256).mean()["openclip"] == pytest.approx(of(256, 0.07).mean()["neuclip"], abs=0.15)
    ours, theirs = shown(of(256, 0.07)["neuclip"]), shown(of(256)["openclip"])
    assert f"{ours.split()[0]} where OpenCLIP has {theirs.split()[0]}" in VERDICTS
    readme = prose("../README.md")
    assert f"as good with 256: {ours}, OpenCLIP {theirs} (" in readme
    assert f"as good with 32 pairs: {shown(of(32, 0.1)['openclip'])}, NeuCLIP {shown(of(32)['neuclip'])}." in readme

    growth = here - behind
    assert stats.paired_t_test(growth) < 0.05
    assert f"to 32 pairs its lead changes by {shown(growth)} (" in EVIDENCE
    assert f"by {shown(growth)} with other seeds;" in VERDICTS
    alike = [lead(averages("laptop_fixed")), both, lead(of(256, 0.1)), lower]
    assert stats.paired_t_test(alike[2]) > 0.05
    means = [difference.mean() for difference in alike]
    assert f"from {-min(means):.1f} behind to {max(means):.1f} ahead of OpenCLIP, in four comparisons" in EVIDENCE


def test_amorlip_scores_less_the_lower_its_temperature_is_fixed() -> None:
    runs = expand("tuning@laptop_fixed_amorlip").runs
    at = {run.variant: run.spec.method.config["temperature"]["init"] for run in runs if run.variant != "defaults"}
    rows = final_scores(read(RESULTS / "tuning@laptop_fixed_amorlip.parquet"))
    rows = rows[(rows["name"] == "Validation") & rows["variant"].isin(at)]
    means = rows.groupby(rows["variant"].map(at))["value"].mean()
    assert list(means.index) == [0.0125, 0.0175, 0.025, 0.035, 0.05]
    assert means.is_monotonic_increasing
    chosen = {
        run.spec.method.name: run.spec.method.config["temperature"]["init"] for run in expand("laptop_fixed").runs
    }
    assert chosen["amorlip"] == 0.035


def test_neuclip_is_ahead_of_openclip_at_a_fixed_temperature_in_retrieval_alone() -> None:
    suite, (one,) = CONFIRMATIONS[2], hypotheses.tested(read(RESULTS / f"{CONFIRMATIONS[2]}.parquet"))
    assert (one.verdict, len(one.scores)) == ("holds", 20)
    by = shown(100 * one.difference)
    assert f"ahead of it by {by} then, over twenty fresh seeds (p {one.p:.3f})" in VERDICTS
    assert f"one hypothesis fixed before, p {one.p:.3f}: in retrieval" in VERDICTS
    assert f"by {by} points (p {one.p:.3f}). Of three kinds of tasks it is ahead only in retrieval" in prose(
        "../README.md"
    )
    p, rows = {}, {"NeuCLIP, moving": "", "OpenCLIP, fixed at 0.1": "", "difference": ""}
    for score in AVERAGES:
        of = averages(suite, score=score)
        difference = of["neuclip"] - of["openclip"]
        p[score] = stats.paired_t_test(difference)
        for name, values in zip(rows, (of["neuclip"], of["openclip"], difference), strict=True):
            rows[name] += f" {shown(values)} |"
    assert [score for score in AVERAGES if p[score] < 0.05] == ["Average", "Scenes & Variants"]
    assert p["Scenes & Variants"] < 0.001 / len(AVERAGES)
    assert all(f"| {name} |{cells}" in EVIDENCE for name, cells in rows.items())
    assert f"| p | {one.p:.3f} | < 0.001 | {p['Swapped Captions']:.3f} | {p['Zero-shot']:.3f} |" in EVIDENCE
    retrieval, swapped, zero_shot = rows["difference"].split(" | ")[1:]
    said = f"in retrieval by {retrieval}, in swapped captions by {swapped}, in zero-shot accuracy by {zero_shot[:-2]}."
    assert said in VERDICTS
