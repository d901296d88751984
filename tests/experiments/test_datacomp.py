"""The cards of DataComp's tasks: all 38 are there, say what DataComp says, and refuse an average that lacks one."""

import pytest

from engine.schema.evaluation import EvalCard
from experiments.design import cards

EVALUATION = cards.evaluation("datacomp38")
IMAGENET = ("imagenet1k", "imagenet_sketch", "imagenetv2", "imagenet-a", "imagenet-o", "imagenet-r", "objectnet")
OWN_METRICS = {
    "winogavil": "jaccard_score_10-12",
    "wilds-iwildcam": "F1-macro_all",
    "wilds-fmow": "acc_worst_region",
    "dollar_street": "acc_top5_wg",
    "geode": "acc_wg",
}


def test_there_are_38_tasks_with_as_many_images_as_datacomp_evaluates():
    assert len(EVALUATION.sets) == 38
    assert sum(card.images for card in EVALUATION.sets.values()) == 697_369
    by_metric = {name: card.metric for name, card in EVALUATION.sets.items()}
    assert {name: metric for name, metric in by_metric.items() if metric in OWN_METRICS.values()} == OWN_METRICS
    assert [name for name, metric in by_metric.items() if metric == "mean_recall@1"] == ["flickr30k", "mscoco_captions"]
    assert sorted(name for name, metric in by_metric.items() if metric == "mean_per_class_recall") == [
        "fgvc_aircraft", "vtab-caltech101", "vtab-flowers", "vtab-pets",
    ]  # fmt: skip
    assert sum(metric == "acc1" for metric in by_metric.values()) == 27


def test_retrieval_has_the_captions_of_karpathys_test_splits():
    captions = {name: card.captions for name, card in EVALUATION.sets.items() if card.task == "zeroshot_retrieval"}
    assert captions == {"flickr30k": 5_000, "mscoco_captions": 25_010}


def test_the_averages_are_those_of_the_papers_and_of_datacomp():
    assert EVALUATION.averages["DataComp"] == tuple(EVALUATION.sets)
    assert EVALUATION.averages["ImageNet & Variants"] == IMAGENET
    assert EVALUATION.averages["ImageNet dist. shifts"] == IMAGENET[1:]
    assert EVALUATION.averages["Retrieval"] == ("flickr30k", "mscoco_captions", "winogavil")
    assert len(EVALUATION.averages["VTAB"]) == 13


def test_a_model_that_guesses_has_nine_points_on_average():
    averages = EVALUATION.averaged({name: card.chance for name, card in EVALUATION.sets.items()}, frozenset())
    percent = {name: 100 * average.value for name, average in averages.items()}
    assert percent["DataComp"] == pytest.approx(9.15, abs=0.01)
    assert percent["ImageNet & Variants"] == pytest.approx(0.47, abs=0.01)
    assert percent["Retrieval"] == pytest.approx(6.87, abs=0.01)


def test_the_average_lacks_a_value_when_one_of_the_38_does():
    values = dict.fromkeys(EVALUATION.sets, 0.5) | {"geode": None}
    averages = EVALUATION.averaged(values, frozenset({"geode"}))
    assert {name for name, average in averages.items() if average.value is None} == {"DataComp"}
    partial = EVALUATION.model_copy(update={"when_missing": "average_of_available"})
    assert partial.averaged(values, frozenset({"geode"}))["DataComp"].name == "DataComp (37 of 38 sets)"
    # A set that is there but was not evaluated still leaves a hole.
    assert partial.averaged(values, frozenset())["DataComp"].value is None


def test_every_task_lies_in_a_folder_of_its_own_and_says_where_it_comes_from():
    assert len({card.path for card in EVALUATION.sets.values()}) == 38
    for name, card in EVALUATION.sets.items():
        assert card.hf_repo is not None
        assert card.hf_repo in card.source
        if card.task != "association":
            # clip_benchmark finds them too: --dataset_root 'data/datacomp/wds_{dataset_cleaned}_test'
            assert card.path == f"data/datacomp/wds_{name}_test"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "mean_recall@1"}, "unknown metric of zeroshot_classification 'mean_recall@1'"),
        ({"metric": "acc_wg"}, "group_by goes with the metrics"),
        ({"group_by": "region"}, "group_by goes with the metrics"),
        ({"metric": "acc_wg", "group_by": "regoin", "metadata": ["region"]}, "did you mean 'region'"),
    ],
)
def test_a_card_whose_metric_cannot_be_computed_is_refused(change, message):
    facts = {
        "name": "x", "title": "X", "task": "zeroshot_classification", "metric": "acc1", "path": "x", "images": 1,
        "chance": 0.1, "licence": "CC0-1.0", "source": "x",
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        EvalCard.model_validate(facts | change)


def test_another_revision_or_grouping_is_another_identity():
    card = cards.eval_set("geode")
    changes = ({"hf_revision": "a" * 40}, {"group_by": "country"}, {"sha256": "0" * 64}, {"chance": 0.5})
    identities = {card.model_copy(update=change).identity for change in ({}, *changes)}
    assert len(identities) == 5
    assert card.model_copy(update={"path": "y", "hf_repo": "z", "fetch": "w"}).identity == card.identity
