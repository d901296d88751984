"""Shares of the gap between two batch sizes, and what table and figure show of them."""

import math

import numpy as np
import pandas as pd
import pytest
import synthetic
from drawn import build_figure, build_table
from scipy import stats as scipy_stats

from analysis.collect import collect
from analysis.headroom import share

AT_LARGE = "OpenCLIP, 8 \N{MULTIPLICATION SIGN} the batch"


def series(*values: float) -> pd.Series:
    return pd.Series(values, dtype=float)


def test_the_interval_holds_the_ratios_that_a_paired_t_test_does_not_refuse() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        small = pd.Series(0.5 + 0.02 * rng.standard_normal(5))
        large = small + 0.1 + 0.02 * rng.standard_normal(5)
        scores = small + 0.05 + 0.03 * rng.standard_normal(5)
        found = share(scores, small, large)
        assert found.low < found.value < found.high
        for end in (found.low, found.high):
            inside, outside = (end + sign * 1e-6 * (found.value - end) for sign in (1, -1))
            p = [
                scipy_stats.ttest_1samp((scores - small) - ratio * (large - small), 0.0).pvalue
                for ratio in (inside, outside)
            ]
            assert p[0] > 0.05 > p[1]


def test_where_the_gap_may_be_nothing_any_share_may_be_true() -> None:
    small = series(0.50, 0.55, 0.60)
    found = share(small + 0.1, small, series(0.60, 0.50, 0.62))
    assert (found.low, found.high) == (-math.inf, math.inf)


def test_the_batches_themselves_close_nothing_and_all_whatever_the_seeds() -> None:
    small, large = series(0.5, 0.52, 0.6), series(0.7, 0.71, 0.69)
    assert share(small, small, large)[:3] == (0, 0, 0)
    assert share(large, small, large)[:3] == (1, 1, 1)


def test_one_seed_has_a_share_without_an_interval_and_a_diverged_run_none() -> None:
    found = share(series(0.6), series(0.5), series(0.7))
    assert found.value == pytest.approx(0.5)
    assert math.isnan(found.low)
    assert math.isnan(share(series(math.nan), series(0.5), series(0.7)).value)


def frame_with_gap(*factors: int) -> pd.DataFrame:
    """Five methods at 64 pairs, and OpenCLIP at larger batches with ten more points, to which seeds add a little."""
    end = {"samples_seen": 2560, "milestones": [2560], "normalizer_error": None}
    large = [
        synthetic.run_spec("openclip", seed, global_batch_size=factor * synthetic.BATCH, **end)
        for factor in factors
        for seed in range(3)
    ]
    frame = collect(synthetic.write_suite([*synthetic.main_specs(), *large]))
    is_large = frame["global_batch_size"] > synthetic.BATCH
    frame.loc[is_large & frame["kind"].eq("average"), "value"] += 0.1 + 0.001 * frame.loc[is_large, "seed"] ** 2
    return frame


def test_the_table_shows_scores_and_shares_with_the_large_batch_last() -> None:
    built = build_table(frame_with_gap(8), "headroom")
    assert built.header == ("Method", "Average", "Average, closed", "Retrieval", "Retrieval, closed", "Seeds")
    names = [row[0] for row in built.rows]
    assert names[0] == "OpenCLIP"
    assert names[-1] == AT_LARGE
    assert {"NeuCLIP", "FastCLIP", "SigLIP", "AmorLIP"} == set(names[1:-1])
    neuclip = dict(zip(built.header, built.rows[names.index("NeuCLIP")], strict=True))
    # NeuCLIP is ten points above OpenCLIP, as the large batch is by the seeds' mean plus 0.17 points.
    assert neuclip["Average"].value == pytest.approx(42.5)
    assert neuclip["Average, closed"].value == pytest.approx(100 * 0.1 / (0.1 + 0.005 / 3))
    low, high = map(int, neuclip["Average, closed"].remark.strip("()").split(" to "))
    assert low < neuclip["Average, closed"].value < high


def test_every_smaller_batch_is_compared_with_the_largest() -> None:
    built = build_table(frame_with_gap(2, 4), "headroom")
    last = {row[0]: row[1] for row in built.rows}
    times = "\N{MULTIPLICATION SIGN} the batch"
    assert last == {"batch 64": f"OpenCLIP, 4 {times}", "batch 128": f"OpenCLIP, 2 {times}"}


def test_the_figure_has_a_panel_for_each_average() -> None:
    drawn = build_figure(frame_with_gap(8), "headroom", 5.5)
    assert [axes.get_title(loc="left") for axes in drawn.axes] == ["Average", "Retrieval"]
    labels = [label.get_text() for label in drawn.axes[0].get_yticklabels()]
    assert labels[0].replace("\n", " ") == AT_LARGE
    assert labels[-1] == "OpenCLIP"


def test_where_the_gap_is_within_noise_the_figure_draws_no_share() -> None:
    frame = frame_with_gap(8)
    large = frame["global_batch_size"] == frame["global_batch_size"].max()
    noise = frame["seed"].map({0: 0.3, 1: -0.3}).fillna(0.0)
    drawn = build_figure(frame.assign(value=frame["value"] + noise.where(large, 0.0)), "headroom", 5.5)
    numbers = [text.get_text() for text in drawn.axes[0].texts]
    assert (numbers[0], numbers[-1], set(numbers[1:-1])) == ("100 %", "0 %", {"?"})


def test_a_method_without_a_score_has_no_share_in_the_figure() -> None:
    frame = frame_with_gap(8)
    frame = frame.assign(value=frame["value"].where(frame["method"] != "siglip"))
    numbers = [text.get_text() for text in build_figure(frame, "headroom", 5.5).axes[0].texts]
    assert numbers.count("?") == 1
    assert not any("nan" in number for number in numbers)
