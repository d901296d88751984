"""Stock tools use an export: open_clip's loader and clip_benchmark's command."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from support import toy

from engine import paths
from engine.data.index import build_index, read_index
from engine.data.loader import PairDataset, Request
from engine.evaluation.runner import evaluate_run
from engine.schema.run import AugmentationSpec, CaptionSource, Execution
from engine.training.loop import train
from engine.training.towers import CONFIG_FILE, WEIGHTS_FILE, build_towers, export, load_export, tokenizer
from experiments.design import cards


def models_in(value):
    """Every value of a key `model` in parsed YAML."""
    if isinstance(value, dict):
        yield from (v for k, v in value.items() if k == "model" and isinstance(v, str))
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from models_in(item)


FILES = [*cards.FOLDER.glob("suites/*.yaml"), *cards.FOLDER.glob("ablations/*.yaml")]
MODELS = {"RN50", "ViT-B-32", "ViT-B-16"} | {m for path in FILES for m in models_in(yaml.safe_load(path.read_text()))}


@pytest.fixture
def folder(tmp_path):
    """A folder that is removed at once: large models do not stay behind, as pytest's own folders do."""
    yield tmp_path / "export"
    shutil.rmtree(tmp_path / "export", ignore_errors=True)


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    "name", [pytest.param(m, marks=[] if m.startswith("tiny") else pytest.mark.slow) for m in sorted(MODELS)]
)
def test_every_model_of_the_suites_comes_back_from_stock_open_clip_bit_for_bit(folder, name):
    with_bias = name.startswith("tiny")
    towers = build_towers(name, seed=5).eval()
    bias = torch.tensor(-9.75) if with_bias else None
    export(towers, name, folder, logit_scale=torch.tensor(33.0), logit_bias=bias)
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    image_BCHW = transform(picture(300, 260)).unsqueeze(0)
    tokens_BT = open_clip.get_tokenizer(f"local-dir:{folder}")(["a bell beside a red square"])
    assert image_BCHW.shape == (1, 3, towers.image_size, towers.image_size)
    assert torch.equal(tokens_BT, tokenizer(name)(["a bell beside a red square"]))
    model.eval()
    with torch.no_grad():
        assert torch.equal(model.encode_image(image_BCHW), towers.clip.encode_image(image_BCHW))
        assert torch.equal(model.encode_text(tokens_BT), towers.clip.encode_text(tokens_BT))
    assert float(model.logit_scale.detach().exp()) == pytest.approx(33.0)
    assert (float(model.logit_bias.detach()) == -9.75) if with_bias else model.logit_bias is None


def test_an_export_holds_one_safetensors_file_and_json(folder):
    export(build_towers("tiny-vit", seed=0), "tiny-vit", folder, logit_scale=torch.tensor(10.0), logit_bias=None)
    assert {path.name for path in folder.iterdir()} == {WEIGHTS_FILE, CONFIG_FILE}
    assert set(json.loads((folder / CONFIG_FILE).read_text())) == {"model_cfg", "preprocess_cfg"}
    with safe_open(folder / WEIGHTS_FILE, "pt") as file:
        assert {"logit_scale", "text_projection"} <= set(file.keys())


def test_the_exported_transform_is_what_training_does_without_augmentation(tmp_path, folder):
    sizes = [(32, 32), (57, 40), (33, 120), (20, 24)]
    members = {}
    for number, size in enumerate(sizes):
        picture(*size).save(tmp_path / f"{number}.png")
        members |= {f"{number}.png": (tmp_path / f"{number}.png").read_bytes(), f"{number}.txt": b"a square"}
    toy.write_tar(tmp_path / "shards" / "0.tar", members)
    index = tmp_path / "index" / "odd" / "index.json"
    build_index("odd", "1", tmp_path / "shards", CaptionSource(), index, pairs=len(sizes))
    towers = build_towers("tiny-vit", seed=0)
    dataset = PairDataset(
        read_index(index), index, image_size=towers.image_size, tokenizer=tokenizer("tiny-vit"),
        augmentation=AugmentationSpec(kind="none"), seed=0, cache_bytes=0,
    )  # fmt: skip
    trained_on = dataset[Request(0, np.arange(len(sizes)))].image_BCHW
    export(towers, "tiny-vit", folder, logit_scale=torch.tensor(10.0), logit_bias=None)
    _, transform, _ = load_export(folder)
    for number, pixels_CHW in enumerate(trained_on):
        expected = transform(Image.open(tmp_path / f"{number}.png"))
        assert torch.equal((pixels_CHW / 255 - towers.mean) / towers.std, expected)


@pytest.mark.slow
def test_the_stock_clip_benchmark_command_finds_our_numbers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    toy.build(tmp_path)
    evaluation = toy.build_evaluation(tmp_path)
    record = train(toy.run_spec("openclip", steps=60), Execution())
    ours = {result.eval_set: result for result in evaluate_run(record, 960, evaluation, "cpu")}
    weights = paths.weights(record.run_id, 960).resolve()
    for name, card in evaluation.sets.items():
        command = [
            str(Path(sys.executable).parent / "clip_benchmark"), "eval", "--model", f"local-dir:{weights}",
            "--pretrained", "none", "--dataset", f"wds/{name}", "--dataset_root", card.path, "--task", card.task,
            "--no_amp", "--recall_k", "1", "5", "10", "--num_workers", "0", "--output", "out.json", "--quiet",
        ]  # fmt: skip
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, capture_output=True, env=environment)
        theirs = {k: v for k, v in json.loads(Path("out.json").read_text())["metrics"].items() if v == v}
        assert theirs
        for metric, value in theirs.items():
            assert ours[name].metrics[metric] == pytest.approx(value, abs=1e-6), metric
    # Not the score of an untrained model: chance is 1/4.
    assert ours["toy_colours"].metrics["acc1"] > 0.5
