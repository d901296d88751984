"""What is committed under docs/results is what its frames draw; what pages say of it is in a table they link to."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from support.checkout import ROOT

from analysis import stats
from analysis.__main__ import main
from analysis.frame import digest, final_scores, read

RESULTS = ROOT / "docs" / "results"
FRAMES = sorted(RESULTS.glob("*.parquet"))
PAGES = [ROOT / "README.md", RESULTS / "README.md", ROOT / "docs" / "quickstart.md", ROOT / "docs" / "scenes.md"]
ATTRIBUTION = "ablation_attribution_network@laptop"

NUMBER = re.compile(r"(?<![\w.,])[+-]?(\d+\.\d+)(?![\w.])")
TABLE = re.compile(r"\]\(([^)#]*results/[^)]*\.md|[\w@]+/\w+\.md)\)")


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
    assert {path.name for path in RESULTS.iterdir() if path.is_dir()} == {path.stem for path in FRAMES}


def test_without_names_what_is_there_is_drawn_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = RESULTS / "quickstart.parquet"
    command = ["publish", "--out", str(tmp_path), str(frame)]
    assert main(command) == 1
    assert "nothing is drawn here; name the tables and figures to draw" in capsys.readouterr().err
    assert main([*command, "headroom"]) == 0
    drawn = tmp_path / frame.stem
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


def test_results_of_ones_own_are_compared_with_what_is_committed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(RESULTS), str(RESULTS)]) == 0
    counts = capsys.readouterr().out.split("##")[0]
    assert "equal: every pair of seeds, to the last bit" in counts
    assert counts.count("\n- ") == 1


def averages(suite: str, column: str = "method") -> pd.DataFrame:
    """Final averages with 32 pairs in percent, by seed and method or variant."""
    rows = final_scores(read(RESULTS / f"{suite}.parquet"))
    rows = rows[(rows["name"] == "Average") & (rows["global_batch_size"] == 32)]
    return 100 * rows.pivot(index="seed", columns=column, values="value")


LEADS = {
    "chosen by three seeds": ("laptop_second_confirmation", "method", "neuclip", "openclip", "13.0 ± 1.8 | 20"),
    "its better rate": ("laptop_over_training", "method", "neuclip", "openclip", "11.3 ± 1.1 | 10"),
    "NeuCLIP's rate and start": (ATTRIBUTION, "variant", "", "batch, InfoNCE, own pair", "6.0 ± 2.4 | 5"),
    "fixed temperature": ("laptop_third_confirmation", "method", "neuclip", "openclip", "1.3 ± 0.9 | 20"),
    "NeuCLIP's temperature rule": (ATTRIBUTION, "variant", "", "batch, rho, own pair", "0.9 ± 3.5 | 5"),
}


@pytest.mark.parametrize(("suite", "column", "ours", "theirs", "shown"), LEADS.values(), ids=LEADS)
def test_neuclips_lead_over_openclip_is_that_of_the_rows(
    suite: str, column: str, ours: str, theirs: str, shown: str
) -> None:
    of = averages(suite, column)
    lead = (of[ours] - of[theirs]).dropna()
    assert f"{lead.mean():.1f} ± {stats.half_width(lead):.1f} | {len(lead)}" == shown
    for page in (RESULTS / "README.md", ROOT / "README.md"):
        assert f"| {shown} |" in page.read_text(encoding="utf-8")


def blocks(page: Path) -> list[str]:
    """Paragraphs, items and rows of tables, without code, addresses and numbers of arXiv."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`]*`|https?:\S+|arXiv:[\d.]+", "", text)
    return re.split(r"\n\s*\n|\n(?=\||- |\d+\. )", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.parent.name + "/" + path.stem)
def test_each_measured_number_of_a_page_is_in_a_table_that_it_links_to_there(page: Path) -> None:
    measured = 0
    for block in blocks(page):
        tables = [page.parent / name for name in TABLE.findall(block)]
        if tables:
            drawn = " ".join(table.read_text(encoding="utf-8").replace("_", " ") for table in tables)
            assert set(NUMBER.findall(block)) <= set(NUMBER.findall(drawn)), block
            measured += len(NUMBER.findall(block))
        else:
            assert not re.search(r"± \d", block), f"no table beside: {block}"
    assert measured
