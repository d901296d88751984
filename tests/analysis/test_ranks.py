"""Tests over evaluation sets: ranks, critical differences, signed-rank tests."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from analysis import stats


def scores(num_sets: int, seed: int = 0) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    levels = {"a": 0.5, "b": 0.45, "c": 0.44, "d": 0.2}
    return pd.DataFrame({name: level + generator.normal(0, 0.02, num_sets) for name, level in levels.items()})


def signed_rank_p(difference: list[float]) -> float:
    """Wilcoxon's exact two-sided p, by going through all signs."""
    ranks = pd.Series([abs(value) for value in difference]).rank()
    statistic = sum(rank if value > 0 else -rank for rank, value in zip(ranks, difference, strict=True))
    signs = itertools.product((-1, 1), repeat=len(difference))
    reached = [abs(sum(s * r for s, r in zip(sign, ranks, strict=True))) >= abs(statistic) for sign in signs]
    return sum(reached) / len(reached)


def test_sets_are_averaged_over_seeds() -> None:
    rows = [("x", "a", 1.0), ("x", "a", 3.0), ("x", "b", 5.0)]
    frame = pd.DataFrame(rows, columns=["name", "method", "value"])
    assert stats.by_set(frame).to_dict("index") == {"x": {"a": 2.0, "b": 5.0}}


def test_a_hole_takes_its_set_from_the_ranks_and_from_its_own_pair_only() -> None:
    table = scores(9)
    whole = stats.set_differences(table, first="a")
    table.loc[0, "b"] = math.nan
    assert stats.rank(table).num_sets == 8
    found = stats.set_differences(table, first="a")
    assert found["num_sets"].to_dict() == {"b": 8, "c": 9, "d": 9}
    assert found["p"][["c", "d"]].equals(whole["p"][["c", "d"]])


def test_a_method_without_any_value_silences_no_other() -> None:
    table = scores(9)
    ranks = stats.rank(table.assign(diverged=math.nan))
    assert ranks.mean.equals(stats.rank(table).mean)
    assert ranks.num_sets == 9
    found, without = (stats.set_differences(one, first="a") for one in (table.assign(diverged=math.nan), table))
    assert found["num_sets"]["diverged"] == 0
    assert found["p_holm"].drop("diverged").equals(without["p_holm"])


def test_the_signed_rank_test_is_the_one_that_goes_through_all_signs() -> None:
    table = scores(9)
    found = stats.set_differences(table, first="a")
    for baseline in "bcd":
        expected = signed_rank_p(list(table["a"] - table[baseline]))
        assert found["p"][baseline] == pytest.approx(expected)
    assert found["p_holm"]["d"] == pytest.approx(3 * found["p"]["d"])


def test_wins_ties_and_losses_are_counted_and_rounding_makes_no_winner() -> None:
    table = pd.DataFrame({"a": [0.5, 0.1 + 0.2, 0.4], "b": [0.4, 0.3, 0.5]})
    (row,) = stats.set_differences(table, first="a").to_dict("records")
    assert (row["wins"], row["ties"], row["losses"], row["num_sets"]) == (1, 1, 1, 3)


@pytest.mark.parametrize(("num_sets", "is_tested"), [(5, False), (6, True)])
def test_too_few_sets_are_not_tested(num_sets: int, is_tested: bool) -> None:
    table = scores(num_sets)
    assert stats.set_differences(table, first="a")["p"].notna().all() == is_tested
    assert math.isnan(stats.rank(table).critical_difference) != is_tested


def test_without_ours_there_is_nothing_to_compare_set_by_set() -> None:
    assert stats.set_differences(scores(9), first="neuclip").empty


def test_one_is_the_best_rank_and_ties_share_it() -> None:
    ranks = stats.rank(pd.DataFrame({"a": [0.9, 0.9], "b": [0.8, 0.9], "c": [0.7, 0.1]}))
    assert ranks.mean.to_dict() == {"a": 1.25, "b": 1.75, "c": 3.0}
    assert ranks.num_sets == 2


# Demsar 2006, Table 5(a): q at 0.05 for two to ten methods (two are not tested here).
@pytest.mark.parametrize(("num_methods", "q"), [(3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (10, 3.164)])
def test_the_critical_difference_is_that_of_demsars_table(num_methods: int, q: float) -> None:
    table = pd.DataFrame(np.random.default_rng(0).random((14, num_methods)))
    expected = q * math.sqrt(num_methods * (num_methods + 1) / (6 * 14))
    assert stats.rank(table).critical_difference == pytest.approx(expected, abs=2e-3)


def test_friedmans_p_is_the_one_of_its_formula() -> None:
    table = scores(12)
    ranks = np.array(
        [sorted(range(4), key=lambda i: -row[i]).index(j) + 1 for row in table.to_numpy() for j in range(4)]
    )
    means = ranks.reshape(12, 4).mean(axis=0)
    statistic = 12 * 12 / (4 * 5) * (sum(means**2) - 4 * 5**2 / 4)
    assert stats.rank(table).p == pytest.approx(scipy_stats.chi2.sf(statistic, 3))


def test_methods_that_are_always_equal_are_no_different() -> None:
    assert stats.rank(pd.DataFrame(0.5, index=range(8), columns=list("abc"))).p == 1.0


def test_groups_that_are_alike_are_as_large_as_can_be() -> None:
    ranks = stats.Ranks(pd.Series({"d": 4.0, "a": 1.0, "b": 1.8, "c": 2.6}), 20, 0.01, 1.0)
    assert stats.alike(ranks) == [("a", "b"), ("b", "c")]
    assert stats.alike(ranks._replace(critical_difference=2.0)) == [("a", "b", "c"), ("c", "d")]
    assert stats.alike(ranks._replace(critical_difference=9.0)) == [("a", "b", "c", "d")]
    assert stats.alike(ranks._replace(critical_difference=math.nan)) == []
