"""Compute all metrics from scores of candidates.

They are clip_benchmark's and those of DataComp's other tasks, and equal to theirs to the last bit where no two scores
are. Equal scores share what they get, where clip_benchmark takes the first: a model that tells nothing apart has what
guessing has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.data import order
from engine.schema.evaluation import Outcomes

MIN_GROUP = 100
"""Images that a group needs to count in the steadier ``_min100`` form of a worst-group accuracy."""


def mean_per_class_recall(true: NDArray[np.int64], hit: NDArray[np.float64]) -> float:
    """Mean over the classes that occur in `true` of the share that was recognised; both (N,)."""
    return float(np.mean([np.mean(hit[true == label]) for label in np.unique(true)]))


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


def worst_group(hit: NDArray[np.float64], group: NDArray[np.int64], min_size: int = 1) -> float:
    """Lowest share of hits over the groups that occur.

    Args:
        hit: Whether each image was classified rightly, (N,).
        group: Its group, (N,).
        min_size: Smaller groups do not count; NaN if none does.
    """
    ids, inverse, counts = np.unique(group, return_inverse=True, return_counts=True)
    shares = np.bincount(inverse, weights=hit, minlength=len(ids)) / counts
    return float(np.min(shares[counts >= min_size], initial=np.inf)) if (counts >= min_size).any() else float("nan")


def hits(scores_NC: Tensor, right_NC: Tensor, ks: Sequence[int]) -> dict[int, Tensor]:
    """Tell by k how probable it is that one of the k best is a right one, if lots are drawn among equal scores.

    Without a tie that is 0 or 1. A model that gives all candidates one score has what guessing has.

    Args:
        scores_NC: Scores of C candidates in N rows; finite.
        right_NC: Which of them are right, bool; a row without any is a miss.
        ks: Numbers of candidates that are taken, at most C.

    Returns:
        By k, (N,) float64.
    """
    best_N1 = scores_NC.masked_fill(~right_NC, -math.inf).amax(dim=1, keepdim=True)
    tied_NC = scores_NC == best_N1
    above_N, tied_N = (scores_NC > best_N1).sum(dim=1), tied_NC.sum(dim=1)
    wrong_N = tied_N - (tied_NC & right_NC).sum(dim=1)
    found = {}
    for k in ks:
        places_N = k - above_N
        found[k] = (places_N > 0).double()
        for row in ((places_N > 0) & (wrong_N >= places_N)).nonzero()[:, 0].tolist():
            places, tied, wrong = (int(counts[row]) for counts in (places_N, tied_N, wrong_N))
            found[k][row] = 1 - math.comb(wrong, places) / math.comb(tied, places)
    return found


def best_drawn(scores_NC: Tensor) -> NDArray[np.int64]:
    """Return the column of each row's highest score, (N,); of equal ones one that is drawn by the row's number."""
    tied_NC = scores_NC == scores_NC.amax(dim=1, keepdim=True)
    lots_N = order.hash_keys(np.arange(len(scores_NC)), seed=0, epoch=0, purpose=order.TIE_KEYS)
    chosen_N = torch.from_numpy((lots_N % tied_NC.sum(dim=1).numpy().astype(np.uint64)).astype(np.int64))
    place_NC = tied_NC.cumsum(dim=1) - 1
    predicted: NDArray[np.int64] = (tied_NC & (place_NC == chosen_N[:, None])).int().argmax(dim=1).numpy()
    return predicted


def jaccard(scores: NDArray[np.float32], is_association: NDArray[np.bool_]) -> float:
    """Jaccard index of the candidates chosen and those associated, for one cue (WinoGAViL).

    As many candidates as are associated are chosen, those with the highest scores. Of equal scores it is the mean over
    all choices.

    Args:
        scores: Similarity of each candidate to the cue, (candidates,); finite.
        is_association: Which candidates go with it, (candidates,); at least one.
    """
    size = np.count_nonzero(is_association)
    lowest = np.sort(scores)[-size]
    sure, tied = scores > lowest, scores == lowest
    sure_hits, right = (np.count_nonzero(some & is_association) for some in (sure, tied))
    places, num_tied = size - np.count_nonzero(sure), np.count_nonzero(tied)
    ways = {
        sure_hits + hits: math.comb(right, hits) * math.comb(num_tied - right, places - hits)
        for hits in range(min(right, places) + 1)
    }
    return sum(way * hits / (2 * size - hits) for hits, way in ways.items()) / math.comb(num_tied, places)


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
    """Tell by `hits` whether one of the k best is a right one, in both directions; the means are recalls at k.

    Args:
        image_ND: Unit embeddings of N images.
        text_MD: Unit embeddings of M texts.
        image_of_text: The image of each text; an image without a text counts as a miss.
        ks: k that exceed the number of candidates are left out.

    Returns:
        ``image_retrieval_recall@k``, (M,), and ``text_retrieval_recall@k``, (N,).
    """
    scores_MN = text_MD @ image_ND.t()
    right_MN = torch.zeros_like(scores_MN, dtype=torch.bool)
    right_MN[torch.arange(len(scores_MN)), torch.as_tensor(image_of_text)] = True
    both = (("image_retrieval", scores_MN, right_MN), ("text_retrieval", scores_MN.T, right_MN.T))
    return {
        f"{name}_recall@{k}": found
        for name, scores, right in both
        for k, found in hits(scores, right, [k for k in ks if k <= scores.shape[1]]).items()
    }
