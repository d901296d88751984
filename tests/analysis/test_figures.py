from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import synthetic
from drawn import build_figure
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import artifacts, rendering, style
from analysis.collect import collect
from engine import paths

NOT_IN_TABLES = (
    "training_curves", "quality_by_time", "normalizer_error", "predicted_normalizer", "failure_signatures",
)  # fmt: skip
"""What these figures draw, no table has."""
NAMES = ["NeuCLIP", "AmorLIP", "SigLIP", "FastCLIP", "OpenCLIP"]


def panel(figure: Figure, title: str) -> Axes:
    (axes,) = [axes for axes in figure.get_axes() if axes.get_title(loc="left") == title]
    return axes


def line(axes: Axes, label: str) -> np.ndarray:
    (found,) = [line for line in axes.get_lines() if line.get_label() == label]
    return np.column_stack(found.get_data())


def texts(figure: Figure) -> str:
    return " ".join(text.get_text().replace("\n", " ") for text in figure.findobj(lambda a: hasattr(a, "get_text")))


def legend(figure: Figure) -> list[str]:
    (one,) = figure.legends
    return [text.get_text() for text in one.get_texts()]


def test_results_have_a_panel_per_score_with_ours_on_top(frame: pd.DataFrame) -> None:
    figure = build_figure(frame, "results_by_method")
    assert [axes.get_title(loc="left") for axes in figure.get_axes()] == ["Average", "Retrieval", "Digits", "Flickr"]
    labels = [tick.get_text() for tick in panel(figure, "Average").get_yticklabels()]
    assert labels == NAMES[::-1]


def test_a_set_that_is_not_there_has_no_points_and_the_rest_is_drawn() -> None:
    suite = synthetic.write_suite(synthetic.main_specs(2))
    figure = build_figure(
        collect(synthetic.lose_set(suite, "digits", when_missing="average_of_available")), "results_by_method"
    )
    titles = [axes.get_title(loc="left") for axes in figure.get_axes()]
    assert "Average (1 of 2 sets)" in titles
    assert np.isfinite(line(panel(figure, "Flickr"), "FastCLIP")).all()
    build_figure(collect(suite), "training_curves")


def test_results_show_mean_interval_and_seeds(frame: pd.DataFrame) -> None:
    axes = panel(build_figure(frame, "results_by_method"), "Digits")
    assert line(axes, "FastCLIP") == pytest.approx(np.array([[34.0, 1.0]]))
    bars = [bar.get_xdata() for bar in axes.get_lines() if list(bar.get_ydata()) == [1, 1]]
    assert bars[0] == pytest.approx([34.0 - 4.96828, 34.0 + 4.96828], abs=1e-4)
    seeds = [dots.get_offsets()[:, 0] for dots in axes.collections if len(dots.get_offsets())]
    assert any(np.allclose(sorted(x), [32, 34, 36]) for x in seeds)


def test_intervals_of_scores_end_where_scores_do(frame: pd.DataFrame) -> None:
    of_set = frame["name"] == "digits"
    spread = frame.assign(value=frame["value"].mask(of_set, frame["seed"].map({0: 1.0, 1: 0.0, 2: 1.0})))
    axes = panel(build_figure(spread, "results_by_method"), "Digits")
    bars = [bar.get_xdata() for bar in axes.get_lines() if list(bar.get_ydata()) == [1, 1]]
    assert bars[0] == pytest.approx([0, 100])


def test_chance_is_a_line_near_the_data_and_a_number_far_from_it(frame: pd.DataFrame) -> None:
    near = frame.assign(chance=frame["chance"].where(frame["name"] != "digits", 0.25))
    figure = build_figure(near, "results_by_method")
    assert line(panel(figure, "Digits"), "chance")[0, 0] == 25.0
    figure = build_figure(near[near["method"] != "siglip"], "results_by_method")
    assert "\N{LEFTWARDS ARROW} chance 0.5" in [text.get_text() for text in panel(figure, "Flickr").texts]
    frame = frame[frame["method"] != "siglip"]  # what diverged stands at chance itself
    far = frame.assign(chance=frame["chance"].where(frame["name"] != "digits", 0.9))
    said = [text.get_text() for text in panel(build_figure(far, "results_by_method"), "Digits").texts]
    assert "chance 90.0 \N{RIGHTWARDS ARROW}" in said


