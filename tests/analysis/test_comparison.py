"""Two results folders side by side."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import synthetic

from analysis.__main__ import main
from analysis.collect import collect
from analysis.comparison import Comparison, compare
from analysis.frame import read, write
from engine import paths

A, B = Path("a"), Path("b")
Change = Callable[[pd.DataFrame], pd.DataFrame]


def folders(change: Change = lambda frame: frame, *, seeds: int = 3) -> None:
    """The same results twice; `change` makes the collected frame of B."""
    frame = collect(synthetic.write_suite(synthetic.main_specs(seeds)))
    for folder, rows in ((A, frame), (B, change(frame))):
        shutil.copytree(paths.RESULTS, folder, dirs_exist_ok=True)
        write(rows, folder / "collected" / "quickstart.parquet")


def shift(frame: pd.DataFrame, by_seed: dict[int, float], method: str = "neuclip") -> pd.DataFrame:
    """Move the average of one method."""
    chosen = (frame["method"] == method) & (frame["name"] == "Average") & frame["is_final"]
    return frame.assign(value=frame["value"] + frame["seed"].map(by_seed).where(chosen, 0.0))


def verdict(found: Comparison, method: str, name: str) -> dict[str, Any]:
    rows = found.differences
    (row,) = rows[(rows["method"] == method) & (rows["name"] == name)].to_dict("records")
    return {str(key): value for key, value in row.items()}


def test_a_folder_equals_its_copy() -> None:
    folders()
    found = compare(A, B)
    assert set(found.differences["verdict"]) == {"equal"}
    assert set(found.differences["kind"]) == {"average", "eval", "normalizer", "cost"}
    assert found.missing.empty
    assert found.outcomes.empty
    assert found.provenance == {}


def test_a_shift_larger_than_seeds_wobble_differs_and_a_smaller_one_does_not() -> None:
    folders(lambda frame: shift(shift(frame, {0: 0.05, 1: 0.051, 2: 0.052}), {0: 0.05, 1: -0.06, 2: 0.02}, "siglip"))
    found = compare(A, B)
    row = verdict(found, "neuclip", "Average")
    # 5.0, 5.1, 5.2 points: sd 0.1, t = 5.1 / (0.1 / sqrt(3)) = 88.3 with two degrees of freedom.
    assert row["difference"] == pytest.approx(0.051)
    assert row["half_width"] == pytest.approx(4.302653 * 0.001 / 3**0.5)
    assert row["p"] == pytest.approx(1.28e-4, rel=0.01)
    # Two averages were tested.
    assert row["p_holm"] == pytest.approx(2 * row["p"])
    assert row["verdict"] == "differs"
    assert verdict(found, "siglip", "Average")["verdict"] == "within noise"
    assert verdict(found, "fastclip", "Average")["verdict"] == "equal"


def test_the_same_shift_of_every_seed_differs() -> None:
    folders(lambda frame: frame.assign(value=frame["value"].where(frame["kind"] != "cost", 2.0 * frame["value"])))
    assert verdict(compare(A, B), "neuclip", "peak_memory_bytes")["verdict"] == "differs"


def test_one_seed_that_differs_tells_nothing() -> None:
    folders(lambda frame: shift(frame, {0: 0.3}), seeds=1)
    row = verdict(compare(A, B), "neuclip", "Average")
    assert (row["verdict"], row["num_pairs"]) == ("too few seeds", 1)
    assert pd.isna(row["half_width"])
    assert pd.isna(row["p_holm"])


def test_other_seeds_are_compared_unpaired() -> None:
    folders(lambda frame: frame.assign(seed=frame["seed"] + 10, value=frame["value"] + frame["is_main"] * 0.5))
    row = verdict(compare(A, B), "fastclip", "Average")
    assert (row["num_pairs"], row["verdict"]) == (0, "differs")
    assert row["difference"] == pytest.approx(0.5)


def test_other_seeds_without_any_spread_differ_or_do_not() -> None:
    folders(lambda frame: frame.assign(seed=frame["seed"] + 10))
    assert verdict(compare(A, B), "neuclip", "peak_memory_bytes")["verdict"] == "within noise"
    folders(lambda frame: frame.assign(seed=frame["seed"] + 10, value=2 * frame["value"]))
    assert verdict(compare(A, B), "neuclip", "peak_memory_bytes")["verdict"] == "differs"


def test_means_are_those_of_the_pairs_only() -> None:
    folders(lambda frame: frame[(frame["method"] != "fastclip") | (frame["seed"] > 0)])
    found = compare(A, B)
    row = verdict(found, "fastclip", "Average")
    assert row["mean_a"] == row["mean_b"] == pytest.approx(0.375)
    (missing,) = found.missing.to_dict("records")
    assert (missing["method"], missing["seed"], missing["missing_in"]) == ("fastclip", 0, "B")


def test_times_of_other_devices_are_not_compared() -> None:
    folders(lambda frame: frame.assign(device="gpu"))
    found = compare(A, B)
    assert verdict(found, "neuclip", "median_step_sec")["verdict"] == "other device"
    assert verdict(found, "neuclip", "Average")["verdict"] == "equal"
    assert found.provenance == {"device": (["cpu"], ["gpu"])}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(["cpu", "gpu", "gpu"], ["gpu", "cpu", "gpu"]), (["cpu, gpu"] * 3, ["cpu, gpu"] * 3)],
    ids=["pairs of different devices", "runs that moved"],
)
def test_times_are_compared_within_a_device_only(ours: list[str], theirs: list[str]) -> None:
    folders()
    for folder, devices in ((A, ours), (B, theirs)):
        path = folder / "collected" / "quickstart.parquet"
        frame = read(path)
        write(frame.assign(device=frame["seed"].map(dict(enumerate(devices)))), path)
    assert verdict(compare(A, B), "neuclip", "median_step_sec")["verdict"] == "other device"


def test_what_rounding_alone_tells_apart_is_no_difference() -> None:
    folders(lambda frame: shift(frame, dict.fromkeys(range(3), 2e-16)))
    assert verdict(compare(A, B), "neuclip", "Average")["verdict"] == "within noise"
    # The same shift of every seed, but for the last bits of some.
    folders(lambda frame: shift(frame, {0: 0.05, 1: 0.05 + 2e-16, 2: 0.05 - 2e-16}))
    row = verdict(compare(A, B), "neuclip", "Average")
    assert row["verdict"] == "differs"
    assert pd.isna(row["p"])


def test_a_run_that_diverged_on_one_side_is_named() -> None:
    def diverge(frame: pd.DataFrame) -> pd.DataFrame:
        chosen = (frame["method"] == "siglip") & (frame["seed"] == 1) & (frame["kind"] == "cost")
        return frame.assign(status=frame["status"].where(~chosen, "diverged"))

    folders(diverge)
    (row,) = compare(A, B).outcomes.to_dict("records")
    assert (row["method"], row["seed"], row["status_a"], row["status_b"]) == ("siglip", 1, "finished", "diverged")


def test_published_scores_have_the_runs_that_they_are_of() -> None:
    folders(lambda frame: frame[frame["kind"].isin(["average", "eval"])])
    found = compare(A, B)
    assert found.missing.empty
    assert set(found.differences["kind"]) == {"average", "eval"}


def test_versions_that_differ_are_named_from_the_records() -> None:
    folders()
    for path in B.glob("runs/*/record.json"):
        path.write_text(path.read_text().replace('"packages": {}', '"packages": {"torch": "9.9"}'))
    assert compare(A, B).provenance == {"torch": ([], ["9.9"])}
    for path in B.glob("runs/neuclip*-s0-*/record.json"):
        path.unlink()
    assert len(compare(A, B).provenance["records that are not there"][1]) == 1


def test_the_command_prints_markdown_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    folders(lambda frame: shift(frame, {0: 0.05, 1: 0.051, 2: 0.052}))
    assert main(["compare", "a", "b"]) == 0
    printed = capsys.readouterr().out
    assert "- 1 differs: beyond the noise of seeds" in printed
    assert "| quickstart | NeuCLIP (scenes, tiny, batch 64) | Average | 42.50 | 47.60 | +5.10 ± 0.25 | 3 |" in printed
    assert main(["compare", "a", "b", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert sum(row["verdict"] == "differs" for row in content["differences"]) == 1
    assert content["differences"][0].keys() >= {"num_pairs", "mean_a", "mean_b", "half_width", "p_holm"}


@pytest.mark.parametrize(("other", "complaint"), [("nowhere", "give a results folder"), ("b", "no number in common")])
def test_folders_that_do_not_compare_are_refused(
    other: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folders(lambda frame: frame.assign(dataset="another"), seeds=1)
    assert main(["compare", "a", other]) == 1
    assert complaint in capsys.readouterr().err


def test_the_same_runs_without_a_common_quantity_are_refused() -> None:
    folders(lambda frame: frame.assign(name=frame["name"] + " of another evaluation"), seeds=1)
    with pytest.raises(ValueError, match="no number in common"):
        compare(A, B)
