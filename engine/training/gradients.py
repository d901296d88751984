"""Measure a method's gradients on batches against that of its loss over all pairs: in embeddings, in the temperature.

At the weights and the temperature after a step, the population's embeddings x_i, y_i are computed once. With s = 1 /
temperature, d_i = x_i . y_i and g1, g2 of `engine.contrastive` over the population, a loss F(log g1, log g2) has

    dF/dx_k = s [ a1_k sum_j p1_kj y_j - (a1_k + a2_k) y_k + sum_i a2_i p2_ik y_i ],   a1_k = dF / dlog g1_k,
    p1_kj = softmax over j != k of s x_k . y_j,   p2_ik = softmax over k != i of s y_i . x_k

and the reverse for y_k: k as an anchor, as the pair that others are measured by, and as a negative of all others.
Encoders return unit embeddings, so that only what is perpendicular to an embedding moves them: the rest is left out.
F is RGCL without rho, (tau / 2) mean [log g1 + log g2], for all methods, and the method's own `exact_loss`.

Against that stand B times the gradients of the method's loss on batches of B, which hold pair k with random others:
the population in random order, cut into batches, as an epoch is. Shape suffixes: 2 sides (images, texts), B local
batch, G global batch, C chunk of pairs, P population, D embedding.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from engine.method import Features, Method, Progress
from engine.schema.record import GradientError
from engine.training import sweep
from engine.training.trainer import Trainer

_CHUNK_ROWS = 256


def measure_gradient_error(trainer: Trainer, before_batch: Callable[[], None] = lambda: None) -> GradientError:
    """Compare the gradients of `Method.loss` on batches with those of losses over the population.

    The encoders and the method's state are left as they were: every batch starts from them. Every process calls this
    together.

    Args:
        trainer: The run, after a step; its `gradient_error` says how many pairs, and how often each is in a batch.
        before_batch: Called before each batch; what it raises ends the measurement.
    """
    spec, method = trainer.spec.gradient_error, trainer.method
    assert spec is not None
    # As if the last step were taken on another batch: what depends on its number is as it was then.
    progress = dataclasses.replace(trainer.progress(), step=trainer.step_number - 1)
    population = _encode_population(trainer, spec.population, progress.epoch, before_batch)
    with _differentiable_temperature(method) as temperature:
        rgcl, own = _references(method, population, temperature, progress)
        found = _batch_gradients(trainer, population, temperature, progress, before_batch)
    return _compare(trainer, population, found, rgcl, own)


class Population(NamedTuple):
    """Pairs with the embeddings that the current encoders give them; the same on every process."""

    embedding_2PD: Tensor
    index_P: Tensor
    """Data set positions."""

    def take(self, rows: Tensor, extra: Features | None = None) -> Features:
        """Return copies of some of the pairs, as a method sees them."""
        image_BD, text_BD = self.embedding_2PD[:, rows]
        return Features(image_BD, text_BD, self.index_P[rows], extra)


class Partitions(NamedTuple):
    """Sums of a population's similarities, float64, (2, P): image anchors, then text anchors."""

    log_g_2P: Tensor
    slope_2P: Tensor
    """The derivative of log g in log s."""


class Gradient(NamedTuple):
    """Of a loss over the population."""

    embedding_2PD: Tensor
    """P times the gradient in the embeddings, perpendicular to them."""
    log_scale: float
    """The derivative in log s; NaN where the loss has not one temperature."""


class BatchGradients(NamedTuple):
    """Of a method's loss on batches of B: B times the gradient in a pair's embeddings, perpendicular to them."""

    sum_2PD: Tensor
    """Over the batches that held a pair, float64."""
    sum_of_squares_P: Tensor
    """Of the norms, both sides together, float64."""
    log_scales: list[float]
    """The derivative in log s, of each batch; empty where the loss has not one temperature."""


class _Temperature(NamedTuple):
    parameter: nn.Parameter
    slope: float
    """The derivative of log s in the parameter."""


def _encode_population(trainer: Trainer, size: int, epoch: int, before_batch: Callable[[], None]) -> Population:
    """Encode the first whole batches of the sweep: random pairs."""
    num_parts = min(size, trainer.dataset.index.pairs) // trainer.spec.global_batch_size
    embeddings, indices = [], []
    with contextlib.closing(sweep.encode_all(trainer, epoch, 0, before_batch)) as parts:
        for part in itertools.islice(parts, num_parts):
            embeddings.append(torch.stack((part.image_PD, part.text_PD)))
            indices.append(trainer.collectives.gather(part.features.index_B))
    return Population(torch.cat(embeddings, dim=1), torch.cat(indices))


