"""Every method at every batch size with the variant of it that is best on validation sets, beside OpenCLIP."""

from __future__ import annotations

import dataclasses

import pandas as pd

from analysis import frame as tidy
from analysis import style
from analysis.table import Table
from analysis.tables import quality_by_size

KINDS = ("average", "validation")
SUITES = ("ablation_batch_size_lr*",)


def build(frame: pd.DataFrame) -> Table:
    """Build the rows of `quality_by_size` from the variants that are chosen."""
    finals = frame[frame["is_final"] & frame["is_main"]]
    place = ["dataset", "model", "global_batch_size", "method"]
    validation = finals[finals["kind"] == "validation"]
    # A variant of which a run diverged is never chosen, as in tuning.
    means = validation.groupby([*place, "variant"])["value"].agg(lambda values: values.mean(skipna=False)).dropna()
    chosen = means.index[means.groupby(place).rank(ascending=False, method="first") == 1]
    scores = tidy.final_scores(finals)
    is_chosen = pd.MultiIndex.from_frame(scores[[*place, "variant"]]).isin(chosen)
    named = [
        f"{style.variant(str(method), str(variant))} at a batch of {size}"
        for _, _, size, method, variant in sorted(chosen, key=lambda one: one[2:])
        if variant
    ]
    if validation.empty:
        nothing = "No validation scores: every set is in an average, or the frame is of an earlier version."
        return dataclasses.replace(quality_by_size.tabulate(scores[:0]), notes=(nothing,))
    found = (
        f"Chosen by the mean over seeds: {'; '.join(named)}. All others: the main run."
        if named
        else "No variant is better on validation sets than the main run."
    )
    return quality_by_size.tabulate(
        scores[is_chosen], which=", each method with its variant that is best on validation sets", notes=(found,)
    )
