from __future__ import annotations

import json
import math

import pandas as pd
import pytest
import synthetic
from drawn import build_table, row

from analysis import rendering
from analysis.collect import collect
from analysis.latex import to_latex
from analysis.rendering import to_csv, to_markdown
from analysis.table import Cell, Table, number, three_digits
from engine import paths

METHODS = ["OpenCLIP", "FastCLIP", "SigLIP", "AmorLIP", "NeuCLIP"]


def test_the_main_table_has_a_row_per_method_and_a_column_per_score(frame: pd.DataFrame) -> None:
    table = build_table(frame, "main_results")
    assert table.header == ("Method", "Average", "Retrieval", "Digits", "Flickr", "Runs", "Diverged")
    assert [row[0] for row in table.rows] == METHODS


def test_its_numbers_are_those_computed_by_hand(frame: pd.DataFrame) -> None:
    # FastCLIP on Digits: 0.32, 0.34, 0.36. Mean 34 %, sd 2 points, half-width 4.302653 * 2 / sqrt(3).
    cell = row(build_table(frame, "main_results"), "FastCLIP")["Digits"]
    assert cell.value == pytest.approx(34.0)
    assert cell.half_width == pytest.approx(4.302653 * 2 / math.sqrt(3))
    assert (cell.n, cell.text()) == (3, "34.0 ± 5.0")


def test_best_and_second_are_set_off_and_marks_are_on_baselines(frame: pd.DataFrame) -> None:
    table = build_table(frame, "main_results")
    assert {name: row(table, name)["Digits"].emphasis for name in ("NeuCLIP", "FastCLIP", "AmorLIP")} == {
        "NeuCLIP": "best",
        "FastCLIP": "second",
        "AmorLIP": "",
    }
    # Differences to FastCLIP: 6.4, 5.2, 6.4 points; t = 15, so p = 0.0044, times two for Holm.
    assert row(table, "FastCLIP")["Digits"].mark == "*"
    assert row(table, "NeuCLIP")["Digits"].mark == ""


def test_a_worse_neuclip_is_marked_as_such(frame: pd.DataFrame) -> None:
    worse = frame.assign(value=frame["value"].where(frame["method"] != "neuclip", frame["value"] - 0.3))
    assert row(build_table(worse, "main_results"), "OpenCLIP")["Digits"].mark == "†"


def test_equal_means_share_a_place(frame: pd.DataFrame) -> None:
    tied = frame.assign(value=frame["value"].where(frame["name"] != "digits", 0.5))
    cells = [row(build_table(tied, "main_results"), name)["Digits"] for name in ("OpenCLIP", "NeuCLIP")]
    assert [cell.emphasis for cell in cells] == ["best", "best"]


def test_a_diverged_run_is_counted_and_n_is_shown(frame: pd.DataFrame) -> None:
    cells = row(build_table(frame, "main_results"), "SigLIP")
    assert (cells["Runs"].value, cells["Diverged"].value) == (3, 1)
    # 27, 29 and, for the one that diverged, chance: 10 %.
    assert cells["Digits"].value == pytest.approx(22.0)
    assert (cells["Digits"].n, cells["Digits"].remark) == (3, "(1 of 3 diverged)")


def test_a_method_whose_runs_all_diverged_says_so() -> None:
    suite = synthetic.write_suite(synthetic.main_specs(1), diverged=(("siglip", 0),))
    table = build_table(collect(suite), "main_results")
    cell = row(table, "SigLIP")["Digits"]
    assert (cell.value, cell.remark, cell.emphasis) == (10.0, "(1 of 1 diverged)", "")


def test_a_set_that_is_not_there_is_named_and_averages_say_what_they_are_over() -> None:
    suite = synthetic.write_suite(synthetic.main_specs(2))
    table = build_table(collect(synthetic.lose_set(suite, "digits", when_missing="no_average")), "main_results")
    assert table.header == ("Method", "Average", "Retrieval", "Digits", "Flickr", "Runs", "Diverged")
    assert "| FastCLIP | missing |" in to_markdown(table)
    assert row(table, "FastCLIP")["Digits"].remark == "missing"

    over = collect(synthetic.lose_set(suite, "digits", when_missing="average_of_available"))
    table = build_table(over, "main_results")
    assert table.header[1:3] == ("Average (1 of 2 sets)", "Retrieval")
    assert row(table, "FastCLIP")["Average (1 of 2 sets)"].text() == row(table, "FastCLIP")["Flickr"].text()


