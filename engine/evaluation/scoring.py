"""Compute metrics that clip_benchmark lacks, and recall at k.

The metrics are those of DataComp's other tasks. Recall is equal to clip_benchmark's to the last bit, without its
one-hot matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.schema.evaluation import Outcomes

MIN_GROUP = 100
"""Images that a group needs to count in the steadier ``_min100`` form of a worst-group accuracy."""


def mean_per_class_recall(true: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    """Mean over the classes that occur in `true` of the share that was recognised; both (N,)."""
    return float(np.mean([np.mean(predicted[true == label] == label) for label in np.unique(true)]))


def macro_f1(true: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    """Mean of the F1 scores of the classes that occur in `true` (WILDS, iWildCam).

    Args:
        true: Labels, (N,).
        predicted: Predicted labels, (N,); other classes than those of `true` cost precision only.
    """
    scores = []
    for label in np.unique(true):
        hits = np.count_nonzero((true == label) & (predicted == label))
        scores.append(2 * hits / (np.count_nonzero(true == label) + np.count_nonzero(predicted == label)))
    return float(np.mean(scores))


def worst_group(hit: NDArray[np.bool_], group: NDArray[np.int64], min_size: int = 1) -> float:
    """Lowest share of hits over the groups that occur.

    Args:
        hit: Whether each image was classified rightly, (N,).
        group: Its group, (N,).
        min_size: Smaller groups do not count; NaN if none does.
    """
    ids, inverse, counts = np.unique(group, return_inverse=True, return_counts=True)
    shares = np.bincount(inverse, weights=hit, minlength=len(ids)) / counts
    return float(np.min(shares[counts >= min_size], initial=np.inf)) if (counts >= min_size).any() else float("nan")


def in_top(logits: Tensor, labels: Tensor, k: int) -> NDArray[np.bool_]:
    """Tell whether each label (N,) is among the k largest logits of its row of (N, C)."""
    found: NDArray[np.bool_] = (logits.topk(k, dim=1).indices == labels[:, None]).any(dim=1).numpy()
    return found


def jaccard(scores: NDArray[np.float32], is_association: NDArray[np.bool_]) -> float:
    """Jaccard index of the candidates chosen and those associated, for one cue (WinoGAViL).

    As many candidates as are associated are chosen, those with the highest scores.

    Args:
        scores: Similarity of each candidate to the cue, (candidates,).
        is_association: Which candidates go with it, (candidates,); at least one.
    """
    chosen = np.zeros_like(is_association)
    chosen[np.argsort(scores)[-np.count_nonzero(is_association) :]] = True
    return float(np.count_nonzero(chosen & is_association) / np.count_nonzero(chosen | is_association))


def cue_prompt(cue: str) -> str:
    """Return the prompt of a WinoGAViL cue: "A ..." or, before a vowel, "An ...", in lower case."""
    cue = cue.lower()
    return f"{'An' if cue[0] in 'aeiou' else 'A'} {cue}"


def count_outcomes(stratum: NDArray[np.int64], *outcome: NDArray[Any]) -> Outcomes:
    """Count samples of equal stratum and outcome; all (N,)."""
    rows, counts = np.unique(np.column_stack([stratum, *outcome]).astype(float), axis=0, return_counts=True)
    return Outcomes(
        stratum=tuple(int(row[0]) for row in rows),
        outcome=tuple(tuple(row[1:].tolist()) for row in rows),
        count=tuple(counts.tolist()),
    )


def retrieval_hits(
    image_ND: Tensor, text_MD: Tensor, image_of_text: Sequence[int], ks: Sequence[int]
) -> dict[str, Tensor]:
    """Tell whether one of the k best is a right one, in both directions; the means are recalls at k.

    Args:
        image_ND: Unit embeddings of N images.
        text_MD: Unit embeddings of M texts.
        image_of_text: The image of each text; an image without a text counts as a miss.
        ks: k that exceed the number of candidates are left out.

    Returns:
        ``image_retrieval_recall@k``, (M,) bool, and ``text_retrieval_recall@k``, (N,). The best k are taken with the
        calls that clip_benchmark makes, so that ties fall as they do there.
    """
    scores_MN = text_MD @ image_ND.t()
    right_MN = torch.zeros_like(scores_MN, dtype=torch.bool)
    right_MN[torch.arange(len(scores_MN)), torch.as_tensor(image_of_text)] = True
    hits = {}
    for k in ks:
        for name, scores, right in (
            ("image_retrieval", scores_MN, right_MN),
            ("text_retrieval", scores_MN.T, right_MN.T),
        ):
            if k <= scores.shape[1]:
                hits[f"{name}_recall@{k}"] = right.gather(1, scores.topk(k, dim=1).indices).any(dim=1)
    return hits
