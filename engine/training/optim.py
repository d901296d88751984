"""AdamW for the encoders and a method's parameters; learning rates as pure functions of the step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from engine.method import Method
from engine.schema.run import OptimizerSpec


def schedule_factor(step: int, *, num_steps: int, spec: OptimizerSpec) -> float:
    """Return the learning rate of step `step` (from 0) divided by its base value.

    Linear warm-up over `warmup_steps`, then a cosine from 1 to lr_min / lr.
    Source: open_clip_train.scheduler, open_clip 3.3.0; lr_min as in FastCLIP's recipes.
    """
    if step < spec.warmup_steps:
        return (step + 1) / spec.warmup_steps
    floor = spec.lr_min / spec.lr
    done = (step - spec.warmup_steps) / max(1, num_steps - spec.warmup_steps)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Tell if weight decay applies: not to vectors, normalisations and biases. Source: open_clip 3.3.0."""
    return parameter.ndim >= 2 and not any(part in name for part in ("bn", "ln", "bias", "logit_scale"))


class Optimizer:
    """One AdamW over the encoders and the method's parameter groups."""

    def __init__(self, towers: nn.Module, method: Method, spec: OptimizerSpec, num_steps: int) -> None:
        self.spec, self.num_steps = spec, num_steps
        named = [(name, p) for name, p in towers.named_parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for n, p in named if is_decayed(n, p)], "weight_decay": spec.weight_decay},
            {"params": [p for n, p in named if not is_decayed(n, p)], "weight_decay": 0.0},
        ]
        self._method_groups = method.param_groups()
        groups += [{"params": g.params, "weight_decay": g.weight_decay} for g in self._method_groups]
        # Fused: one pass over memory instead of many, on CPU as well.
        self.adamw = torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps, fused=True)

    @property
    def method_parameters(self) -> list[nn.Parameter]:
        """The method's parameters, whose gradients the caller averages over processes."""
        return [p for group in self._method_groups for p in group.params]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All parameters that move."""
        return [p for group in self.adamw.param_groups for p in group["params"]]

    def clip_gradients(self) -> Tensor:
        """Clip the gradients to the spec's norm, if it has one; returns their norm before."""
        parameters = self.parameters
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=True)
        if self.spec.grad_clip_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.spec.grad_clip_norm, norm, foreach=True)
        return norm

    def set_learning_rates(self, step: int) -> float:
        """Set every group's learning rate for step `step`; returns the encoders'."""
        factor = schedule_factor(step, num_steps=self.num_steps, spec=self.spec)
        encoder_groups, method_groups = self.adamw.param_groups[:2], self.adamw.param_groups[2:]
        for group in encoder_groups:
            group["lr"] = self.spec.lr * factor
        for group, declared in zip(method_groups, self._method_groups, strict=True):
            lr = (self.spec.lr if declared.lr is None else declared.lr) * declared.lr_factor(factor)
            # On GPUs, the fused AdamW takes tensors of its own precision only.
            group["lr"] = lr.float() if isinstance(lr, Tensor) and lr.device.type != "cpu" else lr
        return self.spec.lr * factor


class Average(AveragedModel):
    """An exponential moving average of a model's weights and buffers, which starts as a copy.

    Torch's own waits for the device in every step.

    Args:
        model: The model.
        decay: Weight of the average so far, in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self._move = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Let the average follow the model."""
        ours, theirs = ([*module.parameters(), *module.buffers()] for module in (self.module, model))
        if self.n_averaged == 0:
            torch._foreach_copy_(ours, theirs)
        else:
            for is_float in (True, False):
                pairs = [pair for pair in zip(ours, theirs, strict=True) if pair[0].is_floating_point() == is_float]
                if pairs:
                    self._move(*map(list, zip(*pairs, strict=True)), None)
        self.n_averaged += 1
