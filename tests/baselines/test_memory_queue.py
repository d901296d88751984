"""CLIP with a memory queue, against a transcription of its sums with a list for the queue."""

import math

import pytest
import torch
from support.small import assert_same_step, make_method, progress_of, random_features

from engine.method import Features


def slow_loss(features: Features, queue: list[tuple[torch.Tensor, torch.Tensor, int]], scale: float) -> torch.Tensor:
    """The loss by its definition, one exponential at a time; `queue` has image, text and position of past pairs."""
    image_BD, text_BD = features.image_BD, features.text_BD
    total = torch.zeros((), dtype=torch.float64)
    for i, own in enumerate(features.index_B.tolist()):
        positive = image_BD[i] @ text_BD[i]
        image_sum, text_sum = torch.ones((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
        for j in range(len(image_BD)):
            if j != i:
                image_sum = image_sum + torch.exp(scale * (image_BD[i] @ text_BD[j] - positive))
                text_sum = text_sum + torch.exp(scale * (text_BD[i] @ image_BD[j] - positive))
        for past_image, past_text, position in queue:
            if position != own:
                image_sum = image_sum + torch.exp(scale * (image_BD[i] @ past_text - positive))
                text_sum = text_sum + torch.exp(scale * (text_BD[i] @ past_image - positive))
        total = total + (image_sum.log() + text_sum.log()) / 2
    return total / len(image_BD)


@pytest.mark.parametrize("chunk_rows", [3, 1024])
def test_the_loss_and_its_gradients_are_those_of_the_definition(chunk_rows: int) -> None:
    method = make_method("memory_queue", dtype=torch.float64, queue_batches=2, chunk_rows=chunk_rows)
    queue: list[tuple[torch.Tensor, torch.Tensor, int]] = []
    # Two batches fill the queue, the others replace its oldest; of 20 pairs, many come back.
    for step in range(5):
        ours, theirs = random_features(step), random_features(step)
        total = method.loss(ours, progress_of(method, step)).total
        expected = slow_loss(theirs, queue, float(method.logit_scale.detach()))
        total.backward()
        expected.backward()
        assert_same_step(ours, theirs, total, expected)
        sides = (ours.image_BD.detach(), ours.text_BD.detach(), ours.index_B.tolist())
        queue = [*queue, *zip(*sides, strict=True)][-16:]


def test_the_normalizers_are_means_over_batch_and_queue() -> None:
    method = make_method("memory_queue", dtype=torch.float64, queue_batches=2)
    past, now = random_features(0), random_features(1)
    method.loss(past, progress_of(method, 0))
    log_g_image_B, log_g_text_B = method.log_normalizers(now, progress_of(method, 1))
    sides = [side.detach() for side in (now.image_BD, now.text_BD, past.image_BD, past.text_BD)]
    image_BD, text_BD, past_image_BD, past_text_BD = sides

    for i, own in enumerate(now.index_B.tolist()):
        positive = float(image_BD[i] @ text_BD[i])
        for log_g_B, anchor, others, earlier in (
            (log_g_image_B, image_BD[i], text_BD, past_text_BD),
            (log_g_text_B, text_BD[i], image_BD, past_image_BD),
        ):
            cosines = [float(anchor @ other) for j, other in enumerate(others) if j != i]
            cosines += [float(anchor @ e) for e, at in zip(earlier, past.index_B.tolist(), strict=True) if at != own]
            mean = sum(math.exp((cosine - positive) / 0.07) for cosine in cosines) / len(cosines)
            assert float(log_g_B[i]) == pytest.approx(math.log(mean), rel=1e-6)
