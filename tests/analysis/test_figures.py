from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import synthetic
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import artifacts, style
from analysis.collect import collect
from analysis.rendering import build_figure

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


def test_chance_is_a_line_near_the_data_and_a_number_far_from_it(frame: pd.DataFrame) -> None:
    near = frame.assign(chance=frame["chance"].where(frame["name"] != "digits", 0.25))
    figure = build_figure(near, "results_by_method")
    assert line(panel(figure, "Digits"), "chance")[0, 0] == 25.0
    assert "\N{LEFTWARDS ARROW} chance 0.5" in [text.get_text() for text in panel(figure, "Flickr").texts]


def test_numbers_stand_beside_averages_and_divergence_in_the_caption(frame: pd.DataFrame) -> None:
    figure = build_figure(frame, "results_by_method")
    assert "36.5" in [text.get_text() for text in panel(figure, "Average").texts]
    assert "36.5" not in [text.get_text() for text in panel(figure, "Digits").texts]
    assert "SigLIP: 1 of 3 runs diverged." in texts(figure)


def test_one_run_is_drawn_without_a_bar() -> None:
    figure = build_figure(collect(synthetic.write_suite(synthetic.main_specs(1))), "results_by_method")
    assert all(len(line.get_xdata()) == 1 or line.get_label() == "chance" for line in panel(figure, "Digits").lines)


def test_several_settings_have_a_panel_per_average_each() -> None:
    specs = [synthetic.run_spec(m, 0, global_batch_size=b) for m in ("neuclip", "openclip") for b in (64, 128)]
    figure = build_figure(collect(synthetic.write_suite(specs)), "results_by_method")
    titles = [axes.get_title(loc="left") for axes in figure.get_axes()]
    assert titles == ["Average, batch 64", "Retrieval, batch 64", "Average, batch 128", "Retrieval, batch 128"]


def test_training_curves_compare_what_compares_and_separate_losses(frame: pd.DataFrame) -> None:
    figure = build_figure(frame, "training_curves")
    titles = [axes.get_title(loc="left") for axes in figure.get_axes()]
    assert titles == ["Average, %", "Temperature", "Gradient norm", *(f"Loss, {name}" for name in NAMES)]
    assert legend(figure) == NAMES
    # FastCLIP's average: 36.5 % at the end, three quarters of it half-way.
    assert line(panel(figure, "Average, %"), "FastCLIP") == pytest.approx(np.array([[1280, 27.375], [2560, 36.5]]))


def test_a_diverged_run_is_drawn_apart_and_ends_in_a_cross(frame: pd.DataFrame) -> None:
    axes = panel(build_figure(frame, "training_curves"), "Loss, SigLIP")
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
    assert legend(figure) == [*NAMES, "Fresh random embeddings"]
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
    axes = panel(build_figure(frame, "ablation"), "Average, %")
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["period=20", "NeuCLIP"]


@pytest.mark.parametrize("name", artifacts.figures())
def test_a_figure_with_nothing_to_show_says_so(frame: pd.DataFrame, name: str) -> None:
    assert texts(build_figure(frame[:0], name)).startswith("No ")


def test_a_method_keeps_its_colour_whatever_is_drawn_with_it(frame: pd.DataFrame) -> None:
    for rows in (frame, frame[frame["method"] == "siglip"]):
        axes = panel(build_figure(rows, "training_curves"), "Loss, SigLIP")
        assert axes.get_lines()[0].get_color() == style.method("siglip").color


def test_drawing_leaves_no_setting_behind(frame: pd.DataFrame) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    build_figure(frame, "normalizer_error")
    assert dict(mpl.rcParams) == before
