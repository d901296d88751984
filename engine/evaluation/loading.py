"""Load any open_clip model for evaluation. Weights that are not there are an error, never random."""

from __future__ import annotations

import hashlib
import pickle
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.schema.base import unknown_name
from engine.training.towers import need_libraries, quiet

RANDOM_SEED = 0
_REASON_LENGTH = 300
"""Characters of an error: torch lists every name of a state dict that does not fit."""
SCHEMES = ("local-dir:", "hf-hub:")
"""Prefixes of model names that include the weights; open_clip takes no `pretrained` beside them."""


def load_model(name: str, pretrained: str | None, *, random_weights: bool = False) -> tuple[Any, Any, Any]:
    """Load a model for evaluation.

    Args:
        name: open_clip's name of the model, ``local-dir:FOLDER`` or ``hf-hub:ORGANISATION/REPOSITORY``.
        pretrained: open_clip's tag of published weights, or a file with weights; None with a ``local-dir:`` or
            ``hf-hub:`` name.
        random_weights: Take untrained weights instead, the same on every call.

    Returns:
        The open_clip model in eval mode, its evaluation transform, its tokenizer.

    Raises:
        ValueError: If there is no such model or there are no such weights, if they do not fit the model, or if none
            are named.
    """
    import open_clip  # here: behind engine.training.towers, which imports it without what it can do without

    scheme = name.startswith(SCHEMES)
    if not scheme and name not in open_clip.list_models():
        raise ValueError(unknown_name("open_clip model", name, open_clip.list_models()))
    tags = () if scheme else open_clip.list_pretrained_tags_by_model(name)
    if random_weights and (pretrained or scheme):
        raise ValueError(f"random weights were asked for beside {pretrained or name!r}: name one of them")
    if not (pretrained or scheme or random_weights):
        raise ValueError(
            f"no weights are named for {name!r}, and random ones are no result: give --pretrained TAG_OR_FILE "
            f"(tags: {', '.join(tags) or 'none'}), or ask for --random-weights"
        )
    if scheme and pretrained:
        raise ValueError(f"{name!r} says where its weights are: leave --pretrained {pretrained!r} out")
    if pretrained and pretrained not in tags and not Path(pretrained).is_file():
        raise ValueError(f"--pretrained {pretrained!r} is no file, and " + unknown_name("tag", pretrained, tags))
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), quiet():
        torch.manual_seed(RANDOM_SEED)
        # open_clip only warns that another activation than the one in training is computed.
        warnings.filterwarnings("error", message="QuickGELU mismatch")
        try:
            need_libraries(None if name.startswith("hf-hub:") else open_clip.get_model_config(name))
            clip, _, transform = open_clip.create_model_and_transforms(
                name, pretrained=pretrained, precision="fp32", require_pretrained=not random_weights
            )
            tokenizer = open_clip.get_tokenizer(name)
        except pickle.UnpicklingError:
            raise ValueError(
                f"{pretrained!r} cannot be loaded: it holds other things than tensors and plain values, or is no file "
                "of weights: save the model's state_dict with torch.save, or as safetensors"
            ) from None
        # What open_clip, torch and the download raise has no common type.
        except Exception as error:
            reason = textwrap.shorten(f"{type(error).__name__}: {error}", _REASON_LENGTH, placeholder=" ...")
            raise ValueError(f"{name!r} with weights {pretrained!r} cannot be loaded: {reason}") from error
    if not random_weights:
        warn_of_untrained(clip, str(pretrained or name))
    return clip.eval(), transform, tokenizer


def warn_of_untrained(clip: nn.Module, source: str) -> None:
    """Warn if weights look untrained: no normalisation layer has learned anything.

    Args:
        clip: The model.
        source: Where its weights are from.
    """
    norms = [m for m in clip.modules() if isinstance(m, (nn.LayerNorm, nn.modules.batchnorm._BatchNorm))]
    learned = [m for m in norms if m.weight is not None and m.bias is not None]
    # A gain starts as one or zero everywhere, a shift as zero; the first step of training changes them.
    if learned and all((m.weight == m.weight[..., :1]).all() and not m.bias.any() for m in learned):
        sys.stderr.write(
            f"warning: the weights of {source} look untrained: every normalisation layer is as it was initialised. "
            "If that is not meant, look for the right file\n"
        )


def weights_sha256(clip: Any) -> str:
    """Return the SHA-256 (hex) of a model's weights, whatever file they came from: of names, shapes and values."""
    digest = hashlib.sha256()
    for name, value in sorted(clip.state_dict().items()):
        array = value.detach().cpu().contiguous()
        digest.update(f"{name}\0{array.dtype}\0{tuple(array.shape)}\0".encode())
        digest.update(array.view(-1).view(torch.uint8).numpy().data if array.numel() else b"")
    return digest.hexdigest()
