"""Shards of made-up pairs in the format of real ones, and run specs that train on them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from engine import paths
from engine.data.index import build_index
from engine.registry import resolve_config
from engine.schema.run import CaptionSource, DatasetSpec, RunSpec
from experiments.fetch import shards

DATASET = "made-up"
FOLDER = Path("shards")
_WORDS = (
    "a", "the", "of", "in", "on", "with", "red", "blue",
    "old", "small", "dog", "house", "tree", "street", "hand", "light",
)  # fmt: skip


def write_shards(pairs: int, image_size: int, num_shards: int) -> list[Path]:
    """Write ``shards/*.tar`` of JPEG pictures with captions, and their index, into the working directory.

    Args:
        pairs: Pairs in all.
        image_size: Height and width of a picture.
        num_shards: Number of shards, with about as many pairs each.

    Returns:
        The shards.
    """
    rng = np.random.default_rng(0)
    samples = ({"jpg": picture(rng, image_size), "txt": caption(rng)} for _ in range(pairs))
    shards.write_shards(FOLDER, samples, pairs, [f"{number:05d}.tar" for number in range(num_shards)])
    build_index(DATASET, "1", FOLDER, CaptionSource(), paths.index(DATASET), pairs=pairs)
    return sorted(FOLDER.iterdir())


def run_spec(
    method: str, *, pairs: int, model: str, batch: int, steps: int, precision: str = "fp32", **options: Any
) -> RunSpec:
    """Return a run on these shards, with open_clip's default augmentation and optimiser settings."""
    return RunSpec.model_validate(
        {
            "method": {"name": method, "config": resolve_config(method, options).model_dump(mode="json")},
            "dataset": DatasetSpec(name=DATASET, revision="1", pairs=pairs),
            "model": {"name": model},
            "global_batch_size": batch,
            "samples_seen": steps * batch,
            "milestones": (steps * batch,),
            "optimizer": {"warmup_steps": steps},
            "augmentation": {"kind": "random_resized_crop"},
            "precision": precision,
            "seed": 0,
        }
    )


def picture(rng: np.random.Generator, size: int) -> bytes:
    """Draw a JPEG of soft colours under a little noise: about as many bytes as a photograph."""
    coarse = Image.fromarray(rng.integers(256, size=(8, 8, 3), dtype=np.uint8)).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    pixels = np.asarray(coarse, dtype=np.int16) + rng.integers(-12, 13, size=(size, size, 3), dtype=np.int16)
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def caption(rng: np.random.Generator) -> bytes:
    """Draw six to fifteen words."""
    return " ".join(rng.choice(_WORDS, size=rng.integers(6, 16))).encode()
