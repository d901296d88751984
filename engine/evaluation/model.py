"""Encode the images and texts of evaluation sets with an open_clip model."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine import heartbeat
from engine.evaluation.pictures import ImageBatches, split_transform
from engine.evaluation.reading import EvalData
from engine.imports import late

with late("sklearn", "sklearn.metrics"):
    from clip_benchmark.metrics import zeroshot_classification as zsc

BATCH_SIZES = {"cpu": 64, "cuda": 512}
"""Fixed for each kind of device: another batch size moves logits by about 1e-5."""


class Model:
    """An open_clip model that encodes on a device, in float32 or under bfloat16 autocast; remembers class vectors.

    Args:
        clip: open_clip model in eval mode.
        transform: From a PIL image to a tensor.
        tokenizer: From texts to token ids.
        device: As torch spells it, e.g. ``cpu``.
        precision: ``fp32`` or ``bf16``.
        num_workers: Processes that decode the images of large sets.
    """

    def __init__(
        self,
        clip: Any,
        transform: Any,
        tokenizer: Any,
        device: str,
        *,
        precision: str = "fp32",
        num_workers: int = 0,
    ) -> None:
        self.clip, self.tokenizer = clip.to(device), tokenizer
        self._pixels, self._finish = split_transform(transform)
        self.device, self.num_workers, self.batch_size = device, num_workers, BATCH_SIZES[device]
        self._autocast = precision == "bf16"
        self._class_vectors: dict[tuple[str, tuple[str, ...]], Tensor] = {}

    def encode_image(self, batch: Tensor) -> Tensor:
        """Encode a batch of `images` to float32 embeddings (B, D), not normalised."""
        heartbeat.beat("a batch of images")
        image_BCHW = self._finish(batch)
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self._autocast):
            embedding_BD: Tensor = self.clip.encode_image(image_BCHW)
        return embedding_BD.float()

    def encode_text(self, tokens_BT: Tensor) -> Tensor:
        """Encode token ids to float32 embeddings (B, D), not normalised."""
        heartbeat.beat("a batch of texts")
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self._autocast):
            embedding_BD: Tensor = self.clip.encode_text(tokens_BT)
        return embedding_BD.float()

    def images(self, data: EvalData) -> ImageBatches:
        """Return a set's images in batches, as `encode_image` takes them."""
        return ImageBatches(
            data,
            self._pixels,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            pin_memory=self.device == "cuda",
        )

    @torch.no_grad()
    def unit_images(self, images: ImageBatches) -> Tensor:
        """Encode images to unit embeddings (N, D) on the CPU."""
        batches = (self.encode_image(batch.to(self.device, non_blocking=True)) for batch in images)
        return torch.cat([F.normalize(batch, dim=-1) for batch in batches]).cpu()

    @torch.no_grad()
    def unit_texts(self, texts: list[str]) -> Tensor:
        """Encode texts to unit embeddings (M, D) on the CPU."""
        return F.normalize(self.encode_text(self.tokenizer(texts).to(self.device)), dim=-1).cpu()

    def unit_captions(self, captions: list[list[str]]) -> Tensor:
        """Encode all images' captions, one after the other, to unit embeddings (M, D) on the CPU."""
        # Together with those of a batch of images, as clip_benchmark does: other batches move scores by about 1e-5.
        starts = range(0, len(captions), self.batch_size)
        batches = [list(itertools.chain(*captions[start : start + self.batch_size])) for start in starts]
        return torch.cat([self.unit_texts(texts) for texts in batches if texts])

    def classifier(self, classes: list[str], templates: list[str]) -> Tensor:
        """Return the classes' vectors (C, D) on the CPU: clip_benchmark's, each computed once for all sets."""
        keys = [(name, tuple(templates)) for name in classes]
        new = list(dict.fromkeys(key for key in keys if key not in self._class_vectors))
        if new:
            names = [name for name, _ in new]
            vectors_DC = zsc.zero_shot_classifier(self, self.tokenizer, names, templates, self.device, amp=False)
            for key, vector_D in zip(new, vectors_DC.cpu().unbind(dim=1), strict=True):
                if not vector_D.isfinite().all():
                    # It divides by a norm of zero, too: a model whose texts are all zero scores chance.
                    vector_D = self.unit_texts([template.format(c=key[0]) for template in templates]).mean(dim=0)
                self._class_vectors[key] = vector_D
        return torch.stack([self._class_vectors[key] for key in keys])
