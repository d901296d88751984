"""AmorLIP: a contrastive loss whose per-sample normalizers come from small networks trained beside the encoders.

Paper: AmorLIP, arXiv:2505.18983; code: haotiansun14/AmorLIP. With S_ij = x_i . y_j, d_i = S_ii, s = 1 / temperature and
c = `pos_coef`, image i's batch sum is (a text's: the same over the columns of S)

    C_i = sum_{j != i} exp(s S_ij) + c exp(s d_i)

and lambda_i mixes it with the previous epoch's network: lambda = (1 - z) sg C + z prev(x). The networks regress
log lambda (a few Adam steps per step), and the encoders minimise, with lambda constant,

    loss = [ mean_i C1_i / lambda1_i + mean_i C2_i / lambda2_i - 2 s mean_i d_i ] / sg(s) + rho / s

At an epoch's start the averaged networks become the previous ones and new networks start from random weights.
lambda is a sum: it holds the c-weighted positive and scales with the global batch, which must not change in a run.
On small data (under some hundred steps an epoch) new networks cannot climb to log lambda (10 to 40) before they
become the previous ones; `init_output_bias` starts them there.

Differs: the networks' random starts come from the suite's generator, not from torch's global one. A training with other
starts is the same up to the first step of the second epoch, the first to mix a network in, and another from there on.
Given equal starts it is their algorithm to rounding, see `tests/baselines/test_amorlip_training.py`. Everything is in
log space, as C overflows float32 at low temperatures. The networks' learning rate is not multiplied by the number of
processes, and the divergences sum over the global batch: the result must not depend on how many processes share it.

Left out, as neither the script in the authors' README nor its list of objectives has them: `lambda_fit_neg_only` (the
networks model the other pairs alone; c exp(s d) is added to their lambda), a logit bias (`learn_logit_bias`,
`init_logit_bias`; a common factor of C and lambda), `adaptive_tau` (log lambda in the temperature's gradient),
`kl_div_sym` (adds mean(l - T) / G to kl_div_asym, see `network_loss`), `denormalize_features`, `norm_cap`. Fixed as the
script has them: `lambda_eps` 0 (added to log lambda, it would scale the loss's first two terms), targets from the
global batch (`calculate_full`), in every step (`update_lambda_every_n_steps` 1). `pos_coef` 0 is refused: in their code
the target then lacks a positive that the loss counts in full. `lambda_tolerance` is in the script, but stops after 5
steps where it takes 3.

Shape suffixes: B local batch, G global batch, D embedding, H hidden.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, vector_to_parameters

from engine.contrastive import DEFAULT_CHUNK_ROWS, add_eps, log_mix
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
from engine.signatures import Log, temperature_at_floor

Number = TypeVar("Number", int, float)

MAX_LOG_RATIO = 36.0
"""Largest log C - log lambda that is used as it is, in nats: new networks may lie 100 below their targets.

The networks' gradients are clipped by their norm, whose square must stay finite in float32, so below exp(88): an
infinite norm clips them to 0, for good. With a divergence over G pairs that norm is at most

    exp(log C - log lambda) (1 + |l - T|) J 2 / G,   |l - T| < 60,   J < 50,   G >= 2

