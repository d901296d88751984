"""Every metric against a slow computation of its own, on made-up records."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score

from engine.evaluation import scoring

random = np.random.default_rng(0)
TRUE = random.integers(0, 9, 300) * 2  # labels 0, 2, ..., 16: every other class is absent
PREDICTED = np.where(random.random(300) < 0.4, TRUE, random.integers(0, 20, 300))


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_means_over_classes_are_those_of_scikit_learn_over_the_classes_that_occur_and_not_over_all_that_are_named():
    found, labels = scoring.macro_f1(TRUE, PREDICTED), np.unique(TRUE)
    assert found == pytest.approx(f1_score(TRUE, PREDICTED, labels=labels, average="macro"), abs=1e-12)
    every = f1_score(TRUE, PREDICTED, labels=range(20), average="macro", zero_division=0)
    assert found != pytest.approx(every, abs=1e-3)
    recall = scoring.mean_per_class_recall(TRUE, (TRUE == PREDICTED).astype(float))
    assert recall == balanced_accuracy_score(TRUE, PREDICTED)


def test_four_wrong_images_of_one_region_make_the_worst_region_zero_and_leave_the_steadier_form():
    region = np.repeat([0, 1, 5], [200, 150, 4])  # DataComp means to leave out 5, "Other", and does not
    hit = np.concatenate([np.arange(200) < 120, np.arange(150) < 75, np.zeros(4, bool)])
    assert scoring.worst_group(hit, region) == 0
    assert scoring.worst_group(hit, region, scoring.MIN_GROUP) == 0.5
    hit[-1] = True
    assert scoring.worst_group(hit, region) == 0.25
    assert math.isnan(scoring.worst_group(hit, region, 1000))


@given(st.integers(0, 2**31), st.integers(2, 6), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_equal_scores_are_put_in_every_order_and_the_mean_counts(seed, size, num_scores):
    random = np.random.default_rng(seed)
    scores, right = random.integers(num_scores, size=size), random.random(size) < 0.5
    orders = [np.array(order) for order in itertools.permutations(range(size))]
    best_first = [order[np.argsort(-scores[order], kind="stable")] for order in orders]
    ks = range(1, size + 1)
    found = scoring.hits(torch.tensor(scores)[None].float(), torch.tensor(right)[None], ks)
    for k in ks:
        assert found[k].item() == pytest.approx(np.mean([right[order[:k]].any() for order in best_first]), abs=1e-12)
    if k := np.count_nonzero(right):
        shared = [np.count_nonzero(right[order[:k]]) for order in best_first]
        mean = np.mean([hits / (2 * k - hits) for hits in shared])
        assert scoring.jaccard(scores.astype(np.float32), right) == pytest.approx(mean, abs=1e-12)


def test_of_equal_best_classes_each_is_drawn_as_often_and_a_single_one_always():
    scores = torch.zeros(3000, 5)
    scores[:, [1, 3, 4]] = 1.0
    counts = np.bincount(scoring.best_drawn(scores), minlength=5)
    assert counts[[0, 2]].tolist() == [0, 0]
    assert np.abs(counts[[1, 3, 4]] - 1000).max() < 4 * np.sqrt(3000 * 2 / 9)
    apart = torch.from_numpy(random.standard_normal((50, 12)))
    assert scoring.best_drawn(apart).tolist() == apart.argmax(dim=1).tolist()


@pytest.mark.parametrize(("cue", "prompt"), [("Owl", "An owl"), ("dog", "A dog"), ("ICE cream", "An ice cream")])
def test_a_cue_gets_the_article_of_its_first_letter(cue, prompt):
    assert scoring.cue_prompt(cue) == prompt


def test_recalls_are_those_of_a_slow_computation_and_an_image_without_texts_is_a_miss():
    image = torch.nn.functional.normalize(torch.from_numpy(random.standard_normal((9, 6))), dim=1)
    text = torch.nn.functional.normalize(torch.from_numpy(random.standard_normal((14, 6))), dim=1)
    owner = [0, 0, 0, 1, 2, 2, 4, 5, 5, 6, 7, 7, 8, 8]  # none for image 3
    recalls = {
        name: hit.float().mean().item() for name, hit in scoring.retrieval_hits(image, text, owner, (1, 5, 10)).items()
    }
    scores = (text @ image.T).numpy()
    for k in (1, 5):
        of_text = [owner[t] in np.argsort(-scores[t])[:k] for t in range(14)]
        of_image = [any(owner[t] == i for t in np.argsort(-scores[:, i])[:k]) for i in range(9)]
        assert recalls[f"image_retrieval_recall@{k}"] == pytest.approx(np.mean(of_text), abs=1e-6)
        assert recalls[f"text_retrieval_recall@{k}"] == pytest.approx(np.mean(of_image), abs=1e-6)
    # Ten best of nine images are not defined; of fourteen texts they are.
    assert "image_retrieval_recall@10" not in recalls
    assert "text_retrieval_recall@10" in recalls