def test_one_run_has_no_interval() -> None:
    table = build_table(collect(synthetic.write_suite(synthetic.main_specs(1))), "main_results")
    assert row(table, "FastCLIP")["Digits"].text() == "32.0"
    assert "half_width" not in to_csv(table)
    assert row(table, "FastCLIP")["Digits"].mark == ""


def test_settings_become_a_column() -> None:
    specs = [synthetic.run_spec(m, 0, global_batch_size=b) for m in ("neuclip", "openclip") for b in (64, 128)]
    table = build_table(collect(synthetic.write_suite(specs)), "main_results")
    assert [row[:2] for row in table.rows] == [
        ("batch 64", "OpenCLIP"),
        ("batch 64", "NeuCLIP"),
        ("batch 128", "OpenCLIP"),
        ("batch 128", "NeuCLIP"),
    ]


def test_the_paper_is_printed_apart_and_never_in_the_csv(frame: pd.DataFrame) -> None:
    table = build_table(frame, "main_results")
    assert table.reference is not None
    assert "DataComp average over 38 tasks" in table.reference.title
    assert row(table.reference, "NeuCLIP")["CC3M"].text() == "25.08"
    assert "25.08" in to_markdown(table)
    assert "25.08" in to_latex(table)
    assert "25.08" not in to_csv(table)
    assert all(cell.emphasis == "" for line in table.reference.rows for cell in line if isinstance(cell, Cell))


def test_paired_differences_are_those_computed_by_hand(frame: pd.DataFrame) -> None:
    cells = row(build_table(frame, "paired_differences"), "Digits", "NeuCLIP", "FastCLIP")
    # 6.4, 5.2, 6.4 points: mean 6, sd 0.6928, t = 15.
    assert cells["Difference"].value == pytest.approx(6.0)
    assert cells["Difference"].half_width == pytest.approx(4.302653 * 0.6928203 / math.sqrt(3))
    assert cells["p"].value == pytest.approx(0.00441, abs=1e-5)
    assert cells["Pairs"].value == 3


def test_paired_differences_have_the_other_methods_against_openclip(frame: pd.DataFrame) -> None:
    frame.loc[(frame["method"] == "fastclip") & (frame["seed"] == 1), "value"] -= 0.03
    table = build_table(frame, "paired_differences")
    # 4, 1, 4 points: mean 3, sd 1.7321, t = 3; corrected for two: SigLIP, of which a run diverged, has a spread too.
    cells = row(table, "Average", "FastCLIP", "OpenCLIP")
    assert cells["Difference"].value == pytest.approx(3.0)
    assert cells["p"].value == pytest.approx(0.0955, abs=1e-4)
    assert cells["p (Holm)"].value == pytest.approx(2 * 0.0955, abs=1e-4)
    assert row(table, "Average", "AmorLIP", "OpenCLIP")["Difference"].value == pytest.approx(3.0)
    assert [line[1:3] for line in table.rows if line[0] == "Digits"] == [
        *(("NeuCLIP", name) for name in ("OpenCLIP", "FastCLIP", "SigLIP", "AmorLIP")),
        *((name, "OpenCLIP") for name in ("FastCLIP", "SigLIP", "AmorLIP")),
    ]


def test_the_gain_over_training_is_the_last_difference_minus_the_first(frame: pd.DataFrame) -> None:
    table = build_table(frame, "gain_over_training")
    cells = row(table, "Average", "OpenCLIP")
    # At half of the samples scores are 75 % of those at the end. There 10.4, 9.2, 10.4 points: growth 2.6, 2.3, 2.6.
    assert cells["First"].value == pytest.approx(7.5)
    assert cells["End"].value == pytest.approx(10.0)
    assert cells["Growth"].value == pytest.approx(2.5)
    assert cells["p"].value == pytest.approx(0.0016, abs=1e-5)
    assert row(table, "Average", "SigLIP")["Pairs"].value == 2
    assert "after 50 % of the samples" in table.notes[0]
    assert rendering.build_table(frame[frame["is_final"]], "gain_over_training") is None


