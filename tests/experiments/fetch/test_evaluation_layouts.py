"""Sets that come in other layouts are written in the one that is read: labels, pictures and instances are the same."""

import csv
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import evalsets

from engine import files
from engine.evaluation import reading
from experiments.design import cards
from experiments.design.suite import expand
from experiments.fetch.layouts import IMAGES_PER_SHARD, LAYOUTS, LayoutError, convert
from experiments.fetch.shards import png

RANDOM = np.random.default_rng(0)


def pixels(*shape):
    return RANDOM.integers(0, 256, shape).astype(np.uint8)


def card_of(folder, name, layout, files, **facts):
    original = {"layout": layout, "files": files, **facts.pop("original", {})}
    given = {"class_names": ["a", "b", "c"], "classes": 3, "templates": ["the {c}"], "hf_repo": "x/y"}
    return evalsets.card(folder / name, original=original, **given | facts)


def pictures(card):
    data = reading.read(card)
    found = []
    for at in data.locations:
        content = at.shard.read_bytes()[at.offset : at.offset + at.size]
        found.append(np.array(Image.open(io.BytesIO(content))))
    return data, found


@pytest.mark.parametrize("shape", [(1, 1, 3), (7, 5), (7, 5, 3), (200, 150, 3)])
def test_a_png_holds_the_pixels_it_was_made_of(shape):
    expected = pixels(*shape)
    data = png(expected.tobytes(), shape[0], shape[1])
    with Image.open(io.BytesIO(data)) as image:
        image.verify()
    assert np.array_equal(np.array(Image.open(io.BytesIO(data))), expected)


@pytest.mark.parametrize("shape", [(IMAGES_PER_SHARD + 3, 6, 6, 3), (5, 28, 28)])
def test_medmnist_arrays_become_pictures_with_their_labels(tmp_path, shape):
    images, labels = pixels(*shape), RANDOM.integers(0, 3, (shape[0], 1)).astype(np.uint8)
    other = {f"{split}_{kind}": pixels(2, 2) for split in ("train", "val") for kind in ("images", "labels")}
    np.savez(tmp_path / "cells.npz", test_images=images, test_labels=labels, **other)
    card = card_of(tmp_path, "cells", "medmnist", ["cells.npz"], images=shape[0])
    convert(card, tmp_path, Path(card.path))
    data, found = pictures(card)
    assert np.array_equal(np.stack(found), images)
    assert data.labels.tolist() == labels[:, 0].tolist()
    assert (data.classes, data.templates) == (["a", "b", "c"], ["the {c}"])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"test_images": pixels(4, 6, 6)}, "cells.npz has no test_labels, only test_images"),
        ({"test_images": pixels(4, 6, 6).astype(float)}, r"pictures float64 \(4, 6, 6\), expected uint8"),
        ({"test_images": pixels(4, 6, 6, 2)}, r"pictures uint8 \(4, 6, 6, 2\), expected uint8"),
        ({"test_images": pixels(4, 6, 6), "test_labels": np.zeros((3, 1), int)}, r"labels int64 \(3, 1\), expected"),
        ({"test_images": pixels(4, 6, 6), "test_labels": np.zeros((4, 1))}, r"labels float64 \(4, 1\), expected"),
        ({"test_images": pixels(4, 6, 6), "test_labels": np.full((4, 1), 3)}, "labels up to 3, there are 3 classes"),
        ({"test_images": np.array([{}]), "test_labels": np.zeros((1, 1), int)}, "Object arrays cannot be loaded"),
    ],
)
def test_arrays_that_are_something_else_are_refused_and_pickles_are_not_opened(tmp_path, arrays, message):
    if "test_labels" not in arrays and "no test_labels" not in message:
        arrays = arrays | {"test_labels": np.zeros((4, 1), np.uint8)}
    np.savez(tmp_path / "cells.npz", **arrays)
    card = card_of(tmp_path, "cells", "medmnist", ["cells.npz"], images=4)
    with pytest.raises(LayoutError, match=f"evaluation set 'cells': .*{message}"):
        convert(card, tmp_path, Path(card.path))


def write_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def test_a_zip_of_folders_becomes_classes_in_the_order_of_the_card(tmp_path):
    tif, jpg = pixels(9, 8, 3), evalsets.picture(1, "JPEG")
    file = io.BytesIO()
    Image.fromarray(tif).save(file, "TIFF")
    write_zip(
        tmp_path / "land.zip",
        {
            "Land/readme.txt": b"hello", "Land/Images/river/r1.tif": file.getvalue(), "Land/Images/beach/b1.jpg": jpg,
            "Land/Images/farm/f0.jpg": jpg, "__MACOSX/Land/Images/river/._r1.tif": b"\0\5", "Land/Images/farm/": b"",
        },
    )  # fmt: skip
    card = card_of(
        tmp_path, "land", "folders", ["land.zip"], images=3, original={"folders": ["farm", "river", "beach"]},
        class_names=["farm land", "a river", "a beach"],
    )  # fmt: skip
    convert(card, tmp_path, Path(card.path))
    data, found = pictures(card)
    assert data.labels.tolist() == [2, 0, 1]  # by path: beach, farm, river
    assert data.classes == ["farm land", "a river", "a beach"]
    assert np.array_equal(found[2], tif)
    first = data.locations[0]
    assert first.shard.read_bytes()[first.offset : first.offset + first.size] == jpg  # as it was

    card = card.model_copy(update={"original": card.original.model_copy(update={"folders": ("farm", "river", "sea")})})
    with pytest.raises(LayoutError, match=r"land\.zip has folders that are no class: beach"):
        convert(card, tmp_path, tmp_path / "new")


