"""What is committed under docs/results: every table and figure is what its frame draws, to the byte."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import pandas as pd
import pytest
from published import AVERAGES, CONFIRMATIONS, EVIDENCE, RESULTS, VERDICTS, averages, prose, shown

from analysis import hypotheses, stats
from analysis.__main__ import main
from analysis.frame import best_runs, digest, final_scores, read
from experiments.design.suite import expand

FRAMES = sorted(RESULTS.glob("*.parquet"))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("frame", FRAMES, ids=lambda path: path.stem)
def test_what_is_committed_is_what_its_frame_draws(frame: Path, tmp_path: Path) -> None:
    committed = files(RESULTS / frame.stem)
    ids = {name.rpartition(".")[0] for name in committed}
    assert main(["publish", str(frame), *sorted(ids), "--out", str(tmp_path)]) == 0
    assert files(tmp_path / frame.stem) == committed
    assert digest(read(tmp_path / frame.name)) == digest(read(frame))


def test_nothing_lies_there_that_no_frame_draws() -> None:
    folders = {path.name for path in RESULTS.iterdir() if path.is_dir()}
    assert folders == {path.stem for path in FRAMES}


def test_without_names_what_is_there_is_drawn_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = RESULTS / "scenes_headroom.parquet"
    command = ["publish", "--out", str(tmp_path), str(frame)]
    assert main(command) == 1
    assert "nothing is drawn here; name the tables and figures to draw" in capsys.readouterr().err
    assert main([*command, "headroom"]) == 0
    drawn = tmp_path / "scenes_headroom"
    before = files(drawn)
    assert before.keys() == {"headroom.md", "headroom.svg"}
    (drawn / "headroom.svg").write_bytes(b"")
    assert main(command) == 0
    assert files(drawn) == before
    # What is added does not take the rows away that the rest is drawn from.
    assert main([*command, "main_results"]) == 0
    (again,) = tmp_path.glob("*.parquet")
    assert main(["publish", "--out", str(tmp_path), str(again)]) == 0
    assert files(drawn).items() > before.items()


def test_an_unknown_name_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["publish", str(FRAMES[0]), "headroom", "main_result", "--out", str(tmp_path)]) == 1
    assert not list(tmp_path.iterdir())
    assert "unknown table 'main_result'" in capsys.readouterr().err


def test_results_of_ones_own_are_compared_with_what_is_committed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(RESULTS), str(RESULTS)]) == 0
    counts = capsys.readouterr().out.split("##")[0]
    assert "equal: every pair of seeds, to the last bit" in counts
    assert counts.count("\n- ") == 1


def test_all_five_hypotheses_hold_as_the_pages_say() -> None:
    first, second = (hypotheses.tested(read(RESULTS / f"{name}.parquet")) for name in CONFIRMATIONS[:2])
    assert [one.verdict for one in second] == 5 * ["holds"]
    assert all(one.p < 0.001 for one in second)
    assert [len(one.scores) for one in second] == [20, 20, 10, 10, 10]
    for one in second:
        high, low = (100 * one.scores[side].mean() for side in ("higher", "lower"))
        assert f"| {high:.1f} to {low:.1f} | {shown(100 * one.difference)} | {len(one.scores)} |" in VERDICTS
    assert f"with 64 pairs over OpenCLIP with 256: {shown(100 * second[-1].difference)}, with 32 within" in VERDICTS
    assert f"There it was {shown(100 * first[0].difference)} points above OpenCLIP" in VERDICTS
    assert f"put it {shown(100 * first[0].difference)} points above OpenCLIP (p {first[0].p:.3f})" in EVIDENCE
    assert f"in the first confirmation ({shown(100 * first[1].difference)}, a hypothesis there" in EVIDENCE


def test_neuclip_is_ahead_of_every_method_on_every_average() -> None:
    said = {name: f"| {name} |" for name in ("OpenCLIP", "AmorLIP", "FastCLIP", "SigLIP")}
    for score, level in {
        "Average": 0.001,
        "Scenes & Variants": 0.001,
        "Swapped Captions": 0.005,
        "Zero-shot": 0.001,
    }.items():
        of = averages(CONFIRMATIONS[1], score=score)
        lead = {other.lower(): (of["neuclip"] - of[other.lower()]).dropna() for other in said}
        said = {other: f"{row} {shown(lead[other.lower()])} |" for other, row in said.items()}
        p = stats.holm(pd.Series({other: stats.paired_t_test(difference) for other, difference in lead.items()}))
        assert (p < level).all()
        assert all(difference.mean() > 0 for difference in lead.values())
    assert all(row in EVIDENCE for row in said.values())
    of = averages(CONFIRMATIONS[1])
    assert (of["amorlip"] > of["openclip"]).all()
    assert f"AmorLIP does, {shown(of['amorlip'] - of['openclip'])} over OpenCLIP" in VERDICTS
    behind = (of["fastclip"] - of["amorlip"]).dropna()
    assert behind.mean() < 0
    assert stats.paired_t_test(behind) < 0.001
    assert stats.paired_t_test((of["fastclip"] - of["openclip"]).dropna()) > 0.05
    assert stats.paired_t_test((of["siglip"] - of["openclip"]).dropna()) > 0.05
    assert stats.paired_t_test((of["siglip"] - of["fastclip"]).dropna()) > 0.05


def test_with_32_pairs_neuclip_cannot_be_told_from_openclip_with_256() -> None:
    def lead(score: str) -> pd.Series:
        small, large = (averages(CONFIRMATIONS[1], score=score, batch=batch) for batch in (32, 256))
        return small["neuclip"] - large["openclip"]

    for score in ("Average", "Scenes & Variants", "Swapped Captions"):
        assert stats.paired_t_test(lead(score)) > 0.05
    assert stats.paired_t_test(lead("Zero-shot")) < 0.001
    assert lead("Zero-shot").mean() > 0
    small, large = (averages(CONFIRMATIONS[1], batch=batch) for batch in (32, 256))
    assert f"({small['neuclip'].mean():.1f} to {large['openclip'].mean():.1f}, twenty seeds)" in VERDICTS


def test_on_harder_scenes_neuclip_leads_with_32_pairs_and_trails_with_256() -> None:
    small, middle, large = (averages("laptop_hard", batch=batch) for batch in (32, 64, 256))
    lead = {other: small["neuclip"] - small[other] for other in ("openclip", "amorlip", "fastclip", "siglip")}
    p = stats.holm(pd.Series({other: stats.paired_t_test(difference) for other, difference in lead.items()}))
    assert (p < 0.01).all()
    assert all(difference.mean() > 0 for difference in lead.values())
    said = zip(("OpenCLIP", "AmorLIP", "FastCLIP", "SigLIP"), lead.values(), strict=True)
    assert f"best of five again**: over {', '.join(f'{name} {shown(by)}' for name, by in said)}, all p" in EVIDENCE
    assert (
        f"by {min(by.mean() for by in lead.values()):.1f} to {max(by.mean() for by in lead.values()):.1f}" in VERDICTS
    )
    behind = [of["neuclip"] - large["openclip"] for of in (middle, small, large)]
    assert all(stats.paired_t_test(difference) < 0.01 for difference in behind)
    p64, p32 = (f"p {stats.paired_t_test(difference):.3f}" for difference in behind[:2])
    assert f"with 256 is {shown(behind[0])} ({p64}), with 32 pairs {shown(behind[1])} ({p32};" in EVIDENCE
    assert f"on harder scenes with 64 pairs {shown(behind[0])} |" in VERDICTS
    assert f"with 256 pairs over OpenCLIP {shown(behind[2])} and, with other seeds," in VERDICTS
    assert f"behind OpenCLIP**, by {shown(-behind[2])} points" in EVIDENCE
    change = lead["openclip"] - behind[2]
    assert f"its lead over OpenCLIP changes by {shown(change)}, p below 0.001" in EVIDENCE
    assert f"on harder scenes its lead changes by {shown(change)} from 256 to 32 pairs" in VERDICTS
    assert stats.paired_t_test(change) < 0.001
    assert f"OpenCLIP changes by {shown(small['openclip'] - large['openclip'])} points" in EVIDENCE
    swapped = averages("laptop_hard", score="Swapped Captions")
    p = stats.holm(pd.Series({other: stats.paired_t_test(swapped["neuclip"] - swapped[other]) for other in lead}))
    assert (p > 0.05).all()


def test_what_the_page_says_of_the_two_confirmations_follows_from_the_rows() -> None:
    before, after = map(averages, CONFIRMATIONS[:2])
    for page in (VERDICTS, EVIDENCE):
        assert f"and {shown(before['amorlip'] - before['neuclip'])} below AmorLIP" in page
    assert (averages(CONFIRMATIONS[0], score="Swapped Captions")["neuclip"] < 63).sum() == 6
    assert round(after["neuclip"].mean() - before["neuclip"].mean()) == 7
    assert stats.welch_t_test(before["neuclip"], after["neuclip"]) < 0.001
    for of in (after, before):
        assert f"{of['openclip'].mean():.1f} ± {stats.half_width(of['openclip']):.1f}" in EVIDENCE
    assert f"(other seeds; p {stats.welch_t_test(before['openclip'], after['openclip']):.3f}, Welch's test)" in EVIDENCE
    assert round(after["neuclip"].mean() - before["openclip"].mean()) == 10
    assert stats.welch_t_test(after["neuclip"], before["openclip"]) < 0.001
    rates = [
        {run.spec.method.name: run.spec.optimizer.lr for run in expand(name).runs if run.spec.global_batch_size == 32}
        for name in CONFIRMATIONS[:2]
    ]
    assert [rates[1][name] / rates[0][name] for name in ("neuclip", "openclip", "amorlip")] == [0.5, 2, 1]


def test_what_the_pages_say_of_seeds_and_no_table_has_follows_from_the_rows() -> None:
    ten, twenty = averages("laptop_ten_seeds"), averages("laptop_confirmation")
    assert f"with which NeuCLIP scores {ten.loc[:4, 'neuclip'].mean():.1f}, so" in EVIDENCE
    fresh, first = twenty.corr()["openclip"], ten.corr()["openclip"]
    text = f"AmorLIP's by {fresh['amorlip']:.2f} and with NeuCLIP's by {fresh['neuclip']:.2f} (first ten seeds: "
    assert f"{text}{first['neuclip']:.2f})" in prose("statistics.md")


def test_what_the_pages_say_of_ablations_follows_from_the_rows() -> None:
    rows = {
        "objective": {"separate regression": "separate regression"},
        "architecture": {"MLP": "MLP"},
        "updates": {"simultaneous": "simultaneous updates", "one joint step": "one joint step"},
    }
    for name, variants in rows.items():
        of, zero_shot = (
            averages(f"ablation_{name}@laptop_best_rates", "variant", score) for score in ("Average", "Zero-shot")
        )
        assert len(of) == 5
        p = stats.holm(pd.Series({each: stats.paired_t_test(of[each] - of[""]) for each in variants}))
        for variant, title in variants.items():
            change, said = of[variant] - of[""], "< 0.001" if p[variant] < 0.001 else f"{p[variant]:.3f}"
            assert f"{title} {shown(change)}" in VERDICTS
            (row,) = re.findall(rf"\| {title}[^|]*\| {re.escape(shown(change))} \| {said} \| ([^|]*)\|", EVIDENCE)
            if row.strip():
                assert row.strip() == shown(zero_shot[variant] - zero_shot[""])
                assert stats.paired_t_test(zero_shot[variant] - zero_shot[""]) < 0.05
                each = {score: averages(f"ablation_{name}@laptop_best_rates", "variant", score) for score in AVERAGES}
                p_of_scores = {score: stats.paired_t_test(rows[variant] - rows[""]) for score, rows in each.items()}
                assert (stats.holm(pd.Series(p_of_scores)) > 0.05).all()


def test_updates_of_the_network_are_within_noise_of_five_and_none_is_worse_in_zero_shot_accuracy() -> None:
    suite = "ablation_num_updates@laptop_best_rates"
    runs = [run.spec.method for run in expand("laptop_best_rates").runs]
    assert {method.config["num_updates"] for method in runs if method.name == "neuclip"} == {5}
    titles = {"1 update": "one update of the network a step, not five", "no update": "no update, restarts alone"}
    titles |= {f"{number} updates": f"{word} updates" for number, word in ((10, "ten"), (20, "twenty"), (50, "fifty"))}
    of = averages(suite, "variant")
    assert len(of) == 5
    changes = of.sub(of[""], axis=0)[list(titles)]
    p = stats.holm(changes.agg(stats.paired_t_test))
    assert (p > 0.05).all()
    cost = p["no update"]
    for variant, title in titles.items():
        assert f"| {title} | {shown(changes[variant])} | {p[variant]:.3f} |" in EVIDENCE
    costs = -changes.drop(columns="no update").mean()
    said = f"with 1, 10, 20 and 50 the average changes by -{costs.min():.1f} to -{costs.max():.1f}, all within noise"
    assert f"have {of[''].mean():.1f}; {said}" in VERDICTS
    p_of_scores = {}
    for score in AVERAGES:
        of = averages(suite, "variant", score)
        p = stats.holm(of.sub(of[""], axis=0)[list(titles)].agg(stats.paired_t_test))
        p_of_scores[score] = p["no update"]
        assert (p.drop("no update") > 0.05).all()
        assert (p["no update"] < 0.05) == (score == "Zero-shot")
        if score == "Zero-shot":
            change = shown(of["no update"] - of[""])
            assert f"| {titles['no update']} | {shown(changes['no update'])} | {cost:.3f} | {change} |" in EVIDENCE
            assert f"by {shown(changes['no update'])}, and in zero-shot accuracy by {change}, which" in VERDICTS
            assert f"beyond noise over the five variants (p {p['no update']:.3f})" in EVIDENCE
    assert (stats.holm(pd.Series(p_of_scores)) > 0.05).all()


def test_no_method_is_better_with_ten_times_the_data() -> None:
    rows = final_scores(read(RESULTS / "ablation_dataset_size@laptop_best_rates.parquet"))
    of = 100 * rows[rows["name"] == "Average"].pivot(index="seed", columns=["method", "dataset_pairs"], values="value")
    assert len(of) == 5
    for method in ("neuclip", "openclip", "fastclip"):
        few, some, many = of[method].columns
        for fewer in (few, some):
            gain = of[method][many] - of[method][fewer]
            assert gain.mean() < 0 or stats.paired_t_test(gain) > 0.05
    lead = of["neuclip"] - of["openclip"]
    assert (stats.holm(lead.agg(stats.paired_t_test)) < 0.01).all()
    said = [f"{shown(lead[size])} with {size:,}" for size in (few, some, many)]
    leads = f"over OpenCLIP {said[0]} pairs, {said[1]}, {said[2]}, all p < 0.01"
    assert f"{leads}, at OpenCLIP's worse rate. More data" in VERDICTS
    assert f"lead over OpenCLIP | {' | '.join(shown(lead[size]) for size in (few, some, many))} |" in EVIDENCE


def test_a_network_that_is_never_restarted_or_too_often_is_worse() -> None:
    suite = "ablation_restart_period@laptop_best_rates"
    titles = {
        "never restarted": "never restarted, not every 100 steps",
        "restart every 4": "restarted every 4 steps",
        "restart every 20": "restarted every 20 steps",
        "restart every 500": "restarted every 500 steps",
    }
    changes, p = {}, {}
    for score in AVERAGES:
        of = averages(suite, "variant", score)
        assert len(of) == 5
        changes[score] = of.sub(of[""], axis=0)[list(titles)]
        p[score] = stats.holm(changes[score].agg(stats.paired_t_test))
    for variant, title in titles.items():
        assert f"| {title} | {shown(changes['Average'][variant])} | {p['Average'][variant]:.3f} |" in EVIDENCE
    assert [variant for variant in titles if p["Average"][variant] < 0.05] == ["never restarted", "restart every 4"]
    assert p["Zero-shot"]["never restarted"] < 0.05
    never, often = (shown(changes["Average"][each]) for each in ("never restarted", "restart every 4"))
    said = f"never {never}, p {p['Average']['never restarted']:.3f}, and in zero-shot accuracy "
    said += (
        f"{shown(changes['Zero-shot']['never restarted'])}; too often {often}, p {p['Average']['restart every 4']:.3f}"
    )
    assert said in VERDICTS
    assert f"costs retrieval above all, {shown(-changes['Scenes & Variants']['restart every 4'])}." in EVIDENCE
    before = averages("ablation_restart_period@laptop", "variant")
    assert f"never restarted by {shown(before['never restarted'] - before[''])} (" in EVIDENCE


def test_what_the_page_says_of_another_machine_follows_from_the_rows() -> None:
    here, ours = (
        averages("ablation_batch_size_scaled_lr@laptop"),
        averages("ablation_restart_period@laptop", "variant")[""],
    )
    there = averages("laptop_ten_seeds")
    moved = ours - there["neuclip"]
    assert moved.count() == 5
    others = (here - there).drop(columns="neuclip").abs().max()
    assert f"by up to {moved.abs().max():.1f} points" in EVIDENCE
    assert f"and their mean from {there.loc[:4, 'neuclip'].mean():.1f} to {ours.mean():.1f}" in EVIDENCE
    assert f"no other method's by more than {others.max():.1f} (three seeds)" in EVIDENCE


def test_what_the_page_says_of_three_types_of_machines_follows_from_the_rows() -> None:
    suites = ("ablation_objective@laptop_best_rates", "laptop_best_rates", "ablation_num_updates@laptop_best_rates")
    of = pd.DataFrame({suite: averages(suite, variant="")["neuclip"] for suite in suites})
    assert len(of) == 5
    assert of.notna().all(axis=None)
    moved = (of.max(axis=1) - of.min(axis=1)).max()
    assert f"move five other seeds by up to {moved:.1f} points" in EVIDENCE
    assert f"their mean from {of.mean().min():.1f} to {of.mean().max():.1f}." in EVIDENCE


def test_what_the_page_says_of_chosen_learning_rates_follows_from_the_rows() -> None:
    frame = read(RESULTS / "ablation_batch_size_lr@laptop.parquet")
    best = final_scores(best_runs(frame))

    def by_size_and_method(score: str) -> pd.DataFrame:
        return best[best["name"] == score].pivot(index="seed", columns=["global_batch_size", "method"], values="value")

    of, swapped = by_size_and_method("Average"), by_size_and_method("Swapped Captions")
    assert len(of) == 3
    chosen = best.groupby(["method", "global_batch_size"])["variant"].first()
    rates = ["a quarter of the learning rate", "half the learning rate", "", "twice the learning rate"]
    rates.append("four times the learning rate")
    tried = frame.groupby(["method", "global_batch_size"])["variant"].unique()
    for place, label in chosen.items():
        at = rates.index(label)
        assert set(rates[at - 1 : at + 2]) <= set(tried[place]), "a worse rate is known on both sides"
        assert 3 <= len(tried[place]) <= 4
    assert set(chosen["amorlip"]) == {""}
    assert set(chosen["neuclip"]) == {"half the learning rate"}
    assert set(chosen["openclip"].loc[32:]) == {"twice the learning rate"}
    for size in (16, 32, 64, 256):
        assert of[size].mean().idxmax() == "neuclip"
    ours, openclip, amorlip = (of.xs(each, axis=1, level="method") for each in ("neuclip", "openclip", "amorlip"))
    lead, over_amorlip, to_largest = ours - openclip, ours - amorlip, ours.sub(openclip[256], axis=0)
    # Three seeds point somewhere; over the four sizes nothing is beyond noise.
    for differences in (lead, over_amorlip, to_largest):
        assert (stats.holm(differences.agg(stats.paired_t_test)) > 0.028).all()
    assert (lead[[16, 32, 64]] > 0).all(axis=None)
    assert (lead[32] > lead[256]).all()
    assert stats.paired_t_test(lead[32] - lead[256]) > 0.028
    assert (over_amorlip[[32, 64, 256]] > 0).all(axis=None)
    assert (to_largest[64] > 0).all()
    assert (to_largest[16] < 0).all()
    for other in ("openclip", "amorlip"):
        assert (swapped[32, "neuclip"] > swapped[32, other]).all()


def test_icons_tell_no_methods_apart_on_the_average() -> None:
    of = averages("icons", batch=128, variant="")
    assert len(of) == 3
    for first, second in combinations(of, 2):
        assert stats.paired_t_test(of[first] - of[second]) > 0.05
    means = of.mean().sort_values()
    assert means.index[-1] == "neuclip"
    assert f"score {means.iloc[0]:.1f} to {means.iloc[-1]:.1f} on the average" in EVIDENCE


def test_the_quickstart_shows_headroom_and_neuclip_ahead_with_each_seed() -> None:
    small, large = (averages("quickstart", batch=batch) for batch in (32, 128))
    page = prose("quickstart.md")
    change = small["openclip"] - large["openclip"]
    assert len(change) == 3
    assert f"OpenCLIP changes by {shown(change)} points (p {stats.paired_t_test(change):.3f})" in page
    assert stats.paired_t_test(change) < 0.01
    assert (large["openclip"] > small["neuclip"]).all()
    lead = -small.drop(columns="neuclip").sub(small["neuclip"], axis=0)
    assert (lead > 0).all(axis=None)
    p = lead.agg(stats.paired_t_test)
    assert (stats.holm(p) > 0.05).all()
    assert list(p.index[p > 0.05]) == ["openclip"]


def test_ten_seeds_of_the_quickstart_decide() -> None:
    three = averages("quickstart")
    small, large = (averages("quickstart_ten_seeds", batch=batch) for batch in (32, 128))
    page = prose("quickstart.md")
    for score, level in {"Average": 0.001, "Scenes & Variants": 0.001, "Swapped Captions": 0.005}.items():
        of = averages("quickstart_ten_seeds", score=score)
        assert len(of) == 10
        p = stats.holm(
            pd.Series({other: stats.paired_t_test(of["neuclip"] - of[other]) for other in of if other != "neuclip"})
        )
        assert (p < level).all()
        assert (of.drop(columns="neuclip").sub(of["neuclip"], axis=0).mean() < 0).all()
    zero_shot = averages("quickstart_ten_seeds", score="Zero-shot")
    p = stats.paired_differences(zero_shot.melt(ignore_index=False, var_name="method").reset_index(), first="neuclip")
    assert list(p.index[p["p_holm"] > 0.05]) == ["fastclip"]
    for name in ("AmorLIP", "FastCLIP", "OpenCLIP", "SigLIP"):
        method = name.lower()
        assert (small["neuclip"] > small[method]).all()
        first, ten = (f"{of[method].mean():.1f} ± {stats.half_width(of[method]):.1f}" for of in (three, small))
        assert f"| {name} | 32 | {first} | {ten} | {shown(small['neuclip'] - small[method])} | < 0.001 |" in page
    behind = small["neuclip"] - large["openclip"]
    assert stats.paired_t_test(behind) > 0.05
    assert f"told from OpenCLIP with 128 pairs ({shown(behind)})" in page
