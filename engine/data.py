"""From shards to batches: random access by offset, decoding, augmentation, tokens.

Every sample is a function of (seed, epoch, position). Images leave here as uint8 at the model's resolution; they are
normalised on the device. Shape suffixes: B local batch, C channels, H height, W width, T tokens.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from engine import order
from engine.index import Index, read_rows
from engine.spec import AugmentationSpec

Tokenizer = Callable[[list[str]], Tensor]


@dataclass(frozen=True)
class Batch:
    """Local rows of a global batch: uint8 images (B, 3, H, W), tokens (B, T) int64, positions (B,) int64."""

    image_BCHW: Tensor
    tokens_BT: Tensor
    index_B: Tensor


@dataclass(frozen=True)
class Request:
    """Which samples to load, and for which epoch they are augmented."""

    epoch: int
    positions: NDArray[np.int64]


class PairDataset(Dataset[Batch]):
    """Image-text pairs of an index; one item is a whole batch.

    Args:
        index: The set's index.
        index_path: Where it was read from; sidecars lie beside it.
        image_size: Height and width of the images that leave.
        tokenizer: From texts to token ids.
        augmentation: What is done to images.
        seed: The run's seed.
        cache_bytes: Keep decoded images and tokens when all of them fit in so much memory and the augmentation
            works on decoded images; 0 never does.
    """

    def __init__(
        self,
        index: Index,
        index_path: Path,
        *,
        image_size: int,
        tokenizer: Tokenizer,
        augmentation: AugmentationSpec,
        seed: int,
        cache_bytes: int,
    ) -> None:
        self.index, self.index_path = index, index_path
        self.image_size, self.tokenizer = image_size, tokenizer
        self.augmentation, self.seed = augmentation, seed
        self._starts = np.concatenate([[0], np.cumsum(index.shard_sizes)]).astype(np.int64)
        self._rows: dict[int, NDArray[np.int64]] = {}
        self._files: dict[int, int] = {}
        image_bytes = 3 * image_size * image_size
        one_caption = index.captions.field is None
        fits = index.pairs * (image_bytes + 2000) <= cache_bytes
        self._cache: dict[int, tuple[Tensor, Tensor]] | None = (
            {} if fits and one_caption and augmentation.kind != "random_resized_crop" else None
        )

    def __getitem__(self, request: Request) -> Batch:
        samples = [self._sample(int(position), request.epoch) for position in request.positions]
        image_BCHW = torch.stack([image for image, _ in samples])
        if self.augmentation.kind == "shift":
            image_BCHW = self._shift(image_BCHW, request)
        return Batch(
            image_BCHW, torch.stack([tokens for _, tokens in samples]), torch.from_numpy(request.positions.copy())
        )

    def __getstate__(self) -> dict[str, object]:
        # Open files do not travel to worker processes.
        return {**self.__dict__, "_files": {}}

    def _sample(self, position: int, epoch: int) -> tuple[Tensor, Tensor]:
        if self._cache is not None and position in self._cache:
            return self._cache[position]
        image_bytes, caption_bytes = self._read(position)
        sample = (
            self._image(image_bytes, position, epoch),
            self.tokenizer([self._caption(caption_bytes, position, epoch)])[0],
        )
        if self._cache is not None:
            self._cache[position] = sample
        return sample

    def _read(self, position: int) -> tuple[bytes, bytes]:
        shard = int(np.searchsorted(self._starts, position, side="right")) - 1
        if shard not in self._rows:
            self._rows[shard] = read_rows(self.index_path, self.index.shards[shard])
        path = Path(self.index.folder) / self.index.shards[shard].name
        if shard not in self._files:
            if len(self._files) >= 2 * order.WINDOW_SHARDS:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[shard] = os.open(path, os.O_RDONLY)
        offsets = self._rows[shard][position - self._starts[shard]]
        parts = []
        for offset, size in (offsets[:2], offsets[2:]):
            data = os.pread(self._files[shard], int(size), int(offset))
            if len(data) != size:
                raise OSError(f"{path}: expected {size} bytes at {offset}, got {len(data)}: index the data set again")
            parts.append(data)
        return parts[0], parts[1]

    def _image(self, data: bytes, position: int, epoch: int) -> Tensor:
        try:
            image = Image.open(io.BytesIO(data)).convert("RGB")
        except OSError as error:
            raise OSError(
                f"data set {self.index.name!r}, position {position}: the image cannot be decoded: {error}"
            ) from error
        if self.augmentation.kind == "random_resized_crop":
            image = self._random_resized_crop(image, position, epoch)
        elif image.size != (self.image_size, self.image_size):
            image = tv.resize(image, [self.image_size], InterpolationMode.BICUBIC)
            image = tv.center_crop(image, [self.image_size, self.image_size])
        return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()

    def _caption(self, data: bytes, position: int, epoch: int) -> str:
        text = data.decode("utf-8", errors="replace")
        if self.index.captions.field is None:
            return text
        value = json.loads(text).get(self.index.captions.field)
        texts = [value] if isinstance(value, str) else value
        if not texts:
            raise ValueError(
                f"data set {self.index.name!r}, position {position}: no caption in field {self.index.captions.field!r}"
            )
        key = self._keys(np.array([position], dtype=np.int64), epoch, order.CAPTION_KEYS)[0]
        return str(texts[int(key % np.uint64(len(texts)))])

    def _keys(self, positions: NDArray[np.int64], epoch: int, purpose: int) -> NDArray[np.uint64]:
        return order.hash_keys(positions, seed=self.seed, epoch=epoch, purpose=purpose)

    def _shift(self, image_BCHW: Tensor, request: Request) -> Tensor:
        reach = self.augmentation.max_shift_px
        keys = self._keys(request.positions, request.epoch, order.AUGMENTATION_KEYS)
        width = np.uint64(2 * reach + 1)
        dy_B = torch.from_numpy((keys % width).astype(np.int64))
        dx_B = torch.from_numpy(((keys // width) % width).astype(np.int64))
        padded = torch.nn.functional.pad(image_BCHW.float(), (reach,) * 4, mode="replicate").to(torch.uint8)
        side = torch.arange(self.image_size)
        rows = (dy_B[:, None] + side)[:, None, :, None]
        columns = (dx_B[:, None] + side)[:, None, None, :]
        samples = torch.arange(len(image_BCHW))[:, None, None, None]
        channels = torch.arange(3)[None, :, None, None]
        return padded[samples, channels, rows, columns]

    def _random_resized_crop(self, image: Image.Image, position: int, epoch: int) -> Image.Image:
        """Crop a random area and aspect ratio and resize it: torchvision's rule, with our own random numbers."""
        key = self._keys(np.array([position], dtype=np.int64), epoch, order.AUGMENTATION_KEYS)[0]
        rng = np.random.Generator(np.random.Philox(key=int(key)))
        width, height = image.size
        for _ in range(10):
            area = width * height * rng.uniform(*self.augmentation.crop_scale)
            ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
                break
        else:
            w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
            top, left = (height - h) // 2, (width - w) // 2
        size = [self.image_size, self.image_size]
        cropped: Image.Image = tv.resized_crop(image, top, left, h, w, size, InterpolationMode.BICUBIC)
        return cropped