@contextlib.contextmanager
def _differentiable_temperature(method: Method) -> Generator[_Temperature | None, None, None]:
    """Find the one scalar parameter that `logit_scale` is a function of; let it have gradients, also if it is fixed."""
    scalars = [parameter for parameter in method.parameters() if parameter.numel() == 1]
    are_learned = [parameter.requires_grad for parameter in scalars]
    try:
        for parameter in scalars:
            parameter.requires_grad_()
        log_scale = method.logit_scale.log()
        slopes: Sequence[Tensor | None] = []
        if log_scale.requires_grad:
            slopes = torch.autograd.grad(log_scale, scalars, allow_unused=True)
        found = [_Temperature(p, float(slope)) for p, slope in zip(scalars, slopes, strict=False) if slope is not None]
        yield found[0] if len(found) == 1 else None
    finally:
        for parameter, is_learned in zip(scalars, are_learned, strict=True):
            parameter.requires_grad_(is_learned)


def _references(
    method: Method, population: Population, temperature: _Temperature | None, progress: Progress
) -> tuple[Gradient, Gradient | None]:
    """Return the gradients of RGCL without rho, and of the method's own loss if it gives one."""
    embedding_2PD, scale = population.embedding_2PD, method.logit_scale.detach()
    partitions = partition(embedding_2PD, scale)
    rgcl_2P = torch.full_like(partitions.log_g_2P, 1 / (2 * len(population.index_P) * float(scale)))
    # With the temperature in front of it: tau (E_p[h] - log g) / 2, which is tau KL / 2, of every anchor.
    log_scale = float((rgcl_2P * (partitions.slope_2P - partitions.log_g_2P)).sum())
    rgcl = Gradient(population_gradient(embedding_2PD, scale, partitions, rgcl_2P), log_scale)

    log_g_2P = partitions.log_g_2P.clone().requires_grad_()

    def log_g(scale_now: Tensor) -> Tensor:
        # To the first order in log s, which is all that a gradient sees.
        return log_g_2P + partitions.slope_2P * (scale_now / scale).log()

    total = method.exact_loss(log_g, progress)
    if total is None:
        return rgcl, None
    weights_2P, slope = _differentiate(total, (log_g_2P,), temperature)
    own_2PD = population_gradient(embedding_2PD, scale, partitions, weights_2P[0])
    return rgcl, Gradient(own_2PD, math.nan if slope is None else slope)


def _differentiate(
    total: Tensor, inputs: tuple[Tensor, ...], temperature: _Temperature | None
) -> tuple[tuple[Tensor, ...], float | None]:
    """Return the gradients in the inputs, which must be there, and the derivative in log s, if it is."""
    if temperature is None:
        return torch.autograd.grad(total, inputs), None
    *grads, slope = torch.autograd.grad(total, (*inputs, temperature.parameter), allow_unused=True)
    return tuple(grads), None if slope is None else float(slope) / temperature.slope


@torch.no_grad()
def partition(embedding_2PD: Tensor, scale: Tensor) -> Partitions:
    """Return log g of all pairs against all others, and its derivative in log s, which is the mean exponent.

    Args:
        embedding_2PD: Unit embeddings: images, then texts.
        scale: s, scalar.
    """
    num_pairs = embedding_2PD.shape[1]
    positive_P = embedding_2PD.prod(dim=0).sum(dim=1)
    log_g_2P = positive_P.new_empty((2, num_pairs), dtype=torch.float64)
    slope_2P = torch.empty_like(log_g_2P)
    for side, rows_C in itertools.product(range(2), _chunks(num_pairs, embedding_2PD.device)):
        above_CP = embedding_2PD[side, rows_C] @ embedding_2PD[1 - side].T - positive_P[rows_C, None]
        logits_CP = _without_own(scale * above_CP, rows_C, -math.inf)
        log_sum_C = logits_CP.logsumexp(dim=1)
        p_CP = (logits_CP - log_sum_C[:, None]).exp_()
        log_g_2P[side, rows_C] = log_sum_C.double() - math.log(num_pairs - 1)
        slope_2P[side, rows_C] = p_CP.mul_(_without_own(logits_CP, rows_C, 0)).sum(dim=1, dtype=torch.float64)
    return Partitions(log_g_2P, slope_2P)


