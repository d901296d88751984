"""NeuCLIP: log-normalizers predicted by a small network that is trained inside every step.

Paper: Wei, Lin, Yang, "NeuCLIP: Efficient Large-Scale CLIP Training with Neural Normalizer Optimization",
arXiv:2511.08417. With g1_i, g2_i of `engine.contrastive` and h, UNIFIED of `neuclip.objective`, step t does

    1. restart    if t mod T_r = 0: prototypes := recent embeddings of the other modality, AdaGrad forgets
    2. NPN block  T_u AdaGrad steps on UNIFIED in the prototypes; embeddings and temperature held fixed
    3. CLIP block one step of the engine's AdamW on UNIFIED in encoders and temperature, with the new alphas

Choices that the paper leaves open, and ours:
- AdaGrad is reset at a restart. Its learning rate is not stated: `npn_lr`.
- A restart draws from the batch; with more prototypes than pairs in it, also from the batches just before.
- alpha is a constant in the CLIP block (`npn_gradient: detached`); `full` differentiates through the network.
- The temperature's gradient is that of UNIFIED (`temperature_gradient: consistent`). `authors` doubles the part
  that comes through g, as the authors' FastCLIP code does with its own loss; their rho was tuned with that. It is
  not UNIFIED's gradient: with it the CLIP block does not minimise UNIFIED in the temperature. The paper's suites have
  it all the same, since their rho is FastCLIP's; docs/reproduce.md says what changes with it.
- rho, eps and the temperature's rules are FastCLIP-v3's for the same data set in the paper's suites. By default eps and
  the rules are those for CC3M, and rho follows the batch, see `Config`.
- `updates: simultaneous` lets both blocks start from the same point: the CLIP block sees the alphas from before
  the NPN block. With one update and `npn_gradient: full` that is one joint gradient step.
- `objective: separate` and `architecture: mlp` are the paper's ablations, see `neuclip.objective.regression_slope`
  and `neuclip.normalizer.MLP`. The latter's weights are drawn once: its restarts only reset AdaGrad.
- `architecture: queue`, ours, is the embeddings of the last batches in place of a network, see
  `neuclip.stored.Queue`: no block 2. What it has no use for (`num_updates`, `npn_lr`, `restart_period`,
  `objective`, `updates`) changes nothing, as `num_prototypes` does with `mlp`.
- Controls, ours, tell what a gain comes of. Three have no block 2 (see `neuclip.stored`): `architecture: exact`
  encodes `num_prototypes` fresh random pairs in every step and takes the mean over them, which is exact in expectation
  and slow; `average` is FastCLIP's moving average of each pair's own estimates; `batch` is the batch's own estimate,
  which makes every weight 1. `temperature_gradient: infonce` moves the temperature as InfoNCE over the batch would,
  whatever moves the encoders. `positive: counted` adds the anchor's own pair to g and to exp(alpha), as one
  of a batch's G terms. `batch` with both is OpenCLIP, times the temperature.
- A weight exp(log(eps + g) - alpha) is capped at exp(40), see `neuclip.objective.MAX_GAP`.

Shape suffixes: 2 sides (image anchors, text anchors), B local batch, G global batch, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal

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
from neuclip.normalizer import MLP, Anchors, Normalizer, Prototypes
from neuclip.objective import MAX_GAP, conjugate_slope, count_positive, regression_slope, unified
from neuclip.signatures import find_signatures
from neuclip.stored import Average, Batch, Fresh, Observed, Queue, Stored

RHO_SHARE = 0.6
"""Of log(G - 1), KL's bound: what suite `icons` was tuned to (3.0 at 128 pairs). Random embeddings in 64 dimensions
reach 0.91 of it at a temperature of 0.01, with 128 as with 4,096 pairs, and 0.62 to 0.68 at 0.03."""

LARGEST_LOGIT = 700.0
"""exp of it is finite in float64, in which processes add up their parts of the network's log-sum-exp."""


class NeuCLIPTemperature(TemperatureConfig):
    """FastCLIP-v3's rule: no warm-up, a third of the rate below a temperature of 0.03."""

    lr_schedule: Literal["encoder", "step_threshold", "constant"] = "step_threshold"