def test_numbers_stand_beside_averages_and_divergence_in_the_caption(frame: pd.DataFrame) -> None:
    figure = build_figure(frame, "results_by_method")
    assert "36.5" in [text.get_text() for text in panel(figure, "Average").texts]
    assert "36.5" not in [text.get_text() for text in panel(figure, "Digits").texts]
    assert "Diverged: SigLIP 1 of 3 (counted as guessing)." in texts(figure)


def test_one_run_is_drawn_without_a_bar() -> None:
    figure = build_figure(collect(synthetic.write_suite(synthetic.main_specs(1))), "results_by_method")
    assert all(len(line.get_xdata()) == 1 or line.get_label() == "chance" for line in panel(figure, "Digits").lines)


def test_several_settings_have_a_panel_per_average_each() -> None:
    specs = [synthetic.run_spec(m, 0, global_batch_size=b) for m in ("neuclip", "openclip") for b in (64, 128)]
    figure = build_figure(collect(synthetic.write_suite(specs)), "results_by_method")
    titles = [axes.get_title(loc="left") for axes in figure.get_axes()]
    assert titles == ["Average, batch 64", "Retrieval, batch 64", "Average, batch 128", "Retrieval, batch 128"]


def test_a_suite_without_averages_has_its_sets_drawn() -> None:
    frame = collect(synthetic.write_suite(synthetic.main_specs(1), averages={}))
    titles = [axes.get_title(loc="left") for axes in build_figure(frame, "results_by_method").get_axes()]
    assert titles == ["Digits", "Flickr"]


def test_training_curves_compare_what_compares_and_separate_losses(frame: pd.DataFrame) -> None:
    figure = build_figure(frame, "training_curves")
    titles = [axes.get_title(loc="left") for axes in figure.get_axes()]
    assert titles == ["Average, %", "Temperature", "Gradient norm", *NAMES]
    assert legend(figure) == NAMES
    # FastCLIP's average: 36.5 % at the end, three quarters of it half-way.
    assert line(panel(figure, "Average, %"), "FastCLIP") == pytest.approx(np.array([[1280, 27.375], [2560, 36.5]]))


def test_in_a_column_no_cell_of_what_compares_is_empty(frame: pd.DataFrame) -> None:
    def size(rows: pd.DataFrame) -> tuple[float, list[tuple[int, int]]]:
        figure = build_figure(rows, "training_curves", style.COLUMN_IN)
        spans = [axes.get_subplotspec() for axes in figure.get_axes()[: -len(NAMES)]]
        assert None not in spans
        return figure.get_figheight(), [(len(span.rowspan), len(span.colspan)) for span in spans if span]

    # The average is as wide as both others; without it, one line is enough.
    with_average, spans = size(frame)
    assert spans == [(1, 2), (1, 1), (1, 1)]
    without, spans = size(frame[frame["kind"] != "average"])
    assert spans == [(1, 1), (1, 1)]
    assert without < with_average - 1


def test_a_diverged_run_is_drawn_apart_and_ends_in_a_cross(frame: pd.DataFrame) -> None:
    axes = panel(build_figure(frame, "training_curves"), "SigLIP")
    (cross,) = [line for line in axes.get_lines() if line.get_marker() == "x"]
    assert cross.get_xdata()[0] == 0.75 * synthetic.BATCH * synthetic.STEPS
    first = frame[(frame["method"] == "siglip") & (frame["name"] == "loss/total") & (frame["seed"] < 2)]
    expected = first.groupby("samples_seen")["value"].mean()
    assert line(axes, "SigLIP")[:, 1] == pytest.approx(expected.to_numpy())


def test_bands_reach_from_the_lowest_to_the_highest_seed(frame: pd.DataFrame) -> None:
    axes = panel(build_figure(frame, "training_curves"), "Average, %")
    final = [band.get_datalim(axes.transData).ymax for band in axes.collections]
    assert final[1] == pytest.approx(38.5)