@torch.no_grad()
def population_gradient(embedding_2PD: Tensor, scale: Tensor, partitions: Partitions, weight_2P: Tensor) -> Tensor:
    """Return P times the gradient of F in all embeddings, perpendicular to them, (2, P, D): see the module.

    Args:
        embedding_2PD: Unit embeddings: images, then texts.
        scale: s, scalar.
        partitions: Of these embeddings at this scale.
        weight_2P: a, the derivatives of F in log g.
    """
    num_pairs = embedding_2PD.shape[1]
    positive_P = embedding_2PD.prod(dim=0).sum(dim=1)
    # Of what to subtract from s x . y, so that exp gives a p directly.
    offset_2P = scale * positive_P + partitions.log_g_2P.to(positive_P) + math.log(num_pairs - 1)
    weight_2P = weight_2P.to(positive_P) * num_pairs
    grads = []
    for side in range(2):
        own_PD, other_PD = embedding_2PD[side], embedding_2PD[1 - side]
        chunks = []
        for rows_C in _chunks(num_pairs, embedding_2PD.device):
            logits_CP = _without_own(scale * (own_PD[rows_C] @ other_PD.T), rows_C, -math.inf)
            pull_CP = (logits_CP - offset_2P[side, rows_C, None]).exp_().mul_(weight_2P[side, rows_C, None])
            pull_CP += (logits_CP - offset_2P[1 - side]).exp_().mul_(weight_2P[1 - side])
            push_C = weight_2P[:, rows_C].sum(dim=0)
            chunks.append(scale * (pull_CP @ other_PD - push_C[:, None] * other_PD[rows_C]))
        grads.append(torch.cat(chunks))
    return _perpendicular(torch.stack(grads), embedding_2PD)


def _chunks(num_pairs: int, device: torch.device) -> Sequence[Tensor]:
    return torch.split(torch.arange(num_pairs, device=device), _CHUNK_ROWS)


def _without_own(x_CP: Tensor, rows_C: Tensor, value: float) -> Tensor:
    """Set each pair's entry for itself, in place."""
    return x_CP.scatter_(1, rows_C[:, None], value)


def _perpendicular(grad_2PD: Tensor, embedding_2PD: Tensor) -> Tensor:
    """Take off what lies along the unit embedding."""
    return grad_2PD - (grad_2PD * embedding_2PD).sum(dim=2, keepdim=True) * embedding_2PD


def _batch_gradients(
    trainer: Trainer,
    population: Population,
    temperature: _Temperature | None,
    progress: Progress,
    before_batch: Callable[[], None],
) -> BatchGradients:
    """Take the gradients of the method's loss on all batches of all rounds, each from the state that it has now."""
    method, ours = trainer.method, trainer.collectives
    state = copy.deepcopy(method.state_dict())
    sum_2PD = torch.zeros_like(population.embedding_2PD, dtype=torch.float64)
    sum_of_squares_P = sum_2PD.new_zeros(sum_2PD.shape[1])
    log_scales = []
    for rows_G, extra in _draw_batches(trainer, population):
        before_batch()
        rows_B = rows_G.chunk(ours.world_size)[ours.rank]
        features = population.take(rows_B, extra)
        inputs = (features.image_BD.requires_grad_(), features.text_BD.requires_grad_())
        grads, slope = _differentiate(method.loss(features, progress).total, inputs, temperature)
        # Parameters and buffers are copied; extra state may be kept as it is given.
        extra_state = {key: copy.deepcopy(value) for key, value in state.items() if key.endswith("_extra_state")}
        method.load_state_dict(state | extra_state)
        # A process's loss is a mean over its own rows, and gradients come summed over processes.
        grad_G2D = ours.gather(len(rows_B) * torch.stack(grads, dim=1))
        grad_2GD = _perpendicular(grad_G2D.transpose(0, 1), population.embedding_2PD[:, rows_G]).double()
        sum_2PD[:, rows_G] += grad_2GD
        sum_of_squares_P[rows_G] += grad_2GD.square().sum(dim=(0, 2))
        if slope is not None:
            log_scales.append(float(ours.all_reduce(torch.tensor(slope, device=trainer.device), "mean")))
    return BatchGradients(sum_2PD, sum_of_squares_P, log_scales)


