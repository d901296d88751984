"""A set that is not what it should be is refused before a model runs on it; the error names set, shard and key."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from support import evalsets
from support.evalsets import CLASSES, LinearClip, classification, npy, picture
from support.toy import write_tar

from engine import paths
from engine.evaluation import digest, pictures, reading
from engine.evaluation.runner import Model, answer_set

TEXTS = {"classnames": CLASSES, "zeroshot_classification_templates": ["a {c}"]}


def write(folder, samples, facts=None, **texts):
    evalsets.write_set(folder / "pets", samples, **{**TEXTS, **texts})
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
        (b"-1", r"0\.tar, key '00001': the label is -1"),
        (b"cat", r"0\.tar, key '00001': the label is b'cat', expected a whole number"),
        (b"9" * 20, r"0\.tar, key '00001': the label is b'9{20}', expected a whole number"),
    ],
)
def test_a_label_outside_the_class_names_is_refused(tmp_path, label, message):
    refused(write(tmp_path, [sample(), sample(cls=label)]), message)


@pytest.mark.parametrize("file", ["classnames.txt", "zeroshot_classification_templates.txt"])
def test_missing_class_names_or_templates_are_refused(tmp_path, file):
    card = write(tmp_path, [sample()])
    (Path(card.path) / file).unlink()
    refused(card, rf"{file} is missing")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"classnames": ["cat", "", "dog"]}, r"classnames\.txt: line 2 is blank"),
        ({"classnames": []}, r"classnames\.txt is empty"),
        ({"zeroshot_classification_templates": []}, r"templates\.txt is empty"),
        ({"zeroshot_classification_templates": ["a {c}", "a picture"]}, r"line 2 is 'a picture', expected a text with"),
        ({"zeroshot_classification_templates": ["a {}"]}, "line 1 is 'a {}', expected a text with {c}"),
        ({"zeroshot_classification_templates": ["{c} {d}"]}, "line 1 is '{c} {d}', expected a text with {c}"),
    ],
)
def test_texts_that_clip_benchmark_would_take_in_silence_are_refused(tmp_path, texts, message):
    refused(write(tmp_path, [sample()], **texts), message)


def test_another_number_of_class_names_or_images_than_the_card_says_is_refused(tmp_path):
    card = write(tmp_path, [sample()])
    refused(card.model_copy(update={"classes": 9}), "has 7 class names, its card says 9")
    refused(card.model_copy(update={"images": 9}), "has 1 images, its card says 9")


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


def test_texts_that_are_no_utf_8_are_named(tmp_path):
    card = write(tmp_path, [sample()])
    (Path(card.path) / "classnames.txt").write_bytes(b"\xff\n")
    refused(card, r"classnames\.txt is no UTF-8")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
def test_a_truncated_shard_is_refused(tmp_path, share):
    card = write(tmp_path, [sample() for _ in range(8)])
    shard = Path(card.path) / "test" / "0.tar"
    data = shard.read_bytes().rstrip(b"\0")
    shard.write_bytes(data[: int(len(data) * share)])
    refused(card, r"0\.tar, behind key '0000\d': (the archive ends within|no end mark|damaged header)")


def test_a_shard_with_a_damaged_header_is_refused(tmp_path):
    card = write(tmp_path, [sample() for _ in range(8)])
    shard = Path(card.path) / "test" / "0.tar"
    data = bytearray(shard.read_bytes())
    start = data.find(b"00003.cls")
    data[start + 148 : start + 156] = b"99999999"  # the checksum
    shard.write_bytes(bytes(data))
    refused(card, r"0\.tar, behind key '00003': damaged header")


def test_missing_shards_and_a_number_of_shards_that_is_none_are_refused(tmp_path):
    card = write(tmp_path, [sample()])
    number = Path(card.path) / "test" / "nshards.txt"
    number.write_text("3")
    refused(card, r"test lacks 1\.tar, 2\.tar; .*nshards\.txt says 3 shards")
    number.write_text("many")
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


@pytest.mark.parametrize(
    "data", [picture(0)[:100], b"", b"no image", b"RIFF____WEBPVP8 "], ids=["cut", "empty", "text", "stub"]
)
@pytest.mark.parametrize("min_images_for_workers", [1, 1000])
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
    ],
)
def test_a_record_that_does_not_fit_is_refused(tmp_path, members, message):
    refused(write(tmp_path, [sample(npy=npy([1.0, 2.0])), sample(**members)], RECORDS), message)


def test_a_pickled_record_is_not_opened(tmp_path):
    file = evalsets.io.BytesIO()
    np.save(file, np.array([object(), 1]), allow_pickle=True)
    refused(write(tmp_path, [sample(npy=file.getvalue())], RECORDS), r"key '00000': \.npy cannot be read")


def test_a_set_with_other_content_than_its_card_says_is_refused(tmp_path):
    card = classification(tmp_path / "pets", 5).model_copy(update={"sha256": "0" * 64})
    refused(card, "does not hold what its card says")
    found = card.model_copy(update={"sha256": reading.read(card.model_copy(update={"sha256": None})).sha256})
    assert reading.read(found).sha256 == found.sha256


def test_a_downloaders_own_notes_are_not_content(tmp_path):
    card = classification(tmp_path / "pets", 5)
    before = reading.read(card).sha256
    notes = Path(card.path) / ".cache" / "huggingface" / "download.metadata"
    notes.parent.mkdir(parents=True)
    notes.write_text("1732500000.1")
    (Path(card.path) / ".gitattributes").write_text("*.tar lfs")
    assert reading.read(card).sha256 == before
    (Path(card.path) / "test" / "more.txt").write_text("x")
    assert reading.read(card).sha256 != before


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
        ({"candidates": ["00000", "00001", "00000"]}, "line 1: a candidate occurs twice"),
        ({"associations": ["00002"]}, "line 1: an association is not among the candidates"),
        ({"candidates": ["00000", "unknown"]}, "no image of 1 candidates, e.g. unknown"),
    ],
)
def test_an_association_that_cannot_be_scored_is_refused(tmp_path, change, message):
    instance = {"cue": "tea", "candidates": ["00000", "00001"], "associations": ["00000"]}
    refused(evalsets.association(tmp_path / "pets", [instance | change], 3), message)


def test_an_instance_without_associations_is_refused_by_file_and_line(tmp_path):
    instance = {"cue": "tea", "candidates": ["00000", "00001"], "associations": []}
    card = evalsets.association(tmp_path / "pets", [instance], 3)
    with pytest.raises(ValueError, match=r"instances\.jsonl, line 1: associations"):
        reading.read(card)
    (Path(card.path) / "instances.jsonl").write_text(json.dumps(instance)[:-5])
    with pytest.raises(ValueError, match=r"instances\.jsonl, line 1: .*JSON"):
        reading.read(card)


def test_a_set_that_is_too_small_for_its_main_metric_is_refused(tmp_path):
    instance = {"cue": "tea", "candidates": ["00000", "00001"], "associations": ["00000"]}
    card = evalsets.association(tmp_path / "pets", [instance], 3)
    model = Model(LinearClip(), evalsets.transform, evalsets.tokenizer, "cpu")
    with pytest.raises(ValueError, match="'pets': it has no jaccard_score_10-12, only jaccard_score"):
        answer_set(reading.read(card), model)