def test_the_track_of_one_temperature_comes_first() -> None:
    fixed = [synthetic.run_spec(method, 0, config={"fixed": True}) for method in synthetic.METHODS]
    suite = synthetic.write_suite(synthetic.main_specs(), variants={"fixed temperature": fixed})
    figure = build_figure(collect(suite), "normalizer_error")
    titles = [axes.get_title(loc="left") for axes in figure.get_axes()]
    tau = "\N{GREEK SMALL LETTER TAU}"
    assert titles == [f"Fixed temperature ({tau} = 0.07)", f"Main runs ({tau} = 0.03 to 0.041)"]
    assert legend(figure) == [*NAMES, "Fresh embeddings"]
    axes = figure.get_axes()[1]
    assert axes.get_yscale() == "log"
    assert line(axes, "OpenCLIP")[-1] == pytest.approx([2560, 0.93])
    assert line(axes, "control")[:, 1] == pytest.approx([0.03, 0.03])


def test_normalizer_errors_are_shown_by_batch_size_when_it_varies() -> None:
    specs = [synthetic.run_spec(m, 0, global_batch_size=b) for m in ("neuclip", "openclip") for b in (64, 128, 256)]
    figure = build_figure(collect(synthetic.write_suite(specs)), "normalizer_error")
    by_size = figure.get_axes()[1]
    assert by_size.get_xlabel() == "Global batch size"
    assert line(by_size, "NeuCLIP")[:, 0] == pytest.approx([64, 128, 256])


def test_paired_differences_have_a_row_per_baseline(frame: pd.DataFrame) -> None:
    axes = panel(build_figure(frame, "paired_differences"), "Average")
    assert [t.get_text() for t in axes.get_yticklabels()] == [f"minus {name}" for name in NAMES[:0:-1]]
    assert line(axes, "FastCLIP")[0] == pytest.approx([6.0, 1.0])


def test_an_ablation_has_a_row_per_variant() -> None:
    variant = [synthetic.run_spec("neuclip", seed, config={"period": 20}) for seed in range(3)]
    frame = collect(synthetic.write_suite(synthetic.main_specs(), variants={"period=20": variant}))
    axes = panel(build_figure(frame, "ablation"), "Average")
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["period=20", "NeuCLIP"]


def variants_of(options: dict[str, list[Any]], main: dict[str, Any]) -> pd.DataFrame:
    """NeuCLIP with three seeds for all combinations of options; `main` is the main run's."""
    labelled = {}
    for values in itertools.product(*options.values()):
        config = dict(zip(options, values, strict=True))
        labelled["" if config == main else str(config)] = [
            synthetic.run_spec("neuclip", seed, config=config) for seed in range(3)
        ]
    return collect(synthetic.write_suite(labelled.pop(""), variants=labelled))


def test_two_options_make_a_heat_map_with_the_main_run_outlined() -> None:
    main = {"num_updates": 10, "restart_period": 500}
    frame = variants_of({"num_updates": [10, 1], "restart_period": [500, "never", 100]}, main)
    score = (frame["kind"] == "average") & (frame["variant"].str.contains("never"))
    frame["value"] = frame["value"] - 0.1 * score
    axes = panel(build_figure(frame, "sensitivity"), "Average, %")
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "10"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["100", "500", "never"]
    (image,) = axes.images
    np.testing.assert_allclose(image.get_array(), [[42.5, 42.5], [42.5, 42.5], [32.5, 32.5]])
    assert [text.get_text() for text in axes.texts][-1] == "32.5"
    (outline,) = axes.patches
    assert outline.get_xy() == pytest.approx((1 - 0.48, 1 - 0.46))


def test_a_variant_of_something_else_does_not_enter_the_main_run_s_cell() -> None:
    main = {"num_updates": 10, "restart_period": 500}
    options = {"num_updates": [10, 1], "restart_period": [500, 100], "fixed": [True, False]}
    frame = variants_of(options, {**main, "fixed": False})
    frame["value"] = frame["value"].where(~frame["variant"].str.contains("'fixed': True"), 0.0)
    (image,) = panel(build_figure(frame, "sensitivity"), "Average, %").images
    assert image.get_array()[1, 1] == pytest.approx(42.5)