class _LocalBatches(Sampler[Request]):
    """This process's rows of each global batch, from `first_step` to `num_steps`."""

    def __init__(
        self, shard_sizes: list[int], seed: int, global_batch_size: int, steps: range, rank: int, world_size: int
    ) -> None:
        self._shard_sizes, self._seed, self._steps = shard_sizes, seed, steps
        self._global_batch_size = global_batch_size
        self._steps_per_epoch = sum(shard_sizes) // global_batch_size
        rows = global_batch_size // world_size
        self._rows = slice(rank * rows, (rank + 1) * rows)

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[Request]:
        step = self._steps.start
        while step < self._steps.stop:
            epoch, first_batch = divmod(step, self._steps_per_epoch)
            batches = order.epoch_batches(
                self._shard_sizes,
                seed=self._seed,
                epoch=epoch,
                global_batch_size=self._global_batch_size,
                first_batch=first_batch,
            )
            for positions in batches:
                if step == self._steps.stop:
                    return
                yield Request(epoch, positions[self._rows])
                step += 1


def build_loader(
    dataset: PairDataset,
    *,
    seed: int,
    global_batch_size: int,
    steps: range,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
) -> DataLoader[Batch]:
    """Return a loader of this process's batches for the given optimiser steps, in order.

    The global batch of a step does not depend on `rank`, `world_size` or `num_workers`.

    Raises:
        ValueError: If the global batch cannot be divided among the processes.
    """
    if global_batch_size % world_size:
        raise ValueError(
            f"global_batch_size = {global_batch_size} cannot be divided among {world_size} processes: "
            "use a number of processes that divides it"
        )
    sampler = _LocalBatches(dataset.index.shard_sizes, seed, global_batch_size, steps, rank, world_size)
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        # Each worker computes on its own core; more threads per worker only fight.
        worker_init_fn=_start_worker if num_workers else None,
        persistent_workers=False,
    )


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
