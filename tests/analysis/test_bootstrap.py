"""Intervals over evaluation samples, against slow draws of the samples themselves and against formulas."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import synthetic
from drawn import build_table

from analysis.bootstrap import draw, half_width, metric_of
from analysis.collect import CollectError, collect
from analysis.table import Cell
from engine import paths
from engine.schema.evaluation import Outcomes

RNG = np.random.default_rng(0)
TRUE = RNG.integers(0, 4, 300)
PREDICTED = np.where(RNG.random(300) < 0.6, TRUE, RNG.integers(0, 4, 300))
HITS = (TRUE == PREDICTED).astype(float)


def counted(stratum: np.ndarray, *outcome: np.ndarray) -> Outcomes:
    rows, counts = np.unique(np.column_stack([stratum, *outcome]), axis=0, return_counts=True)
    return Outcomes.model_validate(
        {"stratum": rows[:, 0].astype(int).tolist(), "outcome": rows[:, 1:].tolist(), "count": counts.tolist()}
    )


def recall(label: int, true: np.ndarray, predicted: np.ndarray) -> float:
    return float(np.mean(predicted[true == label] == label))


def f1(label: int, true: np.ndarray, predicted: np.ndarray) -> float:
    precision = np.mean(true[predicted == label] == label)
    return float(2 * precision * recall(label, true, predicted) / (precision + recall(label, true, predicted)))


def by_samples(metric: str, true: np.ndarray, predicted: np.ndarray) -> float:
    """A metric by its definition, sample by sample."""
    if metric == "acc1":
        return float(np.mean(true == predicted))
    of_label = {"F1-macro_all": f1}.get(metric, recall)
    scores = [of_label(label, true, predicted) for label in range(4)]
    return min(scores) if metric == "acc_wg" else float(np.mean(scores))


CASES = {
    "acc1": counted(np.zeros(300), HITS),
    "mean_per_class_recall": counted(TRUE, HITS),
    "acc_wg": counted(TRUE, HITS),
    "F1-macro_all": counted(TRUE, PREDICTED),
}


@pytest.mark.parametrize("metric", CASES)
def test_the_metric_of_the_samples_as_they_are_is_the_metric(metric: str) -> None:
    counts = np.array([CASES[metric].count])
    assert metric_of(CASES[metric], metric, counts)[0] == pytest.approx(by_samples(metric, TRUE, PREDICTED))


@pytest.mark.parametrize("metric", CASES)
def test_draws_are_spread_as_those_of_single_samples_are(metric: str) -> None:
    """Counts drawn from a multinomial against samples drawn one by one, within classes but for plain accuracy."""
    rng = np.random.default_rng(1)
    groups = [np.arange(300)] if metric == "acc1" else [np.flatnonzero(label == TRUE) for label in range(4)]
    slow = []
    for _ in range(2000):
        rows = np.concatenate([rng.choice(group, len(group)) for group in groups])
        slow.append(by_samples(metric, TRUE[rows], PREDICTED[rows]))
    fast = draw(CASES[metric], metric, np.random.default_rng(2), 20_000)
    # Standard errors of a mean and of a standard deviation of 2,000 draws: five of each.
    assert fast.mean() == pytest.approx(np.mean(slow), abs=5 * np.std(slow) / math.sqrt(2000))
    assert fast.std() == pytest.approx(np.std(slow), rel=5 / math.sqrt(2 * 2000))


def test_captions_are_drawn_with_their_image() -> None:
    rng = np.random.default_rng(3)
    captions = rng.integers(1, 6, 200)
    found = np.array([rng.integers(0, count + 1) for count in captions])
    finds = (found > 0).astype(float)
    outcomes = counted(np.zeros(200), found, captions, finds)
    value = (found.sum() / captions.sum() + finds.mean()) / 2
    assert metric_of(outcomes, "mean_recall@1", np.array([outcomes.count]))[0] == pytest.approx(value)
    slow = []
    for _ in range(2000):
        rows = rng.integers(0, 200, 200)
        slow.append((found[rows].sum() / captions[rows].sum() + finds[rows].mean()) / 2)
    fast = draw(outcomes, "mean_recall@1", np.random.default_rng(4), 20_000)
    assert fast.std() == pytest.approx(np.std(slow), rel=5 / math.sqrt(2 * 2000))


def test_the_interval_of_an_accuracy_is_the_binomial_one() -> None:
    outcomes = counted(np.zeros(10_000), np.arange(10_000) < 3000)
    width = half_width(draw(outcomes, "acc1", np.random.default_rng(0), 20_000))
    assert width == pytest.approx(1.96 * math.sqrt(0.3 * 0.7 / 10_000), rel=0.03)


def test_only_single_main_runs_have_an_interval_over_samples_and_it_is_the_same_again() -> None:
    assert "sampling" not in set(collect(synthetic.write_suite(synthetic.main_specs(2)))["kind"])
    variants = {"fixed": [synthetic.run_spec("neuclip", 0, config={"fixed": True})]}
    specs = [*synthetic.main_specs(1), synthetic.run_spec("neuclip", 1)]
    suite = synthetic.write_suite(specs, variants=variants)
    rows = collect(suite).query("kind == 'sampling'")
    assert set(rows["method"]) == {"openclip", "fastclip", "siglip", "amorlip"}
    assert rows["name"].unique().tolist() == ["digits", "flickr"]
    assert rows.equals(collect(suite).query("kind == 'sampling'"))
    width = rows[(rows["method"] == "fastclip")].set_index("name")["value"]
    digits, flickr = (1.96 * math.sqrt(p * (1 - p) / n) for p, n in ((0.32, 1797), (0.37, 200)))
    assert width["digits"] == pytest.approx(digits, rel=0.1)
    assert width["flickr"] == pytest.approx(flickr, rel=0.1)


def test_the_lowest_of_several_groups_has_no_interval() -> None:
    worst = {**synthetic.CARDS["digits"], "metric": "acc_wg", "group_by": "family", "metadata": ["family"]}
    suite = synthetic.write_suite(synthetic.main_specs(1), cards={**synthetic.CARDS, "digits": worst})
    assert collect(suite).query("kind == 'sampling'")["name"].unique().tolist() == ["flickr"]


def test_the_table_says_over_samples_and_leaves_methods_with_seeds_out() -> None:
    suite = synthetic.write_suite([*synthetic.main_specs(1), synthetic.run_spec("neuclip", 1)])
    table = build_table(collect(suite), "over_samples")
    assert table.header == ("Set", "OpenCLIP", "FastCLIP", "SigLIP", "AmorLIP")
    assert [row[0] for row in table.rows] == ["Digits", "Flickr"]
    cell = table.rows[0][2]
    assert isinstance(cell, Cell)
    assert (cell.value, cell.half_width) == (pytest.approx(32.0), pytest.approx(2.16, rel=0.1))
    assert "over evaluation samples" in table.title
    assert any("not over seeds" in note for note in table.notes)


def test_results_from_before_outcomes_were_kept_have_no_interval() -> None:
    suite = synthetic.write_suite(synthetic.main_specs(1))
    for path in (paths.RESULTS / "evals").glob("*/*/flickr.json"):
        synthetic.write_json(path, json.loads(path.read_text()) | {"outcomes": None})
    names = collect(suite).query("kind == 'sampling'")["name"].unique()
    assert names.tolist() == ["digits"]


def test_outcomes_that_make_another_score_are_refused() -> None:
    suite = synthetic.write_suite(synthetic.main_specs(1))
    path = next((paths.RESULTS / "evals").glob("neuclip*/*/digits.json"))
    result = json.loads(path.read_text())
    synthetic.write_json(path, result | {"value": result["value"] + 1e-4})
    with pytest.raises(CollectError, match=r"value of neuclip.* on digits is 0\.\d+, but its outcomes make 0\.\d+"):
        collect(suite)


def test_a_run_that_diverged_scores_chance_without_an_interval_and_says_so() -> None:
    suite = synthetic.write_suite(synthetic.main_specs(1), diverged=(("siglip", 0),))
    frame = collect(suite)
    assert "siglip" not in set(frame.query("kind == 'sampling'")["method"])
    table = build_table(frame, "over_samples")
    (digits, _) = table.rows
    cell = digits[table.header.index("SigLIP")]
    assert isinstance(cell, Cell)
    assert (cell.text(), cell.remark) == ("10.0", "diverged")
