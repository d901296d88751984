from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from analysis import stats


def runs(**values: list[float]) -> pd.DataFrame:
    """One row per method and seed."""
    return pd.DataFrame(
        [
            {"method": method, "seed": seed, "value": value}
            for method, column in values.items()
            for seed, value in enumerate(column)
        ]
    )


def test_the_interval_is_the_one_computed_by_hand_and_leaves_holes_out() -> None:
    # 4.302653 is the 97.5 % point of t with two degrees of freedom; the standard deviation is 1.
    assert stats.half_width(pd.Series([1.0, 2.0, math.nan, 3.0])) == pytest.approx(4.302653 / math.sqrt(3))


def test_one_run_has_no_interval() -> None:
    assert math.isnan(stats.half_width(pd.Series([1.0, math.nan])))


def test_the_paired_test_is_on_differences_by_seed() -> None:
    frame = runs(neuclip=[5.0, 7.0, 9.0], other=[4.0, 5.0, 6.0])
    found = stats.paired_differences(frame, first="neuclip")
    assert list(found.index) == ["other"]
    (row,) = found.to_dict("records")
    # Differences 1, 2, 3: t = 2 / (1 / sqrt(3)) = 3.4641 with two degrees of freedom.
    assert (row["n"], row["mean"]) == (3, 2.0)
    assert row["p"] == pytest.approx(0.07417990)
    assert row["half_width"] == pytest.approx(4.302653 / math.sqrt(3))


def test_seeds_that_lack_a_partner_are_left_out() -> None:
    frame = runs(neuclip=[5.0, 7.0, 9.0, math.nan], other=[4.0, 5.0])
    (row,) = stats.paired_differences(frame, first="neuclip").to_dict("records")
    assert (row["n"], row["mean"]) == (2, 1.5)
    assert math.isnan(row["p"])


def test_identical_differences_have_no_test() -> None:
    frame = runs(neuclip=[1.0, 2.0, 3.0], other=[0.0, 1.0, 2.0])
    (row,) = stats.paired_differences(frame, first="neuclip").to_dict("records")
    assert math.isnan(row["p"])


def test_differences_that_rounding_alone_tells_apart_have_no_test() -> None:
    hits = np.array([9, 12, 19])
    frame = runs(neuclip=list((hits + 1) / 83), other=list(hits / 83))
    assert ((hits + 1) / 83 - hits / 83).std() > 0
    (row,) = stats.paired_differences(frame, first="neuclip").to_dict("records")
    assert math.isnan(row["p"])


def test_without_the_first_method_there_is_nothing_to_compare() -> None:
    assert stats.paired_differences(runs(a=[1.0], b=[2.0]), first="neuclip").empty


def test_holm_steps_down() -> None:
    corrected = stats.holm(pd.Series([0.04, 0.01, math.nan, 0.03]))
    # Sorted: 0.01 * 3, max(0.03, 0.03 * 2), max(0.06, 0.04 * 1).
    np.testing.assert_allclose(corrected, [0.06, 0.03, math.nan, 0.06])


def test_the_order_of_rows_does_not_matter() -> None:
    frame = runs(neuclip=[5.0, 7.0, 9.5], other=[4.0, 5.0, 6.0], third=[4.5, 5.5, 6.0])
    first = stats.paired_differences(frame, first="neuclip").sort_index()
    second = stats.paired_differences(frame[::-1], first="neuclip").sort_index()
    pd.testing.assert_frame_equal(first, second)


def test_five_seeds_and_five_more_where_they_do_not_decide_err_as_often_as_the_page_says() -> None:
    from scipy.stats import ttest_1samp

    differences = np.random.default_rng(0).standard_normal((200_000, 10))
    first, both = (ttest_1samp(differences[:, :n], 0, axis=1).pvalue for n in (5, 10))
    errors = {level: ((first < level) | (both < level)).mean() for level in (0.05, 0.028)}
    assert errors == pytest.approx({0.05: 0.087, 0.028: 0.050}, abs=0.0015)