def test_quality_by_size_compares_with_the_same_size_and_with_the_largest(frame: pd.DataFrame) -> None:
    # With twice the batch OpenCLIP gains 5, 5.1 and 5.2 points, all others 2.
    gain = (0.05 + 0.001 * frame["seed"]).where(frame["method"] == "openclip", 0.02)
    larger = frame.assign(global_batch_size=128, run_id="larger-" + frame["run_id"], value=frame["value"] + gain)
    table = build_table(pd.concat([larger, frame]), "quality_by_size")
    assert [line[0] for line in table.rows] == 5 * ["batch 64"] + 5 * ["batch 128"]
    small, large = (row(table, f"batch {size}", "NeuCLIP") for size in (64, 128))
    assert (small["Minus OpenCLIP"].text(), small["Minus OpenCLIP"].mark) == ("+10.0 ± 1.7", "*")
    assert large["Minus OpenCLIP"].value == pytest.approx(6.9)
    assert large["Average"].value == pytest.approx(
        row(build_table(frame, "main_results"), "NeuCLIP")["Average"].value + 2
    )
    # 3 points less, 3.1 and 3.2: standard deviation 0.1, half-width 4.302653 * 0.1 / sqrt(3).
    assert (large["Growth"].text(), large["Growth"].mark) == ("-3.1 ± 0.2", "*")
    assert small["Growth"].value is None
    assert small["Minus OpenCLIP at the largest"].value == pytest.approx(4.9)
    assert row(table, "batch 64", "OpenCLIP")["Minus OpenCLIP at the largest"].text() == "-5.1 ± 0.2"
    assert row(table, "batch 128", "OpenCLIP")["Minus OpenCLIP at the largest"].value is None
    assert row(table, "batch 128", "SigLIP")["Average"].remark == "(1 of 3 diverged)"
    assert large["Average"].remark == ""
    # At a size that OpenCLIP lacks a method is compared with its largest alone.
    between = frame[frame["method"] == "neuclip"].assign(
        global_batch_size=96, run_id="between-" + frame["run_id"], value=frame["value"] + 0.01
    )
    alone = row(build_table(pd.concat([larger, frame, between]), "quality_by_size"), "batch 96", "NeuCLIP")
    assert (alone["Minus OpenCLIP"].value, alone["Growth"].value) == (None, None)
    assert alone["Minus OpenCLIP at the largest"].value == pytest.approx(5.9)
    assert rendering.build_table(frame, "quality_by_size") is None


def test_the_best_by_size_is_chosen_on_validation_sets(frame: pd.DataFrame) -> None:
    frame = frame[(frame["kind"] == "average") & frame["is_final"]]
    runs = pd.concat([frame, frame[frame["name"] == "Average"].assign(kind="validation", name="Validation")])

    def version(size: int, variant: str, validation: dict[str, float]) -> pd.DataFrame:
        """Runs whose validation scores differ by so much for each method; averages are a point lower in variants."""
        lower = runs["method"].map(validation).fillna(0.0).where(runs["kind"] == "validation", -0.01 * bool(variant))
        return runs.assign(
            global_batch_size=size,
            variant=variant,
            run_id=f"{size}{variant}" + runs["run_id"],
            value=runs["value"] + lower,
        )

    half = version(64, "half", {"openclip": -0.1, "neuclip": 0.1, "fastclip": -0.1, "siglip": -0.1, "amorlip": -0.1})
    table = build_table(pd.concat([version(64, "", {}), half, version(128, "", {})]), "best_by_size")
    assert row(table, "batch 64", "NeuCLIP, half")["Minus OpenCLIP"].value == pytest.approx(9.0)
    assert row(table, "batch 128", "NeuCLIP")["Minus OpenCLIP"].value == pytest.approx(10.0)

    # What diverged with one seed is never chosen, whatever the others score.
    half.loc[(half["method"] == "neuclip") & (half["seed"] == 2), "value"] = math.nan
    table = build_table(pd.concat([version(64, "", {}), half, version(128, "", {})]), "best_by_size")
    assert row(table, "batch 64", "NeuCLIP")["Minus OpenCLIP"].value == pytest.approx(10.0)

    assert rendering.build_table(runs[runs["kind"] == "average"], "best_by_size") is None


def test_quality_by_size_takes_one_setting_at_a_time(frame: pd.DataFrame) -> None:
    parts = [
        frame.assign(
            dataset=f"scenes-{pairs}",
            dataset_pairs=pairs,
            global_batch_size=size,
            run_id=f"{pairs}-{size}-" + frame["run_id"],
        )
        for pairs in (1000, 10000)
        for size in (64, 128)
    ]
    labels = {line[0] for line in build_table(pd.concat(parts), "quality_by_size").rows}
    assert len(labels) == 8
    assert "batch 64, 10,000 pairs" in labels


