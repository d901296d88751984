"""Verdicts on hypotheses: each is tested on its own pairs of seeds, all are corrected together."""

import math

import pandas as pd
import pytest
import synthetic
from drawn import build_table
from scipy.stats import ttest_1samp

from analysis.claims import claims
from analysis.collect import collect
from analysis.table import Cell

HYPOTHESES = (
    ("neuclip@64", "openclip@64"),
    ("siglip@64", "fastclip@64"),
    ("amorlip@64", "openclip@64"),
    ("neuclip@64", "openclip@128"),
)
CHANCE = (0.1 + 0.005) / 2


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


def rows(frame: pd.DataFrame) -> list[dict[str, str | Cell]]:
    table = build_table(frame, "hypotheses")
    return [dict(zip(table.header, line, strict=True)) for line in table.rows]


def numbers(line: dict[str, str | Cell]) -> dict[str, float]:
    return {name: float(cell.value) for name, cell in line.items() if isinstance(cell, Cell) and cell.value is not None}


def test_each_has_its_own_test_and_all_are_corrected_together(collected: pd.DataFrame) -> None:
    final = collected[(collected["name"] == "Average") & collected["is_final"] & (collected["variant"] == "")]
    of = final.pivot(index="seed", columns=["method", "global_batch_size"], values="value")
    assert of["siglip", 64].isna().sum() == 1
    of["siglip", 64] = of["siglip", 64].fillna(CHANCE)
    differences = [
        (of["neuclip", 64] - of["openclip", 64]).dropna(),
        (of["siglip", 64] - of["fastclip", 64]).dropna(),
        (of["amorlip", 64] - of["openclip", 64]).dropna(),
        (of["neuclip", 64] - of["openclip", 128]).dropna(),
    ]
    assert list(map(len, differences)) == [5, 5, 5, 3]
    p = [float(ttest_1samp(difference, 0.0).pvalue) for difference in differences]
    # Holm, step down: the least times four, the next times three, never below the one before.
    corrected, so_far = {}, 0.0
    for factor, which in zip((4, 3, 2, 1), sorted(range(4), key=lambda which: p[which]), strict=True):
        so_far = corrected[which] = max(so_far, min(1.0, factor * p[which]))
    found = rows(collected)
    for which, (line, difference) in enumerate(zip(found, differences, strict=True)):
        cells = numbers(line)
        assert cells["Difference"] == pytest.approx(100 * difference.mean())
        assert cells["Difference"] == pytest.approx(cells["First"] - cells["Second"])
        assert cells["p (Holm)"] == pytest.approx(corrected[which])
        assert cells["Pairs"] == len(difference)
    assert [line["Verdict"] for line in found] == ["holds", "does not show", "does not show", "holds"]
    assert found[3]["Hypothesis"] == "NeuCLIP, batch 64 > OpenCLIP, batch 128"


def test_the_other_sign_contradicts(collected: pd.DataFrame) -> None:
    is_ours = (collected["method"] == "neuclip") & (collected["kind"] == "average")
    collected.loc[is_ours, "value"] -= 0.2
    assert [line["Verdict"] for line in rows(collected)][::3] == ["contradicted", "contradicted"]


def test_what_cannot_be_tested_says_so_and_is_counted_in_the_correction(collected: pd.DataFrame) -> None:
    before = numbers(rows(collected)[0])["p (Holm)"]
    # SigLIP and FastCLIP now differ by the same in every seed; the averages of AmorLIP's runs are not there.
    for method, value in {"siglip": 0.3, "fastclip": 0.2, "amorlip": math.nan}.items():
        collected.loc[(collected["method"] == method) & (collected["kind"] == "average"), "value"] = value
    found = rows(collected)
    assert [line["Verdict"] for line in found] == ["holds", "not tested", "not tested", "holds"]
    assert [numbers(line).get("Pairs") for line in found] == [5, 5, 0, 3]
    assert numbers(found[0])["p (Holm)"] == before
    assert math.isnan(numbers(found[1])["p (Holm)"])


def test_a_report_begins_with_them_and_has_no_other_test_of_the_same_pair(collected: pd.DataFrame) -> None:
    first, second, _, last, *others = claims(collected, ())
    assert first.startswith(
        "Hypothesis, holds: NeuCLIP, batch 64, above OpenCLIP, batch 64, on Average: +9.9 points (95 %"
    )
    assert "n = 5 seeds, paired t test, Holm-corrected over 4 hypotheses p < 0.001)" in first
    assert second.startswith("Hypothesis, does not show: SigLIP, batch 64, above FastCLIP, batch 64, on Average: -")
    assert "above OpenCLIP, batch 128" in last
    assert not [sentence for sentence in others if "and OpenCLIP on Average" in sentence or "than" in sentence]
