"""What is committed under docs/results: every table and figure is what its frame draws, to the byte."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from support.checkout import ROOT

from analysis import stats
from analysis.__main__ import main
from analysis.frame import digest, final_scores, read

RESULTS = ROOT / "docs" / "results"
FRAMES = sorted(RESULTS.glob("*.parquet"))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("frame", FRAMES, ids=lambda path: path.stem)
def test_what_is_committed_is_what_its_frame_draws(frame: Path, tmp_path: Path) -> None:
    committed = files(RESULTS / frame.stem)
    ids = {name.rpartition(".")[0] for name in committed}
    assert main(["publish", str(frame), *sorted(ids), "--out", str(tmp_path)]) == 0
    assert files(tmp_path / frame.stem) == committed
    assert digest(read(tmp_path / frame.name)) == digest(read(frame))


def test_nothing_lies_there_that_no_frame_draws() -> None:
    folders = {path.name for path in RESULTS.iterdir() if path.is_dir()} - {"entries"}
    assert folders == {path.stem for path in FRAMES}


def test_without_names_what_is_there_is_drawn_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = RESULTS / "scenes_headroom.parquet"
    command = ["publish", "--out", str(tmp_path), str(frame)]
    assert main(command) == 1
    assert "nothing is drawn here; name the tables and figures to draw" in capsys.readouterr().err
    assert main([*command, "headroom"]) == 0
    drawn = tmp_path / "scenes_headroom"
    before = files(drawn)
    assert before.keys() == {"headroom.md", "headroom.svg"}
    (drawn / "headroom.svg").write_bytes(b"")
    assert main(command) == 0
    assert files(drawn) == before
    # What is added does not take the rows away that the rest is drawn from.
    assert main([*command, "main_results"]) == 0
    (again,) = tmp_path.glob("*.parquet")
    assert main(["publish", "--out", str(tmp_path), str(again)]) == 0
    assert files(drawn).items() > before.items()


def test_an_unknown_name_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["publish", str(FRAMES[0]), "headroom", "main_result", "--out", str(tmp_path)]) == 1
    assert not list(tmp_path.iterdir())
    assert "unknown table 'main_result'" in capsys.readouterr().err


def test_results_of_ones_own_are_compared_with_what_is_committed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(RESULTS), str(RESULTS)]) == 0
    counts = capsys.readouterr().out.split("##")[0]
    assert "equal: every pair of seeds, to the last bit" in counts
    assert counts.count("\n- ") == 1


def averages(suite: str, column: str = "method", score: str = "Average") -> pd.DataFrame:
    """Final averages at the small batch in percent, by seed and method or variant."""
    rows = final_scores(read(RESULTS / f"{suite}.parquet"))
    rows = rows[(rows["name"] == score) & (rows["global_batch_size"] == 32)]
    return 100 * rows.pivot(index="seed", columns=column, values="value")


def test_the_hypotheses_that_were_fixed_before_are_tested_together() -> None:
    page = (RESULTS / "README.md").read_text()
    of = averages("laptop_confirmation")
    assert list(of.index) == list(range(10, 30))
    p = stats.holm(pd.Series({each: stats.paired_t_test(of[each] - of["openclip"]) for each in ("neuclip", "amorlip")}))
    assert p["amorlip"] < 0.001
    lead = {each: f"{(of[each] - of['openclip']).mean():.1f}" for each in p.index}
    assert f"NeuCLIP by {lead['neuclip']} ± 2.7 points (p {p['neuclip']:.3f})" in page
    assert f"AmorLIP by {lead['amorlip']} ± 1.2 (p below 0.001)" in page
    assert (of["amorlip"] > of["openclip"]).all()


def test_what_the_pages_say_of_swapped_captions_follows_from_the_rows() -> None:
    page = (RESULTS / "README.md").read_text()
    swapped, retrieval = (
        averages("laptop_confirmation", score=name) for name in ("Swapped Captions", "Scenes & Variants")
    )
    fails = swapped["neuclip"] < 70
    assert fails.sum() == 6
    low, high = swapped["neuclip"][fails], swapped["neuclip"][~fails]
    text = f"in {low.min():.0f} to {low.max():.0f} % of cases, where guessing gives 50, and in all others in"
    assert f"{text} {high.min():.0f} % and more" in page.replace("\n", " ")
    assert (
        f"OpenCLIP's lowest seed has {swapped['openclip'].min():.0f} %, AmorLIP's {swapped['amorlip'].min():.0f} %"
        in page
    )
    scores = retrieval[fails].mean()
    text = (
        f"(retrieval {scores['neuclip']:.0f} % on average, OpenCLIP's {scores['openclip']:.0f} % with the same seeds)"
    )
    assert text in page.replace("\n", " ")
    all_sets = averages("laptop_confirmation")
    others = (13 * all_sets - 3 * swapped) / 10
    lead, to_amorlip = (others["neuclip"] - others[each] for each in ("openclip", "amorlip"))
    assert f"ten sets NeuCLIP is {lead.mean():.1f} ± {stats.half_width(lead):.1f} points" in page.replace("\n", " ")
    assert f"({to_amorlip.mean():.1f} ± {stats.half_width(to_amorlip):.1f}); this split was made" in page
    for scores, text in (
        (all_sets, "interval over the twenty seeds is {:.1f} times as wide as OpenCLIP's and {:.1f} times as wide as"),
        (others, "without them it is {:.1f} and {:.1f} times as wide"),
    ):
        widths = scores.agg(stats.half_width)
        ratios = (widths["neuclip"] / widths[each] for each in ("openclip", "amorlip"))
        assert text.format(*ratios) in page.replace("\n  ", " ")


def test_what_the_pages_say_of_seeds_and_no_table_has_follows_from_the_rows() -> None:
    page, statistics = ((ROOT / "docs" / name).read_text() for name in ("results/README.md", "statistics.md"))
    ten, twenty = averages("laptop_ten_seeds"), averages("laptop_confirmation")
    assert f"which NeuCLIP scores {ten.loc[:4, 'neuclip'].mean():.1f}, so" in page.replace("\n  ", " ")
    fresh, first = twenty.corr()["openclip"], ten.corr()["openclip"]
    assert f"AmorLIP's by {fresh['amorlip']:.2f} and with NeuCLIP's by {fresh['neuclip']:.2f}" in statistics
    assert f"(first ten seeds: {first['neuclip']:.2f})" in statistics


def test_the_p_of_ablations_follow_from_the_rows() -> None:
    page = (RESULTS / "README.md").read_text()
    for name, variants in {
        "objective": ["separate regression"],
        "architecture": ["MLP"],
        "updates": ["simultaneous", "one joint step"],
    }.items():
        suite = f"ablation_{name}@laptop"
        of = averages(suite, "variant")
        p = stats.holm(pd.Series({each: stats.paired_t_test(of[each] - of[""]) for each in variants}))
        shown = ", ".join(f"{p[each]:.3f}" for each in variants)
        (row,) = [line for line in page.splitlines() if f"({suite}/ablation.md)" in line and "It pays" in line]
        assert f" | {shown} | " in row