def test_the_normalizer_table_averages_both_sides(frame: pd.DataFrame) -> None:
    cells = row(build_table(frame, "normalizer_error"), "OpenCLIP")
    # Sides 0.6 * (1 + 0.1 seed) and 1.2: means 0.9, 0.93, 0.96.
    assert cells["MSE"].text() == "0.930 ± 0.075"
    assert (cells["MSE of control"].value, cells["Anchors"].value) == (pytest.approx(0.03), 512)
    assert cells["Without estimate"].value == 3


def test_the_gradient_table_tells_bias_from_variance_and_which_way_batches_pull(frame: pd.DataFrame) -> None:
    table = build_table(frame, "gradient_error")
    cells = row(table, "OpenCLIP")
    # Over seeds 0.23, 0.25, 0.27.
    assert cells["Squared bias"].text() == "0.250 ± 0.050"
    assert cells["Cosine of the mean"].value == pytest.approx(1.25**-0.5, abs=1e-3)
    assert (cells["Pull on the temperature"].value, cells["Pull on the temperature"].remark) == (-0.5, "opposite")
    assert cells["Pull of all pairs"].value == pytest.approx(0.4)
    cells = row(table, "NeuCLIP")
    assert cells["Squared bias"].value == pytest.approx(-0.01)
    assert cells["Cosine of the mean"].value == pytest.approx(1, abs=0.01)
    assert cells["Pull on the temperature"].remark == ""
    assert row(table, "SigLIP")["Squared bias, own loss"].text() == ""


def test_the_gradient_error_of_one_seed_has_the_interval_over_its_pairs(frame: pd.DataFrame) -> None:
    cells = row(build_table(frame[frame["seed"] == 1], "gradient_error"), "OpenCLIP")
    assert cells["Squared bias"].half_width == pytest.approx(1.96 * 0.01)
    # Over 256 batches.
    assert cells["Pull on the temperature"].half_width == pytest.approx(1.96 * 0.8 / 16)
    assert math.isnan(cells["Pull of all pairs"].half_width)


def test_the_cost_table_gives_shares_of_time(frame: pd.DataFrame) -> None:
    cells = row(build_table(frame, "cost"), "cpu", "NeuCLIP")
    assert cells["Median step, ms"].value == pytest.approx(11.0)
    assert cells["Encoder, %"].value == pytest.approx(100 * 6 / (1 + 6 + 2 + 0.5))
    assert cells["Peak memory, GiB"].value == 1.0


def test_a_variant_has_a_cost_only_where_it_encodes_pairs_beyond_the_batch(frame: pd.DataFrame) -> None:
    costs = frame[(frame["kind"] == "cost") & (frame["method"] == "neuclip")]
    exact, fixed = (costs.assign(variant=name, run_id=costs["run_id"] + name) for name in ("exact", "fixed"))
    # As long as the encoder's six milliseconds: 6 of 15.5.
    extra = exact[exact["name"] == "clock_sec/encoder"].assign(name="clock_sec/extra")
    table = build_table(pd.concat([frame, exact, fixed, extra]), "cost")
    names = [line[1] for line in table.rows]
    assert names == [*METHODS, "NeuCLIP, exact"]
    cells = dict(zip(table.header, table.rows[-1], strict=True))
    assert cells["Extra, %"].value == pytest.approx(100 * 6 / 15.5)
    assert math.isnan(dict(zip(table.header, table.rows[0], strict=True))["Extra, %"].value)
    assert "Extra, %" not in build_table(frame, "cost").header


def test_times_of_different_devices_or_commits_are_not_averaged(frame: pd.DataFrame) -> None:
    assert not any("do not compare" in note for note in build_table(frame, "cost").notes)
    moved = frame.assign(
        device=frame["device"].where(frame["seed"] != 1, "gpu"),
        commit=frame["commit"].where(frame["seed"] != 2, "f" * 40),
    )
    table = build_table(moved, "cost")
    assert table.header[:3] == ("Device", "Commit", "Method")
    keys = ("cpu", "0123456789ab"), ("cpu", "f" * 12), ("gpu", "0123456789ab")
    # Those that compare stand together, and are of all methods.
    assert [line[:3] for line in table.rows] == [(*key, name) for key in keys for name in METHODS]
    cells = [cell for line in table.rows for cell in line if isinstance(cell, Cell)]
    assert all(cell.value == 1 for line in table.rows for cell in line[-1:] if isinstance(cell, Cell))
    # Nothing is the best of several devices, or better than what was timed elsewhere.
    assert {(cell.emphasis, cell.mark) for cell in cells} == {("", "")}
    assert any("rows that differ in either do not compare" in note for note in table.notes)


