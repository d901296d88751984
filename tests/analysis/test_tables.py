from __future__ import annotations

import math

import pandas as pd
import pytest
import synthetic

from analysis import artifacts
from analysis.collect import collect
from analysis.rendering import Cell, Table, build_table, three_digits, to_csv, to_latex, to_markdown


def row(table: Table, *keys: str) -> dict[str, Cell]:
    """The cells of the row with these keys, by column."""
    (found,) = [row for row in table.rows if row[: len(keys)] == keys]
    return {name: cell for name, cell in zip(table.header, found, strict=True) if isinstance(cell, Cell)}


def test_the_main_table_has_a_row_per_method_and_a_column_per_score(frame: pd.DataFrame) -> None:
    table = build_table(frame, "main_results")
    assert table.header == ("Method", "Average", "Retrieval", "Digits", "Flickr", "Runs", "Diverged")
    assert [row[0] for row in table.rows] == ["OpenCLIP", "FastCLIP", "SigLIP", "AmorLIP", "NeuCLIP"]


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
    # SigLIP has two pairs only, too few to test.
    assert row(table, "SigLIP")["Digits"].mark == ""


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
    assert (cells["Digits"].n, cells["Digits"].remark) == (2, "(n = 2)")


def test_a_method_whose_runs_all_diverged_says_so() -> None:
    suite = synthetic.write_suite(synthetic.main_specs(1), diverged=(("siglip", 0),))
    table = build_table(collect(suite), "main_results")
    assert "| SigLIP | diverged | diverged |" in to_markdown(table)


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
    cells = row(build_table(frame, "paired_differences"), "Digits", "FastCLIP")
    # 6.4, 5.2, 6.4 points: mean 6, sd 0.6928, t = 15.
    assert cells["Difference"].value == pytest.approx(6.0)
    assert cells["Difference"].half_width == pytest.approx(4.302653 * 0.6928203 / math.sqrt(3))
    assert cells["p"].value == pytest.approx(0.00441, abs=1e-5)
    assert cells["Pairs"].value == 3


def test_the_normalizer_table_averages_both_sides(frame: pd.DataFrame) -> None:
    cells = row(build_table(frame, "normalizer_error"), "OpenCLIP")
    # Sides 0.6 * (1 + 0.1 seed) and 1.2: means 0.9, 0.93, 0.96.
    assert cells["MSE"].text() == "0.930 ± 0.075"
    assert (cells["MSE of control"].value, cells["Anchors"].value) == (pytest.approx(0.03), 512)
    assert cells["Without estimate"].value == 3


def test_the_cost_table_gives_shares_of_time(frame: pd.DataFrame) -> None:
    cells = row(build_table(frame, "cost"), "NeuCLIP", "cpu")
    assert cells["Median step, ms"].value == pytest.approx(11.0)
    assert cells["Encoder, %"].value == pytest.approx(100 * 6 / (1 + 6 + 2 + 0.5))
    assert cells["Peak memory, GiB"].value == 1.0


def test_the_ablation_compares_a_variant_with_its_main_run_by_seed() -> None:
    variant = [synthetic.run_spec("neuclip", seed, config={"period": 20}) for seed in (0, 1)]
    suite = synthetic.write_suite(synthetic.main_specs(), variants={"period=20": variant})
    frame = collect(suite)
    frame["value"] = frame["value"].where(frame["variant"] == "", frame["value"] - 0.01)
    table = build_table(frame, "ablation")
    assert [row[0] for row in table.rows] == ["NeuCLIP", "NeuCLIP, period=20"]
    change = row(table, "NeuCLIP, period=20")["Average, change"]
    assert (change.value, change.n) == (pytest.approx(-1.0), 2)


@pytest.mark.parametrize("name", artifacts.tables())
def test_a_table_without_rows_says_so(frame: pd.DataFrame, name: str) -> None:
    table = build_table(frame[:0], name)
    assert table.rows == ()
    for text in (to_markdown(table), to_latex(table)):
        assert "Nothing to show" in text
        assert "nan" not in text
    (header,) = to_csv(table).splitlines()
    assert header.startswith(table.header[0])


def test_the_origin_is_below_the_table(frame: pd.DataFrame) -> None:
    assert build_table(frame, "cost").notes[-1] == "Suite quickstart; 15 runs; commit 0123456789ab."


def test_latex_is_escaped_and_its_lines_have_as_many_cells_as_columns() -> None:
    table = Table(
        title="50 % of a_b",
        header=("Key & more", "x_1", "y"),
        rows=(("a_b", Cell(1.25, 0.5, emphasis="best", mark="*"), Cell(None)), ("c", Cell(2e-5, form=".2g"), "d")),
        notes=("p < 0.05 ±",),
    )
    text = to_latex(table)
    assert r"\caption{50 \% of a\_b.}" in text
    assert r"a\_b & $\mathbf{1.2 \pm 0.5}^{*}$ & -- \\" in text
    assert r"c & $2 \cdot 10^{-5}$ & d \\" in text
    assert r"p $<$ 0.05 $\pm$" in text
    assert all(line.count(" & ") == 2 for line in text.splitlines() if line.endswith(r"\\"))
    assert text.count("{") == text.count("}")


def test_many_columns_are_stacked_in_panels_but_not_in_the_csv() -> None:
    header = ("Method", *(f"s{i}" for i in range(13)))
    table = Table("Wide", header, (("A", *(Cell(float(i)) for i in range(13))),))
    lines = [line for line in to_markdown(table).splitlines() if line.startswith("| Method")]
    assert [line.count("|") - 2 for line in lines] == [5, 5, 3]
    assert to_csv(table).splitlines()[0] == ",".join(header)
    assert to_latex(table).count(r"\begin{tabular}") == 3


def test_the_csv_has_interval_n_and_mark_in_columns_of_their_own() -> None:
    table = Table("T", ("M", "x"), (("A", Cell(1 / 3, 0.5, 3, mark="*")), ("B", Cell(math.nan, math.nan, 0))))
    assert to_csv(table) == "M,x,x half_width,x n,x mark\nA,0.333333,0.5,3,*\nB,,,0,\n"


@pytest.mark.parametrize(
    ("value", "text"), [(2.12e-5, "2.12e-05"), (0.0312, "0.0312"), (3.1, "3.10"), (123.4, "123"), (0.0, "0.00")]
)
def test_three_digits(value: float, text: str) -> None:
    assert format(value, three_digits(value)) == text
