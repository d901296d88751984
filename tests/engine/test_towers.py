import open_clip
import pytest
import torch

from engine.towers import build_towers, embed_dim, export, load_export, tokenizer


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-resnet"])
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
    assert image_BD.shape == (4, embed_dim(towers))


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
