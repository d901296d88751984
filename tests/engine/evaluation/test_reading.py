"""A set that is not what it should be is refused before a model runs on it; the error names set, shard and key."""

import re
from pathlib import Path

import pytest
from support import evalsets
from support.evalsets import CLASSES, LinearClip, classification, npy, picture
from support.toy import write_tar

from engine import paths
from engine.evaluation import digest, pictures, reading
from engine.evaluation.runner import Model, answer_set

TEXTS = {"classnames": CLASSES, "zeroshot_classification_templates": ["a {c}"]}


def write(folder, samples, facts=None, **texts):
    given = {stem: lines for stem, lines in {**TEXTS, **texts}.items() if lines is not None}
    evalsets.write_set(folder / "pets", samples, **given)
    return evalsets.card(folder / "pets", images=len(samples), **(facts or {}))


def sample(**members):
    return {"png": picture(0), "cls": b"0", **members}


def refused(card, message):
    advice = r"(mend \S+/pets, or edit its card|edit the card), experiments/evals/pets\.yaml"
    with pytest.raises(ValueError, match=rf"^evaluation set 'pets'.*: {advice}") as error:
        reading.read(card)
    assert re.search(message, str(error.value)), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (b"7", r"0\.tar, key '00001': the label is 7, there are 7 class names \(labels from 0\)"),
        (b"cat", r"0\.tar, key '00001': the label is b'cat', expected a whole number"),
        (b"9" * 20, r"0\.tar, key '00001': the label is b'9{20}', expected a whole number"),
    ],
)
def test_a_label_outside_the_class_names_is_refused(tmp_path, label, message):
    refused(write(tmp_path, [sample(), sample(cls=label)]), message)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"classnames": ["cat", "", "dog"]}, r"classnames\.txt: line 2 is blank"),
        ({"classnames": []}, r"classnames\.txt is empty"),
        ({"classnames": None}, r"classnames\.txt is missing"),
        ({"zeroshot_classification_templates": []}, r"templates\.txt is empty"),
        ({"zeroshot_classification_templates": ["a {c}", "a picture"]}, r"line 2 is 'a picture', expected a text with"),
        ({"zeroshot_classification_templates": ["a {}"]}, "line 1 is 'a {}', expected a text with {c}"),
    ],
)
def test_texts_that_clip_benchmark_would_take_in_silence_are_refused(tmp_path, texts, message):
    refused(write(tmp_path, [sample()], **texts), message)


def test_all_counts_are_compared_at_once_and_before_labels(tmp_path):
    card = write(tmp_path, [sample(), sample(cls=b"8")]).model_copy(update={"images": 3, "classes": 9})
    refused(card, r"has 2 images, 7 class names, its card says 3, 9: .* \(images: 2, classes: 7\), or complete")


@pytest.mark.parametrize(
    ("facts", "advice"),
    [
        ({}, "edit the card, experiments/evals/pets.yaml (images: 1), or complete the folder"),
        ({"build": "make it"}, "run `make it` again"),
        ({"fetch": "ask them"}, "fetch it again (ask them)"),
        ({"hf_repo": "us/pets"}, "`python -m experiments evaluation-data pets` fetches what it lacks, and names what"),
    ],
    ids=["own", "built", "by hand", "fetched"],
)
def test_the_advice_fits_how_the_set_came(tmp_path, facts, advice):
    card = write(tmp_path, [sample()], facts=facts).model_copy(update={"images": 2})
    (line,) = reading.problems([card])
    assert line.startswith(f"evaluation set 'pets': {card.path} has 1 images, its card says 2: {advice}")


def test_a_set_is_counted_once_and_again_when_it_is_touched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(digest, "_SETTLED_NS", -(10**12))
    paths.RESULTS.mkdir()
    card = evalsets.retrieval(Path("pets"), [["a"], ["b"]])
    counted, count = [], reading.count
    monkeypatch.setattr(reading, "count", lambda card: counted.append(card.name) or count(card))
    assert [reading.problems([card]) for _ in range(3)] == [[]] * 3
    assert reading.read(card).sha256 == digest.folder_digest(Path("pets"))  # both are remembered
    # The card is compared all the same, and not what another task would find in there.
    wrong = card.model_copy(update={"images": 3, "captions": 4})
    assert "has 2 images, 2 captions, its card says 3, 4" in reading.problems([wrong])[0]
    assert counted == ["pets"]
    assert "instances.jsonl is missing" in reading.problems([card.model_copy(update={"task": "association"})])[0]
    evalsets.retrieval(Path("pets"), [["a"], ["b"], ["c"]])
    assert "has 3 images, its card says 2" in reading.problems([card])[0]
    assert counted == ["pets"] * 3