def test_a_run_that_moved_between_devices_has_no_times() -> None:
    suite = synthetic.write_suite(synthetic.main_specs(1))
    record = next(paths.RESULTS.glob("runs/neuclip*/record.json"))
    content = json.loads(record.read_text())
    first = content["attempts"][0]
    second = first | {"first_step": 3, "provenance": first["provenance"] | {"device": "gpu", "world_size": 2}}
    record.write_text(json.dumps(content | {"attempts": [first, second]}))
    table = build_table(collect(suite), "cost")
    (line,) = [line for line in table.rows if line[0] == "cpu, 2 x gpu"]
    assert [cell.text() for cell in line if isinstance(cell, Cell)] == [*[""] * 6, "1"]
    assert any("runs that moved, and has no times" in note for note in table.notes)


def many_sets(name: str = "cc3m", seeds: int = 3) -> pd.DataFrame:
    """Results of a suite on 14 sets."""
    cards = {f"set{i}": {**synthetic.CARDS["digits"], "title": f"Set {i}"} for i in range(14)}
    return collect(
        synthetic.write_suite(synthetic.main_specs(seeds), name=name, cards=cards, averages={"DataComp": list(cards)})
    )


def test_the_papers_value_stands_beside_ours_in_the_suites_that_reproduce_it() -> None:
    frame = many_sets()
    table = build_table(frame, "main_results")
    assert table.header == ("Method", "DataComp", "Paper", "Minus paper", "Runs", "Diverged")
    # FastCLIP: 34 % here, 24.74 % in the paper's CC3M column.
    cells = row(table, "FastCLIP")
    assert (cells["Paper"].value, cells["Minus paper"].value) == (24.74, pytest.approx(34.0 - 24.74))
    other = build_table(frame.assign(suite="scales"), "main_results")
    assert other.header == ("Method", "DataComp", "Runs", "Diverged")
    part = frame.assign(name=frame["name"].replace("DataComp", "DataComp (13 of 14 sets)"))
    assert "Paper" not in build_table(part, "main_results").header


def test_many_sets_have_a_table_with_a_row_each() -> None:
    table = build_table(many_sets(), "per_task")
    assert [line[0] for line in table.rows] == [f"Set {i}" for i in range(14)]
    cells = row(table, "Set 3")
    assert cells["FastCLIP"].text() == "34.0 ± 5.0"
    assert (cells["NeuCLIP"].emphasis, cells["FastCLIP"].mark, cells["Chance"].value) == ("best", "*", 10.0)


def test_every_group_of_sets_is_a_row(frame: pd.DataFrame) -> None:
    table = build_table(frame, "by_group")
    assert table.header == ("Group", "Sets", *METHODS, "Chance")
    assert [line[0] for line in table.rows] == ["Average", "Retrieval"]
    cells = row(table, "Average")
    assert (cells["Sets"].value, cells["Chance"].value) == (2, pytest.approx(100 * (0.1 + 0.005) / 2))
    # FastCLIP: 34 % on Digits and 39 % on Flickr; 36.5 % with an interval of 2 points' standard deviation.
    assert (cells["FastCLIP"].text(), cells["FastCLIP"].n, cells["FastCLIP"].mark) == ("36.5 ± 5.0", 3, "*")
    assert [cells[name].emphasis for name in ("NeuCLIP", "FastCLIP", "OpenCLIP")] == ["best", "second", ""]
    assert (cells["SigLIP"].n, cells["SigLIP"].remark) == (3, "(1 of 3 diverged)")