class NeuCLIP(TemperatureMethod):
    """NeuCLIP. Its state: the temperature, the network, AdaGrad's accumulator, embeddings kept for a restart.

    Without a network, the temperature and what stands in the network's place.
    """

    class Config(MethodConfig):
        """Options. Source of the defaults: the paper, where nothing else is said."""

        num_prototypes: int = Field(default=4096, ge=1)
        """m, per side. ``queue``: embeddings in the queue, rounded up to whole batches. ``exact``: fresh pairs of a
        step."""
        restart_period: Annotated[int, Field(ge=1)] | Literal["never"] = 500
        """T_r in steps; ``never`` leaves only the first draw, at step 0."""
        num_updates: int = Field(default=10, ge=0)
        """T_u: AdaGrad steps of the network per training step; 0 leaves only restarts."""
        npn_lr: float = Field(default=0.008, gt=0)
        """AdaGrad's learning rate; assumed, the paper does not state it. The first step after a restart moves every
        row by npn_lr * sqrt(D): keep that under about 0.3 (here 0.26 at D = 1024), or it undoes the restart."""
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
        objective: Literal["unified", "separate"] = "unified"
        architecture: Literal["prototypes", "mlp", "queue", "exact", "average", "batch"] = "prototypes"
        updates: Literal["alternating", "simultaneous"] = "alternating"
        npn_gradient: Literal["detached", "full"] = "detached"
        temperature: NeuCLIPTemperature = NeuCLIPTemperature()
        temperature_gradient: Literal["consistent", "authors", "infonce"] = "consistent"
        """``consistent``: UNIFIED's. ``authors``: not UNIFIED's; the paper's suites have it, see above. ``infonce``:
        InfoNCE's over the batch, without rho."""
        positive: Literal["left out", "counted"] = "left out"
        """The anchor's own pair in its normalizer. Source of ``left out``: g of the paper."""
        average_gamma: float = Field(default=0.8, gt=0, le=1)
        """``average``: weight of a pair's new estimate, FastCLIP's gamma, which there decays from 1 to 0.2 or 0.8.
        Elsewhere here gamma is eps + g."""
        chunk_rows: int = Field(default=DEFAULT_CHUNK_ROWS, ge=1)
        """Anchors whose similarities are held at once: memory against speed."""

        @model_validator(mode="after")
        def _check(self) -> NeuCLIP.Config:
            smallest = min(self.temperature.minimum, self.temperature.init)
            if smallest * LARGEST_LOGIT < 1:
                raise ValueError(
                    f"a temperature of {smallest} is too small: allowed are temperature.minimum and temperature.init "
                    f"of at least 1/{LARGEST_LOGIT:.0f} = {1 / LARGEST_LOGIT:.5f}; the usual minimum is 0.01"
                )
            return self

    def __init__(self, config: Config, env: MethodEnv) -> None:
        super().__init__(config, env, config.temperature)
        self.config = config
        self.rho = RHO_SHARE * math.log(env.global_batch_size - 1) if config.rho is None else config.rho
        self.normalizer = self._build_normalizer()
        self._recorder = env.recorder()

    def _build_normalizer(self) -> Normalizer | Stored:
        config, env = self.config, self.env
        if config.architecture == "exact":
            return Fresh(eps=config.eps, chunk_rows=config.chunk_rows)
        if config.architecture == "average":
            return Average(env.dataset_size, gamma=config.average_gamma)
        if config.architecture == "batch":
            return Batch(eps=config.eps, chunk_rows=config.chunk_rows, collectives=env.collectives)
        if config.architecture == "queue":
            return Queue(
                config.num_prototypes,
                env.embed_dim,
                global_batch_size=env.global_batch_size,
                eps=config.eps,
                chunk_rows=config.chunk_rows,
            )
        if config.architecture == "mlp":
            return MLP(env.embed_dim, eps=config.eps, collectives=env.collectives)
        missing = config.num_prototypes - env.global_batch_size
        return Prototypes(
            config.num_prototypes,
            env.embed_dim,
            num_remembered=0 if config.restart_period == "never" else max(0, missing),
            eps=config.eps,
            chunk_rows=config.chunk_rows,
            collectives=env.collectives,
        )

    @property
    def normalizer_eps(self) -> float:
        """Of the configuration: networks and queue predict log(eps + g)."""
        return self.config.eps

    @property
    def num_extra_pairs(self) -> int:
        """Those of the exact normalizer."""
        return self.config.num_prototypes if isinstance(self.normalizer, Fresh) else 0

    def loss(self, features: Features, progress: Progress) -> LossOutput:
        """Restart the network if it is due, train it (or let the batch into the queue); UNIFIED with its alphas."""
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
            is the floor eps (near 1 the network has no gradient left); share of anchors whose weight is capped.

        Source: NeuCLIP, arXiv:2511.08417, the alternating algorithm.
        """
        config, collectives = self.config, self.env.collectives
        num_local = len(features.index_B)
        local = slice(collectives.rank * num_local, (collectives.rank + 1) * num_local)
        pair_G2D = collectives.gather_with_grad(torch.stack((features.image_BD, features.text_BD), dim=1))
        infonce = None
        if config.temperature_gradient == "infonce":
            infonce = self._infonce(features, pair_G2D, logit_scale, local.start)
            logit_scale = logit_scale.detach()
        log_gamma_2B = self._log_gamma(features, pair_G2D, logit_scale, local.start)
        embedding_2GD = pair_G2D.detach().transpose(0, 1)
        log_gamma_2G = collectives.gather(log_gamma_2B.T).T
        if isinstance(self.normalizer, Normalizer):
            self._restart_or_remember(self.normalizer, embedding_2GD, progress.step)
        else:
            index_G = collectives.gather(features.index_B)
            self.normalizer.observe(Observed(embedding_2GD, index_G, log_gamma_2G.detach(), progress.step))
        positive_G = (embedding_2GD[0] * embedding_2GD[1]).sum(dim=1)

        stale_2B = self._alpha(features, logit_scale, pair_G2D) if config.updates == "simultaneous" else None
        metrics, before_2G = {}, None
        if config.num_updates and isinstance(self.normalizer, Normalizer):
            before_2G, metrics["npn/gradient_norm"] = self.normalizer.fit(
                Anchors(
                    embedding_2GD=embedding_2GD,
                    positive_G=positive_G,
                    log_gamma_2G=log_gamma_2G,
                    logit_scale=logit_scale.detach(),
                ),
                slope=conjugate_slope if config.objective == "unified" else regression_slope,
                num_updates=config.num_updates,
                lr=config.npn_lr,
                run=self._recorder,
            )
        fresh_2B = self._alpha(features, logit_scale, pair_G2D)
        alpha_2B = fresh_2B if stale_2B is None else stale_2B
        size = self.env.global_batch_size
        counted_gamma_2B, counted_alpha_2B = self._counted(log_gamma_2B, size), self._counted(alpha_2B, size)
        total = unified(counted_gamma_2B, counted_alpha_2B, 1 / logit_scale, rho=self.rho)
        if infonce is not None:
            # Its gradient in the temperature, and nothing of its value.
            total = total + infonce - infonce.detach()

        with torch.no_grad():
            alphas = {"after": fresh_2B} if before_2G is None else {"before": before_2G[:, local], "after": fresh_2B}
            lowest = log_gamma_2B.mean() + self.rho
            for when, each_2B in alphas.items():
                objective = unified(log_gamma_2B, each_2B, 1 / logit_scale, rho=self.rho)
                metrics[f"npn/objective_{when}"] = objective
                metrics[f"npn/gap_{when}"] = objective * logit_scale - lowest
            # Of the global batch, since it is no mean over anchors.
            metrics["npn/gap_constant"] = _gap_of_a_constant(log_gamma_2G + positive_G * logit_scale)
            metrics["npn/floor_share"] = (math.log(config.eps) - alpha_2B).exp().mean()
            metrics["npn/capped_share"] = (counted_gamma_2B - counted_alpha_2B > MAX_GAP).float().mean()
            metrics["npn/alpha_mean"] = alpha_2B.mean()
            metrics["temperature/value"] = 1 / logit_scale
        return LossOutput(total, {"loss/contrastive": total.detach()} | metrics)

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
        """Return the prediction of the network, or of what stands in its place; NaN before the first step."""
        alpha_2B = self._alpha(features, self.logit_scale)
        alpha_image_B, alpha_text_B = alpha_2B.where(self.normalizer.is_ready(features.index_B), math.nan)
        return alpha_image_B, alpha_text_B

    def complete_state(self) -> None:
        """See `Method.complete_state`: the network's rows."""
        if isinstance(self.normalizer, Normalizer):
            self.normalizer.complete()

    def signatures(self, log: Log) -> list[Signature]:
        """See `neuclip.signatures`."""
        return find_signatures(log, self.config, rho=self.rho, global_batch_size=self.env.global_batch_size)

    def _log_gamma(self, features: Features, pair_G2D: Tensor, logit_scale: Tensor, offset: int) -> Tensor:
        """The batch's estimate of log(eps + g) for the local anchors, (2, B)."""
        log_g = log_partitions(
            features.image_BD,
            features.text_BD,
            pair_G2D[:, 0],
            pair_G2D[:, 1],
            self._scale_in_g(logit_scale),
            offset=offset,
            chunk_rows=self.config.chunk_rows,
        )
        return add_eps(torch.stack(log_g), self.config.eps)

    def _scale_in_g(self, logit_scale: Tensor) -> Tensor:
        """The logit scale in g: the same value, with twice the gradient if the options say so."""
        is_doubled = self.config.temperature_gradient == "authors"
        return 2 * logit_scale - logit_scale.detach() if is_doubled else logit_scale

    def _counted(self, log_g_2B: Tensor, num_pairs: int) -> Tensor:
        """Count the anchor's own pair as one of so many, if the options say so."""
        return count_positive(log_g_2B, num_pairs) if self.config.positive == "counted" else log_g_2B

    def _infonce(self, features: Features, pair_G2D: Tensor, logit_scale: Tensor, offset: int) -> Tensor:
        """InfoNCE of the local anchors over the batch, of which only the temperature gets a gradient."""
        log_g = log_partitions(
            features.image_BD.detach(),
            features.text_BD.detach(),
            pair_G2D[:, 0].detach(),
            pair_G2D[:, 1].detach(),
            logit_scale,
            offset=offset,
            chunk_rows=self.config.chunk_rows,
        )
        return count_positive(torch.stack(log_g), self.env.global_batch_size).mean()

    def _alpha(self, features: Features, logit_scale: Tensor, pair_G2D: Tensor | None = None) -> Tensor:
        """The log-normalizers that the local anchors get, (2, B)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.npn_gradient == "full"):
            if isinstance(self.normalizer, Stored):
                return self.normalizer.forward(features, logit_scale)
            embedding_2BD = torch.stack((features.image_BD, features.text_BD))
            positive_B = (features.image_BD * features.text_BD).sum(dim=1)
            embedding_2GD = None if pair_G2D is None else pair_G2D.transpose(0, 1)
            return self.normalizer.forward(embedding_2BD, positive_B, logit_scale, embedding_2GD)

    def _restart_or_remember(self, normalizer: Normalizer, embedding_2GD: Tensor, step: int) -> None:
        period = math.inf if self.config.restart_period == "never" else self.config.restart_period
        if step % period == 0:
            normalizer.restart(embedding_2GD, step, self.env.generator("restart", step))
        normalizer.remember(embedding_2GD, period - step % period)


def _gap_of_a_constant(log_sum_2G: Tensor) -> Tensor:
    """The gap of the best alpha_i = constant - s_i / tau, given log gamma_i + s_i / tau."""
    return (log_sum_2G.logsumexp(dim=1) - math.log(log_sum_2G.shape[1]) - log_sum_2G.mean(dim=1)).mean()
