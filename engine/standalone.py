"""Offer methods as losses for other training code, called as open_clip's `ClipLoss` is.

The caller owns encoders, temperature and optimiser; the loss keeps the rest of a method's state from step to step. The
suite's own trainer uses `engine.method` instead. Shape suffixes: B local batch, D embedding.
"""

from __future__ import annotations

import copy
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engine.distributed import Collectives, ProcessGroup
from engine.method import Features, LossOutput, MethodEnv, Progress
from engine.registry import method_class, resolve_config


class StandaloneLoss(nn.Module):
    """A method that is called like `ClipLoss`. A subclass takes the arguments that its method needs.

    `state_dict()` holds all that a restart needs and is the same on every process. `metrics` has the method's metrics
    of the last call. No parameter is for the caller's optimiser.

    Args:
        name: The method's name.
        options: The method's options, except its temperature's.
        seed: Seed of the method's random draws.
        accum_freq: Calls that share an optimiser step, each with all its pairs, as in open_clip's trainer.
        sizes: `global_batch_size`, and those of `embed_dim`, `dataset_size` (positions are below it), `steps_per_epoch`
            and `num_epochs` that the method looks at.

    Raises:
        ValueError: If an option is unknown, has a wrong value or belongs to the caller, or a size is wrong.
    """

    def __init__(
        self,
        name: str,
        options: dict[str, Any],
        *,
        seed: int = 0,
        accum_freq: int,
        **sizes: int,
    ) -> None:
        super().__init__()
        for size, value in {"accum_freq": accum_freq, **sizes}.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{size} = {value!r}: allowed is a whole number, 1 or more")
        if "temperature" in options:
            raise ValueError(
                "temperature: leave this option out: your model has the temperature and passes it as logit_scale; set "
                "its start, bounds and learning rate there"
            )
        steps_per_epoch = sizes.get("steps_per_epoch", 1)
        env = MethodEnv(
            embed_dim=sizes.get("embed_dim", 1),
            dataset_size=sizes.get("dataset_size", 1),
            global_batch_size=sizes["global_batch_size"],
            steps_per_epoch=steps_per_epoch,
            num_steps=steps_per_epoch * sizes.get("num_epochs", 1),
            seed=seed,
            collectives=ProcessGroup() if dist.is_available() and dist.is_initialized() else Collectives(),
        )
        self.method = method_class(name)(resolve_config(name, options), env)
        if self.method.num_extra_pairs:
            raise ValueError(
                f"{name} with these options encodes {self.method.num_extra_pairs} further training pairs in every "
                "step, which takes the suite's own trainer: choose other options here"
            )
        self.env, self.accum_freq = env, accum_freq
        self.step, self.part = 0, 0
        self.metrics: dict[str, Tensor] = {}
        self.index_is_for = ""
        """What the method does with the positions of pairs; empty if it does not look at them."""

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | None = None,
        output_dict: bool = False,
        *,
        index: Tensor | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """Return this process's part of the loss, for gradients that are averaged over processes.

        The method's state moves only in training mode with gradient enabled; otherwise the value is what a training
        step would return. Computed in float32 (float64 after ``.double()``), whatever the features' type and autocast.

        Args:
            image_features: Unit embeddings of the local images, (B, D).
            text_features: Unit embeddings of their texts, (B, D).
            logit_scale: exp(t) = 1 / temperature, one number.
            logit_bias: Changes no contrastive loss: its gradient is zero, as with `ClipLoss`.
            output_dict: Return ``{"contrastive_loss": loss}``.
            index: Data set positions of the pairs, (B,), integers; only FastCLIP and NeuCLIP's queue need them.

        Raises:
            ValueError: If the batch or an embedding has another size than was announced, if they lie on another device
                than the loss, or if `index` is missing or wrong where it is needed.
        """
        state = next(self.method.parameters())
        self._check(image_features, text_features, state.device)
        dtype = torch.promote_types(state.dtype, torch.float32)
        features = Features(
            image_features.to(dtype),
            text_features.to(dtype),
            self._positions(index, len(image_features)).to(state.device),
        )
        progress = Progress(self.step, self.env.steps_per_epoch, self.env.num_steps, self.env.global_batch_size)
        is_training = self.training and torch.is_grad_enabled()
        is_last = self.part == self.accum_freq - 1
        # A copy takes the steps whose state is not kept: in evaluation, and in all calls of a step but the last, since
        # all of them start from the same state.
        method = cast(_TakesLogitScale, self.method if is_training and is_last else copy.deepcopy(self.method))
        with torch.autocast(state.device.type, enabled=False):
            scale = torch.as_tensor(logit_scale, dtype=dtype, device=state.device).reshape(())
            output = method.loss_at(features, scale, progress)
        if is_training:
            self.step, self.part = (self.step + 1, 0) if is_last else (self.step, self.part + 1)
            if is_last:
                # The caller may save the state on one process, after any step.
                self.method.complete_state()
        self.metrics = output.metrics
        total = output.total if logit_bias is None else output.total + 0 * logit_bias.sum()
        return {"contrastive_loss": total} if output_dict else total

    def get_extra_state(self) -> dict[str, int]:
        """Return the number of optimiser steps, and of calls within the current one."""
        return {"step": self.step, "part": self.part}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Take what `get_extra_state` returned."""
        self.step, self.part = state["step"], state["part"]

    def _check(self, image_features: Tensor, text_features: Tensor, device: torch.device) -> None:
        rows, processes, expected = len(image_features), self.env.collectives.world_size, self.env.global_batch_size
        if rows * processes != expected:
            raise ValueError(
                f"got {rows} pairs on each of {processes} processes, the loss was made for global_batch_size = "
                f"{expected}: drop incomplete batches, count all processes (and all accumulated batches) in "
                "global_batch_size, and make the loss after torch.distributed is initialised"
            )
        if (width := self.env.embed_dim) > 1:
            for side, features in {"image_features": image_features, "text_features": text_features}.items():
                if features.ndim != 2 or features.shape[1] != width:
                    raise ValueError(
                        f"{side} have shape {tuple(features.shape)}, the loss was made for embed_dim = {width}: "
                        "make it with the width of your embeddings"
                    )
        if image_features.device != device:
            raise ValueError(
                f"features are on {image_features.device}, the loss is on {device}: move the loss with .to()"
            )

    def _positions(self, index: Tensor | None, num_pairs: int) -> Tensor:
        if not self.index_is_for:
            # Any numbers that differ, on all processes.
            return torch.arange(num_pairs) + self.env.collectives.rank * num_pairs
        if index is None:
            raise ValueError(
                f"{self.index_is_for} and needs to know which pairs these are: let the data set return each pair's "
                "position and pass them, loss(..., index=positions); see docs/use-a-loss-elsewhere.md"
            )
        if index.shape != (num_pairs,) or index.dtype == torch.bool or index.is_floating_point() or index.min() < 0:
            raise ValueError(
                f"index: got {index.dtype} of shape {tuple(index.shape)}, allowed are {num_pairs} integers of 0 or more"
            )
        return index.long()


class _TakesLogitScale(Protocol):
    def loss_at(self, features: Features, scale: Tensor, progress: Progress, /) -> LossOutput: ...
