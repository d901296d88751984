"""Encode with the towers as a run does: in its precision, on its processes, with batch norm over the parts it names.

Shape suffixes: B rows of this process, C channels, H height, W width, T tokens, D embedding.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from engine.distributed import Collectives
from engine.schema.run import Execution, RunSpec
from engine.training import batch_norm
from engine.training.towers import Towers

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""What precisions other than fp32 compute in."""


class Encoder:
    """Encodes rows of this process; gradients are averaged over processes.

    Args:
        towers: The model, on its device; `batch_norm.share` may replace its batch norms.
        spec: The run.
        execution: Its settings for this process.
        device: The device of the towers.
        collectives: The processes.

    Attributes:
        batch_norm_groups: Parts of the global batch that batch norm sees; None for a model without batch norm.

    Raises:
        ValueError: If the model does not allow the parts or the execution.
    """

    def __init__(
        self, towers: Towers, spec: RunSpec, execution: Execution, device: torch.device, collectives: Collectives
    ) -> None:
        num_parts = batch_norm.share(towers, spec, execution, device, collectives)
        self.batch_norm_groups = spec.batch_norm_groups if batch_norm.norms(towers) else None
        if execution.gradient_checkpointing:
            if batch_norm.norms(towers):
                raise ValueError(
                    f"gradient_checkpointing: model {spec.model.name!r} has batch norm, whose running statistics would "
                    "move in both passes over a layer: use accumulation_steps, or a model without batch norm"
                )
            towers.clip.set_grad_checkpointing()
        self._part_rows = spec.global_batch_size // collectives.world_size // num_parts
        self._towers, self._device, self._dtype = towers, device, AUTOCAST.get(spec.precision)
        self.module: nn.Module = torch.compile(towers) if execution.compile else towers  # type: ignore[assignment]
        if collectives.world_size > 1:
            self.module = DistributedDataParallel(
                self.module, device_ids=[device] if device.type == "cuda" else None, gradient_as_bucket_view=True
            )

    def encode(self, image_BCHW: Tensor, tokens_BT: Tensor, *, moves_statistics: bool = True) -> tuple[Tensor, Tensor]:
        """Encode any number of rows on the device.

        Rows go through the towers in parts of the size that batch norm sees in training; without batch norm, of the
        size of a process's batch.

        Args:
            image_BCHW: uint8 pixels.
            tokens_BT: Token ids.
            moves_statistics: Let the first part enter batch norm's running statistics; the others never do.

        Returns:
            Unit-norm float32 embeddings of images and texts, (B, D) each.
        """
        parts = zip(torch.split(image_BCHW, self._part_rows), torch.split(tokens_BT, self._part_rows), strict=True)
        encoded = []
        for number, (image_part, tokens_part) in enumerate(parts):
            moves = moves_statistics and number == 0
            with (
                contextlib.nullcontext() if moves else batch_norm.untouched(self._towers),
                torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype is not None),
            ):
                encoded.append(self.module(image_part.contiguous(memory_format=torch.channels_last), tokens_part))
        return torch.cat([image_BD for image_BD, _ in encoded]), torch.cat([text_BD for _, text_BD in encoded])

    @torch.no_grad()
    def encode_detached(self, image_BCHW: Tensor, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Encode as `encode` does, without gradient and without a trace in batch norm's running statistics."""
        return self.encode(image_BCHW, tokens_BT, moves_statistics=False)

    def without_reduction(self) -> AbstractContextManager[None]:
        """Keep the gradients of a backward pass on this process, to be averaged with those of the next pass."""
        is_parallel = isinstance(self.module, DistributedDataParallel)
        return self.module.no_sync() if is_parallel else contextlib.nullcontext()  # type: ignore[operator]
