"""Shards of made-up pairs to measure with, in the format of real ones, and the run specs that train on them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from engine import paths
from engine.data.index import build_index
from engine.registry import resolve_config
from engine.schema.run import CaptionSource, DatasetSpec, RunSpec

DATASET = "made-up"
FOLDER = Path("shards")
_WORDS = (
    "a",
    "the",
    "of",
    "in",
    "on",
    "with",
    "red",
    "blue",
    "old",
    "small",
    "dog",
    "house",
    "tree",
    "street",
    "hand",
    "light",
)


def write_shards(pairs: int, image_size: int, num_shards: int) -> list[Path]:
    """Write ``shards/*.tar`` of JPEG pictures with captions, and their index, into the working directory.

    Args:
        pairs: Pairs in all.
        image_size: Height and width of a picture.
        num_shards: Shards, of about the same number of pairs.

    Returns:
        The shards.
    """
    rng = np.random.default_rng(0)
    FOLDER.mkdir()
    shards = []
    for number, rows in enumerate(np.array_split(np.arange(pairs), num_shards)):
        shards.append(FOLDER / f"{number:05d}.tar")
        with tarfile.open(shards[-1], "w") as archive:
            for row in rows:
                for name, data in ((f"{row:06d}.jpg", picture(rng, image_size)), (f"{row:06d}.txt", caption(rng))):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    build_index(DATASET, "1", FOLDER, CaptionSource(), paths.index(DATASET), pairs=pairs)
    return shards


def run_spec(
    method: str, *, pairs: int, model: str, batch: int, steps: int, precision: str = "fp32", **options: Any
) -> RunSpec:
    """Return a run on these shards, with the augmentation and the optimiser settings that open_clip has by default."""
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
    """A JPEG of soft colours under a little noise: about as many bytes as a photograph."""
    coarse = Image.fromarray(rng.integers(256, size=(8, 8, 3), dtype=np.uint8)).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    pixels = np.asarray(coarse, dtype=np.int16) + rng.integers(-12, 13, size=(size, size, 3), dtype=np.int16)
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def caption(rng: np.random.Generator) -> bytes:
    """Six to fifteen words."""
    return " ".join(rng.choice(_WORDS, size=rng.integers(6, 16))).encode()
