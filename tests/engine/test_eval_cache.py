"""Decoded pictures are kept for the next model, change no metric, and stay within their limit."""

import multiprocessing
import os
import resource
import time

import evalsets
import pytest
import torch
from open_clip.transform import image_transform
from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor

from engine import eval_cache, eval_data, eval_pictures, evaluate
from engine.eval_cache import PixelCache
from engine.evaluate import Model, answer_set

TRANSFORM = Compose(
    [Resize(evalsets.SIDE_PX), CenterCrop(evalsets.SIDE_PX), ToTensor(), Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))]
)
COUNT = 150
NUM_BYTES = COUNT * (3 * evalsets.SIDE_PX**2 + 1)


@pytest.fixture
def sets(tmp_path):
    """A set of each task; pictures of the first have an alpha channel."""
    classes = evalsets.classification(tmp_path / "classes", COUNT, shards=3)
    pairs = evalsets.retrieval(tmp_path / "pairs", [[f"number {n}"] for n in range(70)])
    names = [f"{n:05d}" for n in range(12)]
    cues = evalsets.association(
        tmp_path / "cues", [{"cue": "tea", "candidates": names, "associations": names[3:5]}], 12
    )
    transparent = [{"png": evalsets.picture(n, mode="RGBA"), "cls": b"1"} for n in range(70)]
    texts = {"classnames": evalsets.CLASSES, "zeroshot_classification_templates": evalsets.TEMPLATES}
    evalsets.write_set(tmp_path / "transparent", transparent, **texts)
    seen_through = evalsets.card(tmp_path / "transparent", images=70, classes=len(evalsets.CLASSES))
    return {card.name: eval_data.read(card) for card in (classes, pairs, cues, seen_through)}


@pytest.fixture
def num_decoded(monkeypatch):
    """Names of the sets of all pictures that are decoded in this process."""
    seen = []
    decode = eval_pictures._Images.__getitem__
    monkeypatch.setattr(
        eval_pictures._Images,
        "__getitem__",
        lambda self, row: seen.append(self.locations[row].shard.parts[-3]) or decode(self, row),
    )
    return seen


def model(cache, seed=0, transform=TRANSFORM):
    return Model(evalsets.LinearClip(seed), transform, evalsets.tokenizer, "cpu", cache=cache)


def test_metrics_are_the_same_with_and_without_and_a_second_model_decodes_nothing(sets, tmp_path, num_decoded, capsys):
    cache = PixelCache(tmp_path / "pixels", 1.0)
    for seed in (0, 1):
        expected = {name: answer_set(data, model(None, seed)).metrics for name, data in sets.items()}
        assert "70 images have an alpha channel" in capsys.readouterr().err
        num_decoded.clear()
        found = {name: answer_set(data, model(cache, seed)).metrics for name, data in sets.items()}
        assert found == expected
        assert "70 images have an alpha channel" in capsys.readouterr().err
        assert len(num_decoded) == (COUNT + 70 + 12 + 70 if seed == 0 else 0)
    assert len(list((tmp_path / "pixels").iterdir())) == len(sets)


def test_another_transform_or_other_pictures_are_decoded_anew(sets, tmp_path, num_decoded):
    cache = PixelCache(tmp_path / "pixels", 1.0)
    answer_set(sets["classes"], model(cache))
    num_decoded.clear()
    other = Compose([Resize(2 * evalsets.SIDE_PX), *TRANSFORM.transforms[1:]])
    found = answer_set(sets["classes"], model(cache, transform=other)).metrics
    assert found == answer_set(sets["classes"], model(None, transform=other)).metrics
    assert len(num_decoded) == 2 * COUNT
    again = evalsets.classification(tmp_path / "classes", COUNT, shards=3, seed=1)
    answer_set(eval_data.read(again), model(cache))
    assert len(num_decoded) == 3 * COUNT


def test_files_of_another_format_are_not_read(sets, tmp_path, num_decoded, monkeypatch):
    cache = PixelCache(tmp_path / "pixels", 1.0)
    answer_set(sets["classes"], model(cache))
    monkeypatch.setattr(eval_cache, "_FORMAT", eval_cache._FORMAT + 1)
    answer_set(sets["classes"], model(cache))
    assert len(num_decoded) == 2 * COUNT


@pytest.mark.parametrize("transform", [evalsets.transform, Compose([lambda image: image, *TRANSFORM.transforms])])
def test_a_transform_whose_pixels_cannot_be_told_apart_is_not_kept(sets, tmp_path, transform):
    answer_set(sets["classes"], model(PixelCache(tmp_path / "pixels", 1.0), transform=transform))
    assert not (tmp_path / "pixels").exists()


def test_open_clips_transforms_are_told_apart_by_all_that_decides_the_pixels():
    def described(size, **facts):
        return eval_pictures.split_transform(image_transform(size, False, **facts))[0].described()

    facts = [
        *({"size": 8, "resize_mode": mode} for mode in ("shortest", "longest", "squash")),
        {"size": 8, "resize_mode": "longest", "fill_color": 255},  # in no repr of open_clip's
        {"size": 8, "interpolation": "bilinear"},
        {"size": (8, 9)},
    ]
    texts = [described(**of_one) for of_one in facts]
    assert None not in texts
    assert len(set(texts)) == len(facts)
    assert texts == [described(**of_one) for of_one in facts]
    assert not any(" at 0x" in text for text in texts)