@pytest.mark.parametrize("damage", [lambda data: data[:300], lambda data: b"no picture"])
def test_a_picture_that_cannot_be_decoded_is_named(tmp_path, damage):
    write_zip(tmp_path / "land.zip", {"a/1.jpg": damage(evalsets.picture(1, "JPEG", size=(60, 60)))})
    card = card_of(tmp_path, "land", "folders", ["land.zip"], images=1, original={"folders": ["a", "b", "c"]})
    with pytest.raises(LayoutError, match=r"'land': a/1\.jpg cannot be decoded"):
        convert(card, tmp_path, Path(card.path))


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"<html>not found</html>")
    (tmp_path / "x.npz").write_bytes(b"<html>not found</html>")
    for layout, name in (("folders", "x.zip"), ("medmnist", "x.npz")):
        card = card_of(tmp_path, "x", layout, [name], images=1, original={"folders": ["a", "b", "c"]})
        with pytest.raises(LayoutError, match="'x': its files cannot be read"):
            convert(card, tmp_path, tmp_path / "out")


def wino(folder, rows, names):
    with (folder / "winogavil_dataset.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["", "candidates", "cue", "associations", "score_fool_the_ai", "ID"])
        table.writeheader()
        for number, (cue, candidates, associations) in enumerate(rows):
            lists = {"candidates": json.dumps(candidates), "associations": json.dumps(associations)}
            table.writerow({"": number, "cue": cue, "score_fool_the_ai": 0, "ID": number, **lists})
    content = {name: evalsets.picture(number, "JPEG") for number, name in enumerate(names)}
    write_zip(folder / "winogavil_images.zip", {f"winogavil_images/{name}.jpg": content[name] for name in names})
    given = {"task": "association", "metric": "jaccard_score_10-12", "classes": None, "class_names": []}
    files = list(cards.eval_set("winogavil").original.files)
    return card_of(folder, "wino", "winogavil", files, images=len(rows), **given), content


def test_winogavil_instances_keep_their_candidates_their_order_and_their_pictures(tmp_path):
    rows = [
        ("bald", ["eagle", "tea party", "mr. t"], ["mr. t", "eagle"]),
        ("plush", ["tea party", "ash"], ["ash", "not a candidate"]),
    ]
    card, content = wino(tmp_path, rows, ["eagle", "tea party", "mr. t", "ash", "in no instance"])
    convert(card, tmp_path, Path(card.path))
    data = reading.read(card)
    stored = {at.key: at.shard.read_bytes()[at.offset : at.offset + at.size] for at in data.locations}
    assert len(stored) == 4
    for instance, (cue, candidates, associations) in zip(data.instances, rows, strict=True):
        assert instance.cue == cue
        assert [stored[key] for key in instance.candidates] == [content[name] for name in candidates]
        expected = {content[name] for name in associations if name in candidates}
        assert {stored[key] for key in instance.associations} == expected

    card, _ = wino(tmp_path, rows, ["eagle", "ash"])
    with pytest.raises(LayoutError, match=r"lacks the pictures of 2 candidates, e\.g\. \['mr\. t', 'tea party'\]"):
        convert(card, tmp_path, tmp_path / "new")


def test_a_converted_set_is_the_same_to_the_byte_each_time(tmp_path):
    np.savez(tmp_path / "cells.npz", test_images=pixels(9, 300, 200, 3), test_labels=np.arange(9).reshape(9, 1) % 3)
    card = card_of(tmp_path, "cells", "medmnist", ["cells.npz"], images=9)
    for name in ("one", "two"):
        convert(card, tmp_path, tmp_path / name)
    assert files.folder_sha256(tmp_path / "one") == files.folder_sha256(tmp_path / "two")


def test_the_domain_sets_say_what_is_needed_to_make_them():
    evaluation = cards.evaluation("domains")
    assert set(evaluation.averages["Satellite"]) | set(evaluation.averages["Medical"]) == set(evaluation.sets)
    made = {name: card for name, card in evaluation.sets.items() if card.original}
    assert set(made) == {"ucmerced", "pathmnist", "bloodmnist", "dermamnist", "pneumoniamnist"}
    for card in made.values():
        assert card.original.layout in LAYOUTS
        assert len(set(card.class_names)) == card.classes
        assert all("{c}" in template for template in card.templates)
        assert card.chance == pytest.approx(1 / card.classes, abs=1e-5)
        assert card.original.url is None or card.original.files[0] in card.original.url
        assert len(card.original.folders) in {0, card.classes}


def test_the_main_runs_of_the_domains_are_those_of_cc12m():
    ids = {name: [run.spec.run_id for run in expand(name).runs if not run.variant] for name in ("domains", "cc12m")}
    assert ids["domains"] == ids["cc12m"]
    assert {run.spec.dataset.name for run in expand("domains").runs} == {"cc12m", "rocov2", "rsicd"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hf_repo": None}, "original: give a url, or hf_repo beside it"),
        ({"class_names": ["a"]}, "1 class_names, classes is 3"),
        ({"templates": []}, "needs class_names and templates"),
        ({"original": {"url": "https://x"}}, "url and md5 go together"),
    ],
)
def test_a_card_that_does_not_say_enough_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        card_of(tmp_path, "land", "folders", ["land.zip"], images=3, **change)
