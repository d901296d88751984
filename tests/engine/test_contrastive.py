import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.contrastive import log_partitions


def unit(rows, dim, seed):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, dtype=torch.float64, generator=generator), dim=1)


def slow(image, text, scale):
    """g1_i = 1/(B-1) sum over j != i of exp(s (x_i . y_j - x_i . y_i)), one term at a time."""
    size = len(image)
    dot = [[float(image[i] @ text[j]) for j in range(size)] for i in range(size)]
    g1 = [sum(math.exp(scale * (dot[i][j] - dot[i][i])) for j in range(size) if j != i) for i in range(size)]
    g2 = [sum(math.exp(scale * (dot[j][i] - dot[i][i])) for j in range(size) if j != i) for i in range(size)]
    return ([math.log(g / (size - 1)) for g in side] for side in (g1, g2))


@given(
    st.integers(2, 9), st.integers(1, 6), st.sampled_from([1.0, 14.3, 100.0]), st.integers(1, 12), st.integers(0, 99)
)
@settings(max_examples=40, deadline=None)
def test_it_is_the_equation(size, dim, scale, chunk_rows, seed):
    image, text = unit(size, dim, seed), unit(size, dim, seed + 1)
    found = log_partitions(image, text, image, text, torch.tensor(scale, dtype=torch.float64), chunk_rows=chunk_rows)
    for ours, theirs in zip(found, slow(image, text, scale), strict=True):
        torch.testing.assert_close(ours, torch.tensor(theirs, dtype=torch.float64), rtol=1e-10, atol=1e-10)


def test_its_gradient_is_that_of_the_equation():
    inputs = [unit(5, 3, 0).requires_grad_(), unit(5, 3, 1).requires_grad_()]
    scale = torch.tensor(14.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, y, s: log_partitions(x, y, x, y, s, chunk_rows=2), (*inputs, scale))


def test_a_single_pair_is_refused():
    with pytest.raises(ValueError, match="at least 2 pairs, got 1"):
        log_partitions(unit(1, 3, 0), unit(1, 3, 1), unit(1, 3, 0), unit(1, 3, 1), torch.tensor(1.0))


def to_tf32(x, bits_added):
    """Keep 10 bits of mantissa, as a GPU does before it multiplies."""
    return ((x.float().view(torch.int32) + bits_added) & ~0x1FFF).view(torch.float32).double()


@pytest.mark.parametrize(("bits_added", "bound"), [(0, 2**-9), (0x1000, 2**-10)], ids=["cut off", "rounded to nearest"])
@pytest.mark.parametrize("temperature", [0.01, 0.07])
def test_tf32_moves_log_g_by_no_more_than_the_run_s_setting_says(temperature, bits_added, bound):
    worst = 0.0
    for seed in range(10):
        image, text = (unit(64, 16, seed + side).float().double() for side in (0, 100))
        positive = (image * text).sum(dim=1)  # no matrix product: it is not rounded
        own = torch.eye(64, dtype=torch.bool)
        exact, rounded = (
            ((x @ y.T - positive[:, None]) / temperature).masked_fill(own, -math.inf).logsumexp(dim=1)
            for x, y in ((image, text), (to_tf32(image, bits_added), to_tf32(text, bits_added)))
        )
        worst = max(worst, float((rounded - exact).abs().max()))
    assert 0.05 * bound < worst * temperature <= bound
