"""Verdicts on hypotheses: each is tested on its own pairs of seeds, all are corrected together."""

import pandas as pd
import pytest
import synthetic
from scipy.stats import ttest_1samp

from analysis.collect import collect
from analysis.rendering import build_table, to_markdown
from analysis.table import Cell

HYPOTHESES = (
    ("neuclip@64", "openclip@64"),
    ("siglip@64", "fastclip@64"),
    ("amorlip@64", "openclip@64"),
    ("neuclip@64", "openclip@128"),
)


@pytest.fixture
def collected() -> pd.DataFrame:
    """NeuCLIP's lead spreads little, AmorLIP's much; SigLIP is below FastCLIP, and its last seed diverged."""
    large = [synthetic.run_spec("openclip", seed, global_batch_size=128) for seed in range(1, 4)]
    suite = synthetic.write_suite(
        [*synthetic.main_specs(5), *large],
        variants={"other": [synthetic.run_spec("neuclip", seed, config={"period": 1}) for seed in range(5)]},
        diverged=(("siglip", 4),),
        hypotheses=HYPOTHESES,
    )
    frame = collect(suite)
    frame.loc[frame["variant"] == "other", "value"] = 0.0
    for method, wobble in {"amorlip": (-0.09, 0.06, -0.05, 0.08, 0.01), "siglip": (0.0, 0.01, 0.0, 0.01, 0.0)}.items():
        for seed, more in enumerate(wobble):
            is_run = (frame["method"] == method) & (frame["seed"] == seed) & (frame["kind"] == "average")
            frame.loc[is_run, "value"] += more
    return frame


def averages(frame: pd.DataFrame) -> pd.DataFrame:
    rows = frame[(frame["name"] == "Average") & frame["is_final"] & (frame["variant"] == "")]
    return rows.pivot(index="seed", columns=["method", "global_batch_size"], values="value")


def test_each_has_its_own_test_and_all_are_corrected_together(collected: pd.DataFrame) -> None:
    of = averages(collected)
    differences = [
        (of["neuclip", 64] - of["openclip", 64]).dropna(),
        (of["siglip", 64] - of["fastclip", 64]).dropna(),
        (of["amorlip", 64] - of["openclip", 64]).dropna(),
        (of["neuclip", 64] - of["openclip", 128]).dropna(),
    ]
    assert list(map(len, differences)) == [5, 4, 5, 3]
    p = [float(ttest_1samp(difference, 0.0).pvalue) for difference in differences]
    # Holm, step down: the least times four, the next times three, never below the one before.
    corrected, so_far = {}, 0.0
    for factor, which in zip((4, 3, 2, 1), sorted(range(4), key=lambda which: p[which]), strict=True):
        so_far = corrected[which] = max(so_far, min(1.0, factor * p[which]))
    table = build_table(collected, "hypotheses")
    rows = [dict(zip(table.header, line, strict=True)) for line in table.rows]
    for which, (line, difference) in enumerate(zip(rows, differences, strict=True)):
        cells = {name: cell.value for name, cell in line.items() if isinstance(cell, Cell)}
        assert cells["Difference"] == pytest.approx(100 * difference.mean())
        assert cells["Difference"] == pytest.approx(cells["Higher"] - cells["Lower"])
        assert cells["p (Holm)"] == pytest.approx(corrected[which])
        assert cells["Pairs"] == len(difference)
    assert [line["Verdict"] for line in rows] == ["holds", "contradicted", "does not show", "holds"]


def test_sides_are_named_by_method_and_batch_and_a_pair_that_is_lost_is_counted(collected: pd.DataFrame) -> None:
    text = to_markdown(build_table(collected, "hypotheses"))
    assert "| NeuCLIP, batch 64 > OpenCLIP, batch 128 |" in text
    assert "Left out because a run of theirs diverged: 1 pair." in text
