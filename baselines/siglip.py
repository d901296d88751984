"""SigLIP: a logistic loss on each pair, computed by open_clip's own `SigLipLoss`.

Paper: SigLIP, arXiv:2303.15343, Section 3.2 and Algorithm 1; code: open_clip_torch 3.3.

    loss = 1/B sum_ij log(1 + exp(-z_ij (s x_i . y_j + b))),  z_ij = +1 if i = j else -1

Differs: neither paper's large-batch optimiser (beta2 = 0.95) nor its schedule belongs to the method; the suite
gives OpenCLIP's. Shape suffixes: B local batch, C chunk of images, D embedding, G global batch.
"""

from __future__ import annotations

import torch
from open_clip.loss import SigLipLoss
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from engine.method import (
    Features,
    LossOutput,
    MethodConfig,
    MethodEnv,
    ParamGroup,
    Progress,
    TemperatureConfig,
    TemperatureMethod,
)


class SigLIPTemperature(TemperatureConfig):
    """The temperature's options, with SigLIP's start."""

    init: float = Field(default=0.1, gt=0)
    """Logit scale 10. Source: SigLIP, Algorithm 1."""


class SigLIP(TemperatureMethod):
    """Sigmoid loss with a learned scale and bias."""

    class Config(MethodConfig):
        """Options; the defaults are the paper's starts and open_clip's learning rates."""

        temperature: SigLIPTemperature = SigLIPTemperature()
        bias_init: float = -10.0
        """Source: SigLIP, Algorithm 1: most pairs are negatives, and so start with a small loss."""
        bias_learnable: bool = True
        bias_lr: float | None = Field(default=None, gt=0)
        """Learning rate of the bias; None takes the encoders'."""
        chunk_rows: int = Field(default=4096, ge=1)
        """Images whose similarities to the global batch are held at once: memory against speed.
        A process whose batch fits in one chunk calls `SigLipLoss` itself."""

    def __init__(self, config: Config, env: MethodEnv) -> None:
        super().__init__(config, env, config.temperature)
        self.config = config
        self.bias = nn.Parameter(torch.tensor(config.bias_init), requires_grad=config.bias_learnable)
        self._contrast = SigLipLoss(rank=env.collectives.rank, world_size=env.collectives.world_size)

    @property
    def logit_bias(self) -> Tensor:
        """See `Method.logit_bias`."""
        return self.bias

    def loss(self, features: Features, progress: Progress) -> LossOutput:
        """Return the sigmoid loss of the local images against all texts."""
        scale = self.temperature.scale
        if len(features.index_B) <= self.config.chunk_rows:
            total = self._contrast(features.image_BD, features.text_BD, scale, self.bias)
        else:
            total = self._chunked(features, scale)
        metrics = {
            "loss/contrastive": total.detach(),
            "temperature/value": 1 / scale.detach(),
            "logit_bias/value": self.bias.detach().clone(),
        }
        return LossOutput(total=total, metrics=metrics)

    def _chunked(self, features: Features, scale: Tensor) -> Tensor:
        text_GD = self.env.collectives.gather_with_grad(features.text_BD)
        positive_B = scale * (features.image_BD * features.text_BD).sum(dim=1) + self.bias
        sums = [
            checkpoint(
                _sum_as_negatives, image_CD, text_GD, scale, self.bias, use_reentrant=False, preserve_rng_state=False
            )
            for image_CD in torch.split(features.image_BD, self.config.chunk_rows)
        ]
        # log(1 + exp(-l)) of a positive is log(1 + exp(l)) - l: take all pairs as negatives, then correct.
        return (torch.stack(sums).sum() - positive_B.sum()) / len(features.index_B)

    def param_groups(self) -> list[ParamGroup]:
        """Return the temperature and the bias, each at its own learning rate, without weight decay."""
        bias = [ParamGroup(params=[self.bias], lr=self.config.bias_lr)] if self.config.bias_learnable else []
        return super().param_groups() + bias


def _sum_as_negatives(image_CD: Tensor, text_GD: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return -F.logsigmoid(-scale * (image_CD @ text_GD.T) - bias).sum()
