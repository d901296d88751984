"""The networks that predict log-normalizers, and how they are trained inside a step and restarted.

`Prototypes` is the paper's normalizer-prediction network (NPN); `MLP` is what its ablation puts in its place. Both keep
their state in buffers: the engine's optimiser never sees it.
Shape suffixes: 2 sides (image anchors, text anchors), B local anchors, G global batch, C chunk of anchors,
M prototypes (S: this process's share of them) or embeddings of other pairs, D embedding, K weights of the MLP.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from engine.contrastive import add_eps
from engine.distributed import Collectives
from engine.graphs import Recorder, just_run

ADAGRAD_EPS = 1e-10
"""torch.optim.Adagrad's default. It matters: with mean reduction a prototype's gradient is about
1 / (G M sqrt(D)), 2e-9 at G = M = 4096."""

MIN_NORM = 1e-12


@dataclass(frozen=True)
class Anchors:
    """Training data of a normalizer network: all pairs of the global batch, without gradient."""

    embedding_2GD: Tensor
    """Unit embeddings: images, then texts."""
    positive_G: Tensor
    """s: cosine of each pair."""
    log_gamma_2G: Tensor
    """log(eps + g) as the batch estimates it."""
    logit_scale: Tensor
    """1 / temperature, scalar."""


Slope = Callable[[Tensor, Tensor], Tensor]
"""From log gamma and alpha to the derivative in alpha of what the network minimises, per anchor."""


class Normalizer(nn.Module):
    """A network from anchors to log-normalizers, trained by AdaGrad. Subclasses say which network.

    Args:
        shape: Shape of the weights; the first axis is the side.
        eps: The constant inside the logarithm: alpha never falls below its log.
        collectives: The processes that train it together.
    """

    weights: Tensor
    accumulator: Tensor

    def __init__(self, shape: tuple[int, ...], *, eps: float, collectives: Collectives) -> None:
        super().__init__()
        self.eps, self.collectives = eps, collectives
        self.register_buffer("weights", torch.zeros(shape))
        self.register_buffer("accumulator", torch.zeros(shape))

    def forward(
        self, embedding_2BD: Tensor, positive_B: Tensor, logit_scale: Tensor, embedding_2GD: Tensor | None = None
    ) -> Tensor:
        """Return alpha, (2, B), differentiable in every argument. Every process calls this together.

        Args:
            embedding_2BD: Unit embeddings of the anchors: images, then texts.
            positive_B: s: cosine of each pair.
            logit_scale: 1 / temperature, scalar.
            embedding_2GD: Those of all processes' anchors, with gradient; None gathers them if they are needed.
        """
        raise NotImplementedError

    def complete(self) -> None:
        """Bring together what each process has trained a share of, see `Method.complete_state`."""

    def restart(self, embedding_2GD: Tensor, step: int, generator: torch.Generator) -> None:
        """Renew the weights at `step`, given the batch's images and texts, and forget AdaGrad's past."""
        raise NotImplementedError

    def remember(self, embedding_2GD: Tensor, steps_to_restart: float) -> None:
        """See a batch that the restart `steps_to_restart` steps from now may want to draw from."""

    @torch.no_grad()
    def fit(
        self, anchors: Anchors, *, slope: Slope, num_updates: int, lr: float, run: Recorder = just_run
    ) -> tuple[Tensor, Tensor]:
        """Take AdaGrad steps on (tau / 2) mean_i [ f(alpha1_i) + f(alpha2_i) ], where f has the given slope.

        Args:
            anchors: The global batch, the same on every process.
            slope: df / dalpha as a function of (log gamma, alpha).
            num_updates: Number of steps, T_u >= 1.
            lr: AdaGrad's learning rate.
            run: Takes the steps; one that records them wants the same settings in every call.

        Returns:
            alpha before the first step, (2, G), and the norm of the first step's gradient, scalar.
        """

        def steps(weights: Tensor, accumulator: Tensor, *of_anchors: Tensor) -> tuple[Tensor, ...]:
            anchors = Anchors(*of_anchors)
            for update in range(num_updates):
                grad, alpha_2G = self._gradient(weights, anchors, slope)
                if update == 0:
                    first = (alpha_2G, self._sum_of_squares(grad).sqrt())
                accumulator.addcmul_(grad, grad)
                weights.addcdiv_(grad, accumulator.sqrt().add_(ADAGRAD_EPS), value=-lr)
            return weights, accumulator, *first

        tensors = (*self._take(), *(getattr(anchors, field.name) for field in dataclasses.fields(anchors)))
        weights, accumulator, alpha_2G, norm = run(steps, *tensors)
        self._put(weights, accumulator)
        return alpha_2G, norm

    def _take(self) -> tuple[Tensor, Tensor]:
        """Copies of the weights and accumulators that this process trains: a graph may still hold the originals."""
        raise NotImplementedError

    def _put(self, weights: Tensor, accumulator: Tensor) -> None:
        """Take over what this process has trained."""
        raise NotImplementedError

    def _gradient(self, weights: Tensor, anchors: Anchors, slope: Slope) -> tuple[Tensor, Tensor]:
        """The gradient in this process's weights, and alpha of all anchors, (2, G)."""
        raise NotImplementedError

    def _sum_of_squares(self, grad: Tensor) -> Tensor:
        return grad.square().sum()


