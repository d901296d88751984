"""OpenCLIP: the mini-batch contrastive loss, computed by open_clip's own `ClipLoss`.

Paper: CLIP, arXiv:2103.00020, Figure 3 (InfoNCE); code: open_clip_torch 3.3.

    loss = 1/2 mean_i [ log sum_j exp(s (x_i . y_j - d_i)) + log sum_j exp(s (y_i . x_j - d_i)) ],  d_i = x_i . y_i

Shape suffixes: B local batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from open_clip.loss import ClipLoss
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from engine.method import (
    Features,
    LossOutput,
    MethodConfig,
    MethodEnv,
    Progress,
    TemperatureConfig,
    TemperatureMethod,
)


class OpenCLIP(TemperatureMethod):
    """InfoNCE over the global batch."""

    class Config(MethodConfig):
        """Options; the defaults are open_clip's."""

        temperature: TemperatureConfig = TemperatureConfig()
        chunk_rows: int = Field(default=4096, ge=1)
        """Anchors whose similarities to the global batch are held at once: memory against speed.
        A process whose batch fits in one chunk calls `ClipLoss` itself."""

    def __init__(self, config: Config, env: MethodEnv) -> None:
        super().__init__(config, env, config.temperature)
        self.config = config
        ours = env.collectives
        # The one pair of flags that gives the whole batch's gradient at a (B, G) cost.
        self._contrast = ClipLoss(local_loss=True, gather_with_grad=True, rank=ours.rank, world_size=ours.world_size)

    def loss(self, features: Features, progress: Progress) -> LossOutput:
        """Return InfoNCE of the local rows against the global batch."""
        scale = self.temperature.scale
        if len(features.index_B) <= self.config.chunk_rows:
            total = self._contrast(features.image_BD, features.text_BD, scale)
        else:
            total = self._chunked(features, scale)
        return LossOutput(
            total=total,
            metrics={"loss/contrastive": total.detach(), "temperature/value": 1 / scale.detach()},
        )

    def _chunked(self, features: Features, scale: Tensor) -> Tensor:
        log_g = self.batch_log_partitions(features, scale, self.config.chunk_rows)
        return _infonce(*log_g, self.env.global_batch_size)

    def exact_loss(self, log_g: Callable[[Tensor], Tensor], progress: Progress) -> Tensor:
        """See `Method.exact_loss`: InfoNCE over all pairs."""
        log_g1_P, log_g2_P = log_g(self.temperature.scale)
        return _infonce(log_g1_P, log_g2_P, len(log_g1_P))


def _infonce(log_g1_B: Tensor, log_g2_B: Tensor, num_pairs: int) -> Tensor:
    # The pair itself adds exp(0) = 1 to the sum of the others.
    log_others = math.log(num_pairs - 1)
    return -(F.logsigmoid(-log_g1_B - log_others) + F.logsigmoid(-log_g2_B - log_others)).mean() / 2
