import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.oracle import assert_step, every_dtype, load_case
from support.small import assert_same_step, features_of, make_method, opposite_features, progress_of, random_features
from torch import Tensor

from engine.method import Features

CHUNKS = [4096, 3, 1]
"""A batch within one chunk goes to open_clip's own loss; uneven chunks; one row at a time."""


@pytest.mark.parametrize("chunk_rows", CHUNKS)
@every_dtype
def test_the_loss_and_its_gradients_are_those_of_open_clip(
    dtype: torch.dtype, value_tolerance: float, grad_tolerance: float, chunk_rows: int
) -> None:
    case = load_case("open_clip/clip_tau0.07")
    method = make_method("openclip", dtype=dtype, chunk_rows=chunk_rows)
    with torch.no_grad():
        method.temperature.log_scale.fill_(float(case["log_scale"]))
    features = features_of(case["image"], case["text"], dtype=dtype)

    total = method.loss(features, progress_of(method, 0)).total
    total.backward()

    assert_step(case, total, features, method.temperature.log_scale, value_tolerance, grad_tolerance)


def info_nce(features: Features, scale: float) -> Tensor:
    pairs = range(len(features.index_B))
    total = torch.zeros((), dtype=torch.float64)
    for anchors, others in ((features.image_BD, features.text_BD), (features.text_BD, features.image_BD)):
        for i in pairs:
            logits = [scale * anchors[i] @ others[j] for j in pairs]
            total = total - (logits[i] - torch.stack(logits).exp().sum().log()) / (2 * len(pairs))
    return total


@settings(max_examples=8, deadline=None)
@given(
    num_pairs=st.integers(2, 6),
    dim=st.integers(1, 5),
    temperature=st.floats(0.02, 1),
    chunk_rows=st.sampled_from(CHUNKS),
    seed=st.integers(0, 999),
)
def test_the_loss_is_info_nce(num_pairs: int, dim: int, temperature: float, chunk_rows: int, seed: int) -> None:
    method = make_method(
        "openclip",
        dtype=torch.float64,
        global_batch_size=num_pairs,
        temperature={"init": temperature},
        chunk_rows=chunk_rows,
    )
    mine, theirs = (random_features(seed, num_pairs=num_pairs, dim=dim) for _ in range(2))

    total = method.loss(mine, progress_of(method, 0)).total
    total.backward()
    expected = info_nce(theirs, method.logit_scale.item())
    expected.backward()

    assert_same_step(mine, theirs, total, expected)


def test_the_temperature_is_kept_within_its_bounds() -> None:
    method = make_method("openclip")
    with torch.no_grad():
        method.temperature.log_scale.fill_(9.0)

    method.after_step(progress_of(method, 0))

    assert method.logit_scale.item() == pytest.approx(100)


def test_a_start_outside_the_bounds_is_refused() -> None:
    with pytest.raises(ValueError, match=r"init = 0.005 lies outside \[minimum, maximum\]"):
        make_method("openclip", temperature={"init": 0.005})


def test_the_normalizers_are_the_batch_s_own() -> None:
    method = make_method("openclip", dtype=torch.float64, global_batch_size=2, temperature={"init": 0.5})
    features = opposite_features(matched=True, dtype=torch.float64)

    log_g_image, log_g_text = method.log_normalizers(features, progress_of(method, 0))

    # One stranger at cosine -1, the partner at 1: log exp((-1 - 1) / 0.5).
    assert log_g_image.tolist() == pytest.approx([-4.0, -4.0])
    assert log_g_text.tolist() == pytest.approx([-4.0, -4.0])
