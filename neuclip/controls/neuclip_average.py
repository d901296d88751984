"""NeuCLIP's loss with a moving average of each pair's own estimates, without prediction across pairs.

    u_i <- (1 - gamma) u_i + gamma (eps + g_i)   whenever pair i is in a batch, and u_i <- eps + g_i the first time

alpha_i = log u_i. State grows with the data set: two numbers a pair, shared out among the processes.

Source: FastCLIP, arXiv:2407.01445. Differs: gamma is constant.

Shape suffixes: 2 sides (image anchors, text anchors), B local anchors, G global batch, N data set, or a process's share
of it (`engine.shares`).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from engine.contrastive import log_mix
from engine.method import Features, MethodEnv
from neuclip.method import Batch, Unified, Update
from neuclip.normalizer import Anchors


class NeuCLIPAverage(Unified):
    """UNIFIED with averages as normalizers. Its state: the temperature and the averages."""

    class Config(Unified.Config):
        """Options."""

        average_gamma: float = Field(default=0.8, gt=0, le=1)
        """Weight of a pair's new estimate, FastCLIP's gamma, which there decays from 1 to 0.2 or 0.8."""
        architecture: Literal["average"] = "average"

    config: Config
    pair_buffers = ("visited_N", "log_u_N2")
    visited_N: Tensor
    log_u_N2: Tensor

    def __init__(self, config: Config, env: MethodEnv) -> None:
        super().__init__(config, env)
        self.register_buffer("visited_N", torch.zeros(env.shares.rows, dtype=torch.bool))
        self.register_buffer("log_u_N2", torch.zeros(env.shares.rows, 2))

    @torch.no_grad()
    def update(self, batch: Batch, anchors: Anchors, step: int) -> Update:
        """Mix the batch's estimates in."""
        ours, shares, buffers = self.env.collectives, self.env.shares, (self.visited_N, self.log_u_N2)
        new_B2 = anchors.log_gamma_2G.chunk(ours.world_size, dim=1)[ours.rank].T.contiguous().to(self.log_u_N2)
        visited_B, old_B2 = shares.read(batch.features.index_B, *buffers)
        mixed_B2 = torch.where(visited_B[:, None], log_mix(old_B2, new_B2, self.config.average_gamma), new_B2)
        shares.write(batch.features.index_B, buffers, (torch.ones_like(visited_B), mixed_B2))
        alpha_2B = self.predict(*batch)
        return Update(alpha_2B, alpha_2B)

    @torch.no_grad()
    def predict(self, features: Features, logit_scale: Tensor, pair_G2D: Tensor | None = None) -> Tensor:
        """See `Unified.predict`; NaN for a pair that was in no batch yet."""
        visited_B, log_u_B2 = self.env.shares.read(features.index_B, self.visited_N, self.log_u_N2)
        return log_u_B2.where(visited_B[:, None], torch.nan).T.contiguous()
