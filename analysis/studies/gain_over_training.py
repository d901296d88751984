"""NeuCLIP minus each baseline at the first milestone and at the end: whether the difference grows."""

from __future__ import annotations

import pandas as pd

from analysis import frame as tidy
from analysis import stats, style
from analysis.table import Cell, Row, Table

KINDS = ("average",)


def table(frame: pd.DataFrame) -> Table | None:
    """Build one row per setting, average and baseline."""
    frame = tidy.main_runs(frame)
    main_method = tidy.main_method(frame)
    rows: list[Row] = []
    shares = set()
    for label, part in tidy.settings(frame):
        first, last = part["samples_seen"].min(), part["samples_seen"].max()
        if first == last:
            continue
        shares.add(f"{100 * first / last:.0f} %")
        for score in tidy.scores(part):
            of_score = part[part["name"] == score.name].pivot(
                index=["method", "seed"], columns="samples_seen", values="value"
            )
            early, late = (of_score[samples].rename("value") for samples in (first, last))
            tests = [
                stats.paired_differences(values.reset_index(), first=main_method).to_dict("index")
                for values in (early, late, late - early)
            ]
            for baseline in style.ordered(map(str, tests[0])):
                growth = tests[2][baseline]
                rows.append(
                    (
                        label,
                        score.title,
                        style.method(baseline).name,
                        *(
                            Cell(100 * test[baseline]["mean"], 100 * test[baseline]["half_width"], form="+.1f")
                            for test in tests
                        ),
                        *(Cell(growth[name], form=style.p_form(growth[name])) for name in ("p", "p_holm")),
                        Cell(growth["n"], form="d"),
                    )
                )
    notes = (
        f"First: after {' or '.join(sorted(shares))} of the samples. Growth: the difference at the end minus that one, "
        f"paired by seed; two-sided t test from {stats.MIN_PAIRS_TO_TEST} seeds on, Holm-corrected over the baselines "
        "of one score.",
        "Learning rates fall to zero over the run: a score within it is not what a run of that length would end with.",
    )
    return Table(
        title=f"{style.method(main_method).name} minus each baseline in points at the first milestone and at the end, "
        "mean ± half-width of the 95 % interval over paired seeds",
        header=("Setting", "Score", "Baseline", "First", "End", "Growth", "p", "p (Holm)", "Pairs"),
        rows=tuple(rows),
        num_keys=3,
        notes=notes if rows else ("No milestone before the end was evaluated.",),
    )
