"""NeuCLIP's loss with exact normalizers: the mean over fresh random pairs that every step encodes anew.

alpha errs by the variance of a mean over M pairs alone. It is what the network is to come near to: a control, whose
encoders run M pairs more a step.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from engine.method import Features
from neuclip.method import Batch, Update
from neuclip.normalizer import Anchors
from neuclip.others import OtherPairs


class NeuCLIPExact(OtherPairs):
    """UNIFIED with the pairs of `Features.extra` as normalizer."""

    class Config(OtherPairs.Config):
        """Options."""

        num_prototypes: int = Field(default=4096, ge=1)
        """M, fresh pairs of a step; named as what they stand in for."""
        architecture: Literal["exact"] = "exact"

    config: Config

    @property
    def num_extra_pairs(self) -> int:
        """See `Method.num_extra_pairs`: M."""
        return self.config.num_prototypes

    def update(self, batch: Batch, anchors: Anchors, step: int) -> Update:
        """See `Unified.update`; nothing is kept."""
        alpha_2B = self._alpha(batch)
        return Update(alpha_2B, alpha_2B)

    def others(self, features: Features) -> tuple[Tensor, Tensor]:
        """See `OtherPairs.others`."""
        extra = features.extra
        if extra is None:
            raise ValueError(
                "features.extra is missing: it holds num_extra_pairs further pairs, which the engine's trainer brings"
            )
        return torch.stack((extra.text_BD, extra.image_BD)), extra.index_B