def test_one_option_makes_a_curve_and_mixed_devices_have_no_step_time() -> None:
    frame = variants_of({"num_prototypes": [4096, 256]}, {"num_prototypes": 4096})
    figure = build_figure(frame, "sensitivity")
    assert line(panel(figure, "Average, %"), "NeuCLIP") == pytest.approx(np.array([[0, 42.5], [1, 42.5]]))
    assert line(panel(figure, "Median step, ms"), "NeuCLIP")[:, 1] == pytest.approx([11.0, 11.0])
    frame.loc[frame["seed"] == 1, "device"] = "gpu"
    figure = build_figure(frame, "sensitivity")
    assert [axes.get_title(loc="left") for axes in figure.get_axes()] == ["Average, %"]
    assert "No step times: they are of several devices" in texts(figure)


def test_quality_by_time_is_steps_times_the_median_step(frame: pd.DataFrame) -> None:
    (axes,) = build_figure(frame, "quality_by_time").get_axes()
    # 20 and 40 steps of 10, 11 and 12 ms.
    assert axes.get_xlabel() == "Training, device seconds"
    assert line(axes, "FastCLIP") == pytest.approx(np.array([[0.22, 27.375], [0.44, 36.5]]))
    frame.loc[frame["name"] == "num_processes", "value"] = 4
    (axes,) = build_figure(frame, "quality_by_time").get_axes()
    assert line(axes, "FastCLIP")[:, 0] == pytest.approx([4 * 0.22, 4 * 0.44])


def test_a_diverged_run_is_in_no_mean_against_time_and_ends_in_a_cross(frame: pd.DataFrame) -> None:
    figure = build_figure(frame, "quality_by_time")
    (axes,) = figure.get_axes()
    rows = frame[(frame["method"] == "siglip") & (frame["name"] == "Average") & (frame["seed"] < 2)]
    means = 100 * rows.groupby("samples_seen")["value"].mean()
    assert line(axes, "SigLIP")[:, 1] == pytest.approx(means.to_numpy())
    assert len([drawn for drawn in axes.get_lines() if drawn.get_marker() == "x"]) == 1
    assert "Diverged: SigLIP 1 of 3." in texts(figure)
    assert "Cross: a run that diverged." in texts(figure)


@pytest.mark.parametrize("name", ["quality_by_time", "step_time"])
def test_devices_have_panels_of_their_own(frame: pd.DataFrame, name: str) -> None:
    moved = frame.assign(device=frame["device"].where(frame["seed"] != 1, "gpu"))
    figure = build_figure(moved, name)
    assert [axes.get_title(loc="left") for axes in figure.get_axes()] == ["cpu", "gpu"]
    assert "do not compare" in texts(figure)


@pytest.mark.parametrize("name", ["quality_by_time", "step_time"])
def test_a_run_that_moved_is_not_timed(frame: pd.DataFrame, name: str) -> None:
    moved = frame.assign(device=frame["device"].where(frame["seed"] != 1, "cpu, gpu"))
    assert [axes.get_title(loc="left") for axes in build_figure(moved, name).get_axes()] == [""]
    assert rendering.build_figure(moved.assign(device="cpu, gpu"), name) is None


def test_a_step_is_split_as_the_total_time_is(frame: pd.DataFrame) -> None:
    (axes,) = build_figure(frame, "step_time").get_axes()
    widths = [bar.patches[0].get_width() for bar in axes.containers[:4]]
    assert widths == pytest.approx([11 * part / 9.5 for part in (1, 6, 2, 0.5)])


def test_signs_of_failure_are_bars_over_the_share_of_training(suite: Path) -> None:
    assert rendering.build_figure(collect(suite), "failure_signatures") is None
    sign = {"name": "embedding_collapse", "first_step": 10, "last_step": 30, "evidence": {}, "advice": "-"}
    for record in paths.RESULTS.glob("runs/siglip*-s[01]-*/record.json"):
        record.write_text(json.dumps(json.loads(record.read_text()) | {"signatures": [sign]}))
    figure = build_figure(collect(suite), "failure_signatures")
    (axes,) = figure.get_axes()
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["SigLIP: embedding collapse"]
    bars = [(bar.get_x(), bar.get_width()) for bar in axes.patches]
    assert bars == [pytest.approx((0.25, 0.5))] * 2
    assert "2 of 3 runs" in texts(figure)


