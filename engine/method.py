"""The interface of a training method: what the engine gives it, and what it gives back.

A method is one file (see `engine.registry`) with one subclass of `Method` that is not abstract. It owns the
temperature and everything else beyond the two encoders. Shape suffixes: B local batch, G global batch,
D embedding, N data set.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from engine.contrastive import add_eps, log_partitions
from engine.distributed import Collectives
from engine.graphs import CudaGraph, Recorder, just_run
from engine.schema.base import Frozen
from engine.schema.record import Signature
from engine.schema.run import RunSpec
from engine.shares import Shares
from engine.signatures import Log


@dataclass(frozen=True)
class MethodEnv:
    """The run that a method is part of, as far as a method may know it."""

    embed_dim: int
    dataset_size: int
    """n: positions of pairs in the data set are 0 <= index < n."""
    global_batch_size: int
    steps_per_epoch: int
    num_steps: int
    seed: int = 0
    collectives: Collectives = field(default_factory=Collectives)
    shares_pairs: bool = False
    """Let each process keep a share of what a method keeps for every pair, see `shares`; otherwise each keeps all."""
    makes_graphs: bool = False
    """Let a GPU replay what a method does over and over, see `recorder`."""

    @classmethod
    def of(
        cls, spec: RunSpec, embed_dim: int, collectives: Collectives | None = None, *, makes_graphs: bool = False
    ) -> MethodEnv:
        """Return that of a run with encoders whose embeddings are so wide; in one process without `collectives`."""
        return cls(
            embed_dim=embed_dim,
            dataset_size=spec.dataset.pairs,
            global_batch_size=spec.global_batch_size,
            steps_per_epoch=spec.dataset.pairs // spec.global_batch_size,
            num_steps=spec.num_steps,
            seed=spec.seed,
            collectives=collectives or Collectives(),
            shares_pairs=True,
            makes_graphs=makes_graphs,
        )

    @property
    def shares(self) -> Shares:
        """The pairs of the data set whose rows a process keeps, see `Method.pair_buffers`."""
        return Shares(self.dataset_size, self.collectives, are_apart=self.shares_pairs)

    @property
    def num_epochs(self) -> int:
        """Epochs of the run, the last one possibly cut short."""
        return math.ceil(self.num_steps / self.steps_per_epoch)

    def recorder(self) -> Recorder:
        """Return what runs a method's own loop of many small operations: as it is, or as a CUDA graph."""
        return CudaGraph() if self.makes_graphs else just_run

    def generator(self, purpose: str, step: int = 0) -> torch.Generator:
        """Return a CPU generator that depends only on (seed, purpose, step).

        It is the same on every process and after every restart, so that no random state needs saving.
        """
        digest = hashlib.sha256(f"{self.seed}/{purpose}/{step}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@dataclass(frozen=True)
class Features:
    """A batch as the method sees it: unit-norm float32 embeddings and data set positions."""

    image_BD: Tensor
    text_BD: Tensor
    index_B: Tensor
    extra: Features | None = None
    """The K further pairs that `Method.num_extra_pairs` asks for: the same on every process, without gradient."""


@dataclass(frozen=True)
class Progress:
    """The place of one step in training; `step` is its number, from 0."""

    step: int
    steps_per_epoch: int
    num_steps: int
    global_batch_size: int

    @property
    def epoch(self) -> int:
        """Epoch of this step, from 0."""
        return self.step // self.steps_per_epoch

    @property
    def step_in_epoch(self) -> int:
        """Number of the step within its epoch, from 0."""
        return self.step % self.steps_per_epoch

    @property
    def samples_seen(self) -> int:
        """Pairs trained on before this step, over all processes."""
        return self.step * self.global_batch_size


@dataclass(frozen=True)
class LossOutput:
    """A scalar to differentiate, and named values to log (``group/name``)."""

    total: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Scalars. Their means over processes are logged: give means over this process's anchors, or values that are the
    same on all processes. Reduce anything else (a maximum, a norm, a logarithm of a mean) over `env.collectives` first.
    All processes give the same names in a step, in any order; at most `engine.training.reporting.MAX_METRICS`."""


@dataclass(frozen=True)
class ParamGroup:
    """Parameters of a method that the engine's AdamW moves.

    Args:
        params: The parameters.
        lr: Base learning rate; None takes the encoders'.
        lr_factor: Turns the encoders' schedule factor (warm-up, cosine; in [0, 1]) into this group's factor; follows
            the encoders by default. A factor that depends on the state is a scalar tensor: a number would have to wait
            for the device.
        weight_decay: Decoupled weight decay.
    """

    params: list[nn.Parameter]
    lr: float | None = None
    lr_factor: Callable[[float], float | Tensor] = lambda encoder_factor: encoder_factor
    weight_decay: float = 0.0


def wrong_form(output: object) -> str | None:
    """Say what `Method.loss` returned if nothing can be trained on it, and what is allowed."""
    if not isinstance(output, LossOutput):
        came = f"a {type(output).__name__}"
    elif not isinstance(output.total, Tensor):
        came = f"a LossOutput whose total is a {type(output.total).__name__}"
    elif output.total.ndim:
        came = f"a LossOutput whose total has shape {tuple(output.total.shape)}"
    else:
        return None
    return f"`loss` returned {came}: allowed is LossOutput(total, metrics) whose total is a scalar tensor"


class MethodConfig(Frozen):
    """Base of every method's options. Defaults are the paper's values, with their source."""


class Method(nn.Module):
    """A training method. Its state is its parameters, buffers and extra state: `state_dict()` is the checkpoint.

    Every process holds the same state after every step, but for what `complete_state` brings together, and its share
    of `pair_buffers`.
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig

    pair_buffers: tuple[str, ...] = ()
    """Names of buffers with a row for every pair, as long as `env.shares` says and read and written through it."""

    moves_itself: tuple[str, ...] = ()
    """Names of parameters that the method's own optimiser moves with the gradient of its loss."""

    def __init__(self, config: MethodConfig, env: MethodEnv) -> None:
        super().__init__()
        self.env = env

    @property
    def logit_scale(self) -> Tensor:
        """1 / temperature as a scalar tensor; the mean where a method has several. Every process asks together."""
        raise NotImplementedError

    @property
    def logit_bias(self) -> Tensor | None:
        """The bias that a method adds to the logits; None without one."""
        return None

    @torch.no_grad()
    def anchor_logit_scales(self, features: Features) -> Tensor:
        """Return 1 / temperature of each image and text anchor of the batch, (2, B). Every process calls this.

        By default `logit_scale` for all: override it where anchors have temperatures of their own.
        """
        return self.logit_scale.expand(2, len(features.index_B))

    @property
    def normalizer_eps(self) -> float:
        """The eps >= 0 in the log(eps + g) that `log_normalizers` estimates; 0 by default, for log g."""
        return 0.0

    @property
    def num_extra_pairs(self) -> int:
        """K: random pairs of the training set beyond the batch that every step encodes for this method; 0 by default.

        They come as `Features.extra`, in `loss` and in `log_normalizers`. Which they are follows from the seed and the
        step; one may come twice, and may be in the batch as well: positions tell. The current encoders encode them as
        they do the batch, but without gradient and without a trace in batch norm's running statistics. They cost K
        forward passes a step, which processes share: K must be a multiple of the number of processes. A suite's
        expansion asks for it on torch's meta device, where tensors have no values.
        """
        return 0

    def loss(self, features: Features, progress: Progress) -> LossOutput:
        """Return this process's part of the loss; the engine averages gradients over processes.

        Called once a step. It may update the method's own state (running estimates, inner networks).
        """
        raise NotImplementedError

    def param_groups(self) -> list[ParamGroup]:
        """Return the parameters that the engine's optimiser moves."""
        return []

    def without_gradient_or_training(self, features: Features) -> list[str]:
        """Return what a backward pass of the loss shows to be wrong: embeddings without a part, idle parameters."""
        sides = {"image": features.image_BD, "text": features.text_BD}
        found = [
            f"the {side} embeddings get no gradient: allowed is a loss in which images and texts both have a part"
            for side, side_BD in sides.items()
            if side_BD.grad is None
        ]
        moved = {id(parameter) for group in self.param_groups() for parameter in group.params}
        for name, parameter in self.named_parameters():
            if parameter.grad is not None and id(parameter) not in moved and name not in self.moves_itself:
                found.append(
                    f"parameter {name!r} gets a gradient, but param_groups does not return it: nothing trains it"
                )
        return found

    def after_step(self, progress: Progress) -> None:
        """Clamp, average or solve after the optimiser has moved; `progress` is that of the finished step."""

    def complete_state(self) -> None:
        """Bring together what each process has moved a share of since the last call, so that all hold the same state.

        Every process calls this before the state is saved. What only its own process needs travels in no step.
        """

    def signatures(self, log: Log) -> list[Signature]:
        """Return the signs of failure in a run's log that only this method can show."""
        return []

    def batch_log_partitions(
        self,
        features: Features,
        logit_scale: Tensor | tuple[Tensor, Tensor],
        chunk_rows: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return log g of the local images and texts against the global batch, (B,) each.

        `log_partitions` over the features of all processes, differentiable in those of every process.
        """
        ours = self.env.collectives
        return log_partitions(
            features.image_BD,
            features.text_BD,
            *ours.gather_sides(features.image_BD, features.text_BD),
            logit_scale,
            offset=ours.rank * len(features.index_B),
            chunk_rows=chunk_rows,
        )

    @torch.no_grad()
    def log_normalizers(self, features: Features, progress: Progress) -> tuple[Tensor, Tensor]:
        """Return the method's current estimate of log(eps + g) for each image and text of the batch, (B,) each.

        g_i is the mean over the other pairs j of exp((e_i . e_j - e_i . e_i') / temperature) with e_i' the
        anchor's own partner, at the temperature of `anchor_logit_scales`; eps is `normalizer_eps`, so that an exact
        estimate has no error. NaN where the method has no estimate yet. Changes no state.
        The default is the log of the batch's own mean, which is what a mini-batch contrastive loss uses.
        """
        scale_image_B, scale_text_B = self.anchor_logit_scales(features)
        log_g_2B = torch.stack(self.batch_log_partitions(features, (scale_image_B, scale_text_B)))
        log_g_image_B, log_g_text_B = add_eps(log_g_2B, self.normalizer_eps)
        return log_g_image_B, log_g_text_B

    def exact_loss(self, log_g: Callable[[Tensor], Tensor], progress: Progress) -> Tensor | None:
        """Return the loss over many pairs that the loss on a batch stands in for, given their exact normalizers.

        Were those pairs one batch, its loss would have these gradients in log g and in the temperature, once nothing
        that the method keeps is older than the step. For the measurement of gradients alone; changes no state. None,
        the default: the loss is no function of log g, or the method does not say.

        Args:
            log_g: From the method's 1 / temperature, scalar with or without gradient, to log g of all image and all
                text anchors, (2, P), means over the P - 1 others. Differentiable.
            progress: Where training stands.
        """
        return None


class TemperatureConfig(Frozen):
    """The start, the bounds and the learning rate of a global temperature."""

    init: float = Field(default=0.07, gt=0)
    """Initial temperature. Source: CLIP, arXiv:2103.00020, Section 2.5."""
    minimum: float = Field(default=0.01, gt=0)
    """Lower bound, kept after every step (logit_scale <= 100). Source: ibid."""
    maximum: float = Field(default=1.0, gt=0)
    learnable: bool = True
    lr: float | None = Field(default=None, gt=0)
    """Learning rate of log(1 / temperature); None takes the encoders'."""
    lr_schedule: Literal["encoder", "step_threshold", "constant"] = "encoder"
    """``step_threshold``: no warm-up, lr while the temperature exceeds `lr_threshold`, a third of it below."""
    lr_threshold: float = Field(default=0.03, gt=0)

    @model_validator(mode="after")
    def _check(self) -> TemperatureConfig:
        if not self.minimum <= self.init <= self.maximum:
            raise ValueError(
                f"init = {self.init} lies outside [minimum, maximum] = [{self.minimum}, {self.maximum}], and would be "
                "moved there after the first step: change one of them"
            )
        return self


class Temperature(nn.Module):
    """A global temperature, kept as t = log(1 / temperature), the parameter that open_clip calls logit_scale."""

    def __init__(self, config: TemperatureConfig) -> None:
        super().__init__()
        self.config = config
        start = torch.tensor(math.log(1 / config.init), dtype=torch.float32)
        self.log_scale = nn.Parameter(start, requires_grad=config.learnable)

    @property
    def scale(self) -> Tensor:
        """exp(t) = 1 / temperature, with gradient."""
        return self.log_scale.exp()

    def param_groups(self) -> list[ParamGroup]:
        """Return the one parameter with its learning rate; nothing when it is fixed."""
        if not self.config.learnable:
            return []
        return [ParamGroup(params=[self.log_scale], lr=self.config.lr, lr_factor=self._lr_factor)]

    def _lr_factor(self, encoder_factor: float) -> float | Tensor:
        if self.config.lr_schedule == "encoder":
            return encoder_factor
        if self.config.lr_schedule == "constant":
            return 1.0
        temperature = self.log_scale.detach().double().neg().exp()
        # Filled on the device: `torch.where` of two numbers would be float32.
        return torch.full_like(temperature, 1 / 3).masked_fill_(temperature > self.config.lr_threshold, 1.0)

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep the temperature within its bounds."""
        self.log_scale.clamp_(math.log(1 / self.config.maximum), math.log(1 / self.config.minimum))


class TemperatureMethod(Method):
    """A method with one global temperature, which the engine's optimiser moves.

    Args:
        config: The method's options.
        env: The run.
        temperature: The temperature's options.
    """

    def __init__(self, config: MethodConfig, env: MethodEnv, temperature: TemperatureConfig) -> None:
        super().__init__(config, env)
        self.temperature = Temperature(temperature)

    @property
    def logit_scale(self) -> Tensor:
        """See `Method.logit_scale`."""
        return self.temperature.scale

    def param_groups(self) -> list[ParamGroup]:
        """Return the temperature; what else a method trains has an optimiser of its own, or is added here."""
        return self.temperature.param_groups()

    def after_step(self, progress: Progress) -> None:
        """Keep the temperature within its bounds."""
        self.temperature.clamp()
