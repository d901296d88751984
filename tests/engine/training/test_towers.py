import json
import subprocess
import sys

import open_clip
import pytest
import torch
from support import toy
from support.killing import MODELS

from engine import paths
from engine.schema.run import Execution
from engine.training.loop import train
from engine.training.towers import build_towers, embed_dim, export, load_export, outline, tokenizer
from experiments import needs
from experiments.design import models

open_clip.add_model_config(MODELS)


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-resnet", "custom-vit"])
@pytest.mark.parametrize("bias", [None, torch.tensor(-7.5)])
def test_an_export_loads_in_stock_open_clip_with_the_same_numbers(tmp_path, name, bias):
    towers = build_towers(name, seed=3).eval()
    export(towers, name, tmp_path, logit_scale=torch.tensor(14.3), logit_bias=bias)
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    images = torch.randint(0, 256, (4, 3, towers.image_size, towers.image_size), dtype=torch.uint8)
    tokens = tokenizer(name)(["a red square", "a bell", "an arrow", "a cat"])
    with torch.no_grad():
        image_BD, text_BD = towers(images, tokens)
        pixels = (images / 255 - towers.mean) / towers.std
        assert torch.equal(model.eval().encode_image(pixels, normalize=True), image_BD)
        assert torch.equal(model.encode_text(tokens, normalize=True), text_BD)
    assert float(model.logit_scale.detach().exp()) == pytest.approx(14.3)
    assert (model.logit_bias is None) if bias is None else float(model.logit_bias.detach()) == -7.5
    assert image_BD.shape == (4, embed_dim(name))


def is_refused(name):
    """Whether the model is more than two towers, or its text tower is of the Hub."""
    config = open_clip.get_model_config(name)
    return "multimodal_cfg" in config or "hf_model_name" in config["text_cfg"]


def check_towers(name):
    """Let a model of any size go a step's way without weights, as training and plan ask of it."""
    towers = outline(name).train()
    size, length = towers.image_size, towers.clip.context_length
    with torch.device("meta"):
        pixels, tokens = torch.empty(2, 3, size, size, dtype=torch.uint8), torch.empty(2, length, dtype=torch.long)
    image_BD, text_BD = towers(pixels, tokens)
    assert image_BD.shape == text_BD.shape == (2, embed_dim(name)), name
    (image_BD.sum() + text_BD.sum()).backward()
    # DistributedDataParallel waits for a gradient of each.
    without = [key for key, p in towers.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, name
    towers.clip.set_grad_checkpointing()


@pytest.mark.parametrize(
    "name", ["RN50", "ViT-S-32", "convnext_tiny", "ViT-B-16-SigLIP", "EVA02-B-16", "MobileCLIP-B", "PE-Core-T-16-384"]
)
def test_each_kind_of_towers_is_trained_and_planned(name):
    check_towers(name)
    assert needs.sizes(models.model(name))[1] == embed_dim(name)
    assert needs.activation_bytes(models.model(name), "bf16") > 0


@pytest.mark.slow
def test_all_models_of_open_clip_are_trained_or_refused():
    for name in models._files():
        if is_refused(name):
            with pytest.raises(ValueError, match=r"allowed are (models of an image and a text tower|towers of)"):
                models.model(name)
        else:
            models.model(name)
            check_towers(name)


def test_a_run_with_a_custom_text_tower_trains_and_leaves_a_model_that_loads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    toy.build(tmp_path)
    spec = toy.run_spec("openclip", model={"name": "custom-vit"}, steps=2, normalizer_error=None)
    assert train(spec, Execution()).status == "finished"
    assert isinstance(load_export(paths.weights(spec.run_id, spec.samples_seen))[0], open_clip.CustomTextCLIP)


def test_the_same_seed_builds_the_same_weights_whatever_was_drawn_before():
    first = build_towers("tiny-vit", seed=1).state_dict()
    torch.rand(5)
    second = build_towers("tiny-vit", seed=1).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_tokenizer_has_the_models_context_length():
    assert tokenizer("tiny-vit")(["a bell"]).shape == (1, 12)


def test_an_unknown_model_is_refused_with_a_suggestion():
    with pytest.raises(ValueError, match="unknown model 'ViT-B-33'; did you mean 'ViT-B-32'"):
        build_towers("ViT-B-33", seed=0)


def test_a_folder_without_weights_is_refused_instead_of_evaluating_random_ones(tmp_path):
    export(build_towers("tiny-vit", seed=0), "tiny-vit", tmp_path, logit_scale=torch.tensor(10.0), logit_bias=None)
    (tmp_path / "open_clip_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks open_clip_model\.safetensors"):
        load_export(tmp_path)


LIBRARIES = """
import sys, torch
from pathlib import Path
from engine.training.towers import build_towers, export, load_export, open_clip
build_towers("tiny-vit", seed=0)
assert not {"transformers", "timm"} & sys.modules.keys()
open_clip.add_model_config(Path("models"))
name, library, part, encoder = sys.argv[1:]
towers = build_towers(name, seed=3).eval()
assert library in sys.modules and type(getattr(towers.clip, part)).__name__ == encoder
export(towers, name, Path("export"), logit_scale=torch.tensor(10.0), logit_bias=None)
loaded, _, _ = load_export(Path("export"))
tokens, pictures = torch.tensor([[2, 5, 7, 0], [2, 3, 0, 0]]), torch.rand(2, 3, 32, 32)
assert torch.equal(loaded.encode_text(tokens), towers.clip.encode_text(tokens))
assert torch.equal(loaded.encode_image(pictures), towers.clip.encode_image(pictures))
"""


@pytest.mark.parametrize(
    "expected", [("tiny-bert", "transformers", "text", "HFTextEncoder"), ("tiny-timm", "timm", "visual", "TimmModel")]
)
def test_libraries_are_imported_for_models_that_have_an_encoder_from_there_and_only_for_them(tmp_path, expected):
    from transformers import BertConfig, BertModel

    bert = BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(bert).save_pretrained(tmp_path / "bert")
    config = open_clip.get_model_config("tiny-vit")
    bert_config = config | {"text_cfg": {"hf_model_name": str(tmp_path / "bert"), "context_length": 4}}
    text = config["text_cfg"] | {"context_length": 4}
    image = {"timm_model_name": "test_resnet", "timm_proj": "linear", "timm_pool": "avg", "image_size": 32}
    timm_config = config | {"vision_cfg": image, "text_cfg": text}
    (tmp_path / "models").mkdir()
    for name, content in (("tiny-bert", bert_config), ("tiny-timm", timm_config)):
        (tmp_path / "models" / f"{name}.json").write_text(json.dumps(content))
    command = [sys.executable, "-c", LIBRARIES, *expected]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