J being the norm of the derivative of new networks' log lambda in their weights (measured: 7 to 48 at widths from 16 to
1,024). That is exp(36 + 8).
"""

MAX_LOSS = 2.0
"""Nats squared, over both sides. Above it, networks typically miss their targets by more than a factor of e."""


class AmorLIPTemperature(TemperatureConfig):
    """The temperature's options, as the authors' script sets them."""

    lr: float | None = Field(default=1e-4, gt=0)
    lr_schedule: Literal["encoder", "step_threshold", "constant"] = "step_threshold"


class LogNormalizerNetwork(nn.Module):
    """A small residual network from a unit embedding to its log lambda.

        h = LayerNorm(ReLU(W1 v + b1)),  h = LayerNorm(ReLU(W2 h + b2)),  log lambda = w3 . ReLU(h + v) + b3

    Args:
        dim: D, the embedding.
        hidden: H.

    Source: AmorLIP's code, `LambdaMLPs`; the ReLU does come before the norm.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.norm1 = nn.Linear(dim, hidden), nn.LayerNorm(hidden)
        self.fc2, self.norm2 = nn.Linear(hidden, dim), nn.LayerNorm(dim)
        self.fc3 = nn.Linear(dim, 1)

    def forward(self, input_BD: Tensor) -> Tensor:
        """Return log lambda, (B,), of embeddings, (B, D)."""
        hidden_BH = self.norm1(self.fc1(input_BD).relu())
        hidden_BD = self.norm2(self.fc2(hidden_BH).relu())
        output_B: Tensor = self.fc3((hidden_BD + input_BD).relu()).squeeze(1)
        return output_B

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Draw new weights as torch's layers do by default."""
        for layer in (self.fc1, self.fc2, self.fc3):
            bound = 1 / math.sqrt(layer.in_features)
            for parameter in (layer.weight, layer.bias):
                # Drawn on the CPU in float32, so that every device starts from the same weights.
                drawn = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
                parameter.copy_(drawn, non_blocking=True)
        for norm in (self.norm1, self.norm2):
            norm.reset_parameters()


