"""FastCLIP: contrastive learning with a running average of each sample's normalizer, versions v0 to v3.

Paper: FastCLIP, arXiv:2407.01445. With d_i = x_i . y_i, temperature T and G pairs in the global batch,

    g1_i = 1/(G-1) sum_{j != i} exp((x_i . y_j - d_i)/T)      image i against the other texts; g2_i the reverse
    u_i <- (1 - gamma) u_i + gamma g_i                        of the batch's samples; u_i <- g_i at the first visit
    A = mean_i [ g1_i / (eps + sg u1_i) + g2_i / (eps + sg u2_i) ]

v0 minimises A with a learned T, v1 with a fixed one (SogCLR), v2 with a learned T per sample and side (iSogCLR), and
v3, the paper's best, sg(T) A + rho T + T/2 mean_i[log u1_i + log u2_i] with a learned T. All of it in log space.

Differs: feature gradients are whole; the 2024 code halves them when distributed (it gathers without gradient), which
AdamW without clipping cannot see. Unvisited samples are known by a mask, not by u = 0, u < 1e-35, inf or NaN. The
2025 code's loss has another value than A, sum_j w_ij h_ij over exponents h with weights w constant, but the same
gradient. v2 exists in the 2024 form only, with exp shifted by a running maximum and eps added to the shifted u; log
space needs no shift, so that eps adds to u itself.

Shape suffixes: B local batch, G global batch, N data set, or a process's share of it (`engine.shares`), D embedding,
2 sides (image anchors, text anchors).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from engine.contrastive import DEFAULT_CHUNK_ROWS, add_eps, log_mix
from engine.method import (
    Features,
    LossOutput,
    Method,
    MethodConfig,
    MethodEnv,
    ParamGroup,
    Progress,
    Temperature,
    TemperatureConfig,
)
from engine.schema.record import Signature
from engine.signatures import BUDGET, NO_BALANCE, Log, temperature_at_floor

Version = Literal["v0", "v1", "v2", "v3"]

TEMPERATURES: dict[str, dict[str, Any]] = {
    "v0": {},
    "v1": {"learnable": False},
    "v2": {"init": 0.03, "lr": 0.0133, "lr_schedule": "constant"},
    "v3": {"lr": 2e-4, "lr_schedule": "step_threshold"},
}
"""Temperature options of each version. Source: the authors' CC3M scripts."""

MAX_SHARE = 0.5
"""Share of the batch's samples without an average yet, or of eps in eps + u. Above it, most weights are the batch's own
g, or do not depend on the sample: the method adds little to a plain contrastive loss."""