def test_a_set_that_does_not_fit_is_not_kept_and_evaluated_all_the_same(sets, tmp_path, num_decoded):
    cache = PixelCache(tmp_path / "pixels", (NUM_BYTES + 200) / 2**30)
    expected = {name: answer_set(data, model(None)).metrics for name, data in sets.items()}
    found = [{name: answer_set(data, model(cache)).metrics for name, data in sets.items()} for _ in range(2)]
    assert found == [expected, expected]
    # The first set fills the folder.
    assert {name: num_decoded.count(name) for name in sets} == {
        "classes": 2 * COUNT, "pairs": 3 * 70, "cues": 3 * 12, "transparent": 3 * 70,
    }  # fmt: skip


def test_a_full_disk_takes_none(sets, tmp_path, monkeypatch):
    disk = eval_cache.shutil.disk_usage(tmp_path)
    free = eval_cache._RESERVE_BYTES + NUM_BYTES
    monkeypatch.setattr(eval_cache.shutil, "disk_usage", lambda _: disk._replace(free=free - 1))
    answer_set(sets["classes"], model(PixelCache(tmp_path / "pixels", 1.0)))
    assert list((tmp_path / "pixels").iterdir()) == []
    monkeypatch.setattr(eval_cache.shutil, "disk_usage", lambda _: disk._replace(free=free))
    answer_set(sets["classes"], model(PixelCache(tmp_path / "pixels", 1.0)))
    assert len(list((tmp_path / "pixels").iterdir())) == 1


def test_a_disk_that_fills_up_meanwhile_costs_the_file_and_not_the_evaluation(sets, tmp_path, monkeypatch, capsys):
    clip, limits = model(PixelCache(tmp_path / "pixels", 1.0)), resource.getrlimit(resource.RLIMIT_FSIZE)
    encode = clip.clip.encode_image

    def fill_up(batch):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        return encode(batch)

    monkeypatch.setattr(clip.clip, "encode_image", fill_up)
    try:
        found = answer_set(sets["classes"], clip)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert found == answer_set(sets["classes"], model(None))
    assert capsys.readouterr().err.count("are not kept") == 1
    assert list((tmp_path / "pixels").iterdir()) == []


def test_an_evaluation_that_fails_keeps_nothing_and_what_killed_ones_left_goes_after_a_day(sets, tmp_path):
    cache = PixelCache(tmp_path / "pixels", 1.0)
    clip = model(cache)
    clip.clip.encode_image = lambda _: 1 / 0
    with pytest.raises(ZeroDivisionError):
        answer_set(sets["classes"], clip)
    assert list(cache.folder.iterdir()) == []
    for age_days in (0.9, 1.1):
        left = cache.folder / f".{age_days}.npy.host.1.tmp"
        left.write_bytes(b"half")
        os.utime(left, (time.time() - age_days * 86400,) * 2)
    answer_set(sets["classes"], model(cache))
    assert sorted(path.suffix for path in cache.folder.iterdir()) == [".npy", ".tmp"]
    assert (cache.folder / ".0.9.npy.host.1.tmp").exists()


def one_of_many(data, folder, start, values):
    torch.set_num_threads(1)
    start.wait()
    values.put(answer_set(data, model(PixelCache(folder, 1.0))).metrics)


def test_several_processes_at_once_find_the_same_and_leave_one_file(sets, tmp_path):
    context = multiprocessing.get_context("fork")
    start, values = context.Barrier(4), context.Queue()
    folder = tmp_path / "pixels"
    processes = [context.Process(target=one_of_many, args=(sets["classes"], folder, start, values)) for _ in range(4)]
    for process in processes:
        process.start()
    found = [values.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert found == [answer_set(sets["classes"], model(None)).metrics] * 4
    assert [path.suffix for path in folder.iterdir()] == [".npy"]


def test_the_command_line_keeps_pictures_only_when_it_is_told_to(tmp_path, monkeypatch, num_decoded):
    monkeypatch.chdir(tmp_path)
    card = evalsets.classification(tmp_path / "one", 20)
    evaluation = evaluate.Evaluation(name="x", sets={"one": card}, averages={})
    (tmp_path / "x.json").write_text(evaluation.model_dump_json())
    command = ["--open-clip", "tiny-vit", "--random-weights", "--evaluation", "x.json", "--out"]
    evaluate.main([*command, "first"])
    assert not (tmp_path / "results").exists()
    for out in ("second", "third"):
        evaluate.main([*command, out, "--execution", '{"eval_cache_gib": 0.1}'])
    assert len(num_decoded) == 2 * 20
    first, *others = [(tmp_path / out / "one.json").read_text() for out in ("first", "second", "third")]
    assert others == [first, first]