def test_ours_is_compared_with_each_baseline_over_sets() -> None:
    frame = many_sets(seeds=1)
    worse = (frame["method"] == "neuclip") & frame["name"].isin(["set0", "set1"])
    frame["value"] = frame["value"] - 0.3 * worse
    table = build_table(frame, "across_sets")
    cells = row(table, "FastCLIP")
    assert [cells[name].value for name in ("Wins", "Ties", "Losses")] == [12, 0, 2]
    # NeuCLIP is first on twelve sets and last on two.
    assert row(table, "NeuCLIP")["Mean rank"].value == pytest.approx((12 * 1 + 2 * 5) / 14)
    assert row(table, "NeuCLIP")["Wins"].value is None
    assert any("14 of 14 sets" in note for note in table.notes)


def test_a_method_that_always_diverged_is_ranked_as_guessing() -> None:
    cards = {f"set{i}": {**synthetic.CARDS["digits"], "title": f"Set {i}"} for i in range(8)}
    suite = synthetic.write_suite(
        synthetic.main_specs(1), cards=cards, averages={"Average": list(cards)}, diverged=(("siglip", 0),)
    )
    table = build_table(collect(suite), "across_sets")
    assert row(table, "SigLIP")["Mean rank"].value == 5.0
    assert [row(table, "FastCLIP")[name].value for name in ("Wins", "Ties", "Losses")] == [8, 0, 0]
    assert row(table, "FastCLIP")["p (Holm)"].value == pytest.approx(4 * 2 / 2**8)
    assert any("8 of 8 sets" in note for note in table.notes)


def test_the_growth_of_the_error_is_beside_the_papers() -> None:
    fixed = [
        synthetic.run_spec(m, 0, global_batch_size=b, config={"fixed": True})
        for m in ("neuclip", "openclip")
        for b in (32, 64)
    ]
    frame = collect(synthetic.write_suite([], variants={"fixed temperature": fixed}))
    harder = (frame["kind"] == "normalizer") & (frame["global_batch_size"] == 32) & (frame["method"] == "openclip")
    frame["value"] = frame["value"] * harder.map({True: 3.0, False: 1.0})
    table = build_table(frame, "normalizer_increase")
    cells = row(table, "Batch 64 to 32", "OpenCLIP, fixed temperature")
    # Both sides' mean is 0.9 at batch 64.
    assert [cells[name].value for name in ("MSE before", "MSE after", "Growth", "Ratio")] == pytest.approx(
        [0.9, 2.7, 1.8, 3]
    )
    assert cells["Growth in the paper"].value == 8.2
    assert cells["Growth"].half_width is not None
    assert math.isnan(cells["Growth"].half_width)


def test_the_ablation_compares_a_variant_with_its_main_run_by_seed() -> None:
    variant = [synthetic.run_spec("neuclip", seed, config={"period": 20}) for seed in (0, 1)]
    suite = synthetic.write_suite(synthetic.main_specs(), variants={"period=20": variant})
    frame = collect(suite)
    frame["value"] = frame["value"].where(frame["variant"] == "", frame["value"] - 0.01)
    table = build_table(frame, "ablation")
    assert [row[0] for row in table.rows] == ["NeuCLIP", "NeuCLIP, period=20"]
    change = row(table, "NeuCLIP, period=20")["Average, change"]
    assert (change.value, change.n, change.mark) == (pytest.approx(-1.0), 2, "")


def test_a_variant_that_differs_is_marked_after_correction_over_variants() -> None:
    seeds = (0, 1, 2)
    variants = {
        name: [synthetic.run_spec("neuclip", seed, config={"period": period}) for seed in seeds]
        for name, period in {"far": 1, "near": 2}.items()
    }
    frame = collect(synthetic.write_suite(synthetic.main_specs(), variants=variants))
    # Changes of -1, -1.2, -1.4 points: t = 10.4, p = 0.0091, twice that after correction. Of 0, 1, -1: none.
    for name, changes in {"far": (1.0, 1.2, 1.4), "near": (0.0, -1.0, 1.0)}.items():
        for seed, change in zip(seeds, changes, strict=True):
            frame.loc[(frame["variant"] == name) & (frame["seed"] == seed), "value"] -= change / 100
    table = build_table(frame, "ablation")
    marks = {name: row(table, f"NeuCLIP, {name}")["Average, change"].mark for name in variants}
    assert marks == {"far": "*", "near": ""}
    p = {name: row(table, f"NeuCLIP, {name}")["p (Holm)"].value for name in variants}
    assert p == {"far": pytest.approx(0.0182, abs=1e-4), "near": 1.0}
    assert row(table, "NeuCLIP")["p (Holm)"].value is None