class Prototypes(Normalizer):
    """The NPN: prototypes stand for all the embeddings of the other modality.

        alpha_i = log( eps + (1/M) sum_k exp( (cos(e_i, W_k) - s_i) / tau ) )

    W1 (side 0, for image anchors) starts as text embeddings, W2 (side 1) as image embeddings; rows are free
    parameters, not unit vectors.

    Several processes: each trains the rows k = rank, rank + world size, ... on all G anchors, which costs as
    much as all rows on its own anchors but needs no gradients from others, only one sum of exponentials per
    anchor and step. So does alpha: each process adds up the exponentials of its own rows for all G anchors, whose
    embeddings travel for the loss anyway. Rows travel when the state is saved, and after a restart all are the same.

    Args:
        num_prototypes: M, at least the number of processes.
        embed_dim: D.
        num_remembered: Embeddings of earlier batches to keep for a restart; 0 if a batch has enough.
        eps: The constant inside the logarithm.
        chunk_rows: Anchors per process whose similarities to all prototypes are held at once.
        collectives: The processes.

    Raises:
        ValueError: If there are fewer prototypes than processes.

    Source: NeuCLIP, arXiv:2511.08417 (NPN).
    """

    recent: Tensor

    def __init__(
        self,
        num_prototypes: int,
        embed_dim: int,
        *,
        num_remembered: int,
        eps: float,
        chunk_rows: int,
        collectives: Collectives,
    ) -> None:
        if num_prototypes < collectives.world_size:
            raise ValueError(
                f"num_prototypes = {num_prototypes} is fewer than the {collectives.world_size} processes that share "
                "them: allowed is at least one each; raise num_prototypes or use fewer processes"
            )
        super().__init__((2, num_prototypes, embed_dim), eps=eps, collectives=collectives)
        self.num_prototypes, self.chunk_rows = num_prototypes, chunk_rows
        self.register_buffer("recent", torch.zeros(2, num_remembered, embed_dim))

    def forward(
        self, embedding_2BD: Tensor, positive_B: Tensor, logit_scale: Tensor, embedding_2GD: Tensor | None = None
    ) -> Tensor:
        """See `Normalizer.forward`. A chunk's similarities are computed again in the backward pass."""
        ours = self.collectives
        anchor_2GD, positive_G = embedding_2BD, positive_B
        if ours.world_size > 1:
            anchor_2GD = torch.stack(ours.gather_sides(*embedding_2BD)) if embedding_2GD is None else embedding_2GD
            positive_G = anchor_2GD.prod(dim=0).sum(dim=1)
        weights_2SD = self.weights[:, self._share]
        unit_2SD = weights_2SD / _norms(weights_2SD)
        chunks = [
            (unit_2SD, anchor_2GD[:, rows], positive_G[rows], logit_scale)
            for rows in slices(len(positive_G), self.chunk_rows * ours.world_size)
        ]
        logsumexp_2B = predict_in_chunks(self._share_of_logsumexp, chunks)
        if ours.world_size > 1:
            sum_G2 = (logsumexp_2B.double() + logit_scale * positive_G).exp().T
            sum_2B = ours.reduce_scatter_with_grad(sum_G2).T
            logsumexp_2B = (sum_2B.log() - logit_scale * positive_B).to(logsumexp_2B.dtype)
        return self._alpha(logsumexp_2B)

    def _share_of_logsumexp(
        self, unit_2SD: Tensor, embedding_2CD: Tensor, positive_C: Tensor, logit_scale: Tensor
    ) -> Tensor:
        # Unit already; as a cosine, though, alpha has no gradient along the embedding itself.
        anchor_2CD = functional.normalize(embedding_2CD, dim=2)
        return (logit_scale * cosines_above(positive_C, anchor_2CD, unit_2SD)).logsumexp(dim=2)

    @property
    def _share(self) -> slice:
        """Rows of this process."""
        return slice(self.collectives.rank, None, self.collectives.world_size)

    def _alpha(self, logsumexp_2C: Tensor) -> Tensor:
        return add_eps(logsumexp_2C - math.log(self.num_prototypes), self.eps)

    @torch.no_grad()
    def restart(self, embedding_2GD: Tensor, step: int, generator: torch.Generator) -> None:
        """Copy rows drawn at random from the most recent embeddings of the other modality.

        Those are this batch and `recent`. Without repetition if they suffice (every one of them, if they are
        just M), else evenly repeated.
        """
        earlier = min(step * embedding_2GD.shape[1], self.recent.shape[1])
        pool_2ND = torch.cat((self.recent[:, self.recent.shape[1] - earlier :], embedding_2GD), dim=1)
        size = pool_2ND.shape[1]
        draws = [torch.randperm(size, generator=generator) for _ in range(0, self.num_prototypes, size)]
        rows_M = torch.cat(draws)[: self.num_prototypes].to(pool_2ND.device, non_blocking=True)
        self.weights.copy_(pool_2ND.flip(0)[:, rows_M])
        self.accumulator.zero_()

    @torch.no_grad()
    def remember(self, embedding_2GD: Tensor, steps_to_restart: float) -> None:
        """Keep the batch if the next restart can still reach it; most steps need no copy."""
        if steps_to_restart * embedding_2GD.shape[1] < self.num_prototypes:
            self.recent.copy_(torch.cat((self.recent, embedding_2GD), dim=1)[:, -self.recent.shape[1] :])

    def _take(self) -> tuple[Tensor, Tensor]:
        return self.weights[:, self._share].clone(), self.accumulator[:, self._share].clone()

    def _put(self, weights: Tensor, accumulator: Tensor) -> None:
        if self.collectives.world_size > 1:
            rows = (weights, accumulator)
            weights, accumulator = self.weights.clone(), self.accumulator.clone()
            weights[:, self._share], accumulator[:, self._share] = rows
        self.weights, self.accumulator = weights, accumulator

    @torch.no_grad()
    def complete(self) -> None:
        """See `Normalizer.complete`."""
        processes, length = self.collectives.world_size, self.num_prototypes
        if processes == 1:
            return
        # Row k is number k // processes of process k % processes; the last row of some is padding.
        most = math.ceil(length / processes)
        share = torch.stack(self._take()).movedim(2, 0)
        padded = functional.pad(share, (0, 0) * 3 + (0, most - len(share)))
        by_process = self.collectives.gather(padded).reshape(processes, *padded.shape)
        self.weights, self.accumulator = by_process.transpose(0, 1).flatten(0, 1)[:length].movedim(0, 2).contiguous()

    def _gradient(self, weights: Tensor, anchors: Anchors, slope: Slope) -> tuple[Tensor, Tensor]:
        """Return the gradient in this process's rows, in closed form, and alpha, (2, G).

        With z_ik = (cos_ik - s_i) / tau, l_i = logsumexp_k z_ik - log M and q = slope(alpha_i):

            d alpha_i / d cos_ik = (1 / tau) softmax_k(z_ik) exp(l_i - alpha_i)
            d cos_ik / d W_k = (e_i - cos_ik W_k / |W_k|) / |W_k|

        Each anchor's part is weighted by tau q_i / 2G. The projection off W_k is done once, on the sum over i.
        """
        inverse_norm_2S1 = 1 / _norms(weights)
        unit_2SD = weights * inverse_norm_2S1
        scale, num_anchors = anchors.logit_scale, len(anchors.positive_G)
        grad_2SD = torch.zeros_like(weights)
        alphas = []
        # A chunk is as large in memory whatever the number of processes, and local batches within
        # chunk_rows need one collective a step.
        for rows in slices(num_anchors, self.chunk_rows * self.collectives.world_size):
            embedding_2CD = anchors.embedding_2GD[:, rows]
            positive_C = anchors.positive_G[rows]
            part_2CS = torch.bmm(embedding_2CD, unit_2SD.mT)
            top_2C1 = part_2CS.amax(dim=2, keepdim=True)
            part_2CS.sub_(top_2C1).mul_(scale).exp_()
            top_2C = scale * (top_2C1.squeeze(2) - positive_C)
            alpha_2C = self._alpha(self._logsumexp(top_2C + part_2CS.sum(dim=2).log(), scale * positive_C))
            # Finishes softmax * exp(l - alpha): l cancels. Scaling the C x D side is cheaper than C x S.
            rest_2C = (top_2C - math.log(self.num_prototypes) - alpha_2C).exp()
            weight_2C = slope(anchors.log_gamma_2G[:, rows], alpha_2C) * rest_2C / (2 * num_anchors)
            grad_2SD.baddbmm_(part_2CS.mT, embedding_2CD * weight_2C.unsqueeze(2))
            alphas.append(alpha_2C)
        along_2S1 = (grad_2SD * weights).sum(dim=2, keepdim=True) * inverse_norm_2S1.square()
        return grad_2SD.addcmul_(along_2S1, weights, value=-1).mul_(inverse_norm_2S1), torch.cat(alphas, dim=1)

    def _logsumexp(self, share_2C: Tensor, positive_logit_C: Tensor) -> Tensor:
        """Combine the processes' logsumexps of z over their own rows; positive_logit_C is s / tau."""
        if self.collectives.world_size == 1:
            return share_2C
        # |z + s / tau| <= 1 / tau: float64 holds its exp without a shift that processes would have to agree on first.
        log_sum_2C = share_2C.double() + positive_logit_C
        return (self.collectives.all_reduce(log_sum_2C.exp(), "sum").log() - positive_logit_C).to(share_2C.dtype)

    def _sum_of_squares(self, grad: Tensor) -> Tensor:
        return self.collectives.all_reduce(grad.square().sum(), "sum")


