"""How the gain over OpenCLIP is divided, and what tables and figure show of it."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import synthetic
from drawn import build_figure, build_table
from matplotlib.axes import Axes

from analysis import rendering, style
from analysis.attribution import ENDS, OPENCLIP, Attribution, Cell, attributions, shapley
from analysis.collect import collect
from experiments.design.suite import expand

SEEDS = (0, 1, 2)
SOURCES = {"batch": "batch", "average": "average", "queue": "queue", "network": "prototypes", "exact": "exact"}
NORMALIZER = {"batch": 0.0, "average": 0.01, "queue": 0.02, "prototypes": 0.03, "exact": 0.04}
TEMPERATURE = {"infonce": 0.0, "rho": 0.10, "fixed": 0.12}
FACTORS = ["Normalizer", "Temperature", "Own pair"]


def score(cell: Cell, seed: int) -> float:
    """What a cell scores: each factor adds something, normalizer and temperature more if both are changed."""
    is_moved = cell.rule != "infonce"
    together = 0.05 if is_moved and cell.source != "batch" else 0.0
    alone = NORMALIZER[cell.source] + TEMPERATURE[cell.rule] - 0.02 * cell.own_pair
    # Seeds differ in level, which differences cancel, and in what the temperature is worth.
    return 0.3 + alone + together + 0.02 * seed + 0.01 * (seed - 1) * is_moved


def cell_of(label: str) -> Cell:
    """What a variant of the ablation says that it is."""
    source, rule, *own = (label or "network, rho").split(", ")
    return Cell(SOURCES[source], rule.lower(), own == ["own pair"])


@pytest.fixture(scope="module")
def _ablation(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The ablation on the suite `smoke`, with options as its runs have them, and the scores of `score`."""
    variants: dict[str, list[dict[str, object]]] = {}
    for run in expand("ablation_attribution@smoke").runs:
        spec = synthetic.run_spec("neuclip", run.spec.seed, config=run.spec.method.config, normalizer_error=None)
        variants.setdefault(run.variant, []).append(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("attribution"))
        main = variants.pop("")
        frame = collect(synthetic.write_suite(main, name="ablation_attribution@smoke", variants=variants))
    rows = frame["kind"].eq("average") & frame["is_final"]
    frame.loc[rows, "value"] = [
        score(cell_of(run.variant), run.seed) + 0.1 * (run.name == "Retrieval")
        for run in frame[rows][["variant", "seed", "name"]].rename_axis(index="row").itertuples(index=False)
    ]
    return frame


@pytest.fixture
def ablation(_ablation: pd.DataFrame) -> pd.DataFrame:
    return _ablation.copy()


def first(frame: pd.DataFrame) -> Attribution:
    return attributions(frame)[0]


def by_orders(value: Callable[[tuple[int, ...]], float], n: int) -> list[float]:
    """Shapley's value as its definition says: go through all orders, one by one."""
    parts = [0.0] * n
    orders = list(itertools.permutations(range(n)))
    for order in orders:
        at = [0] * n
        for factor in order:
            before = value(tuple(at))
            at[factor] = 1
            parts[factor] += (value(tuple(at)) - before) / len(orders)
    return parts


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_parts_are_the_means_over_all_orders_and_sum_to_the_gain(n: int) -> None:
    corners = np.random.default_rng(n).standard_normal((2,) * n + (5,))
    parts = shapley(corners)
    for seed in range(5):
        assert parts[:, seed] == pytest.approx(by_orders(lambda at, seed=seed: corners[(*at, seed)], n))
    assert parts.sum(axis=0) == pytest.approx(corners[(1,) * n] - corners[(0,) * n], abs=1e-14)


def test_the_ablation_has_every_corner_of_every_gain(ablation: pd.DataFrame) -> None:
    found = first(ablation)
    assert [parts.end for parts in found.decompositions] == list(ENDS)
    assert found.missing == found.doubles == []
    assert set(found.scores) == {cell_of(label) for label in ablation["variant"].unique()}
    assert all(list(values.index) == list(SEEDS) for values in found.scores.values())


@pytest.mark.parametrize("end", ENDS, ids=str)
def test_shares_are_those_of_the_cells(ablation: pd.DataFrame, end: Cell) -> None:
    (parts,) = [parts for parts in first(ablation).decompositions if parts.end == end]
    assert [share.factor for share in parts.shares] == FACTORS
    for seed in SEEDS:

        def value(at: tuple[int, ...], seed: int = seed) -> float:
            levels = [(OPENCLIP[i], end[i])[changed] for i, changed in enumerate(at)]
            return score(Cell(*levels), seed)

        assert [share.share[seed] for share in parts.shares] == pytest.approx(by_orders(value, 3))
        # Normalizer and temperature halve what they bring together.
        assert parts.shares[0].share[seed] == pytest.approx(NORMALIZER[end.source] + 0.025)
        assert parts.shares[0].first[seed] == pytest.approx(NORMALIZER[end.source])
        assert parts.shares[0].last[seed] == pytest.approx(NORMALIZER[end.source] + 0.05)
        assert sum(share.share[seed] for share in parts.shares) == pytest.approx(parts.gain[seed])
        assert parts.gain[seed] == pytest.approx(score(end, seed) - score(OPENCLIP, seed))