class NetworkPair(nn.Module):
    """One network for images, one for texts."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.image = LogNormalizerNetwork(dim, hidden)
        self.text = LogNormalizerNetwork(dim, hidden)

    def forward(self, features: Features) -> Tensor:
        """Return log lambda of images and texts, (B, 2), without gradient to the embeddings."""
        return torch.stack([self.image(features.image_BD.detach()), self.text(features.text_BD.detach())], dim=1)

    def reset(self, generator: torch.Generator) -> None:
        """Draw new weights."""
        self.image.reset(generator)
        self.text.reset(generator)


class AmorLIP(TemperatureMethod):
    """Contrastive loss with amortised partition functions."""

    class Config(MethodConfig):
        """Options; the defaults are the authors' script for CC12M, whose names for them are in parentheses."""

        temperature: AmorLIPTemperature = AmorLIPTemperature()
        rho: tuple[float, ...] = Field(default=(8.5, -8.5, -8.5), min_length=1)
        """Pull on the temperature, one value for each equal block of epochs; positive lowers it."""
        pos_coef: float = Field(default=1e-3, gt=0)
        """c, the weight of the pair itself in C."""
        z_beta_max: float = Field(default=0.8, ge=0, lt=1)
        """Final weight of the previous network in the mixture."""
        z_beta_decay_epochs: int | None = Field(default=None, ge=1)
        """Epochs until z reaches its maximum; None takes half the run's, which is their 16 of 33."""
        fit_w_prev: bool = True
        """False: lambda is the averaged network's, targets are not mixed, and z becomes the averaging's decay."""
        lambda_loss_type: Literal["log_l2", "kl_div_asym", "js_div"] = "log_l2"
        """Loss of the networks, see `network_loss`. The two divergences add `div_reg_coef` log_l2."""
        div_reg_coef: float = Field(default=0.1, ge=0)
        num_updates: tuple[PositiveInt, ...] = Field(default=(3,), min_length=1)
        """Network steps per step (lambda_update_frequency), by equal blocks of epochs like `rho`."""
        network_lr: float = Field(default=1e-3, gt=0)
        """Adam's learning rate (lambda_lr)."""
        network_grad_clip_norm: float = Field(default=1.0, gt=0)
        hidden_factor: float = Field(default=1.0, gt=0)
        """H / D (h_dim_factor)."""
        average_beta: float = Field(default=0.92, ge=0, lt=1)
        """Decay of the averaged networks (model_ema_beta)."""
        average_every_steps: int = Field(default=2, ge=1)
        reinit_every_epochs: int | None = Field(default=1, ge=1)
        """Epochs between restarts of the networks (reinit_lambda_every_n_epochs); None never restarts."""
        init_output_bias: bool = False
        """Start new networks' output bias at the first batch's mean target. The authors do not."""
        chunk_rows: int = Field(default=DEFAULT_CHUNK_ROWS, ge=1)
        """Anchors whose similarities to the global batch are held at once."""

    def __init__(self, config: Config, env: MethodEnv) -> None:
        super().__init__(config, env, config.temperature)
        self.config = config
        self.networks, self.average, self.previous = (
            NetworkPair(env.embed_dim, int(env.embed_dim * config.hidden_factor)) for _ in range(3)
        )
        self.average.requires_grad_(False)
        self.previous.requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.networks.parameters(), lr=config.network_lr)
        self._networks_epoch = -1
        self._restart(step=0)
        # The second epoch is the first to use it; set it now, so that the state is never arbitrary.
        self.previous.load_state_dict(self.average.state_dict())

    @property
    def normalizer_eps(self) -> float:
        """See `Method.normalizer_eps`: c / (G - 1), as lambda holds the c-weighted positive."""
        return self.config.pos_coef / (self.env.global_batch_size - 1)

    def loss(self, features: Features, progress: Progress) -> LossOutput:
        """Train the networks on this batch's normalizers, then return the encoders' loss."""
        return self.loss_at(features, self.temperature.scale, progress)

    def loss_at(self, features: Features, scale: Tensor, progress: Progress) -> LossOutput:
        """Compute `loss` at a given logit scale, a scalar with gradient."""
        epoch = progress.epoch
        # Once: a measurement may ask for an epoch's first step again, from the state after it.
        begins = progress.step_in_epoch == 0 and progress.epoch != self._networks_epoch
        are_new = self._start_epoch(progress) if begins else False
        log_sum_B2 = self._log_sums(features, scale)
        target_B2 = self._mix(log_sum_B2.detach(), self.previous, features, epoch)
        if are_new and self.config.init_output_bias:
            self._set_output_bias(target_B2)
        first, last = self._fit(features, target_B2, log_sum_B2.detach(), epoch)
        with torch.no_grad():
            log_lambda_B2 = target_B2 if self.config.fit_w_prev else self.average(features)
        if progress.step_in_epoch % self.config.average_every_steps == 0:
            self._move_average(self.config.average_beta if self.config.fit_w_prev else self.z_beta(epoch))

        cross = _ratio(log_sum_B2, log_lambda_B2).mean(dim=0).sum()
        joint = 2 * scale * _positives(features).mean()
        total = (cross - joint) / scale.detach() + self.rho(epoch) / scale
        # cross is 2 where lambda is the batch's own sum, near 2 / (1 - z) where the previous network is far below it.
        metrics = {
            "loss/cross": cross.detach(),
            "loss/joint": joint.detach(),
            "temperature/value": 1 / scale.detach(),
            "normalizer/z_beta": torch.tensor(self.z_beta(epoch)),
            "normalizer/loss_before": first,
            "normalizer/loss_after": last,
        }
        return LossOutput(total=total, metrics=metrics)

    def exact_loss(self, log_g: Callable[[Tensor], Tensor], progress: Progress) -> Tensor:
        """See `Method.exact_loss`, with lambda = C."""
        scale = self.temperature.scale
        log_sums = add_eps(log_g(scale), self.normalizer_eps).sum(dim=0).mean()
        return log_sums / scale.detach() + self.rho(progress.epoch) / scale

    def z_beta(self, epoch: int) -> float:
        """Return z, the previous network's weight in the mixture: 0 in epoch 0, then up to its maximum by a cosine."""
        num_epochs = self.config.z_beta_decay_epochs or max(1, self.env.num_epochs // 2)
        return self.config.z_beta_max * (1 - math.cos(math.pi * min(epoch / num_epochs, 1))) / 2

    def rho(self, epoch: int) -> float:
        """Return the pull on the temperature in an epoch."""
        return _value_of_block(self.config.rho, epoch, self.env.num_epochs)

    def signatures(self, log: Log) -> list[Signature]:
        """Return signs that the networks do not reach their targets, or that rho is too large."""
        found = []
        if self.config.temperature.learnable:
            advice = "lower the positive values of rho, or raise temperature.minimum"
            evidence = {"last_rho": self.rho(self.env.num_epochs - 1)}
            found += temperature_at_floor(log, self.config.temperature.minimum, advice, **evidence)
        # The other losses are no squared error in nats.
        if self.config.lambda_loss_type == "log_l2":
            found += log.find(
                "network_not_fitting",
                lambda now: now["normalizer/loss_after"] > MAX_LOSS,
                "init_output_bias: true (small data); or raise num_updates, network_lr or reinit_every_epochs",
                "normalizer/loss_before",
                "normalizer/loss_after",
                at_end=True,
                limit=MAX_LOSS,
            )
        return found

    @torch.no_grad()
    def log_normalizers(self, features: Features, progress: Progress) -> tuple[Tensor, Tensor]:
        """Return log(lambda_i exp(-s d_i) / (G - 1)), with the lambda of the encoders' loss."""
        scale = self.temperature.scale
        if self.config.fit_w_prev:
            # The averaged networks become the previous ones when the coming step opens a new epoch.
            previous = self.previous if progress.epoch == self._networks_epoch else self.average
            log_lambda_B2 = self._mix(self._log_sums(features, scale), previous, features, progress.epoch)
        else:
            log_lambda_B2 = self.average(features)
        log_g_B2 = log_lambda_B2 - scale * _positives(features)[:, None] - self._log_others
        return log_g_B2[:, 0], log_g_B2[:, 1]

    def get_extra_state(self) -> dict[str, Any]:
        """Return the networks' Adam state and the epoch for which they were prepared."""
        return {"optimizer": self.optimizer.state_dict(), "networks_epoch": self._networks_epoch}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the state from `get_extra_state`."""
        # A copy, since Adam would keep and change the tensors that it is given.
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        for moments in self.optimizer.state.values():
            # Keep the count on the CPU: on a GPU, Adam would wait for the device at each step.
            moments["step"] = moments["step"].cpu()
        self._networks_epoch = state["networks_epoch"]

    @property
    def _log_others(self) -> float:
        return math.log(self.env.global_batch_size - 1)

    def _log_sums(self, features: Features, scale: Tensor) -> Tensor:
        """Return log C, (B, 2), with gradient."""
        log_g_B2 = torch.stack(self.batch_log_partitions(features, scale, self.config.chunk_rows), dim=1)
        log_others_B2 = log_g_B2 + self._log_others
        log_c_B2 = torch.full_like(log_others_B2, math.log(self.config.pos_coef))
        return torch.logaddexp(log_others_B2, log_c_B2) + scale * _positives(features)[:, None]

    @torch.no_grad()
    def _mix(self, log_sum_B2: Tensor, previous: NetworkPair, features: Features, epoch: int) -> Tensor:
        """Return log lambda, the networks' target: the batch's sums mixed with the previous epoch's network."""
        z = self.z_beta(epoch) if self.config.fit_w_prev else 0.0
        return log_mix(log_sum_B2, previous(features), z) if z else log_sum_B2

    def _start_epoch(self, progress: Progress) -> bool:
        """Turn the averaged networks into the previous ones; return whether the current ones are new."""
        every = self.config.reinit_every_epochs
        self.previous.load_state_dict(self.average.state_dict())
        self._networks_epoch = progress.epoch
        if progress.epoch == 0:
            return True
        are_new = every is not None and progress.epoch % every == 0
        if are_new:
            self._restart(progress.step)
        return are_new

    def _restart(self, step: int) -> None:
        self.networks.reset(self.env.generator("amorlip networks", step))
        self.average.load_state_dict(self.networks.state_dict())
        self.optimizer.state.clear()

    @torch.no_grad()
    def _set_output_bias(self, target_B2: Tensor) -> None:
        means = self.env.collectives.all_reduce(target_B2.mean(dim=0), "mean")
        for pair in (self.networks, self.average):
            pair.image.fc3.bias.copy_(means[:1])
            pair.text.fc3.bias.copy_(means[1:])

    @torch.enable_grad()
    def _fit(self, features: Features, target_B2: Tensor, log_sum_B2: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Take the networks' Adam steps; return their loss at the first and at the last of them, before it moves."""
        parameters = list(self.networks.parameters())
        losses = []
        for _ in range(_value_of_block(self.config.num_updates, epoch, self.env.num_epochs)):
            loss = network_loss(
                self.config.lambda_loss_type,
                self.networks(features),
                target_B2,
                log_sum_B2,
                div_reg_coef=self.config.div_reg_coef,
                global_batch_size=self.env.global_batch_size,
            )
            grads = torch.autograd.grad(loss, parameters)
            mean_grad = self.env.collectives.all_reduce(parameters_to_vector(grads), "mean")
            vector_to_parameters(mean_grad, grads)
            for parameter, grad in zip(parameters, grads, strict=True):
                parameter.grad = grad
            clip_grad_norm_(parameters, self.config.network_grad_clip_norm)
            self.optimizer.step()
            losses.append(loss.detach())
        self.optimizer.zero_grad()
        return losses[0], losses[-1]

    @torch.no_grad()
    def _move_average(self, beta: float) -> None:
        for average, current in zip(self.average.parameters(), self.networks.parameters(), strict=True):
            average.lerp_(current, 1 - beta)


def network_loss(
    kind: str,
    log_lambda_B2: Tensor,
    target_B2: Tensor,
    log_sum_B2: Tensor,
    *,
    div_reg_coef: float,
    global_batch_size: int,
) -> Tensor:
    """Return the networks' loss, summed over the two sides.

    With l = log lambda, T = target, E_ij = exp(s S_ij) with the diagonal times c, C_i = sum_j E_ij:

        log_l2       mean_i (l_i - T_i)^2
        kl_div_asym  1/G^2 sum_i C_i e^-l_i (T_i - l_i)                                  + div_reg_coef log_l2
        js_div       1/2 mean_ij [P log(P/M) + Q log(Q/M)], P = E e^-l, Q = E e^-T, M = (P + Q)/2    + the same

    P/M does not depend on j, so the sum over pairs is known: sum_j P_ij = C_i e^-l_i.

    Args:
        kind: One of the three names.
        log_lambda_B2: Networks' outputs, (B, 2), the only input with gradient.
        target_B2: Targets, (B, 2).
        log_sum_B2: log C, (B, 2).
        div_reg_coef: Weight of log_l2 beside a divergence.
        global_batch_size: G.

    Source: AmorLIP's code, `LambdaLoss`.
    """
    difference_B2 = log_lambda_B2 - target_B2
    log_l2 = difference_B2.square().mean(dim=0).sum()
    if kind == "log_l2":
        return log_l2
    p_B2 = _ratio(log_sum_B2, log_lambda_B2)
    if kind == "kl_div_asym":
        divergence_B2 = -p_B2 * difference_B2
    else:
        q_B2 = _ratio(log_sum_B2, target_B2)
        log_2 = math.log(2)
        divergence_B2 = p_B2 * (log_2 + F.logsigmoid(-difference_B2)) + q_B2 * (log_2 + F.logsigmoid(difference_B2))
        divergence_B2 = divergence_B2 / 2
    return div_reg_coef * log_l2 + divergence_B2.mean(dim=0).sum() / global_batch_size


def _ratio(log_a: Tensor, log_b: Tensor) -> Tensor:
    return (log_a - log_b).clamp(max=MAX_LOG_RATIO).exp()


def _positives(features: Features) -> Tensor:
    return (features.image_BD * features.text_BD).sum(dim=1)


def _value_of_block(values: tuple[Number, ...], epoch: int, num_epochs: int) -> Number:
    """Return the value of an epoch's block: blocks have equally many whole epochs, and the last takes the rest."""
    return values[min(epoch // max(1, num_epochs // len(values)), len(values) - 1)]
