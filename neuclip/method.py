"""NeuCLIP: log-normalizers predicted by a small network that is trained inside every step.

Paper: Wei, Lin, Yang, "NeuCLIP: Efficient Large-Scale CLIP Training with Neural Normalizer Optimization",
arXiv:2511.08417. With g1_i, g2_i of `engine.contrastive` and h, UNIFIED of `neuclip.objective`, step t does

    1. restart    if t mod T_r = 0: prototypes := recent embeddings of the other modality, AdaGrad forgets
    2. NPN block  T_u AdaGrad steps on UNIFIED in the prototypes; embeddings and temperature held fixed
    3. CLIP block one step of the engine's AdamW on UNIFIED in encoders and temperature, with the new alphas

`NeuCLIP` is blocks 1 and 2, with its network in `neuclip.normalizer`; `Unified` is block 3, which the controls of
`neuclip/controls/` share. Choices that the paper leaves open, and ours:
- AdaGrad is reset at a restart. Its learning rate is not stated: `npn_lr`.
- A restart draws from the batch; with more prototypes than pairs in it, also from the batches just before.
- alpha is a constant in the CLIP block (`npn_gradient: detached`); `full` differentiates through the network.
- The temperature's gradient is that of UNIFIED (`temperature_gradient: consistent`). `authors` doubles the part
  that comes through g, as the authors' FastCLIP code does with its own loss; their rho was tuned with that. It is
  not UNIFIED's gradient: with it the CLIP block does not minimise UNIFIED in the temperature. The paper's suites have
  it all the same, since their rho is FastCLIP's; docs/reproduce.md says what changes with it.
- rho, eps and the temperature's rules are FastCLIP-v3's for the same data set in the paper's suites. By default eps and
  the rules are those for CC3M, and rho follows the batch, see `Unified.Config`.
- `updates: simultaneous` lets both blocks start from the same point: the CLIP block sees the alphas from before
  the NPN block. With one update and `npn_gradient: full` that is one joint gradient step.
- `objective: separate` and `architecture: mlp` are the paper's ablations, see `neuclip.objective.regression_slope`
  and `neuclip.normalizer.MLP`. The latter's weights are drawn once: its restarts only reset AdaGrad.
- A weight exp(log(eps + g) - alpha) is capped at exp(40), see `neuclip.objective.MAX_GAP`.
Ours, to tell what a gain comes of: `temperature_gradient: infonce` moves the temperature as InfoNCE over the batch
would, whatever moves the encoders; `positive: counted` adds the anchor's own pair to g and to exp(alpha), as one of a
batch's G terms.

Shape suffixes: 2 sides (image anchors, text anchors), B local batch, G global batch, D embedding, P all pairs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from engine.contrastive import DEFAULT_CHUNK_ROWS, add_eps, log_partitions
from engine.method import (
    Features,
    LossOutput,
    MethodConfig,
    MethodEnv,
    Progress,
    TemperatureConfig,
    TemperatureMethod,
)
from engine.schema.record import Signature
from engine.signatures import Log
from neuclip import signatures
from neuclip.normalizer import MLP, Anchors, Normalizer, Prototypes
from neuclip.objective import MAX_GAP, conjugate_slope, count_positive, regression_slope, unified

RHO_SHARE = 0.6
"""Of log(G - 1), KL's bound: 3.0 at 128 pairs, as a small tuning chose. Random embeddings in 64 dimensions
reach 0.91 of it at a temperature of 0.01, with 128 as with 4,096 pairs, and 0.62 to 0.68 at 0.03."""

LARGEST_LOGIT = 700.0
"""exp of it is finite in float64, in which processes add up their parts of the network's log-sum-exp."""


class NeuCLIPTemperature(TemperatureConfig):
    """FastCLIP-v3's rule: no warm-up, a third of the rate below a temperature of 0.03."""

    lr_schedule: Literal["encoder", "step_threshold", "constant"] = "step_threshold"


class Batch(NamedTuple):
    """What log-normalizers are predicted for, with gradient."""

    features: Features
    """The local pairs."""
    logit_scale: Tensor
    """1 / temperature, scalar."""
    pair_G2D: Tensor
    """Embeddings of the pairs of all processes."""


class Update(NamedTuple):
    """What comes before the CLIP block: log-normalizers of the local anchors, (2, B)."""

    alpha_2B: Tensor
    """For the CLIP block."""
    after_2B: Tensor
    """After the NPN block; the same, unless both blocks start from one point."""
    before_2B: Tensor | None = None
    """Before the NPN block, if there is one."""
    gradient_norm: Tensor | None = None
    """Of the NPN block's first step."""