def test_quality_by_batch_size_has_equal_samples_and_equal_steps_with_the_shared_run() -> None:
    def specs(size: int, steps: int) -> list[dict[str, Any]]:
        how = {"samples_seen": size * steps, "milestones": [size * steps], "normalizer_error": None}
        return [synthetic.run_spec(m, 0, global_batch_size=size, **how) for m in ("neuclip", "openclip")]

    equal_samples = specs(32, 80) + specs(64, 40) + specs(128, 20)
    suite = synthetic.write_suite(equal_samples, variants={"equal steps": specs(32, 40) + specs(128, 40)})
    figure = build_figure(collect(suite), "quality_by_size")
    assert [axes.get_title(loc="left") for axes in figure.get_axes()] == ["Equal samples seen", "Equal steps"]
    for axes in figure.get_axes():
        assert line(axes, "NeuCLIP")[:, 0] == pytest.approx([32, 64, 128])


def test_the_best_by_size_is_drawn_beside_what_it_is_ahead_of_openclip(frame: pd.DataFrame) -> None:
    averages = frame[(frame["kind"] == "average") & frame["is_final"] & (frame["name"] == "Average")]
    runs = pd.concat([averages, averages.assign(kind="validation", name="Validation")])
    larger = runs.assign(global_batch_size=128, run_id="larger-" + runs["run_id"], value=runs["value"] + 0.01)
    better = runs.assign(variant="half", run_id="half-" + runs["run_id"], value=runs["value"] + 0.02)
    better = better[better["method"] == "neuclip"]
    figure = build_figure(pd.concat([runs, larger, better]), "best_by_size")
    scores, ahead = figure.get_axes()
    drawn = line(scores, "NeuCLIP")
    assert drawn[:, 0] == pytest.approx([64, 128])
    assert drawn[0, 1] - drawn[1, 1] == pytest.approx(1)
    assert line(ahead, "OpenCLIP")[:, 1] == pytest.approx([0, 0])
    assert line(ahead, "NeuCLIP")[:, 1] == pytest.approx([12, 10])
    assert rendering.build_figure(averages, "best_by_size") is None


def many_sets(num_settings: int = 1) -> pd.DataFrame:
    cards = {f"set{i}": {**synthetic.CARDS["digits"], "title": f"Set {i}"} for i in range(20)}
    averages = {f"Average {i}": list(cards) for i in range(5)}
    specs = [
        synthetic.run_spec(method, 0, model={"name": f"model{i}"})
        for method in synthetic.METHODS
        for i in range(num_settings)
    ]
    return collect(synthetic.write_suite(specs, cards=cards, averages=averages))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Far more settings, variants, sets and signs of failure than a page has room for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("large"))
        frame = many_sets(num_settings=20)
    variants = [frame.assign(variant=f"v{i}", run_id=frame["run_id"] + f"v{i}") for i in range(3)]
    sign = frame.drop_duplicates("run_id").assign(kind="signature", name="embedding_collapse", value=1.0)
    signs = [sign.assign(metric=metric) for metric in ("first_step", "last_step")]
    return pd.concat([frame, *variants, *signs])


def test_ranks_have_a_marker_per_method_and_a_bar_over_those_alike() -> None:
    (axes,) = build_figure(many_sets(), "critical_difference").get_axes()
    # On every set: NeuCLIP, FastCLIP, AmorLIP, OpenCLIP, SigLIP. CD = 2.728 * sqrt(5 * 6 / (6 * 20)) = 1.36.
    places = {name: line(axes, name)[0, 0] for name in NAMES}
    assert places == {"NeuCLIP": 1, "FastCLIP": 2, "AmorLIP": 3, "OpenCLIP": 4, "SigLIP": 5}
    alike = [tuple(bar.get_xdata()) for bar in axes.get_lines() if bar.get_label() == "alike"]
    assert alike == [pytest.approx((i - 0.04, i + 1.04)) for i in (1, 2, 3, 4)]
    assert "CD = 1.36" in texts(axes.figure)


def test_a_method_without_scores_is_said_to_be_unranked() -> None:
    frame = many_sets()
    frame["value"] = frame["value"].where(frame["method"] != "siglip")
    figure = build_figure(frame, "critical_difference")
    assert "Without scores, and not ranked: SigLIP." in texts(figure)
    assert len(line(figure.get_axes()[0], "FastCLIP"))