class FastCLIP(Method):
    """Stochastic compositional optimisation of the global contrastive loss."""

    class Config(MethodConfig):
        """Options; the defaults are the authors' for CC3M (README of Optimization-AI/fast_clip)."""

        version: Version = "v3"
        form: Literal["log", 2024] = "log"
        """``log``: the authors' code of 2025 averages eps + g, with 1/G in g. ``2024``: it averages g, with 1/(G-1),
        and adds eps afterwards."""
        temperature: TemperatureConfig = TemperatureConfig()
        """Options that are left out are those of the authors for the version."""
        temperature_gradient: Literal["authors", "consistent"] = "authors"
        """v3 only. ``authors``: their code, to which rho was tuned, counts A's part of the temperature gradient
        twice. ``consistent``: all gradients are those of T mean[log u1 + log u2] + 2 rho T."""
        rho: float = 6.5
        """Pull on the temperature (v2 and v3). CC3M: 6.5 (v2: 7), CC12M 8.5, LAION-400M 16, DFN-192M 11. At u = g the
        temperature's gradient is rho - KL (v2; v3 twice that if consistent), KL being the divergence of an anchor's
        softmax p over the others from uniform, below log(G - 1); with v3's authors' gradient rho - (KL + E_p[h]), h the
        exponents in g, which no rho >= 0 balances at low temperatures once pairs are told apart."""
        eps: float = Field(default=1e-14, gt=0)
        gamma_min: float = Field(default=0.2, gt=0, le=1)
        gamma_schedule: Literal["cosine", "constant"] = "cosine"
        gamma_decay_epochs: int | None = Field(default=None, ge=1)
        """Epochs until gamma reaches `gamma_min`; None takes half the run's (CC3M: 18 of 37), as they advise."""
        individual_betas: tuple[float, float] = (0.9, 0.999)
        """v2: Adam's moment decays for the temperatures; theirs are the encoders'."""
        individual_eps: float = Field(default=1e-8, gt=0)
        individual_grad_clamp: float = Field(default=5.0, gt=0)
        chunk_rows: int = Field(default=DEFAULT_CHUNK_ROWS, ge=1)
        """Anchors whose similarities to the global batch are held at once."""

        @model_validator(mode="before")
        @classmethod
        def _complete(cls, options: Any) -> Any:
            if not isinstance(options, dict):
                return options
            version = str(options.get("version", "v3"))
            temperature = options.get("temperature", {})
            if isinstance(temperature, dict):
                temperature = TEMPERATURES.get(version, {}) | temperature
            rho = {"rho": 7.0} if version == "v2" else {}
            # Of JSON, pydantic takes lists for tuples; of what this returns it does not.
            given = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
            return rho | given | {"temperature": temperature}

        @model_validator(mode="after")
        def _check(self) -> FastCLIP.Config:
            if self.version == "v1" and self.temperature.learnable:
                raise ValueError(
                    "version v1 holds the temperature constant: leave temperature.learnable out, or use v0"
                )
            moves = self.version == "v2" and self.temperature.learnable
            if moves and (self.temperature.lr is None or self.temperature.lr_schedule != "constant"):
                raise ValueError(
                    "version v2 moves its temperatures itself: it needs a temperature.lr (theirs: 0.0133) "
                    "and temperature.lr_schedule 'constant'"
                )
            return self

    visited_N: Tensor
    log_u_N2: Tensor
    temperature_N2: Tensor
    moment1_N2: Tensor
    moment2_N2: Tensor

    def __init__(self, config: Config, env: MethodEnv) -> None:
        super().__init__(config, env)
        self.config = config
        shape = (env.shares.rows, 2)
        self.register_buffer("visited_N", torch.zeros(env.shares.rows, dtype=torch.bool))
        self.register_buffer("log_u_N2", torch.zeros(shape))
        self.pair_buffers = ("visited_N", "log_u_N2")
        self._individual = config.version == "v2"
        if self._individual:
            self.pair_buffers += ("temperature_N2", "moment1_N2", "moment2_N2")
            self.register_buffer("temperature_N2", torch.full(shape, config.temperature.init))
            self.register_buffer("moment1_N2", torch.zeros(shape))
            self.register_buffer("moment2_N2", torch.zeros(shape))
        else:
            self.temperature = Temperature(config.temperature)

    @property
    def logit_scale(self) -> Tensor:
        """See `Method.logit_scale`."""
        return 1 / self.env.shares.mean(self.temperature_N2) if self._individual else self.temperature.scale

    @torch.no_grad()
    def anchor_logit_scales(self, features: Features) -> Tensor:
        """See `Method.anchor_logit_scales`."""
        if self._individual:
            (temperature_B2,) = self._read(features.index_B, "temperature_N2")
            return 1 / temperature_B2.T
        return super().anchor_logit_scales(features)

    @property
    def normalizer_eps(self) -> float:
        """See `Method.normalizer_eps`. The log form averages eps along with g, whose weight is (G - 1)/G."""
        return self.config.eps / math.exp(self._log_mean_factor) if self.config.form == "log" else self.config.eps

    def loss(self, features: Features, progress: Progress) -> LossOutput:
        """Move the batch's running normalizers, then return the loss that they weight."""
        if self._individual:
            (temperature_B2,) = self._read(features.index_B, "temperature_N2")
            return self.loss_at(features, (1 / temperature_B2).requires_grad_(), progress)
        return self.loss_at(features, self.temperature.scale, progress)

    def loss_at(self, features: Features, scale: Tensor, progress: Progress) -> LossOutput:
        """Compute `loss` at a given logit scale: a scalar with gradient, or in v2 one per sample and side."""
        index_B = features.index_B
        gamma = self.gamma(progress.epoch)
        visited_B, old_B2 = self._read(index_B, "visited_N", "log_u_N2")
        visited_B1 = visited_B[:, None]
        scales = (scale[:, 0], scale[:, 1]) if self._individual else scale
        log_g_B2 = torch.stack(self.batch_log_partitions(features, scales, self.config.chunk_rows), dim=1)

        log_estimate_B2 = self._log_estimate(log_g_B2.detach())
        log_u_B2 = torch.where(visited_B1, log_mix(old_B2.to(log_estimate_B2), log_estimate_B2, gamma), log_estimate_B2)
        log_weight_B2 = self._log_eps_plus_u(log_u_B2)
        surrogate = (log_g_B2 - log_weight_B2).exp().sum(dim=1).mean()

        state = {"visited_N": torch.ones_like(visited_B), "log_u_N2": log_u_B2}
        if self._individual and self.config.temperature.learnable:
            state |= self._move_temperatures(index_B, log_g_B2, log_weight_B2, scale, progress.epoch)
        self._write(index_B, state)

        mean_log_u = log_u_B2.sum(dim=1).mean()
        objective = mean_log_u if log_weight_B2 is log_u_B2 else log_weight_B2.sum(dim=1).mean()
        if self.config.version == "v3":
            objective = (objective + 2 * self.config.rho) / scale.detach()
        metrics = {
            "loss/contrastive": surrogate.detach(),
            "loss/objective": objective,
            "temperature/value": (1 / scale.detach()).mean(),
            "normalizer/gamma": torch.tensor(gamma),
            "normalizer/unvisited_share": 1 - visited_B1.float().mean(),
            "normalizer/eps_share": (math.log(self.config.eps) - log_weight_B2).exp().mean(),
        }
        return LossOutput(total=self._total(surrogate, mean_log_u, scale), metrics=metrics)

    def exact_loss(self, log_g: Callable[[Tensor], Tensor], progress: Progress) -> Tensor | None:
        """See `Method.exact_loss`, with averages that are exact; v2 has no one temperature."""
        if self._individual:
            return None
        log_g_2P = log_g(self.temperature.scale)
        log_u_2P = self._log_estimate(log_g_2P.detach())
        surrogate = (log_g_2P - self._log_eps_plus_u(log_u_2P)).exp().sum(dim=0).mean()
        return self._total(surrogate, log_u_2P.sum(dim=0).mean(), self.temperature.scale)

    def _total(self, surrogate: Tensor, mean_log_u: Tensor, scale: Tensor) -> Tensor:
        if self.config.version != "v3":
            return surrogate
        weight = 0.5 if self.config.temperature_gradient == "authors" else 1.0
        return surrogate / scale.detach() + weight * (mean_log_u + 2 * self.config.rho) / scale

    def gamma(self, epoch: int) -> float:
        """Return the weight of the new estimate: 1 in epoch 0, then down to `gamma_min`, constant within an epoch.

        Source: FastCLIP's inner learning rate schedule, `adjust_gamma` in the authors' code.
        """
        low = self.config.gamma_min
        num_epochs = self.config.gamma_decay_epochs or max(1, self.env.num_epochs // 2)
        if epoch == 0:
            return 1.0
        if epoch >= num_epochs or self.config.gamma_schedule == "constant":
            return low
        return low + (1 - low) * (1 + math.cos(math.pi * epoch / num_epochs)) / 2

    def param_groups(self) -> list[ParamGroup]:
        """Return the global temperature of v0 and v3; v2 moves its own in `loss`."""
        return [] if self._individual else self.temperature.param_groups()

    def after_step(self, progress: Progress) -> None:
        """Keep the global temperature within its bounds."""
        if not self._individual:
            self.temperature.clamp()

    def signatures(self, log: Log) -> list[Signature]:
        """Return signs that samples never come back to their running averages, or that rho or eps is too large."""
        config, found = self.config, []
        if config.version in ("v2", "v3") and config.temperature.learnable:
            evidence = {"rho": config.rho, "log_others": math.log(self.env.global_batch_size - 1)}
            advice = NO_BALANCE if config.version == "v3" and config.temperature_gradient == "authors" else BUDGET
            found += temperature_at_floor(log, config.temperature.minimum, advice, **evidence)
        found += log.find(
            "estimates_unvisited",
            lambda now: now["normalizer/unvisited_share"] > MAX_SHARE,
            "train for more epochs; in a single one this is the loss of the batch alone",
            "normalizer/unvisited_share",
            at_end=True,
            limit=MAX_SHARE,
        )
        found += log.find(
            "estimates_at_floor",
            lambda now: now["normalizer/eps_share"] > MAX_SHARE,
            "lower eps, or raise temperature.minimum",
            "normalizer/eps_share",
            limit=MAX_SHARE,
        )
        return found

    @torch.no_grad()
    def log_normalizers(self, features: Features, progress: Progress) -> tuple[Tensor, Tensor]:
        """Return the running normalizers of the batch's samples, NaN before a sample's first visit."""
        visited_B, log_u_B2 = self._read(features.index_B, "visited_N", "log_u_N2")
        log_u_B2 = self._log_eps_plus_u(log_u_B2)
        if self.config.form == "log":
            log_u_B2 = log_u_B2 - self._log_mean_factor
        log_u_B2 = log_u_B2.masked_fill(~visited_B[:, None], math.nan)
        return log_u_B2[:, 0], log_u_B2[:, 1]

    def _log_estimate(self, log_g_B2: Tensor) -> Tensor:
        """Return the quantity to average: log g, or log(eps + (G - 1)/G g) in the log form."""
        if self.config.form == 2024:
            return log_g_B2
        return add_eps(log_g_B2 + self._log_mean_factor, self.config.eps)

    def _log_eps_plus_u(self, log_u_B2: Tensor) -> Tensor:
        return add_eps(log_u_B2, self.config.eps) if self.config.form == 2024 else log_u_B2

    @property
    def _log_mean_factor(self) -> float:
        return math.log1p(-1 / self.env.global_batch_size)

    @torch.no_grad()
    def _move_temperatures(
        self, index_B: Tensor, log_g_B2: Tensor, log_weight_B2: Tensor, scale_B2: Tensor, epoch: int
    ) -> dict[str, Tensor]:
        """Take one Adam step on the temperature of each sample and side of the batch (v2).

        The gradient is that of T (log(eps + u) + rho) with the running average in place of the batch's own:
        log(eps + u) + rho - 1/(eps + u) mean over j of e^h h, with h the exponents in g.

        Returns:
            New temperatures and moments of the batch's samples, (B, 2) each, by the name of their buffer.

        Source: the authors' code: moments only decay after epoch 0, and their bias correction counts epochs.
        """
        config = self.config
        (slope_B2,) = torch.autograd.grad(log_g_B2, scale_B2, torch.ones_like(log_g_B2), retain_graph=True)
        mean_h_B2 = (log_g_B2 - log_weight_B2).exp() * scale_B2 * slope_B2
        limit = config.individual_grad_clamp
        grad_B2 = (log_weight_B2 + config.rho - mean_h_B2).clamp(-limit, limit)
        beta1, beta2 = config.individual_betas if epoch else (0.0, 0.0)
        temperature_B2, moment1_B2, moment2_B2 = self._read(index_B, "temperature_N2", "moment1_N2", "moment2_N2")
        moment1_B2 = beta1 * moment1_B2 + (1 - beta1) * grad_B2
        moment2_B2 = beta2 * moment2_B2 + (1 - beta2) * grad_B2**2
        size_B2 = (moment2_B2 / (1 - beta2 ** (epoch + 1))).sqrt() + config.individual_eps
        step_B2 = moment1_B2 / (1 - beta1 ** (epoch + 1)) / size_B2
        assert config.temperature.lr is not None
        temperature_B2 = temperature_B2 - config.temperature.lr * step_B2
        temperature_B2 = temperature_B2.clamp(config.temperature.minimum, config.temperature.maximum)
        return {"temperature_N2": temperature_B2, "moment1_N2": moment1_B2, "moment2_N2": moment2_B2}

    def _read(self, index_B: Tensor, *names: str) -> list[Tensor]:
        """Return the rows of the batch in the named buffers, which other processes may keep."""
        return self.env.shares.read(index_B, *(getattr(self, name) for name in names))

    def _write(self, index_B: Tensor, state: dict[str, Tensor]) -> None:
        """Write the rows of every process's batch into the named buffers; where a sample comes twice, its last row."""
        self.env.shares.write(index_B, [getattr(self, name) for name in state], list(state.values()))
