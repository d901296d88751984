"""Decode and transform the pictures of an evaluation set in batches, in the set's order.

Pictures are read by offset, so that they keep the order of the archives with any number of worker processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from engine.data.pictures import DECODING_ERRORS, open_picture, to_rgb
from engine.evaluation.reading import EvalData, Location, fail
from engine.imports import late

with late("torch._dynamo", "torch._dynamo.utils"):
    from torchvision.transforms import Compose, Normalize, ToTensor

MIN_IMAGES_FOR_WORKERS = 2000
"""Worker processes take longer to start than they save on fewer images."""


def split_transform(transform: Any) -> tuple[Callable[[Image.Image], Tensor], Callable[[Tensor], Tensor]]:
    """Split an evaluation transform into what needs one picture and what a whole batch can have at once.

    Args:
        transform: From a PIL image to a float tensor (C, H, W).

    Returns:
        A call from a picture to uint8 pixels (H, W, C), and one from a batch of them (B, H, W, C), on any device, to
        floats (B, C, H, W): the same numbers as `transform` gives, for less. A transform that does not end as
        open_clip's do is left whole, and the second call does nothing.
    """
    steps = getattr(transform, "transforms", [])
    if not (len(steps) > 2 and isinstance(steps[-2], ToTensor) and isinstance(steps[-1], Normalize)):
        return transform, lambda batch: batch
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (steps[-1].mean, steps[-1].std))

    def finish(batch_BHWC: Tensor) -> Tensor:
        batch_BCHW = batch_BHWC.permute(0, 3, 1, 2).contiguous().float() / 255
        return batch_BCHW.sub_(mean.to(batch_BCHW.device)).div_(std.to(batch_BCHW.device))

    return _Pixels(Compose(steps[:-2])), finish


class _Pixels:
    """From a picture to uint8 (H, W, C); a class, since worker processes may get it pickled."""

    def __init__(self, draw: Compose) -> None:
        self.draw = draw

    def __call__(self, image: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(self.draw(image)))


class _Images(Dataset[Any]):
    """The pixels of a set; a problem is returned, not raised, so that it leaves a worker in one line."""

    def __init__(self, locations: list[Location], pixels: Callable[[Image.Image], Tensor]) -> None:
        self.locations, self.pixels = locations, pixels

    def __len__(self) -> int:
        return len(self.locations)

    def __getitem__(self, row: int) -> tuple[Tensor, bool] | str:
        at = self.locations[row]
        with at.shard.open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), at.size, at.offset)
        try:
            image = open_picture(data)
            image.load()
        except DECODING_ERRORS as error:
            return f"{at.shard}, key {at.key!r}: the image cannot be decoded ({error})"
        transparent = "A" in image.getbands() or "transparency" in image.info
        # As clip_benchmark and open_clip do: alpha is dropped, whatever colour lies under it.
        return self.pixels(to_rgb(image)), transparent


def _collate(items: list[tuple[Tensor, bool] | str]) -> tuple[Tensor, Tensor] | str:
    problem = next((item for item in items if isinstance(item, str)), None)
    if problem is not None:
        return problem
    pairs = [item for item in items if not isinstance(item, str)]
    return torch.stack([image for image, _ in pairs]), torch.tensor([transparent for _, transparent in pairs])


class ImageBatches:
    """Batches of a set's pixels, in the set's order.

    Args:
        data: The set.
        pixels: From a PIL image to a tensor.
        batch_size: Images in a batch; the last may have fewer.
        num_workers: Processes that decode.
        pin_memory: Whether batches leave in page-locked memory, from which copies to a GPU need not be waited for.
    """

    def __init__(
        self,
        data: EvalData,
        pixels: Callable[[Image.Image], Tensor],
        *,
        batch_size: int,
        num_workers: int,
        pin_memory: bool = False,
    ) -> None:
        self.data, self.pixels, self.batch_size = data, pixels, batch_size
        small = len(data.locations) < MIN_IMAGES_FOR_WORKERS
        self._loader = DataLoader(
            _Images(data.locations, pixels),
            batch_size=batch_size,
            num_workers=0 if small else num_workers,
            collate_fn=_collate,
            pin_memory=pin_memory,
        )
        self.num_transparent = 0
        """Images seen so far that have an alpha channel."""

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self._loader:
            if isinstance(batch, str):
                fail(self.data.card, batch)
            images, transparent = batch
            self.num_transparent += int(transparent.sum())
            yield images
