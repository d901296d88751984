"""The objectives of NeuCLIP as pure functions of log g, alpha and the temperature.

    h(alpha, g) = exp(-alpha) (eps + g) + alpha - 1  >=  log(eps + g),  equal at alpha = log(eps + g)     (CONJ)
    RGCL    = (tau / 2) mean_i [ log(eps + g1_i) + log(eps + g2_i) ] + rho tau
    UNIFIED = (tau / 2) mean_i [ h(alpha1_i, g1_i) + h(alpha2_i, g2_i) ] + rho tau

All in log space: neither g nor exp(-alpha) is ever formed alone, for at a temperature of 0.01 one batch can hold
g = 1e-34 and exp(-alpha) = 1e14. Shape suffixes: 2 sides (image anchors, text anchors), B pairs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from engine.contrastive import add_eps

MAX_GAP = 40.0
"""Largest log(eps + g) - alpha that is used as it is, in nats.

Its exponential is a weight on the gradient, and the square of that (AdaGrad, AdamW) must stay finite in float32:
exp(2 * 40) = 6e34 does, exp(2 * 45) does not, and an infinite second moment freezes its parameter for good.
"""


def conjugate(log_gamma: Tensor, alpha: Tensor) -> Tensor:
    """Return h, the upper bound on log gamma that is linear in gamma = eps + g.

    An alpha more than `MAX_GAP` below log gamma is raised to that gap first: h stays a bound, and the gradient
    stays the one of a bound, only of a less absurd alpha.

    Args:
        log_gamma: log(eps + g), any shape.
        alpha: Log-normalizers, the same shape; any value is allowed.

    Returns:
        h, the same shape, at least log_gamma.

    Source: NeuCLIP, arXiv:2511.08417, the convex conjugate of -log (CONJ).
    """
    alpha = torch.maximum(alpha, log_gamma.detach() - MAX_GAP)
    return (log_gamma - alpha).exp() + alpha - 1


def conjugate_slope(log_gamma: Tensor, alpha: Tensor) -> Tensor:
    """Return dh / dalpha = 1 - exp(log gamma - alpha), any shape; the exponent is held at `MAX_GAP`."""
    return 1 - (log_gamma - alpha).clamp(max=MAX_GAP).exp()


def regression_slope(log_gamma: Tensor, alpha: Tensor) -> Tensor:
    """Return the derivative of (alpha - log gamma)^2 / 2 in alpha, any shape.

    That is h's second-order expansion around its minimum: learning rates carry over from one to the other.

    Source: the separate objective of NeuCLIP's ablation, a regression on the log of the batch's estimate, as in
    AmorLIP. Differs: AmorLIP leaves the 1/2 out, which its Adam does not see.
    """
    return alpha - log_gamma


def count_positive(log_g: Tensor, global_batch_size: int) -> Tensor:
    """Return log((1 + (G - 1) g) / G): the same mean over a batch of G pairs with the anchor's own among them.

    Of the batch's own g, the mean of tau times it over anchors is tau (InfoNCE - log G).

    Args:
        log_g: log g, or log(eps + g), any shape.
        global_batch_size: G.

    Source: InfoNCE as in CLIP, arXiv:2103.00020, whose denominator holds the positive pair.
    """
    log_sum = log_g + math.log(global_batch_size - 1)
    return torch.logaddexp(log_sum, torch.zeros_like(log_sum)) - math.log(global_batch_size)


def rgcl(log_g_2B: Tensor, temperature: Tensor, *, rho: float, eps: float) -> Tensor:
    """Return the robust global contrastive loss, halved.

    Args:
        log_g_2B: log g of image and text anchors, (2, B).
        temperature: tau, scalar.
        rho: Weight of the temperature's regulariser, in nats.
        eps: The constant inside the logarithm, > 0.

    Source: FastCLIP, arXiv:2407.01445 (RGCL-g); NeuCLIP, arXiv:2511.08417 (RGCL).
    Differs: a common factor 1/2, as the authors' FastCLIP code has it.
    """
    return temperature * (add_eps(log_g_2B, eps).sum(dim=0).mean() / 2 + rho)


def unified(log_gamma_2B: Tensor, alpha_2B: Tensor, temperature: Tensor, *, rho: float) -> Tensor:
    """Return the one objective that both blocks minimise, halved.

    Args:
        log_gamma_2B: log(eps + g) of image and text anchors, (2, B): `engine.contrastive.add_eps` of log g.
        alpha_2B: Log-normalizers, (2, B); detach them to treat them as constants.
        temperature: tau, scalar.
        rho: Weight of the temperature's regulariser, in nats.

    Source: NeuCLIP, arXiv:2511.08417 (UNIFIED). Differs: a common factor 1/2, see `rgcl`.
    """
    return temperature * (conjugate(log_gamma_2B, alpha_2B).sum(dim=0).mean() / 2 + rho)