def test_the_main_run_is_compared_with_all_variants_of_other_methods_and_a_variant_with_its_like() -> None:
    seeds = (0, 1, 2)
    variants = {
        "fixed": [synthetic.run_spec(name, seed, config={"fixed": 1}) for name in synthetic.METHODS for seed in seeds],
        "slow": [synthetic.run_spec("openclip", seed, config={"slow": 1}) for seed in seeds],
    }
    frame = collect(synthetic.write_suite(synthetic.main_specs(), variants=variants))
    frame.loc[frame["variant"] == "fixed", "value"] += 0.01
    for seed, change in zip(seeds, (1.4, -2.8, 1.4), strict=True):
        frame.loc[(frame["variant"] == "slow") & (frame["seed"] == seed), "value"] += change / 100
    table = build_table(frame, "lead_over_variants")
    names = ["OpenCLIP, fixed", "OpenCLIP, slow", "FastCLIP, fixed", "SigLIP, fixed", "AmorLIP, fixed"]
    assert [row[:3] for row in table.rows if row[1] == "Average"] == [
        *(("NeuCLIP", "Average", name) for name in names),
        *(("NeuCLIP, fixed", "Average", name) for name in names if "fixed" in name),
    ]
    # Both have that point: 10.4, 9.2, 10.4.
    alike = row(table, "NeuCLIP, fixed", "Average", "OpenCLIP, fixed")
    assert alike["Difference"].value == pytest.approx(10.0)
    # Differences: 9.4, 8.2, 9.4 points, so t = 22.5; of the other 9, 12, 9, so t = 10.
    fixed, slow = (row(table, "NeuCLIP", "Average", f"OpenCLIP, {name}") for name in ("fixed", "slow"))
    assert (fixed["Difference"].value, fixed["p"].value) == (pytest.approx(9.0), pytest.approx(0.00197, abs=1e-5))
    assert (slow["Difference"].value, slow["p"].value) == (pytest.approx(10.0), pytest.approx(0.00985, abs=1e-5))
    # The largest of five p, but no smaller than three times the middle one, AmorLIP's 0.00442.
    assert slow["p (Holm)"].value == pytest.approx(0.01325, abs=1e-5)
    assert slow["Pairs"].value == 3


def test_markdown_shows_names_as_they_are() -> None:
    table = Table("T", ("Method", "p"), (("<b>a|b</b> `e` *f* \\g", "< 0.05"),))
    assert r"| \<b>a\|b\</b> \`e\` \*f\* \\g | < 0.05 |" in to_markdown(table)


def test_the_origin_is_below_the_table(frame: pd.DataFrame) -> None:
    assert build_table(frame, "cost").notes[-1] == "Suite quickstart; 15 runs; commit 0123456789ab."


def test_many_columns_are_stacked_in_panels_but_not_in_the_csv() -> None:
    header = ("Method", *(f"s{i}" for i in range(13)))
    table = Table("Wide", header, (("A", *(Cell(float(i)) for i in range(13))),))
    lines = [line for line in to_markdown(table).splitlines() if line.startswith("| Method")]
    assert [line.count("|") - 2 for line in lines] == [5, 5, 3]
    assert to_csv(table).splitlines()[0] == ",".join(header)


def test_the_csv_has_interval_n_and_mark_in_columns_of_their_own() -> None:
    table = Table("T", ("M", "x"), (("A", Cell(1 / 3, 0.5, 3, mark="*")), ("B", Cell(math.nan, math.nan, 0))))
    assert to_csv(table) == "M,x,x half_width,x n,x mark\nA,0.333333,0.5,3,*\nB,,,0,\n"


@pytest.mark.parametrize(
    ("value", "text"), [(2.12e-5, "2.12e-05"), (0.0312, "0.0312"), (3.1, "3.10"), (123.4, "123"), (0.0, "0.00")]
)
def test_three_digits(value: float, text: str) -> None:
    assert format(value, three_digits(value)) == text


def test_what_is_rounded_to_zero_has_no_minus() -> None:
    assert [number(-0.04), number(-0.04, "+.1f"), number(-0.001, ".2f")] == ["0.0", "+0.0", "0.00"]
    assert number(-3, "d") == "-3"
    assert [Cell(-0.04, 1.0, form="+.1f").text(), Cell(-0.06).text()] == ["+0.0 ± 1.0", "-0.1"]