class MLP(Normalizer):
    """A network of one hidden layer in place of the log-sum-exp over prototypes, randomly initialised.

        alpha_i = log( eps + exp( (f(e_i) - s_i) / tau ) ),   f(e) = b + (1/D) v . relu(A e + a),   A of D x D

    With the mean over hidden units, an AdaGrad step moves f by about as much as it moves a prototype's cosine:
    one learning rate suits both. Every process trains on all anchors.

    Source: the architecture ablation of NeuCLIP, arXiv:2511.08417, which does not describe its network further.
    """

    def __init__(self, embed_dim: int, *, eps: float, collectives: Collectives) -> None:
        self.embed_dim, self.sizes = embed_dim, [embed_dim * embed_dim, embed_dim, embed_dim, 1]
        super().__init__((2, sum(self.sizes)), eps=eps, collectives=collectives)

    def forward(
        self, embedding_2BD: Tensor, positive_B: Tensor, logit_scale: Tensor, embedding_2GD: Tensor | None = None
    ) -> Tensor:
        """See `Normalizer.forward`."""
        return self._predict(self.weights, embedding_2BD, positive_B, logit_scale)

    def _predict(self, weights_2K: Tensor, embedding_2BD: Tensor, positive_B: Tensor, logit_scale: Tensor) -> Tensor:
        hidden, hidden_bias, out, out_bias = torch.split(weights_2K, self.sizes, dim=1)
        hidden_2DD = hidden.reshape(2, self.embed_dim, self.embed_dim)
        hidden_2BD = torch.baddbmm(hidden_bias.unsqueeze(1), embedding_2BD, hidden_2DD.mT).relu()
        f_2B1 = torch.baddbmm(out_bias.unsqueeze(1), hidden_2BD, out.unsqueeze(2), alpha=1 / self.embed_dim)
        return add_eps((f_2B1.squeeze(2) - positive_B) * logit_scale, self.eps)

    @torch.no_grad()
    def restart(self, embedding_2GD: Tensor, step: int, generator: torch.Generator) -> None:
        """Draw the weights at step 0; later only forget AdaGrad's past, as there is nothing to copy.

        f starts near the batch's mean cosine, from below which no log-sum-exp can come: far below it, gradients
        of exp(log g - alpha) would fill AdaGrad's accumulator for good.
        """
        if step == 0:
            drawn = torch.empty(self.weights.shape).uniform_(-1, 1, generator=generator)
            self.weights.copy_(drawn, non_blocking=True)
            hidden, hidden_bias, _, out_bias = torch.split(self.weights, self.sizes, dim=1)
            hidden.mul_((3 / self.embed_dim) ** 0.5)  # rows of about unit norm
            hidden_bias.zero_()
            out_bias.copy_(embedding_2GD.mean(dim=1).prod(dim=0).sum())
        self.accumulator.zero_()

    def _take(self) -> tuple[Tensor, Tensor]:
        return self.weights.clone(), self.accumulator.clone()

    def _put(self, weights: Tensor, accumulator: Tensor) -> None:
        # All processes did the same arithmetic; this keeps them together even if their devices round differently.
        self.weights = self.collectives.broadcast(weights)
        self.accumulator = self.collectives.broadcast(accumulator)

    @torch.enable_grad()
    def _gradient(self, weights: Tensor, anchors: Anchors, slope: Slope) -> tuple[Tensor, Tensor]:
        leaf_2K = weights.detach().requires_grad_()
        alpha_2G = self._predict(leaf_2K, anchors.embedding_2GD, anchors.positive_G, anchors.logit_scale)
        scale = 2 * len(anchors.positive_G) * anchors.logit_scale
        upstream_2G = slope(anchors.log_gamma_2G, alpha_2G.detach()) / scale
        (grad_2K,) = torch.autograd.grad(alpha_2G, leaf_2K, upstream_2G)
        return grad_2K, alpha_2G.detach()


def predict_in_chunks(predict: Callable[..., Tensor], chunks: Sequence[tuple[Tensor, ...]]) -> Tensor:
    """Predict for one chunk of anchors after the other, (2, B); each again in the backward pass."""
    if len(chunks) > 1 and torch.is_grad_enabled():
        predict = functools.partial(checkpoint, predict, use_reentrant=False, preserve_rng_state=False)
    return torch.cat([predict(*chunk) for chunk in chunks], dim=1)


def cosines_above(positive_C: Tensor, anchor_2CD: Tensor, other_2MD: Tensor) -> Tensor:
    """Return the unit anchors' cosines with the others, less their own pair's, (2, C, M).

    Subtracted before 1 / tau multiplies: the difference of two logits of 100 would be as coarse as these are.
    """
    return torch.baddbmm(-positive_C[:, None], anchor_2CD, other_2MD.mT)


def _norms(weights_2MD: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(weights_2MD, dim=2, keepdim=True)
    return norms.clamp_min(MIN_NORM)


def slices(length: int, size: int) -> Iterator[slice]:
    """Cut so many rows into slices of at most a size."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))
