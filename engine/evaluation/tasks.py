"""Let a model answer an evaluation set, by its task."""

from __future__ import annotations

import math
import sys
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.evaluation import card_files, reading, scoring
from engine.evaluation.model import Model
from engine.evaluation.pictures import ImageBatches
from engine.evaluation.reading import EvalData
from engine.schema.evaluation import WORST_GROUP, Outcomes

RECALL_AT = (1, 5, 10)


class NotFiniteError(ValueError):
    """A model's embeddings are not finite: no metric of them means anything."""


class Answer(NamedTuple):
    """The metrics of a model on a set, and the outcomes behind the main one."""

    metrics: dict[str, float]
    outcomes: Outcomes


def _finite(data: EvalData, what: str, embedding_ND: Tensor) -> Tensor:
    """Return embeddings that are finite.

    Raises:
        NotFiniteError: If one is not; says how many.
    """
    wrong = int((~embedding_ND.isfinite()).any(dim=1).sum())
    if wrong:
        raise NotFiniteError(
            f"evaluation set {data.card.name!r}: the embeddings of {wrong} of {len(embedding_ND)} {what} are not finite"
        )
    return embedding_ND


def _classification(data: EvalData, model: Model, images: ImageBatches) -> Answer:
    class_CD = _finite(data, "classes", model.classifier(data.classes, data.templates))
    image_ND = _finite(data, "images", model.unit_images(images))
    class_DC, size = class_CD.T.contiguous(), model.batch_size
    # In clip_benchmark's parts, since rounding depends on the size of a product.
    parts = (image_ND[start : start + size] for start in range(0, len(image_ND), size))
    score_NC = torch.cat([100.0 * part @ class_DC for part in parts])
    metric, group_by, num_classes = data.card.metric, data.card.group_by, len(data.classes)
    if group_by is not None and WORST_GROUP[metric] > num_classes:
        reading.fail(data.card, f"{metric} is not defined with {num_classes} classes")
    right_NC = torch.from_numpy(data.labels)[:, None] == torch.arange(num_classes)
    found = scoring.hits(score_NC, right_NC, (1, 5) if num_classes >= 5 else (1,))
    hit_N, true_N = found[1].numpy(), data.labels
    metrics = {f"acc{k}": float(hit.sum()) / len(hit) for k, hit in found.items()}
    metrics["mean_per_class_recall"] = scoring.mean_per_class_recall(true_N, hit_N)
    if metric == "F1-macro_all":
        predicted_N = scoring.best_drawn(score_NC)
        metrics[metric] = scoring.macro_f1(true_N, predicted_N)
        return Answer(metrics, scoring.count_outcomes(true_N, predicted_N))
    if group_by is not None:
        hit_N, group_N = found[WORST_GROUP[metric]].numpy(), data.column(group_by)
        metrics[metric] = scoring.worst_group(hit_N, group_N)
        smallest = scoring.MIN_GROUP
        metrics[f"{metric}_min{smallest}"] = scoring.worst_group(hit_N, group_N, smallest)
        return Answer(metrics, scoring.count_outcomes(group_N, hit_N))
    return Answer(metrics, scoring.count_outcomes(np.zeros_like(true_N) if metric == "acc1" else true_N, hit_N))


def _retrieval(data: EvalData, model: Model, images: ImageBatches) -> Answer:
    image_ND = _finite(data, "images", model.unit_images(images))
    text_MD = _finite(data, "captions", model.unit_captions(data.captions))
    image_of_text = [row for row, texts in enumerate(data.captions) for _ in texts]
    found = scoring.retrieval_hits(image_ND, text_MD, image_of_text, RECALL_AT)
    metrics = {name: hit.float().mean().item() for name, hit in found.items()}
    both = ("image_retrieval_recall@1", "text_retrieval_recall@1")
    found_M, finds_N = (found[name].numpy() for name in both)
    num_images = len(data.captions)
    outcomes = scoring.count_outcomes(
        np.zeros(num_images, np.int64),
        np.bincount(image_of_text, weights=found_M, minlength=num_images),
        np.bincount(image_of_text, minlength=num_images),
        finds_N,
    )
    return Answer({**metrics, "mean_recall@1": sum(metrics[name] for name in both) / 2}, outcomes)


