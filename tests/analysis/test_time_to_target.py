"""Times to targets against a slow direct computation, and what table and figure show of them."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import synthetic
from drawn import build_figure, build_table

from analysis.collect import collect
from analysis.time_to_target import TARGETS, Times, profile_score, ratio, samples_to, to_fastest, workloads

SAMPLES = synthetic.CURVE_SAMPLES
AT_LARGE = "OpenCLIP, 8 \N{MULTIPLICATION SIGN} the batch"
CHANCE = synthetic.CARDS["digits"]["chance"]


def directly(curve: list[tuple[float, float]], target: float) -> float:
    """Walk along a curve in small steps until it is at the target."""
    points = [(0.0, CHANCE), *curve]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        for step in range(2001):
            share = step / 2000
            if y0 + share * (y1 - y0) >= target - 1e-9:
                return x0 + share * (x1 - x0)
    return math.inf


def test_collecting_gives_the_mean_of_the_sets_that_no_average_has() -> None:
    cards = {**synthetic.CARDS, "one": synthetic.CARDS["digits"], "two": synthetic.CARDS["flickr"]}
    suite = synthetic.write_suite(
        synthetic.main_specs(1), cards=cards, averages={"Average": ["digits"], "B": ["flickr"]}
    )
    frame = collect(suite)
    found = frame[(frame["kind"] == "validation") & frame["is_final"]].set_index("method")
    alone = frame[(frame["kind"] == "eval") & frame["is_main"] & frame["is_final"]].pivot(
        index="method", columns="name", values="value"
    )
    assert found["num_samples"].unique().tolist() == [2]
    for method in synthetic.METHODS:
        assert found.loc[method, "value"] == pytest.approx((alone.loc[method, "one"] + alone.loc[method, "two"]) / 2)
    assert frame.loc[frame["kind"] == "validation", "chance"].unique() == pytest.approx([(0.1 + 0.005) / 2])


def test_times_are_those_of_a_slow_walk_along_every_curve() -> None:
    frame = synthetic.frame_with_curves()
    scores = frame[frame["kind"] == "validation"]
    large = scores[(scores["global_batch_size"] == 512) & scores["is_final"]]["value"].mean()
    found = workloads(frame)
    assert [one.share for one in found] == list(TARGETS)
    num_reached = 0
    for workload in found:
        target = CHANCE + workload.share * (large - CHANCE)
        assert workload.score == pytest.approx(target)
        for one in workload.contenders:
            batch = 512 if one.label == AT_LARGE else 64
            runs = scores[(scores["method"] == one.method) & (scores["global_batch_size"] == batch)]
            for seed, run in runs.groupby("seed"):
                expected = directly(list(zip(run["samples_seen"], run["value"], strict=True)), target)
                taken = one.samples.taken[seed]
                assert taken == pytest.approx(expected, abs=SAMPLES / 1000)
                if math.isfinite(taken):
                    num_reached += 1
                    # The synthetic record's median step takes 10 ms, and 1 ms more with every seed.
                    assert one.seconds.taken[seed] == pytest.approx(taken / batch * (0.010 + 0.001 * seed))
                else:
                    assert math.isinf(one.seconds.taken[seed])
    assert num_reached > 20


def test_a_curve_that_falls_again_has_reached_its_target_the_first_time() -> None:
    curve = pd.Series({100: 0.3, 200: 0.5, 300: 0.2, 400: 0.6})
    assert samples_to(curve, 0.4, 0.1) == pytest.approx(150)
    assert samples_to(curve, 0.2, 0.1) == pytest.approx(50)
    assert math.isinf(samples_to(curve, 0.61, 0.1))


def test_a_run_that_diverged_has_what_it_reached_and_nothing_after() -> None:
    curve = pd.Series({100: 0.3, 200: 0.5, 300: math.nan, 400: math.nan})
    assert samples_to(curve, 0.5, 0.1) == 200
    assert math.isinf(samples_to(curve, 0.51, 0.1))
    frame = synthetic.frame_with_curves(diverged=(("neuclip", 1),))
    full = workloads(frame)[-1]
    neuclip = next(one for one in full.contenders if one.method == "neuclip")
    assert len(neuclip.samples.taken) == 3
    assert math.isinf(neuclip.samples.taken[1])


def times(*taken: float, end: float = 100.0) -> Times:
    return Times(pd.Series(taken, dtype=float), pd.Series([end] * len(taken)))


def test_ratios_of_seeds_that_all_get_there_have_an_interval_on_a_log_scale() -> None:
    found = ratio(times(10, 20, 40), times(20, 50, 60))
    logs = np.log([10 / 20, 20 / 50, 40 / 60])
    half = 4.302653 * logs.std(ddof=1) / math.sqrt(3)
    assert found.value == pytest.approx(math.exp(logs.mean()))
    assert (found.low, found.high) == pytest.approx((math.exp(logs.mean() - half), math.exp(logs.mean() + half)))
    assert found.bound == ""


def test_one_seed_has_a_ratio_without_an_interval() -> None:
    found = ratio(times(30), times(60))
    assert found.value == 0.5
    assert math.isnan(found.low)


def test_a_seed_that_never_gets_there_is_infinite_in_the_medians_and_not_left_out() -> None:
    inf = math.inf
    assert ratio(times(20, 30, inf), times(50, 60, 70))[0] == pytest.approx(30 / 60)
    assert ratio(times(20, inf, inf), times(50, 50, 60))[::3] == (100 / 50, ">")
    assert ratio(times(20, 30, 40), times(50, inf, inf))[::3] == (30 / 100, "<")
    assert ratio(times(20, inf), times(50, 50))[::3] == (100 / 50, ">")
    assert math.isnan(ratio(times(inf, inf), times(50, inf)).value)
    # Only seeds that both have count.
    assert ratio(times(20, inf), times(40))[0] == pytest.approx(0.5)


def test_profiles_count_targets_that_are_not_reached() -> None:
    found = workloads(synthetic.frame_with_curves())
    ratios = to_fastest(found, "samples")
    assert list(ratios) == ["openclip", "fastclip", "siglip", "amorlip", "neuclip"]
    assert (ratios["neuclip"][:3] == 1).all()
    # Medians rise to 0.58 and 0.48: times go with the power 1 / 0.7, but for straight lines between milestones.
    assert ratios.loc[0, "amorlip"] == pytest.approx((0.58 / 0.48) ** (1 / 0.7), rel=0.05)
    assert np.isinf(ratios["siglip"]).all()
    assert np.isinf(ratios.loc[3]).all()
    assert profile_score(ratios["siglip"]) == 0
    assert profile_score(ratios["neuclip"]) == pytest.approx(3 / 4)
    assert profile_score(pd.Series([1.0, 2.5, 4.0, math.inf])) == pytest.approx((1 + 0.5) / 4)


def test_the_table_has_every_method_at_every_target() -> None:
    built = build_table(synthetic.frame_with_curves(), "time_to_target")
    cells = {(str(row[0]).split(" %")[0], row[1]): dict(zip(built.header, row, strict=True)) for row in built.rows}
    assert len(cells) == len(built.rows) == len(TARGETS) * 6
    assert cells["50", "OpenCLIP"]["Ratio"].value == 1
    assert cells["50", "NeuCLIP"]["Reached"] == "3 of 3"
    assert 0 < cells["50", "NeuCLIP"]["Ratio"].value < 1
    assert " to " in cells["50", "NeuCLIP"]["Ratio"].remark
    assert cells["50", "SigLIP"]["Reached"] == "0 of 3"
    assert cells["50", "SigLIP"]["Samples"].remark == f"> {SAMPLES}"
    assert cells["50", "SigLIP"]["Ratio"].remark.startswith("> 1.")
    assert cells["75", "NeuCLIP"]["Ratio"].remark.startswith("< 0.")
    assert cells["100", AT_LARGE]["Reached"] == "2 of 3"


def test_one_seed_reaches_its_own_score_at_its_end() -> None:
    built = build_table(synthetic.frame_with_curves(seeds=1), "time_to_target")
    last = dict(zip(built.header, built.rows[-1], strict=True))
    assert (last["Method"], last["Reached"], last["Samples"].value) == (AT_LARGE, "1 of 1", SAMPLES)


def test_seconds_of_other_devices_are_not_compared() -> None:
    frame = synthetic.frame_with_curves()
    frame.loc[frame["method"] == "neuclip", "device"] = "another"
    built = build_table(frame, "time_to_target")
    rows = [dict(zip(built.header, row, strict=True)) for row in built.rows[:6]]
    assert {row["Method"]: row["Ratio, seconds"].value for row in rows}["NeuCLIP"] is None
    assert {row["Method"]: row["Ratio, seconds"].value for row in rows}["AmorLIP"] < 1
    drawn = build_figure(frame, "time_to_target", 5.5)
    assert [axes.get_title(loc="left") for axes in drawn.axes] == ["Samples"]


def test_the_figure_has_a_line_for_each_method() -> None:
    drawn = build_figure(synthetic.frame_with_curves(), "time_to_target", 5.5)
    assert [axes.get_title(loc="left") for axes in drawn.axes] == ["Samples", "Seconds"]
    lines = {line.get_label(): line for line in drawn.axes[0].lines}
    assert set(lines) == {"OpenCLIP", "FastCLIP", "SigLIP", "AmorLIP", "NeuCLIP"}
    assert lines["NeuCLIP"].get_ydata()[-1] == pytest.approx(3 / 4)
    assert set(lines["SigLIP"].get_ydata()) == {0}


def test_without_a_large_batch_there_is_no_target() -> None:
    assert not workloads(synthetic.frame_with_curves(large_batch=False))
