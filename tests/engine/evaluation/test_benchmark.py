"""The whole way against clip_benchmark's console script: same weights, same sets, same numbers."""

import json

import pytest
from support import evalsets

from benchmarks import evaluation
from engine.evaluation import reading


@pytest.mark.slow
def test_metrics_are_those_of_the_console_script(tmp_path, monkeypatch, capsys):
    captions = [[f"number {n} {'ab'[i]}" for i in range(1 + n % 2)] for n in range(70)]
    cards = {
        "some_classes": evalsets.classification(tmp_path / "some_classes", 70),
        "some_pairs": evalsets.retrieval(tmp_path / "some_pairs", captions),
    }
    monkeypatch.setattr(evaluation.cards, "eval_set", cards.__getitem__)
    file = tmp_path / "measured.json"
    evaluation.main(["--sets", *cards, "--model", "tiny-vit", "--rounds", "1", "--json", str(file)])
    *ways, equality = json.loads(file.read_text())["rows"]
    # Three of the classification, six of the retrieval.
    assert equality["compared"] == 9
    assert equality["largest_difference"] <= 1e-6
    assert [row["way"] for row in ways] == ["ours", "clip_benchmark"]
    assert "largest difference of 9 metrics" in capsys.readouterr().out


def test_made_up_sets_have_datacomps_proportions(tmp_path):
    sets = [reading.read(card) for card in evaluation.datacomp_like(160, tmp_path)]
    prompts = [[t.format(c=c) for c in data.classes for t in data.templates] for data in sets]
    assert len(sets) == 12
    assert 140 <= sum(data.card.images for data in sets) <= 160
    assert sum(map(len, prompts)) == pytest.approx(80, rel=0.3)
    assert all(shared == prompts[0] for shared in prompts[:7])
    assert len(set().union(*prompts)) < sum(map(len, prompts)) / 3
    assert [len(captions) for captions in sets[-1].captions] == [5] * sets[-1].card.images