def test_missing_and_truncated_shards_and_a_number_of_shards_that_is_none_are_refused(tmp_path):
    card = write(tmp_path, [sample() for _ in range(8)])
    folder = Path(card.path) / "test"
    data = (folder / "0.tar").read_bytes().rstrip(b"\0")
    (folder / "0.tar").write_bytes(data[: len(data) // 2])
    refused(card, r"0\.tar, behind key '0000\d': (the archive ends within|no end mark)")
    (folder / "nshards.txt").write_text("3")
    refused(card, r"test lacks 1\.tar, 2\.tar; .*nshards\.txt says 3 shards")
    (folder / "nshards.txt").write_text("many")
    refused(card, r"nshards\.txt says 'many', expected the number of shards")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"0.png": picture(0)}, r"0\.tar, key '0': no \.cls among \['png'\]"),
        ({"0.gif": b"GIF89a", "0.cls": b"0"}, r"0\.tar, key '0': no image among \['cls', 'gif'\]"),
        ({"a.b/0.png": picture(0), "a.b/0.PNG": picture(0)}, r"0\.tar, key 'a\.b/0': \.png occurs twice"),
    ],
)
def test_a_sample_without_its_parts_is_refused(tmp_path, members, message):
    card = write(tmp_path, [sample()])
    write_tar(Path(card.path) / "test" / "0.tar", members)
    refused(card, message)


@pytest.mark.parametrize(("data", "min_images_for_workers"), [(picture(0)[:100], 1), (b"no image", 1000)])
def test_an_image_that_cannot_be_decoded_is_refused_with_and_without_workers(
    tmp_path, monkeypatch, data, min_images_for_workers
):
    monkeypatch.setattr(pictures, "MIN_IMAGES_FOR_WORKERS", min_images_for_workers)
    card = write(tmp_path, [sample(), sample(), sample(png=data)])
    model = Model(LinearClip(), evalsets.transform, evalsets.tokenizer, "cpu", num_workers=1)
    with pytest.raises(ValueError, match=r"^evaluation set 'pets': .*0\.tar, key '00002': the image cannot be decoded"):
        answer_set(reading.read(card), model)


RECORDS = {"metadata": ["region", "country"], "group_by": "region", "metric": "acc_wg"}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, r"key '00001': no \.npy among"),
        ({"npy": npy([1.0, 2.0, 3.0])}, r"key '00001': \.npy has shape \(3,\), expected the columns region, country"),
        ({"npy": b"\x93NUMPY"}, r"key '00001': \.npy cannot be read"),
        ({"npy": npy([object(), 1.0])}, r"key '00001': \.npy cannot be read"),  # a pickle is not opened
    ],
)
def test_a_record_that_does_not_fit_is_refused(tmp_path, members, message):
    refused(write(tmp_path, [sample(npy=npy([1.0, 2.0])), sample(**members)], RECORDS), message)


def test_a_set_with_other_content_than_its_card_says_is_refused(tmp_path):
    card = classification(tmp_path / "pets", 5).model_copy(update={"sha256": "0" * 64})
    refused(card, "does not hold what its card says")
    found = card.model_copy(update={"sha256": reading.read(card.model_copy(update={"sha256": None})).sha256})
    assert reading.read(found).sha256 == found.sha256


def test_captions_that_are_no_text_or_not_there_are_refused(tmp_path):
    card = evalsets.retrieval(tmp_path / "pets", [["a"], ["b"]])
    refused(card.model_copy(update={"captions": 3}), "has 2 captions, its card says 3")
    evalsets.write_set(tmp_path / "pets", [{"png": picture(0), "txt": b"\xff\xfe\xfa"}])
    refused(card.model_copy(update={"images": 1}), r"key '00000': \.txt is no UTF-8")
    refused(evalsets.retrieval(tmp_path / "pets", [[], []]), "no captions")


@pytest.mark.parametrize("wrong", [["a"], ["b", "b"], ["a", "b", "c"], []])
def test_captions_to_choose_from_that_are_not_as_many_or_not_different_are_refused(tmp_path, wrong):
    card = evalsets.selection(tmp_path / "pets", [["a", "b"], wrong])
    refused(
        card, rf"key '00001': the captions are {re.escape(str(wrong))}, expected two or more, all different, as many"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"candidates": ["00000", "00001", "00000"]}, "'pets': .*line 1: a candidate occurs twice"),
        ({"associations": ["00002"]}, "'pets': .*line 1: an association is not among the candidates"),
        ({"candidates": ["00000", "unknown"]}, "'pets': no image of 1 candidates, e.g. unknown"),
        ({"associations": []}, r"instances\.jsonl, line 1: associations"),
        ({}, "'pets': it has no jaccard_score_10-12, only jaccard_score"),
    ],
)
def test_an_association_that_cannot_be_scored_is_refused(tmp_path, change, message):
    instance = {"cue": "tea", "candidates": ["00000", "00001"], "associations": ["00000"]}
    card = evalsets.association(tmp_path / "pets", [instance | change], 3)
    model = Model(LinearClip(), evalsets.transform, evalsets.tokenizer, "cpu")
    with pytest.raises(ValueError, match=message):
        answer_set(reading.read(card), model)