class Unified(TemperatureMethod, ABC):
    """The CLIP block: UNIFIED with the log-normalizers that a subclass brings. Its state: the temperature."""

    class Config(MethodConfig):
        """Options of the loss. Source of the defaults: the paper, where nothing else is said."""

        rho: float | None = None
        """Pull on the temperature, downwards, in nats. None takes `RHO_SHARE` of log(G - 1), for ``consistent``.

        ``consistent``: the temperature settles where KL = rho, with KL the mean divergence of an anchor's softmax over
        the others from uniform. KL is below log(G - 1): a larger rho sends the temperature to its minimum.
        ``authors``: once pairs are told apart, every rho >= 0 sends it there. So a rho that was tuned with one gradient
        does not fit the other: FastCLIP-v3's on CC3M, 6.5, is the authors'. See docs/failure-signatures.md.
        """
        eps: float = Field(default=1e-14, gt=0)
        """The constant inside the logarithm; a floor under alpha, so keep it far below a typical g at the smallest
        temperature. Source: FastCLIP-v3's CC3M script."""
        npn_gradient: Literal["detached", "full"] = "detached"
        temperature: NeuCLIPTemperature = NeuCLIPTemperature()
        temperature_gradient: Literal["consistent", "authors", "infonce"] = "consistent"
        """``consistent``: UNIFIED's. ``authors``: not UNIFIED's; the paper's suites have it, see above. ``infonce``:
        InfoNCE's over the batch, without rho."""
        positive: Literal["left out", "counted"] = "left out"
        """The anchor's own pair in its normalizer. Source of ``left out``: g of the paper."""
        chunk_rows: int = Field(default=DEFAULT_CHUNK_ROWS, ge=1)
        """Anchors whose similarities are held at once: memory against speed."""

        @model_validator(mode="after")
        def _check(self) -> Unified.Config:
            smallest = min(self.temperature.minimum, self.temperature.init)
            if smallest * LARGEST_LOGIT < 1:
                raise ValueError(
                    f"a temperature of {smallest} is too small: allowed are temperature.minimum and temperature.init "
                    f"of at least 1/{LARGEST_LOGIT:.0f} = {1 / LARGEST_LOGIT:.5f}; the usual minimum is 0.01"
                )
            return self

    config: Config

    def __init__(self, config: Config, env: MethodEnv) -> None:
        super().__init__(config, env, config.temperature)
        self.config = config
        self.rho = RHO_SHARE * math.log(env.global_batch_size - 1) if config.rho is None else config.rho

    @abstractmethod
    def update(self, batch: Batch, anchors: Anchors, step: int) -> Update:
        """Take the batch in, and return what the log-normalizers then are; `anchors` is the batch without gradient."""

    @abstractmethod
    def predict(self, features: Features, logit_scale: Tensor, pair_G2D: Tensor | None = None) -> Tensor:
        """Return alpha of the local anchors, (2, B). Every process calls this together.

        Args:
            features: The local anchors.
            logit_scale: 1 / temperature, scalar.
            pair_G2D: The embeddings of all processes' anchors, with gradient; None gathers them if they are needed.
        """

    def is_ready(self, index_B: Tensor) -> Tensor:
        """Return whether there is a prediction for pairs at these positions, (B,) or scalar; by default always."""
        return torch.ones_like(index_B, dtype=torch.bool)

    @property
    def normalizer_eps(self) -> float:
        """Of the configuration: alpha is log(eps + g)."""
        return self.config.eps

    def loss(self, features: Features, progress: Progress) -> LossOutput:
        """Do a step at the method's own temperature."""
        return self.loss_at(features, self.logit_scale, progress)

    def loss_at(self, features: Features, logit_scale: Tensor, progress: Progress) -> LossOutput:
        """Do a step at a given logit scale, whoever owns that.

        Args:
            features: The local pairs; the network is trained on the global batch.
            logit_scale: 1 / temperature, scalar; gradients flow into it.
            progress: Its step decides on restarts.

        Returns:
            UNIFIED over the local pairs, and metrics: ``npn/`` objective before and after the NPN block; its gap in
            nats, which is what alphas can still lower it by (per anchor, in units of tau), and the gap of the best
            constant, a network that has learned nothing; norm of its first gradient; mean alpha; share of alpha that
            is the floor eps (near 1 the network has no gradient left); share of anchors whose weight is capped, in the
            loss or where the NPN block starts.

        Source: NeuCLIP, arXiv:2511.08417, the alternating algorithm.
        """
        config, collectives = self.config, self.env.collectives
        offset = collectives.rank * len(features.index_B)
        pair_G2D = collectives.gather_with_grad(torch.stack((features.image_BD, features.text_BD), dim=1))
        infonce = None
        if config.temperature_gradient == "infonce":
            detached = Features(features.image_BD.detach(), features.text_BD.detach(), features.index_B)
            log_g_2B = self._log_g(detached, pair_G2D.detach(), logit_scale, offset)
            infonce = count_positive(log_g_2B, self.env.global_batch_size).mean()
            logit_scale = logit_scale.detach()
        log_gamma_2B = add_eps(self._log_g(features, pair_G2D, self._scale_in_g(logit_scale), offset), config.eps)
        embedding_2GD = pair_G2D.detach().transpose(0, 1)
        anchors = Anchors(
            embedding_2GD=embedding_2GD,
            positive_G=(embedding_2GD[0] * embedding_2GD[1]).sum(dim=1),
            log_gamma_2G=collectives.gather(log_gamma_2B.T).T,
            logit_scale=logit_scale.detach(),
        )
        found = self.update(Batch(features, logit_scale, pair_G2D), anchors, progress.step)
        counted_gamma_2B, counted_alpha_2B = (
            self._counted(each_2B, self.env.global_batch_size) for each_2B in (log_gamma_2B, found.alpha_2B)
        )
        total = unified(counted_gamma_2B, counted_alpha_2B, 1 / logit_scale, rho=self.rho)
        if infonce is not None:
            # Its gradient in the temperature, and nothing of its value.
            total = total + infonce - infonce.detach()

        with torch.no_grad():
            metrics = {"loss/contrastive": total.detach(), "temperature/value": 1 / logit_scale}
            lowest = log_gamma_2B.mean() + self.rho
            is_capped_2B = counted_gamma_2B - counted_alpha_2B > MAX_GAP
            for when, alpha_2B in (("before", found.before_2B), ("after", found.after_2B)):
                if alpha_2B is not None:
                    objective = unified(log_gamma_2B, alpha_2B, 1 / logit_scale, rho=self.rho)
                    metrics |= {f"npn/objective_{when}": objective, f"npn/gap_{when}": objective * logit_scale - lowest}
            if found.before_2B is not None:
                is_capped_2B |= log_gamma_2B - found.before_2B > MAX_GAP
            if found.gradient_norm is not None:
                metrics["npn/gradient_norm"] = found.gradient_norm
            # Of the global batch, since it is no mean over anchors.
            metrics["npn/gap_constant"] = _gap_of_a_constant(anchors.log_gamma_2G + anchors.positive_G * logit_scale)
            metrics["npn/floor_share"] = (math.log(config.eps) - found.alpha_2B).exp().mean()
            metrics["npn/capped_share"] = is_capped_2B.float().mean()
            metrics["npn/alpha_mean"] = found.alpha_2B.mean()
        return LossOutput(total, metrics)

    def exact_loss(self, log_g: Callable[[Tensor], Tensor], progress: Progress) -> Tensor:
        """See `Method.exact_loss`: RGCL, with the positive pair and the temperature's gradient that the options say."""
        scale = self.logit_scale
        fixed_2P = log_g(scale.detach())
        num_pairs = fixed_2P.shape[1]
        infonce = None
        if self.config.temperature_gradient == "infonce":
            # No gradient but the temperature's.
            infonce = count_positive(fixed_2P.detach() + log_g(scale) - fixed_2P, num_pairs).mean()
            scale = scale.detach()
        log_gamma_2P = self._counted(add_eps(log_g(self._scale_in_g(scale)), self.config.eps), num_pairs)
        total = unified(log_gamma_2P, log_gamma_2P.detach(), 1 / scale, rho=self.rho)
        return total if infonce is None else total + infonce - infonce.detach()

    @torch.no_grad()
    def log_normalizers(self, features: Features, progress: Progress) -> tuple[Tensor, Tensor]:
        """Return what `predict` does; NaN where nothing is known yet."""
        alpha_2B = self.predict(features, self.logit_scale)
        alpha_image_B, alpha_text_B = alpha_2B.where(self.is_ready(features.index_B), math.nan)
        return alpha_image_B, alpha_text_B

    def signatures(self, log: Log) -> list[Signature]:
        """See `neuclip.signatures`."""
        floor = signatures.of_temperature(log, self.config, rho=self.rho, global_batch_size=self.env.global_batch_size)
        return [*floor, *signatures.of_estimates(log, self.config)]

    def _log_g(self, features: Features, pair_G2D: Tensor, logit_scale: Tensor, offset: int) -> Tensor:
        """The batch's estimate of log g for the local anchors, (2, B)."""
        local, everyone = (features.image_BD, features.text_BD), (pair_G2D[:, 0], pair_G2D[:, 1])
        rows = self.config.chunk_rows
        return torch.stack(log_partitions(*local, *everyone, logit_scale, offset=offset, chunk_rows=rows))

    def _scale_in_g(self, logit_scale: Tensor) -> Tensor:
        """The logit scale in g: the same value, with twice the gradient if the options say so."""
        is_doubled = self.config.temperature_gradient == "authors"
        return 2 * logit_scale - logit_scale.detach() if is_doubled else logit_scale

    def _counted(self, log_g_2B: Tensor, num_pairs: int) -> Tensor:
        """Count the anchor's own pair as one of so many, if the options say so."""
        return count_positive(log_g_2B, num_pairs) if self.config.positive == "counted" else log_g_2B

    def _alpha(self, batch: Batch) -> Tensor:
        """The log-normalizers that the local anchors get, (2, B), with the gradient that the options say."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.npn_gradient == "full"):
            return self.predict(*batch)


class NeuCLIP(Unified):
    """NeuCLIP. Its state: the temperature, the network, AdaGrad's accumulator, embeddings kept for a restart."""

    class Config(Unified.Config):
        """Options. Source of the defaults: the paper, where nothing else is said."""

        num_prototypes: int = Field(default=4096, ge=1)
        """m, per side; `mlp` has none."""
        restart_period: Annotated[int, Field(ge=1)] | Literal["never"] = 500
        """T_r in steps; ``never`` leaves only the first draw, at step 0."""
        num_updates: int = Field(default=10, ge=0)
        """T_u: AdaGrad steps of the network per training step; 0 leaves only restarts."""
        npn_lr: float = Field(default=0.008, gt=0)
        """AdaGrad's learning rate; assumed, the paper does not state it. The first step after a restart moves every
        row by npn_lr * sqrt(D): keep that under about 0.3 (here 0.26 at D = 1024), or it undoes the restart."""
        objective: Literal["unified", "separate"] = "unified"
        architecture: Literal["prototypes", "mlp"] = "prototypes"
        updates: Literal["alternating", "simultaneous"] = "alternating"

    config: Config

    def __init__(self, config: Config, env: MethodEnv) -> None:
        super().__init__(config, env)
        self.normalizer: Normalizer
        if config.architecture == "mlp":
            self.normalizer = MLP(env.embed_dim, eps=config.eps, collectives=env.collectives)
        else:
            missing = config.num_prototypes - env.global_batch_size
            self.normalizer = Prototypes(
                config.num_prototypes,
                env.embed_dim,
                num_remembered=0 if config.restart_period == "never" else max(0, missing),
                eps=config.eps,
                chunk_rows=config.chunk_rows,
                collectives=env.collectives,
            )
        self._recorder = env.recorder()

    def update(self, batch: Batch, anchors: Anchors, step: int) -> Update:
        """Restart the network if it is due, and train it."""
        config = self.config
        period = math.inf if config.restart_period == "never" else config.restart_period
        if step % period == 0:
            self.normalizer.restart(anchors.embedding_2GD, step, self.env.generator("restart", step))
        self.normalizer.remember(anchors.embedding_2GD, period - step % period)

        stale_2B = self._alpha(batch) if config.updates == "simultaneous" else None
        before_2B = gradient_norm = None
        if config.num_updates:
            before_2G, gradient_norm = self.normalizer.fit(
                anchors,
                slope=conjugate_slope if config.objective == "unified" else regression_slope,
                num_updates=config.num_updates,
                lr=config.npn_lr,
                run=self._recorder,
            )
            before_2B = before_2G.chunk(self.env.collectives.world_size, dim=1)[self.env.collectives.rank]
        fresh_2B = self._alpha(batch)
        return Update(fresh_2B if stale_2B is None else stale_2B, fresh_2B, before_2B, gradient_norm)

    def predict(self, features: Features, logit_scale: Tensor, pair_G2D: Tensor | None = None) -> Tensor:
        """Return the network's prediction."""
        embedding_2BD = torch.stack((features.image_BD, features.text_BD))
        positive_B = (features.image_BD * features.text_BD).sum(dim=1)
        embedding_2GD = None if pair_G2D is None else pair_G2D.transpose(0, 1)
        return self.normalizer.forward(embedding_2BD, positive_B, logit_scale, embedding_2GD)

    def complete_state(self) -> None:
        """See `Method.complete_state`: the network's rows."""
        self.normalizer.complete()

    def is_ready(self, index_B: Tensor) -> Tensor:
        """Return whether there has been a restart, without which there is no prediction; scalar."""
        return self.normalizer.weights.any()

    def signatures(self, log: Log) -> list[Signature]:
        """See `neuclip.signatures`."""
        floor = signatures.of_temperature(log, self.config, rho=self.rho, global_batch_size=self.env.global_batch_size)
        return [*floor, *signatures.of_network(log, self.config)]


def _gap_of_a_constant(log_sum_2G: Tensor) -> Tensor:
    """The gap of the best alpha_i = constant - s_i / tau, given log gamma_i + s_i / tau."""
    return (log_sum_2G.logsumexp(dim=1) - math.log(log_sum_2G.shape[1]) - log_sum_2G.mean(dim=1)).mean()