def _draw_batches(trainer: Trainer, population: Population) -> Iterator[tuple[Tensor, Features | None]]:
    """Yield the rows of each global batch, (G,), and the pairs that the method wants beyond it."""
    spec, method, num_pairs = trainer.spec, trainer.method, len(population.index_P)
    assert spec.gradient_error is not None
    for number in range(spec.gradient_error.num_rounds):
        generator = method.env.generator("gradient error", number)
        for rows_G in torch.split(torch.randperm(num_pairs, generator=generator), spec.global_batch_size):
            extra = None
            if method.num_extra_pairs:
                # With repetition, as in training.
                rows_K = torch.randint(num_pairs, (method.num_extra_pairs,), generator=generator)
                extra = population.take(rows_K.to(trainer.device))
            yield rows_G.to(trainer.device), extra


def _compare(
    trainer: Trainer, population: Population, found: BatchGradients, rgcl: Gradient, own: Gradient | None
) -> GradientError:
    spec = trainer.spec.gradient_error
    assert spec is not None
    num_rounds, temperature = spec.num_rounds, 1 / float(trainer.method.logit_scale.detach())
    to_rgcl = _measure(found, num_rounds, rgcl.embedding_2PD)
    to_own = None if own is None else _measure(found, num_rounds, own.embedding_2PD)
    # RGCL has the temperature in front; other losses are brought to its units by their gradients over the population.
    size = to_rgcl.factor if own is None else _least_squares(own.embedding_2PD, rgcl.embedding_2PD)
    pulls = torch.tensor(found.log_scales, dtype=torch.float64) / (abs(size) * temperature)
    own_pull = math.nan if own is None else own.log_scale / (abs(size) * temperature)
    return GradientError(
        samples_seen=trainer.samples_seen,
        temperature=temperature,
        population=len(population.index_P),
        num_rounds=num_rounds,
        num_batches=num_rounds * len(population.index_P) // trainer.spec.global_batch_size,
        factor=_known(to_rgcl.factor),
        bias_squared=_known(to_rgcl.bias_squared[0]),
        bias_squared_se=_known(to_rgcl.bias_squared[1]),
        variance=_known(to_rgcl.variance[0]),
        variance_se=_known(to_rgcl.variance[1]),
        exact_factor=to_own and _known(to_own.factor),
        exact_bias_squared=to_own and _known(to_own.bias_squared[0]),
        exact_bias_squared_se=to_own and _known(to_own.bias_squared[1]),
        pull=_known(pulls.mean()),
        pull_sd=_known(pulls.std()) if len(pulls) else None,
        exact_pull=_known(own_pull),
        rgcl_pull=_known(rgcl.log_scale / temperature),
    )


class _Errors(NamedTuple):
    """Of gradients on batches against one over the population; pairs are of a number and its standard error."""

    factor: Tensor
    bias_squared: tuple[float, float]
    variance: tuple[float, float]


def _measure(found: BatchGradients, num_rounds: int, reference_2PD: Tensor) -> _Errors:
    """Compare, after the factor between the mean and the reference has been taken out."""
    mean_2PD, reference_2PD = found.sum_2PD / num_rounds, reference_2PD.double()
    factor, size_P = _least_squares(mean_2PD, reference_2PD), _squares(reference_2PD)
    variance_P = (found.sum_of_squares_P - num_rounds * _squares(mean_2PD)) / (num_rounds - 1) / factor**2
    bias_squared_P = _squares(mean_2PD / factor - reference_2PD) - variance_P / num_rounds
    return _Errors(factor, _ratio(bias_squared_P, size_P), _ratio(variance_P, size_P))


def _least_squares(of_2PD: Tensor, on_2PD: Tensor) -> Tensor:
    """Return the factor from `on` to `of`, scalar, which noise of `of` does not shrink."""
    return (of_2PD * on_2PD).sum(dtype=torch.float64) / on_2PD.square().sum(dtype=torch.float64)


def _known(value: float | Tensor) -> float | None:
    """Return a number if it is finite."""
    return float(value) if math.isfinite(value) else None


def _squares(x_2PD: Tensor) -> Tensor:
    """Return each pair's squared norm, both sides together, (P,)."""
    return x_2PD.square().sum(dim=(0, 2))


def _ratio(above_P: Tensor, below_P: Tensor) -> tuple[float, float]:
    """Return a ratio of sums over pairs, and its standard error by linearisation."""
    ratio = above_P.sum() / below_P.sum()
    deviation_P = (above_P - ratio * below_P) / below_P.mean()
    return float(ratio), float(deviation_P.std() / math.sqrt(len(above_P)))
