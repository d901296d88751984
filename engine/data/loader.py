"""From shards to batches: random access by offset, decoding, augmentation, tokens.

Every sample is a function of (seed, epoch, position), also when it cannot be decoded: the next usable sample's content
then stands in its place. Images leave here as uint8 at the model's resolution; they are normalised on the device.
Shape suffixes: B local batch, C channels, H height, W width, T tokens.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from engine.data import order
from engine.data.index import Index, caption_texts
from engine.data.pictures import DECODING_ERRORS, open_picture, resized, to_rgb
from engine.data.reader import PairReader
from engine.schema.run import AugmentationSpec, refuse_uneven
from engine.stop import STOP_SIGNALS

Tokenizer = Callable[[list[str]], Tensor]

_STARTING_STEPS, _WATCHED_STEPS = 10, 50
_TOLERATED_WAIT = 0.1


@dataclass(frozen=True)
class Batch:
    """Local rows of a global batch: uint8 images (B, 3, H, W), tokens (B, T) int64, positions (B,) int64.

    Images may have their channels innermost in memory (`torch.channels_last`).
    """

    image_BCHW: Tensor
    tokens_BT: Tensor
    index_B: Tensor
    replaced: tuple[str, ...] = ()
    """For every row whose own sample could not be decoded: its shard, its key and why."""
    extra: Batch | None = None
    """This process's share of the pairs that the method wants beyond the batch."""

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory; `DataLoader` asks for it, and copies to a GPU can overlap then."""
        tensors = (self.image_BCHW.pin_memory(), self.tokens_BT.pin_memory(), self.index_B.pin_memory())
        return Batch(*tensors, replaced=self.replaced, extra=self.extra and self.extra.pin_memory())

    def tensors(self) -> Iterator[Tensor]:
        """Yield its tensors, and those of `extra`."""
        yield from (self.image_BCHW, self.tokens_BT, self.index_B)
        if self.extra is not None:
            yield from self.extra.tensors()

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device; from page-locked memory, the copy goes on while the caller does."""
        return Batch(
            self.image_BCHW.to(device, non_blocking=True),
            self.tokens_BT.to(device, non_blocking=True),
            self.index_B.to(device, non_blocking=True),
            replaced=self.replaced,
            extra=self.extra and self.extra.to(device),
        )


@dataclass(frozen=True)
class Request:
    """Which samples to load, and for which epoch they are augmented."""

    epoch: int
    positions: NDArray[np.int64]
    extra: Request | None = None
    """Samples to load into `Batch.extra`."""


class _UndecodableError(Exception):
    """A sample has no picture or no caption that can be used; the message says why."""


class _Sample(NamedTuple):
    """A decoded sample, as the cache keeps it."""

    image_HWC: NDArray[np.uint8]
    tokens_T: Tensor
    replaced: str | None


