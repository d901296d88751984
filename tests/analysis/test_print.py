"""Figures as they are printed: on a page and in one of its columns, in colour and in grey."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import pandas as pd
import pytest
import synthetic
from drawn import build_figure
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from analysis import artifacts, style
from analysis.collect import collect
from engine import paths
from engine.registry import method_names

SMALLEST_PT = 7.0
PAGE_HEIGHT_IN = 9.3
LEAST_GAP_PT = 1.5
"""Between words beside each other; closer they are read as one."""
WIDTHS = {"page": style.PAGE_IN, "column": style.COLUMN_IN}


def luminance(color: str) -> float:
    """Relative luminance of a colour, 0 to 1, as grey printing shows it (ITU-R BT.709)."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(color)]
    return float(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])


@pytest.mark.parametrize("pair", list(itertools.combinations(method_names(controls=False), 2)), ids=" and ".join)
def test_two_methods_differ_in_marker_and_dashes_as_well_as_in_colour(pair: tuple[str, str]) -> None:
    one, two = (style.method(name) for name in pair)
    assert one.marker != two.marker
    assert one.dashes != two.dashes
    assert one.color != two.color


@pytest.mark.parametrize("name", method_names(controls=False))
def test_every_method_is_seen_on_white(name: str) -> None:
    # A line needs less contrast than text; 2 to 1 is what Okabe and Ito's lightest blue and orange have.
    assert 1.05 / (luminance(style.method(name).color) + 0.05) >= 2.0


def test_phases_of_a_step_are_told_apart_in_grey() -> None:
    from analysis.studies.step_time import PHASES

    for one, two in itertools.combinations(PHASES.values(), 2):
        is_hatched = ("hatch" in one) != ("hatch" in two)
        assert is_hatched or abs(luminance(one["facecolor"]) - luminance(two["facecolor"])) > 0.1


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """A suite that every figure has something to show of, with titles and labels as long as real ones."""
    titles = ["Caltech-101", "KITTI Vehicle Distance", "Describable Textures", "ImageNet Sketch", "Flickr", "SVHN"]
    titles += ["Rendered SST2", "Camelyon17", "Resisc45", "Dollar Street", "ObjectNet", "iWildCam", "FGVC Aircraft"]
    cards = {f"set{i}": {**synthetic.CARDS["digits"], "title": title} for i, title in enumerate(titles)}
    main = {"num_updates": 10, "restart_period": 500, **synthetic.CORNERS[-1]}
    specs = [
        synthetic.run_spec(method, seed, global_batch_size=size, config=main)
        for method in method_names(controls=False)
        for size in (64, 32)
        for seed in range(2)
    ]
    end = {"milestones": [synthetic.BATCH * synthetic.STEPS], "normalizer_error": None}
    specs += [synthetic.run_spec("openclip", seed, global_batch_size=256, config=main, **end) for seed in range(2)]
    variants = {
        f"{updates} updates, restart every {period}": [
            synthetic.run_spec("neuclip", seed, config={"num_updates": updates, "restart_period": period})
            for seed in range(2)
        ]
        for updates, period in itertools.product((1, 10, 50), (20, 500, "never"))
        if (updates, period) != (10, 500)
    }
    for corner in synthetic.CORNERS[:-1]:
        variants[f"{corner['architecture']}, {corner['temperature_gradient']}, {corner['positive']}"] = [
            synthetic.run_spec("neuclip", seed, config={**main, **corner}) for seed in range(2)
        ]
    variants["fixed temperature"] = [
        synthetic.run_spec(method, 0, config={**main, "fixed": True}) for method in method_names(controls=False)
    ]
    averages = {"DataComp": list(cards), "ImageNet & Variants": ["set3", "set0"], "Retrieval": ["set4"]}
    sign = {"name": "embedding_collapse", "first_step": 3, "last_step": 30, "evidence": {}, "advice": "-"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("full"))
        suite = synthetic.write_suite(
            specs,
            cards={**cards, "held_out": cards["set0"]},
            averages=averages,
            variants=variants,
            diverged=(("siglip", 1),),
        )
        content = json.loads(suite.read_text())
        for run in content["runs"]:
            if run["variant"].startswith("1 updates"):
                run["settings"] = {"options.num_updates": {"value": 1, "range": "1 to 50, log", "place": 0.0}}
        synthetic.write_json(suite, content)
        for record in paths.RESULTS.glob("runs/siglip*/record.json"):
            record.write_text(json.dumps(json.loads(record.read_text()) | {"signatures": [sign]}))
        return collect(suite)


@style.paper
def printed(frame: pd.DataFrame, name: str, width: float) -> tuple[Figure, list[Text]]:
    """Draw a figure; returns it with its visible texts in place."""
    figure = build_figure(frame if name == "tuning" else frame[frame["kind"] != "setting"], name, width)
    figure.dpi = 200
    figure.draw_without_rendering()
    unused = {id(label) for axes in figure.get_axes() for label in _unused_tick_labels(axes)}
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    return figure, [text for text in texts if id(text) not in unused]


def _unused_tick_labels(axes: Axes) -> Iterator[Text]:
    """Labels that are there and not drawn: of ticks left over, beyond the axis, or of an axis that is off."""
    for number, axis in enumerate((axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        room = 1e-6 * (high - low)
        used = axis.get_major_ticks() if axes.axison and axis.get_visible() else []
        for tick in (*axis.majorTicks, *axis.minorTicks):
            if tick not in used or not low - room <= tick.label1.get_position()[number] <= high + room:
                yield from (tick.label1, tick.label2)


@pytest.mark.parametrize("where", WIDTHS)
@pytest.mark.parametrize("name", artifacts.figures())
def test_no_text_is_too_small_cut_off_or_on_top_of_another(full: pd.DataFrame, name: str, where: str) -> None:
    figure, texts = printed(full, name, WIDTHS[where])
    assert figure.get_figwidth() == WIDTHS[where]
    assert figure.get_figheight() <= PAGE_HEIGHT_IN
    assert {text.get_text() for text in texts if text.get_fontsize() < SMALLEST_PT} == set()
    boxes = [text.get_window_extent() for text in texts]
    right, top = figure.bbox.size
    cut = [
        text.get_text()
        for text, box in zip(texts, boxes, strict=True)
        if box.x0 < -1 or box.y0 < -1 or box.x1 > right + 1 or box.y1 > top + 1
    ]
    assert cut == []
    overlapping = [
        (one.get_text(), two.get_text())
        for (one, a), (two, b) in itertools.combinations(zip(texts, boxes, strict=True), 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > -LEAST_GAP_PT / 72 * figure.dpi and min(a.y1, b.y1) - max(a.y0, b.y0) > 3
    ]
    assert overlapping == []
