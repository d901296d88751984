"""Build the two encoders from open_clip by name, offline; export and load them as open_clip's ``local-dir:``."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from engine import files, paths
from engine.imports import hidden, late
from engine.schema.base import unknown_name
from engine.schema.run import ModelSpec
from engine.versions import ROOT

# All take long to import. `need_libraries` imports the first two for models that have an encoder from them. open_clip
# imports torchvision, which calls functions of the last two only when it compiles.
with hidden("transformers", "timm"), late("torch._dynamo", "torch._dynamo.utils"):
    import open_clip

CONFIGS = ROOT / "engine" / "models"
WEIGHTS_FILE = "open_clip_model.safetensors"
CONFIG_FILE = "open_clip_config.json"
_LIBRARIES = (
    ("transformers", "hf_model", "text_cfg", "hf_model_name"),
    ("timm", "timm_model", "vision_cfg", "timm_model_name"),
)
"""A library, the module of open_clip that uses it, and the two keys of a model's config that ask for it."""

open_clip.add_model_config(CONFIGS)


class Towers(nn.Module):
    """The image and text encoder of an open_clip model, without its temperature, which belongs to the method."""

    mean: Tensor
    std: Tensor

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.clip = clip
        for name in ("logit_scale", "logit_bias"):
            parameter = getattr(clip, name, None)
            if parameter is not None:
                parameter.requires_grad_(False)
        preprocess = clip.visual.preprocess_cfg
        self.register_buffer("mean", torch.tensor(preprocess["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess["std"]).view(3, 1, 1), persistent=False)

    def forward(self, image_BCHW: Tensor, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Encode uint8 images and tokens.

        Args:
            image_BCHW: uint8 pixels, (B, 3, H, W).
            tokens_BT: Token ids, (B, T), int64.

        Returns:
            Unit-norm float32 embeddings of images and texts, (B, D) each, also under autocast.
        """
        # In place: one float copy of the images instead of four.
        pixels = image_BCHW.to(self.mean.dtype, copy=True).div_(255).sub_(self.mean).div_(self.std)
        image_BD, text_BD = self.clip.encode_image(pixels), self.clip.encode_text(tokens_BT)
        return F.normalize(image_BD.float(), dim=1), F.normalize(text_BD.float(), dim=1)

    @property
    def image_size(self) -> int:
        """Height and width of the images that the model takes."""
        size = self.clip.visual.image_size
        return int(size[0] if isinstance(size, (tuple, list)) else size)


def introduce(model: ModelSpec) -> None:
    """Let open_clip know a model whose config is a user's own, by the copy that was kept of it.

    Raises:
        ValueError: If the copy is gone or was changed.
    """
    if not model.is_own:
        return
    copy = paths.model(str(model.config_sha256), model.name)
    if not copy.exists() or files.file_sha256(copy) != model.config_sha256:
        raise ValueError(f"{copy} is gone or was changed since the run was made: remove it, and expand the suite again")
    open_clip.add_model_config(copy)


def build_towers(name: str, *, seed: int) -> Towers:
    """Build a randomly initialised model by its open_clip name; the same seed gives the same weights.

    Raises:
        ValueError: If open_clip knows no such model.
    """
    if name not in open_clip.list_models():
        raise ValueError(unknown_name("model", name, open_clip.list_models()))
    need_libraries(open_clip.get_model_config(name))
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        return Towers(open_clip.create_model(name, pretrained=None, precision="fp32", output_dict=True))


def outline(name: str) -> Towers:
    """Build a model of any size without its weights: shapes only, which take no memory."""
    if name not in open_clip.list_models():
        raise ValueError(unknown_name("model", name, open_clip.list_models()))
    need_libraries(open_clip.get_model_config(name))
    with torch.device("meta"), quiet():
        return Towers(open_clip.create_model(name, pretrained=None, precision="fp32", device="meta", output_dict=True))


def embed_dim(name: str) -> int:
    """Return the width of a model's embeddings."""
    return int(open_clip.get_model_config(name)["embed_dim"])


def tokenizer(name: str) -> Any:
    """Return the tokenizer of a model, with the model's context length."""
    with quiet():
        return open_clip.get_tokenizer(name)


def export(towers: Towers, name: str, folder: Path, *, logit_scale: Tensor, logit_bias: Tensor | None) -> None:
    """Write a model that ``open_clip.create_model_and_transforms("local-dir:<folder>")`` loads.

    Args:
        towers: The encoders.
        name: The name of their open_clip model.
        folder: The folder to write; the weights are written last and atomically.
        logit_scale: 1 / temperature, stored as its logarithm, as open_clip does.
        logit_bias: The method's bias; None without one.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in towers.clip.state_dict().items()}
    state["logit_scale"] = logit_scale.detach().float().cpu().log().reshape(())
    config = open_clip.get_model_config(name)
    if logit_bias is not None:
        state["logit_bias"] = logit_bias.detach().float().cpu().reshape(())
        config = {**config, "init_logit_bias": float(state["logit_bias"])}
    else:
        state.pop("logit_bias", None)
        config = {key: value for key, value in config.items() if key != "init_logit_bias"}
    text = json.dumps({"model_cfg": config, "preprocess_cfg": towers.clip.visual.preprocess_cfg}, indent=1)
    files.write_text(folder / CONFIG_FILE, text + "\n")
    with files.atomic_write(folder / WEIGHTS_FILE) as temporary:
        save_file(state, temporary)


def load_export(folder: Path) -> tuple[Any, Any, Any]:
    """Load an exported model for evaluation.

    Returns:
        The open_clip model in eval mode, its evaluation transform, its tokenizer.

    Raises:
        FileNotFoundError: If the folder lacks weights or config; open_clip itself would go on with random weights.
        ValueError: If open_clip has other weights after loading than those in the file.
    """
    for file in (WEIGHTS_FILE, CONFIG_FILE):
        if not (folder / file).exists():
            raise FileNotFoundError(f"{folder} lacks {file}: train the run again, or restore the folder")
    name = f"local-dir:{folder.resolve()}"
    need_libraries(open_clip.get_model_config(name))
    with quiet():
        model, _, transform = open_clip.create_model_and_transforms(name, precision="fp32")
    expected = load_file(folder / WEIGHTS_FILE)
    loaded = model.state_dict()
    wrong = [key for key, value in expected.items() if not torch.equal(loaded[key], value)]
    if wrong:
        raise ValueError(f"{folder}: open_clip did not load {', '.join(wrong[:3])} as stored")
    return model.eval(), transform, tokenizer(name)


def need_libraries(config: Mapping[str, Any] | None) -> None:
    """Let open_clip import the libraries of a model's encoders; call this before building a model.

    Args:
        config: open_clip's config of the model; None imports all of them.
    """
    for library, module_name, part, key in _LIBRARIES:
        module = importlib.import_module(f"open_clip.{module_name}")
        if getattr(module, library) is None and (config is None or key in config.get(part, {})):
            importlib.reload(module)  # in place: classes that were made from it find the library, too


@contextmanager
def quiet() -> Iterator[None]:
    """Keep open_clip from warning that a new model has random weights: it is meant to."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
