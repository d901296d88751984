"""NeuCLIP minus every variant of the other methods: is one of them as good?"""

from __future__ import annotations

import pandas as pd

from analysis import cells, stats, style
from analysis import frame as tidy
from analysis.table import Row, Table

KINDS = ("average",)


def table(frame: pd.DataFrame) -> Table | None:
    """Build the rows of NeuCLIP's main run, and of each of its variants that other methods have too.

    A row is a variant of another method in one setting and score.
    """
    frame = tidy.final_scores(frame)
    ours = tidy.main_method(frame)
    rows: list[Row] = []
    for label, setting in tidy.settings(frame):
        named = setting.assign(method=list(map(style.variant, setting["method"], setting["variant"])))
        is_ours = setting["method"] == ours
        for variant in tidy.variants(setting[is_ours]):
            first, of_variant = style.variant(ours, variant), setting["variant"] == variant
            compared = of_variant if variant else is_ours == of_variant
            curves = [style.variant(*curve) for curve in tidy.curves(setting[compared])]
            for score in tidy.scores(setting):
                of_score = named[compared & (named["name"] == score.name)]
                tests = stats.paired_differences(of_score, first=first).to_dict("index")
                shown = [name for name in curves if name in tests]
                rows += [(label, first, score.title, name, *cells.difference(tests[name])) for name in shown]
    name = style.method(ours).name
    return Table(
        title=f"{name} minus variants of the other methods in points, mean ± half-width of the 95 % interval over "
        "paired seeds",
        header=("Setting", "Method", "Score", "Minus", "Difference", "p", "p (Holm)", "Pairs"),
        rows=tuple(rows),
        num_keys=4,
        notes=(
            f"{name}'s main run is compared with every variant of another method, its variants with the same of other "
            "methods. Paired by seed: same data order and initialisation. Two-sided paired t test, from "
            f"{stats.MIN_PAIRS_TO_TEST} pairs on; Holm's correction runs over the rows of one method, setting, score.",
            *cells.guessed(frame),
        ),
    )