def test_log_normalizers_of_single_anchors_are_shown_with_their_error(frame: pd.DataFrame) -> None:
    figure = build_figure(frame, "predicted_normalizer")
    assert [axes.get_title(loc="left") for axes in figure.get_axes()] == NAMES * 2
    said = [axes.texts[0].get_text() for axes in figure.get_axes()]
    # Off by 0.1 and 0.2 for NeuCLIP, by 0.6 and 1.2 for OpenCLIP.
    assert [said[0], said[5], said[4], said[9]] == [
        "MSE 0.01\nbias +0.1", "MSE 0.04\nbias +0.2", "MSE 0.36\nbias +0.6", "MSE 1.4\nbias +1.2",
    ]  # fmt: skip
    # 40 anchors of three seeds; FastCLIP has no estimate for four of each, SigLIP's last seed diverged.
    counts = [sum(axes.collections[-1].get_array()) for axes in figure.get_axes()]
    assert counts == [120, 120, 80, 108, 120, 120, 120, 80, 120, 120]


def test_in_a_column_the_two_sides_of_a_method_stand_beside_each_other(frame: pd.DataFrame) -> None:
    figure = build_figure(frame, "predicted_normalizer", style.COLUMN_IN)
    assert [axes.get_title(loc="left") for axes in figure.get_axes()] == [name for name in NAMES for _ in range(2)]
    assert [axes.get_xlabel() for axes in figure.get_axes()][-2:] == ["Exact, image", "Exact, text"]


def test_every_task_is_a_row_in_one_of_two_panels() -> None:
    left, right = build_figure(many_sets(), "per_task").get_axes()
    assert [tick.get_text() for tick in left.get_yticklabels()] == [f"Set {i}" for i in range(10)]
    assert line(right, "FastCLIP")[:, 0] == pytest.approx([32.0] * 10)


@pytest.mark.parametrize("width", [style.PAGE_IN, style.COLUMN_IN])
@pytest.mark.parametrize("name", artifacts.figures())
def test_no_figure_is_taller_than_a_page(large: pd.DataFrame, name: str, width: float) -> None:
    figure = rendering.build_figure(large, name, width)
    if figure is not None:
        assert figure.get_figheight() <= 9.3
        assert "Not drawn for want of room" in texts(figure)
        assert ("but in the tables" in texts(figure)) == (name not in NOT_IN_TABLES)


def test_a_method_keeps_its_colour_whatever_is_drawn_with_it(frame: pd.DataFrame) -> None:
    for rows in (frame, frame[frame["method"] == "siglip"]):
        axes = panel(build_figure(rows, "training_curves"), "SigLIP")
        assert axes.get_lines()[0].get_color() == style.method("siglip").color


def test_drawing_leaves_no_setting_behind(frame: pd.DataFrame) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    build_figure(frame, "normalizer_error")
    assert dict(mpl.rcParams) == before


def test_errors_of_gradients_are_drawn_by_batch_and_variant_with_the_pull_of_all_pairs() -> None:
    specs = [
        synthetic.run_spec(m, s, global_batch_size=b) for m in ("neuclip", "openclip") for s in (0, 1) for b in (32, 64)
    ]
    variants = {"fixed": [synthetic.run_spec("openclip", 0, global_batch_size=32, config={"fixed": True})]}
    figure = build_figure(collect(synthetic.write_suite(specs, variants=variants)), "gradient_error")
    bias, spread, pull = figure.get_axes()
    labels = [tick.get_text().replace("\n", " ") for tick in bias.get_yticklabels()]
    small = ["NeuCLIP, batch 32", "OpenCLIP, fixed, batch 32", "OpenCLIP, batch 32"]
    assert labels[::-1] == [*small, "NeuCLIP, batch 64", "OpenCLIP, batch 64"]
    # Roots of 0.23 and 0.25; of a negative square 0.
    assert {one.get_xdata()[0] for one in bias.get_lines() if one.get_label() == "NeuCLIP"} == {0}
    drawn = [one.get_xdata()[0] for one in bias.get_lines() if one.get_label() == "OpenCLIP"]
    assert drawn[0] == pytest.approx((0.23**0.5 + 0.5) / 2)
    assert {one.get_xdata()[0] for one in spread.get_lines() if one.get_label() == "OpenCLIP"} == {2.0}
    assert {one.get_xdata()[0] for one in pull.get_lines() if one.get_label() == "exact"} == {0.4}