class PairDataset(Dataset[Batch]):
    """Image-text pairs of an index; one item is a whole batch.

    Args:
        index: The set's index.
        index_path: Where it was read from.
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
        self.index, self.reader = index, PairReader(index, index_path)
        self.image_size, self.tokenizer = image_size, tokenizer
        self.augmentation, self.seed = augmentation, seed
        image_bytes = 3 * image_size * image_size
        one_caption = index.captions.field is None
        fits = index.pairs * (image_bytes + 2000) <= cache_bytes
        self._cache: dict[int, _Sample] | None = (
            {} if fits and one_caption and augmentation.kind != "random_resized_crop" else None
        )

    def __getitem__(self, request: Request) -> Batch:
        positions = request.positions.tolist()
        crop_keys = self._keys(request, order.AUGMENTATION_KEYS).tolist()
        caption_keys = self._keys(request, order.CAPTION_KEYS).tolist()
        # Channels innermost: as Pillow has them, and as encoders want them.
        image_BHWC = np.empty((len(positions), self.image_size, self.image_size, 3), dtype=np.uint8)
        tokens: list[Tensor | None] = [None] * len(positions)
        replaced: list[str | None] = [None] * len(positions)
        texts: dict[int, str] = {}
        known = {} if self._cache is None else self._cache
        for row in [row for row, position in enumerate(positions) if position in known]:
            image_BHWC[row], tokens[row], replaced[row] = known[positions[row]]
        # In the order of the files, so that reads go forward.
        unknown = [row for row in np.argsort(request.positions).tolist() if positions[row] not in known]
        self.reader.announce(positions[row] for row in unknown)
        for row in unknown:
            loaded = self._load(positions[row], crop_keys[row], caption_keys[row])
            image_BHWC[row], texts[row], replaced[row] = loaded
        if unknown:
            for row, tokens_T in zip(texts, self.tokenizer(list(texts.values())), strict=True):
                tokens[row] = tokens_T
                if self._cache is not None:
                    self._cache[positions[row]] = _Sample(image_BHWC[row].copy(), tokens_T, replaced[row])
        if self.augmentation.kind == "shift":
            self._shift(image_BHWC, request)
        return Batch(
            torch.from_numpy(image_BHWC).permute(0, 3, 1, 2),
            torch.stack([tokens_T for tokens_T in tokens if tokens_T is not None]),
            torch.from_numpy(request.positions.copy()),
            tuple(text for text in replaced if text is not None),
            extra=None if request.extra is None else self[request.extra],
        )

    def _load(self, position: int, crop_key: int, caption_key: int) -> tuple[NDArray[np.uint8], str, str | None]:
        """Decode a position's sample, or else the next one that can be; returns its image, its text, and why so."""
        reason = ""
        for candidate in range(position, position + self.index.pairs):
            image_data, caption_data = self.reader.read(candidate % self.index.pairs)
            try:
                image, text = self._image(image_data, crop_key), self._caption(caption_data, caption_key)
            except _UndecodableError as error:
                reason = reason or f"{self.reader.place(position)}: {error}"
                continue
            return image, text, reason or None
        raise ValueError(f"data set {self.index.name!r}: no sample at all can be decoded, such as {reason}")

    def _image(self, data: bytes, crop_key: int) -> NDArray[np.uint8]:
        try:
            image = open_picture(data)
            if self.augmentation.jpeg == "reduced":
                image.draft(None, (self._least_size, self._least_size))
            image = to_rgb(image)
        except DECODING_ERRORS as error:
            raise _UndecodableError(f"the image cannot be decoded: {error}") from error
        resize, side = self.augmentation.resize, self.image_size
        if self.augmentation.kind == "random_resized_crop":
            return resized(image, self._random_box(image.size, crop_key), (side, side), resize)
        # The shorter side becomes `side`; of the longer one, the middle is kept.
        shorter = min(image.size)
        width, height = (side if length == shorter else int(side * length / shorter) for length in image.size)
        image_HWC = resized(image, (0, 0, *image.size), (width, height), resize)
        top, left = round((height - side) / 2), round((width - side) / 2)
        return image_HWC[top : top + side, left : left + side]

    def _caption(self, data: bytes, caption_key: int) -> str:
        try:
            texts = caption_texts(data, self.index.captions)
        except ValueError as error:
            raise _UndecodableError(str(error)) from error
        return texts[caption_key % len(texts)]

    def _keys(self, request: Request, purpose: int) -> NDArray[np.uint64]:
        return order.hash_keys(request.positions, seed=self.seed, epoch=request.epoch, purpose=purpose)

    def _shift(self, image_BHWC: NDArray[np.uint8], request: Request) -> None:
        """Move every image by up to `max_shift_px` pixels each way, in place; what comes in repeats the border."""
        reach = self.augmentation.max_shift_px
        width, around = 2 * reach + 1, (reach, reach)
        padded_BHWC = np.pad(image_BHWC, ((0, 0), around, around, (0, 0)), mode="edge")
        for row, key in enumerate(self._keys(request, order.AUGMENTATION_KEYS).tolist()):
            top, left = key % width, key // width % width
            image_BHWC[row] = padded_BHWC[row, top : top + self.image_size, left : left + self.image_size]

    @property
    def _least_size(self) -> int:
        """The size of a picture whose smallest square crop needs no enlargement."""
        is_cropped = self.augmentation.kind == "random_resized_crop"
        return (
            math.ceil(self.image_size / math.sqrt(self.augmentation.crop_scale[0])) if is_cropped else self.image_size
        )

    def _random_box(self, size: tuple[int, int], key: int) -> tuple[int, int, int, int]:
        """Draw a part of random area and aspect ratio: torchvision's rule, with our own random numbers."""
        rng = np.random.Generator(np.random.Philox(key=key))
        width, height = size
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
        return left, top, left + w, top + h


