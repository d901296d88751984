"""NeuCLIP's loss with the batch's own normalizers: every weight exp(log gamma - alpha) is 1.

With ``positive: counted`` and ``temperature_gradient: infonce`` it is OpenCLIP, times the temperature.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from engine.method import Features
from neuclip.method import Batch, Update
from neuclip.normalizer import Anchors
from neuclip.others import OtherPairs


class NeuCLIPBatch(OtherPairs):
    """UNIFIED with the global batch itself as normalizer."""

    class Config(OtherPairs.Config):
        """Options."""

        architecture: Literal["batch"] = "batch"

    def update(self, batch: Batch, anchors: Anchors, step: int) -> Update:
        """See `Unified.update`; nothing is kept."""
        alpha_2B = self._alpha(batch)
        return Update(alpha_2B, alpha_2B)

    def others(self, features: Features) -> tuple[Tensor, Tensor]:
        """See `OtherPairs.others`."""
        gather = self.env.collectives.gather
        other_2GD = torch.stack((gather(features.text_BD.detach()), gather(features.image_BD.detach())))
        return other_2GD, gather(features.index_B)