def test_without_a_corner_there_are_no_shares_and_the_cell_is_named(ablation: pd.DataFrame) -> None:
    found = first(ablation[ablation["variant"] != "exact, rho, own pair"])
    assert [parts.end.source for parts in found.decompositions] == ["prototypes", "prototypes", "exact"]
    assert found.missing == ["No shares from OpenCLIP to exact, rho: there is no run of exact, own pair, rho."]
    # This one is a corner of all four.
    ablation = ablation[ablation["variant"] != "batch, InfoNCE"]
    assert rendering.build_table(ablation, "attribution_shares") is None
    said = "there is no run of batch, InfoNCE."
    assert said in " ".join(str(build_figure(ablation, "attribution").get_supxlabel()).split())


def test_a_seed_without_a_score_is_left_out_and_named(ablation: pd.DataFrame) -> None:
    lost = ablation["variant"].eq("batch, rho") & ablation["seed"].eq(1) & ablation["kind"].eq("average")
    ablation.loc[lost, ["value", "status"]] = [math.nan, "diverged"]
    found = first(ablation)
    seeds = {parts.end: list(parts.gain.index) for parts in found.decompositions}
    assert seeds == {end: [0, 2] if end.rule == "rho" else [0, 1, 2] for end in ENDS}
    assert found.missing[0] == "Seed 1 is left out from OpenCLIP to network, rho: no score of batch, rho."
    table = build_table(ablation, "attribution")
    (row,) = [row for row in table.rows if row[:2] == ("Average", "batch")]
    assert dict(zip(table.header, row, strict=True))["rho"].remark == "(n = 2)"


def test_of_two_variants_with_the_same_factors_one_is_left_out_and_named(ablation: pd.DataFrame) -> None:
    twin = ablation[ablation["variant"] == "queue, rho"]
    twin = twin.assign(variant="short queue, rho", run_id=twin["run_id"] + "-twin", value=0.0)
    found = first(pd.concat([ablation, twin]))
    assert found.doubles == ["Left out: NeuCLIP, short queue, rho; its factors are those of NeuCLIP, queue, rho."]
    assert found.scores[Cell("queue", "rho", False)].to_dict() == pytest.approx(
        {seed: score(Cell("queue", "rho", False), seed) for seed in SEEDS}
    )


def test_the_table_of_cells_has_sources_below_and_rules_beside_each_other(ablation: pd.DataFrame) -> None:
    table = build_table(ablation, "attribution")
    assert table.header == ("Score", "Normalizer", "InfoNCE", "rho", "fixed")
    rows = [
        "batch, own pair", "batch", "moving average", "queue", "network, own pair", "network",
        "exact, own pair", "exact",
    ]  # fmt: skip
    assert [row[:2] for row in table.rows] == list(
        itertools.product(["Average", "Retrieval", "Final temperature"], rows)
    )
    cells = {row[:2]: dict(zip(table.header[2:], row[2:], strict=True)) for row in table.rows}
    # Seeds score 45, 48 and 51 %: their standard deviation is 3 points.
    assert cells["Average", "network"]["rho"].text() == f"50.0 ± {4.302653 * 3 / 3**0.5:.1f}"
    assert cells["Average", "queue"]["InfoNCE"].value is None
    # The last of the logged steps is 39 of 40; seeds add 0, 0.001 and 0.002.
    expected = 0.07 - 0.03 * 39 / 40 * 0.4 * 2 + 0.001
    assert cells["Final temperature", "network"]["rho"].value == pytest.approx(expected)


def test_the_table_of_shares_adds_up(ablation: pd.DataFrame) -> None:
    table = build_table(ablation, "attribution_shares")
    assert table.header == ("Score", "From OpenCLIP to", "Changed", "Share", "Share, %", "First", "Last", "Seeds")
    ours = [row for row in table.rows if row[:2] == ("Average", "NeuCLIP")]
    changed = ["Normalizer: network", "Temperature: rho", "Own pair: left out", "All three"]
    assert [row[2] for row in ours] == changed
    points = [row[3].value for row in ours]
    assert points == pytest.approx([5.5, 12.5, 2.0, 20.0])
    assert [row[4].value for row in ours] == pytest.approx([27.5, 62.5, 10.0, 100.0])
    # The temperature's worth has a standard deviation of one point over the seeds; the normalizer's has none.
    widths = [row[3].half_width for row in ours]
    assert widths == pytest.approx([0.0, 4.302653 / 3**0.5, 0.0, 4.302653 / 3**0.5], abs=1e-6)
    assert [ours[0][5].value, ours[0][6].value] == pytest.approx([3.0, 8.0])


def points(axes: Axes) -> dict[str, list[float]]:
    """The x of all markers by label."""
    found: dict[str, list[float]] = {}
    for line in axes.get_lines():
        if not str(line.get_label()).startswith("_"):
            found.setdefault(str(line.get_label()), []).extend(line.get_xdata())
    return found


@pytest.mark.parametrize("width", [style.PAGE_IN, style.COLUMN_IN])
def test_the_figure_shows_cells_and_shares_of_the_first_average(ablation: pd.DataFrame, width: float) -> None:
    figure = build_figure(ablation, "attribution", width)
    cells, shares = figure.axes
    assert cells.get_title(loc="left").replace("\n", " ") == "Average, %"
    assert len(points(cells)) == 22
    assert points(cells)["network, rho"] == pytest.approx([50.0])
    assert [label.get_text() for label in shares.get_yticklabels()] == [
        "all three", "own pair", "temperature", "normalizer",
    ]  # fmt: skip
    assert points(shares)["network, rho"] == pytest.approx([20.0, 2.0, 12.5, 5.5])


def test_without_options_that_tell_cells_nothing_is_drawn(frame: pd.DataFrame) -> None:
    assert attributions(frame) == []
