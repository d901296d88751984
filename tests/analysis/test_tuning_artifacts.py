"""What a tuning's table and figure say."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import synthetic
from drawn import build_figure, build_table

from analysis import artifacts, rendering
from analysis.collect import collect
from analysis.frame import COLUMNS
from analysis.studies.tuning import expected_best
from analysis.table import Cell
from engine.schema.suite import DEFAULTS

SCORES: dict[str, dict[str, tuple[float, float]]] = {
    # Trials 2 and 10 are equal, trial 3 diverged once, and defaults are no trial.
    "openclip": {
        "trial 1": (0.3, 0.3),
        "trial 2": (0.6, 0.4),
        "trial 3": (0.9, math.nan),
        "trial 10": (0.4, 0.6),
        DEFAULTS: (0.8, 0.8),
    },
    "neuclip": {"trial 1": (0.7, 0.7), "trial 2": (0.1, 0.1), DEFAULTS: (math.nan, 0.1)},
    "siglip": {"trial 1": (math.nan, 0.3), DEFAULTS: (0.3, 0.3)},
}
PLACES = {"trial 1": 0.05, "trial 2": 0.91, "trial 3": 0.5, "trial 10": 0.5}


def rows() -> list[dict[str, Any]]:
    found = []
    for method, of_method in SCORES.items():
        for (variant, values), seed in itertools.product(of_method.items(), (0, 1)):
            shared = {
                "suite": "tuning@mine", "run_id": f"{method}-{variant}-{seed}", "method": method, "variant": variant,
                "dataset": "scenes", "dataset_pairs": 100, "model": "tiny", "global_batch_size": 8, "seed": seed,
                "commit": "c", "device": "cpu", "samples_seen": 80, "is_final": True, "title": "", "metric": "",
                "chance": math.nan, "num_samples": None, "is_main": False, "status": "finished",
            }  # fmt: skip
            score = {"kind": "average", "name": "Validation", "title": "Validation", "value": values[seed]}
            found.append(shared | score | {"chance": 0.05, "is_main": True, "status": "evaluated"})
            if variant != DEFAULTS:
                rate = {"name": "training.optimizer.lr", "title": f"0.0{variant[6:]}", "metric": "0.01 to 0.2, log"}
                found.append(shared | rate | {"kind": "setting", "value": PLACES[variant]})
                learned = {"name": "options.learnable", "title": "true", "metric": "true, false"}
                found.append(shared | learned | {"kind": "setting", "value": math.nan})
    return found


@pytest.fixture
def tuning() -> pd.DataFrame:
    return pd.DataFrame(rows(), columns=list(COLUMNS)).astype(COLUMNS)


def test_the_table_has_the_best_trial_with_its_ranges_and_edges(tuning: pd.DataFrame) -> None:
    table = build_table(tuning, "tuning")
    found = {(str(row[0]), str(row[1])): row[2:] for row in table.rows}
    assert list(found) == [
        (method, setting)
        for method in ("OpenCLIP", "NeuCLIP")
        for setting in ("training.optimizer.lr", "options.learnable")
    ]
    chosen, allowed, edge, score, defaults = found["OpenCLIP", "training.optimizer.lr"]
    assert (chosen, allowed, edge) == ("0.02", "0.01 to 0.2, log", "high")
    assert isinstance(score, Cell)
    assert isinstance(defaults, Cell)
    assert (score.value, score.n, defaults.value) == (50, 2, 80)
    chosen, _, edge, score, defaults = found["NeuCLIP", "training.optimizer.lr"]
    assert (chosen, edge) == ("0.01", "low")
    assert isinstance(defaults, Cell)
    assert defaults.text() == ""  # one of them diverged
    assert [row[2] for key, row in found.items() if key[1] == "options.learnable"] == ["", ""]
    notes = " ".join(table.notes)
    assert "OpenCLIP: trial 2 of 4 (1 diverged). SigLIP: all of 1 diverged. NeuCLIP: trial 1 of 2." in notes


def test_the_figure_has_a_curve_per_method_and_its_defaults(tuning: pd.DataFrame) -> None:
    figure = build_figure(tuning, "tuning")
    (axes,) = figure.get_axes()
    curves = {line.get_label(): line for line in axes.get_lines() if not str(line.get_label()).startswith("_")}
    assert set(curves) == {"OpenCLIP", "NeuCLIP", "SigLIP"}
    # What diverged counts as guessing, 5 %.
    assert curves["OpenCLIP"].get_xdata().tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(curves["OpenCLIP"].get_ydata(), 100 * expected_best(np.array([0.3, 0.5, 0.05, 0.5])))
    marks = [line for line in axes.get_lines() if line.get_markerfacecolor() == "none"]
    assert sorted(float(line.get_ydata()[0]) for line in marks if np.isfinite(line.get_ydata()[0])) == [30, 80]
    assert all(line.get_xdata()[0] == 1 for line in marks)


def test_the_expected_best_is_the_mean_over_all_draws() -> None:
    scores = np.array([0.3, 0.1, 0.4, 0.1, 0.25])
    for k, expected in enumerate(expected_best(scores), start=1):
        draws = [max(draw) for draw in itertools.product(scores, repeat=k)]
        assert expected == pytest.approx(np.mean(draws), rel=1e-12)
    assert expected_best(scores)[0] == pytest.approx(scores.mean())
    assert expected_best(np.array([0.7])).tolist() == [0.7]


def test_trials_are_no_results(tuning: pd.DataFrame) -> None:
    for build, names in ((rendering.build_table, artifacts.tables()), (rendering.build_figure, artifacts.figures())):
        assert [name for name in names if build(tuning, name) is not None] == ["tuning"]


def test_what_a_trial_tries_is_collected_with_its_range() -> None:
    frame = collect(synthetic.write_trials())
    settings = frame[frame["kind"] == "setting"]
    assert set(settings["variant"]) == {"trial 1", "trial 2"}
    settings = settings[settings["variant"] == "trial 1"]
    (setting,) = settings.drop_duplicates(["name", "title", "metric", "value"]).to_dict("records")
    assert [setting[key] for key in ("name", "title", "metric", "value")] == [
        "options.num_updates", "1", "1 to 50, log", 0.0,
    ]  # fmt: skip