class _LocalBatches(Sampler[Request]):
    """This process's rows of each global batch, from `first_step` to `num_steps`."""

    def __init__(
        self,
        shard_sizes: Sequence[int],
        *,
        seed: int,
        global_batch_size: int,
        extra_shares: NDArray[np.int64] | None,
        steps: range,
        rank: int,
        world_size: int,
    ) -> None:
        self._shard_sizes, self._seed, self._steps = shard_sizes, seed, steps
        self._global_batch_size, self._extra_shares = global_batch_size, extra_shares
        self._num_pairs = sum(shard_sizes)
        self._steps_per_epoch = self._num_pairs // global_batch_size
        self._rank, self._world_size = rank, world_size

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
                yield Request(epoch, self._share(positions), self._extra(epoch, step))
                step += 1

    def _extra(self, epoch: int, step: int) -> Request | None:
        if self._extra_shares is None:
            return None
        numbers = self._extra_shares[self._rank]
        return Request(epoch, order.extra_positions(self._num_pairs, numbers, seed=self._seed, step=step))

    def _share(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        return order.share(positions, self._rank, self._world_size)


def build_loader(
    dataset: PairDataset,
    *,
    seed: int,
    global_batch_size: int,
    steps: range,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    extra_shares: NDArray[np.int64] | None = None,
) -> Generator[Batch, None, None]:
    """Return this process's batches for the given optimiser steps, in order, as `load` does.

    The global batch of a step and the further pairs that `order.extra_shares` shares out do not depend on `rank`,
    `world_size` or `num_workers`.

    Raises:
        ValueError: If the global batch cannot be divided among the processes.
    """
    refuse_uneven(world_size, global_batch_size=global_batch_size)
    sampler = _LocalBatches(
        dataset.index.shard_sizes,
        seed=seed,
        global_batch_size=global_batch_size,
        extra_shares=extra_shares,
        steps=steps,
        rank=rank,
        world_size=world_size,
    )
    return load(dataset, sampler, num_workers)


def load(dataset: PairDataset, requests: Iterable[Request], num_workers: int) -> Generator[Batch, None, None]:
    """Yield the requested batches, in order.

    Its workers end with it: when an error comes out of it, and when it is closed. A caller that keeps it in a variable
    closes it (`contextlib.closing`), since the traceback of an error keeps variables alive.
    """
    loader: DataLoader[Batch | OSError | ValueError] = DataLoader(
        _Worked(dataset) if num_workers else dataset,
        batch_size=None,
        sampler=requests,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker if num_workers else None,
        persistent_workers=False,
    )
    batches = iter(loader)
    try:
        for batch in batches:
            if not isinstance(batch, Batch):
                raise batch
            yield batch
    finally:
        if num_workers:
            # What its destructor does; but a traceback may keep it alive.
            batches._shutdown_workers()  # type: ignore[attr-defined]


def copied_ahead(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield batches on the device. A GPU copies them on a stream of its own, while it still works on the last step."""
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    for pinned in batches:
        with torch.cuda.stream(side):
            batch = pinned.to(device)
        step = torch.cuda.current_stream(device)
        step.wait_stream(side)
        for tensor in batch.tensors():
            # The memory is the step's until that is done, though the other stream made it.
            tensor.record_stream(step)
        yield batch


def watched(
    batches: Iterator[Batch],
    num_workers: int,
    tell: Callable[[str], object],
    now: Callable[[], float] = time.perf_counter,
) -> Iterator[Batch]:
    """Yield batches, and tell once, early on, if whoever takes them waits for them more than a tenth of the time.

    Args:
        batches: The loader's.
        num_workers: Its processes.
        tell: Called with what to say: the share of the time, and how many processes would keep up.
        now: Returns the time in seconds.
    """
    # By then, what was loaded during start-up is used up.
    first, waited_sec, start = _STARTING_STEPS + 2 * num_workers, 0.0, 0.0
    for number in itertools.count():
        begin = now()
        if number == first:
            start, waited_sec = begin, 0.0
        batch = next(batches, None)
        if batch is None:
            return
        waited_sec += now() - begin
        yield batch
        if number == first + _WATCHED_STEPS - 1:
            whole_sec = now() - start
            if waited_sec > _TOLERATED_WAIT * whole_sec:
                # With processes, a step lasts as long as they need for a batch; without, loading is the wait itself.
                loading_sec = num_workers * whole_sec if num_workers else waited_sec
                enough = math.ceil(loading_sec / max(whole_sec - waited_sec, 1e-9))
                tell(
                    f"training waits for its batches {waited_sec / whole_sec:.0%} of the time: about {enough} loader "
                    f"processes would keep up (execution.num_workers = {num_workers}), each on a core of its own; "
                    f"{len(os.sched_getaffinity(0))} cores are here for all processes. Or let the suite's augmentation "
                    "say `resize: torch`"
                )


class _Worked(Dataset[Batch | OSError | ValueError]):
    """Batches as workers send them: an error travels as it is; `DataLoader` would put a traceback into its message."""

    def __init__(self, dataset: PairDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, request: Request) -> Batch | OSError | ValueError:
        try:
            batch = self._dataset[request]
            _put_into_shared_memory(batch)
            return batch
        except (OSError, ValueError) as error:
            error.add_note(f"It comes from a loader process:\n{traceback.format_exc()}")
            return error


def _put_into_shared_memory(batch: Batch) -> None:
    """Put a batch where the training process finds it.

    Otherwise a thread of the worker's queue does that, which tells nobody of an error: the training waits for ever.
    """
    try:
        for tensor in batch.tensors():
            tensor.share_memory_()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise OSError(
            f"a loader process cannot put its batch into /dev/shm ({error}): make room there, raise the limit on the "
            "size of files, or use num_workers = 0"
        ) from None


def _start_worker(worker: int) -> None:
    # Each worker computes on its own core; more threads per worker only fight.
    torch.set_num_threads(1)
    # Signals to a whole process group are for the training process: it saves, and ends its workers itself.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    threading.Thread(target=_end_when_told, daemon=True).start()


def _end_when_told() -> None:
    """End this worker when its own process says so: at exit, Python sends SIGTERM to workers and waits for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent.pid:
        pass
    os._exit(0)
