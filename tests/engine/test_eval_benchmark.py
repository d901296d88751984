"""The whole way against clip_benchmark's console script: same weights, same sets, same numbers."""

import json

import evalsets
import numpy as np
import pytest

from benchmarks import evaluation
from engine import eval_data


@pytest.mark.slow
def test_metrics_are_those_of_the_console_script_in_one_call_and_set_by_set(tmp_path, monkeypatch, capsys):
    captions = [[f"number {n} {'ab'[i]}" for i in range(1 + n % 2)] for n in range(70)]
    cards = {
        "some_classes": evalsets.classification(tmp_path / "some_classes", 70),
        "some_pairs": evalsets.retrieval(tmp_path / "some_pairs", captions),
    }
    monkeypatch.setattr(evaluation.cards, "eval_set", cards.__getitem__)
    file = tmp_path / "measured.json"
    evaluation.main(["--sets", *cards, "--model", "tiny-vit", "--rounds", "1", "--json", str(file)])
    *ways, equality = json.loads(file.read_text())["rows"]
    # Three of the classification, six of the retrieval, from both ways of calling clip_benchmark.
    assert equality["compared"] == 18
    assert equality["largest_difference"] <= 1e-6
    assert [row["way"] for row in ways] == ["ours", "one call", "per set"]
    assert "largest difference of 18 metrics" in capsys.readouterr().out


def test_a_shifted_copy_has_the_same_labels_and_other_pictures(tmp_path):
    card = evalsets.classification(tmp_path / "some_classes", 12)
    copy = evaluation.shifted(card, "mirrored", tmp_path / "copy")
    before, after = eval_data.read(card), eval_data.read(copy)
    assert before.labels.tolist() == after.labels.tolist()
    assert before.classes == after.classes

    def first(data):
        at = data.locations[0]
        content = at.shard.read_bytes()[at.offset : at.offset + at.size]
        return np.asarray(evalsets.Image.open(evalsets.io.BytesIO(content)).convert("RGB"))

    assert np.array_equal(first(after), first(before)[:, ::-1])