def _selection(data: EvalData, model: Model, images: ImageBatches) -> Answer:
    _look_for_equal_choices(data, model)
    image_ND = _finite(data, "images", model.unit_images(images))
    text_MD = _finite(data, "captions", model.unit_captions(data.captions))
    choices_NKD = text_MD.view(len(image_ND), -1, text_MD.shape[1])
    # One by one, as clip_benchmark does: another product would round otherwise.
    score_NK = torch.stack([image @ choices.T for image, choices in zip(image_ND[:, None], choices_NKD, strict=True)])
    right_NK = (torch.arange(choices_NKD.shape[1]) == 0).expand(len(image_ND), -1)
    hit_N = scoring.hits(score_NK[:, 0], right_NK, (1,))[1]
    outcomes = scoring.count_outcomes(np.zeros(len(hit_N), np.int64), hit_N.numpy())
    return Answer({"text_acc": hit_N.float().mean().item()}, outcomes)


def _look_for_equal_choices(data: EvalData, model: Model) -> None:
    """Refuse choices of a picture that are the same to this model: their tokens are equal once they are cut.

    Of a published set only warn: it is what others evaluate on, too.
    """
    alike = []
    for location, choices in zip(data.locations, data.captions, strict=True):
        seen: dict[tuple[int, ...], str] = {}
        for caption, tokens in zip(choices, model.tokenizer(choices).tolist(), strict=True):
            if (first := seen.setdefault(tuple(tokens), caption)) != caption:
                alike.append(f"{location.shard}, key {location.key!r}: the captions {first!r} and {caption!r}")
    if not alike:
        return
    problem = f"{alike[0]} have equal tokens for this model, which reads no further; so have {len(alike) - 1} more"
    if not (data.card.fetch or card_files.can_be_fetched(data.card)):
        reading.fail(data.card, f"{problem}; shorten them, or take a model with a longer context")
    sys.stderr.write(f"warning: evaluation set {data.card.name!r}: {problem}; each gets its share of a tie\n")


def _association(data: EvalData, model: Model, images: ImageBatches) -> Answer:
    image_ND = _finite(data, "images", model.unit_images(images))
    row_of = {location.key: row for row, location in enumerate(data.locations)}
    prompts = list(dict.fromkeys(scoring.cue_prompt(instance.cue) for instance in data.instances))
    starts = range(0, len(prompts), model.batch_size)
    vectors = torch.cat([model.unit_texts(prompts[start : start + model.batch_size]) for start in starts])
    vector_of = dict(zip(prompts, _finite(data, "cues", vectors), strict=True))
    scores: dict[str, list[float]] = {}
    for instance in data.instances:
        rows = [row_of[candidate] for candidate in instance.candidates]
        similarity = image_ND[rows] @ vector_of[scoring.cue_prompt(instance.cue)]
        is_association = np.isin(instance.candidates, instance.associations)
        score = scoring.jaccard(similarity.numpy(), is_association)
        parts = ("", "_5-6" if len(rows) <= 6 else "_10-12" if len(rows) >= 10 else "")
        for part in set(parts):
            scores.setdefault(f"jaccard_score{part}", []).append(score)
    main_N = np.array(scores.get(data.card.metric, []))
    outcomes = scoring.count_outcomes(np.zeros(len(main_N), np.int64), main_N)
    return Answer({name: math.fsum(values) / len(values) for name, values in scores.items()}, outcomes)


TASKS = {
    "zeroshot_classification": _classification,
    "zeroshot_retrieval": _retrieval,
    "image_caption_selection": _selection,
    "association": _association,
}


def answer_set(data: EvalData, model: Model) -> Answer:
    """Let a model answer one set.

    Returns:
        Metrics as fractions, with the outcomes behind the main one; what is undefined is left out, e.g. acc5 with fewer
        than five classes.

    Raises:
        ValueError: If an image cannot be decoded, or the set does not support its own main metric.
    """
    images = model.images(data)
    answer = TASKS[data.card.task](data, model, images)
    if images.num_transparent:
        sys.stderr.write(
            f"evaluation set {data.card.name!r}: {images.num_transparent} images have an alpha channel; it is dropped "
            "and the colours below it are seen, as in clip_benchmark\n"
        )
    metrics = {name: float(value) for name, value in answer.metrics.items() if math.isfinite(value)}
    if data.card.metric not in metrics:
        reading.fail(data.card, f"it has no {data.card.metric}, only {', '.join(metrics)}")
    return Answer(metrics, answer.outcomes)
