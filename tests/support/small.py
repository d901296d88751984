"""Small methods, batches and training steps for tests."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from engine.distributed import Collectives
from engine.method import Features, Method, MethodEnv, Progress
from support.methods import method_class, resolve_config


def make_method(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    collectives: Collectives | None = None,
    embed_dim: int = 16,
    dataset_size: int = 20,
    global_batch_size: int = 8,
    steps_per_epoch: int = 2,
    num_steps: int = 80,
    seed: int = 0,
    shares_pairs: bool = False,
    **options: Any,
) -> Method:
    """Build a method by name, as the engine does, with its options as keywords."""
    env = MethodEnv(
        embed_dim=embed_dim,
        dataset_size=dataset_size,
        global_batch_size=global_batch_size,
        steps_per_epoch=steps_per_epoch,
        num_steps=num_steps,
        seed=seed,
        collectives=collectives or Collectives(),
        shares_pairs=shares_pairs,
    )
    return method_class(name)(resolve_config(name, options), env).to(dtype)


def progress_of(method: Method, step: int) -> Progress:
    """Return the place of a step in a run of the method's environment."""
    env = method.env
    return Progress(step, env.steps_per_epoch, env.num_steps, env.global_batch_size)


def features_of(image: Any, text: Any, index: Any = None, *, dtype: torch.dtype = torch.float64) -> Features:
    """Wrap arrays as a batch whose embeddings are leaves with gradient; positions default to 0, 1, 2, ..."""
    image_BD, text_BD = (torch.as_tensor(side).to(dtype).clone().requires_grad_() for side in (image, text))
    index_B = torch.arange(len(image_BD)) if index is None else torch.as_tensor(index)
    return Features(image_BD, text_BD, index_B)


def random_features(
    seed: int, *, num_pairs: int = 8, dim: int = 16, dataset_size: int = 20, dtype: torch.dtype = torch.float64
) -> Features:
    """Draw unit embeddings of loosely matching pairs, and distinct positions."""
    generator = torch.Generator().manual_seed(seed)
    image, noise = torch.randn(2, num_pairs, dim, generator=generator, dtype=torch.float64)
    image, text = (torch.nn.functional.normalize(side, dim=1) for side in (image, image + noise))
    index = torch.randperm(dataset_size, generator=generator)[:num_pairs]
    return features_of(image, text, index, dtype=dtype)


def with_extra(method: Method, features: Features, *, seed: int = 0) -> Features:
    """Add the pairs that a method wants beyond a batch, as the engine does: random ones, some of them in the batch."""
    if not method.num_extra_pairs:
        return features
    env, dtype = method.env, features.image_BD.dtype
    generator = torch.Generator().manual_seed(1000 + seed)
    index_K = torch.randint(env.dataset_size, (method.num_extra_pairs,), generator=generator)
    size = (2, len(index_K), features.image_BD.shape[1])
    sides = torch.nn.functional.normalize(torch.randn(size, generator=generator, dtype=torch.float64), dim=2).to(dtype)
    return dataclasses.replace(features, extra=Features(*sides, index_K))


def local_part(features: Features, collectives: Collectives) -> Features:
    """Take a process's rows of a global batch."""
    rows = len(features.index_B) // collectives.world_size
    part = slice(collectives.rank * rows, (collectives.rank + 1) * rows)
    sides = (features.image_BD[part], features.text_BD[part])
    local = features_of(*(side.detach() for side in sides), features.index_B[part], dtype=features.image_BD.dtype)
    return dataclasses.replace(local, extra=features.extra)


def train_step(method: Method, step: int, features: Features, *, lr: float = 0.01) -> dict[str, Tensor]:
    """Take a step of gradient descent on the method's parameters from this process's rows of a global batch.

    Returns:
        The loss, its gradients with respect to the rows of all processes, and the log-normalizers after the step.
    """
    ours = method.env.collectives
    local = local_part(with_extra(method, features, seed=step), ours)
    output = method.loss(local, progress_of(method, step))
    output.total.backward()
    with torch.no_grad():
        for group in method.param_groups():
            for parameter in group.params:
                assert parameter.grad is not None
                parameter -= lr * ours.all_reduce(parameter.grad, "mean")
                parameter.grad = None
    method.after_step(progress_of(method, step))
    assert local.image_BD.grad is not None
    assert local.text_BD.grad is not None
    normalizers = method.log_normalizers(local, progress_of(method, step))
    return {
        "loss": ours.all_reduce(output.total.detach().clone(), "mean"),
        "grad_image": ours.gather(local.image_BD.grad) / ours.world_size,
        "grad_text": ours.gather(local.text_BD.grad) / ours.world_size,
        "log_g_image": ours.gather(normalizers[0]),
        "log_g_text": ours.gather(normalizers[1]),
    }


def opposite_features(*, matched: bool, dtype: torch.dtype = torch.float32) -> Features:
    """Two opposite pairs: partners have cosine 1 and strangers -1, or the reverse if not `matched`."""
    image = torch.eye(2, 16)[:1] * torch.tensor([[1.0], [-1.0]])
    return features_of(image, image if matched else -image, dtype=dtype)


def assert_same_step(mine: Features, theirs: Features, total: Tensor, expected: Tensor) -> None:
    """Hold a loss and the gradients in both sides of a batch against those of its definition."""
    torch.testing.assert_close(total, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(mine.image_BD.grad, theirs.image_BD.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(mine.text_BD.grad, theirs.text_BD.grad, rtol=1e-9, atol=1e-12)
