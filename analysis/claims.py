"""Sentences on a suite's results. They follow from the outcomes of tests alone."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

import pandas as pd

from analysis import frame as tidy
from analysis import headroom, hypotheses, stats, style


def claims(frame: pd.DataFrame, averaged: Collection[str]) -> tuple[str, ...]:
    """State how the main method compares with each baseline, what variants change, and what is missing.

    The score is the suite's first average, or its first set where it has no average.

    Args:
        frame: The tidy frame of one suite.
        averaged: The evaluation sets over which methods are compared set by set: those in the suite's first average.
            None where sets are few or share pictures.

    Returns:
        Sentences: of hypotheses; by setting over seeds, over sets and of variants; of what a larger batch is worth; of
        diverged runs and holes. Never empty.
    """
    final = tidy.final_scores(frame)
    scores = tidy.scores(final)
    if not scores:
        return ("No statement: this suite has no scores.", *_lost(frame))
    title = scores[0].title
    of_score = final[(final["kind"] == scores[0].kind) & (final["name"] == scores[0].name)]
    sets = final[(final["kind"] == "eval") & final["name"].isin(averaged)]
    methods = tidy.methods(tidy.main_runs(final))
    main_method = tidy.main_method(tidy.main_runs(final))
    tested = hypotheses.tested(frame)
    sentences = [_hypothesis(one, title, len(tested)) for one in tested]
    averages = of_score[of_score["kind"] == "average"]
    controls = {run for one in headroom.batches(averages) for run in one.at_large["run_id"]}
    for label, rows in tidy.settings(of_score):
        main = tidy.main_runs(rows)
        # Who claims something before is held to that: the same pair would have another correction below.
        is_open = not tested and not set(main["run_id"]) <= controls
        found = list(_over_seeds(main, title, methods, main_method)) if is_open else []
        found += _over_sets(tidy.main_runs(sets[sets["run_id"].isin(rows["run_id"])]), main_method)
        found += _variants(rows, title)
        sentences += [f"{label}: {sentence}" if label else sentence for sentence in found]
    sentences += [] if tested else _headroom(headroom.gaps(averages), title, main_method)
    return (*sentences, *_lost(frame))


def _hypothesis(one: hypotheses.Tested, title: str, number: int) -> str:
    """Say what came of a claim that the suite made before its first run."""
    difference = one.difference.dropna()
    mean, half_width = 100 * float(difference.mean()), 100 * stats.half_width(difference)
    how = f"n = {len(difference)} seeds"
    if not math.isnan(one.p):
        how = (
            f"95 % interval {mean - half_width:z.1f} to {mean + half_width:z.1f}, {how}, paired t test, Holm-corrected "
            f"over {number} hypotheses {style.p_value(one.p)}"
        )
    by = f"{mean:+z.1f} points" if len(difference) else "no score"
    return f"Hypothesis, {one.verdict}: {one.higher}, above {one.lower}, on {title}: {by} ({how})."


def _over_seeds(rows: pd.DataFrame, title: str, methods: list[str], main_method: str) -> Iterator[str]:
    """Compare the main method with each baseline of the suite, seed by seed."""
    ours = style.method(main_method).name
    baselines = [name for name in methods if name != main_method]
    if main_method not in set(rows["method"]) or not baselines:
        yield f"No statement on {title}: no runs of {ours if baselines else 'baselines'} to compare."
        return
    tests = stats.paired_differences(rows, first=main_method)
    for name in baselines:
        baseline = style.method(name).name
        if name in tests.index:
            yield _comparison(ours, baseline, title, tests.loc[[name]].iloc[0])
        else:
            yield f"No statement on {ours} and {baseline}: no runs of {baseline}."


def _comparison(ours: str, baseline: str, title: str, test: pd.Series) -> str:
    n, mean, half_width, p = int(test["n"]), 100 * test["mean"], 100 * test["half_width"], test["p_holm"]
    both = f"{ours} and {baseline} on {title}"
    if n == 0:
        return f"No statement on {both}: they share no seed that has a score."
    if n == 1:
        return f"One seed: no statement on {both} (the difference of this seed is {mean:+z.1f} points)."
    # "Worse by 1.2 points": the sign is in the word, so difference and interval are turned around.
    sign = -1 if p < stats.SIGNIFICANCE and mean < 0 else 1
    low, high = sorted((sign * mean - half_width, sign * mean + half_width))
    found = f"95 % interval {low:z.1f} to {high:z.1f}, n = {n} seeds"
    if n < stats.MIN_PAIRS_TO_TEST:
        return f"No statement on {both}: {n} seeds are too few to test ({mean:+z.1f} points, {found})."
    if math.isnan(p):
        return f"No statement on {both}: {mean:+z.1f} points in each of {n} seeds, without any spread to test by."
    how = f"{found}, paired t test, Holm-corrected {style.p_value(p)}"
    if p >= stats.SIGNIFICANCE:
        return f"No significant difference between {both}: {mean:+z.1f} points ({how})."
    better = "better" if mean > 0 else "worse"
    return f"{ours} is {better} than {baseline} by {abs(mean):.1f} points on {title} ({how})."


def _headroom(gaps: list[headroom.Gap], title: str, main_method: str) -> Iterator[str]:
    """Say what a larger batch is worth to the baseline, and how much of that the main method gets at the small one."""
    if not gaps:
        return
    both = [{"large": gap.contenders[-1].scores, "small": gap.contenders[0].scores} for gap in gaps]
    values = [pd.concat(scores, names=["method"]).rename("value").reset_index() for scores in both]
    tests = pd.concat([stats.paired_differences(rows, first="large") for rows in values], ignore_index=True)
    tests["p_holm"] = stats.holm(tests["p"])
    for gap, (_, test) in zip(gaps, tests.iterrows(), strict=True):
        small, *others, large = gap.contenders
        where = f"{gap.setting}: " if gap.setting else ""
        yield where + _comparison(f"{large.label},", small.label, title, test)
        if test["p_holm"] < stats.SIGNIFICANCE and test["mean"] > 0:
            for one in others:
                if one.method == main_method and not one.variant:
                    yield where + _closed(one)


def _closed(one: headroom.Contender) -> str:
    """Say how much of a gap that shows a method closes, on the seeds that it shares with both sides of the gap."""
    value, low, high, n = one.closed
    if not math.isfinite(low):
        return f"No statement on how much of that gap {one.label} closes: over their {n} common seeds it does not show."
    return (
        f"{one.label} closes {100 * value:z.0f} % of that gap (95 % interval {100 * low:z.0f} to {100 * high:z.0f} %, "
        f"n = {n} seeds)."
    )


def _over_sets(rows: pd.DataFrame, main_method: str) -> Iterator[str]:
    """Compare the main method with each baseline set by set, where there are enough sets for a test."""
    tests = stats.set_differences(stats.by_set(rows)[tidy.methods(rows)], first=main_method)
    for baseline, test in tests.dropna(subset=["p_holm"]).to_dict("index").items():
        counts = f"better on {test['wins']}, equal on {test['ties']}, worse on {test['losses']}"
        apart = "a significant" if test["p_holm"] < stats.SIGNIFICANCE else "no significant"
        yield (
            f"Over {test['num_sets']} evaluation sets {style.method(main_method).name} is {counts} against "
            f"{style.method(str(baseline)).name}: "
            f"{apart} difference (median {100 * test['median']:+z.1f} points, Wilcoxon's signed-rank test, sets taken "
            f"as independent, Holm-corrected {style.p_value(test['p_holm'])})."
        )


def _variants(rows: pd.DataFrame, title: str) -> Iterator[str]:
    """Count the variants of each method that are better and worse than its main run, and name them."""
    why = f"fewer than {stats.MIN_PAIRS_TO_TEST} common seeds, or no spread"
    untested = []
    for method in tidy.methods(rows):
        part = rows[rows["method"] == method]
        variants = [variant for variant in tidy.variants(part) if variant]
        if not variants or len(variants) == part["variant"].nunique():
            continue  # nothing varies, or there is no main run to compare with
        tested = stats.paired_differences(part.assign(method=part["variant"]), first="").dropna(subset=["p_holm"])
        if tested.empty:
            untested.append(f"{len(variants)} of {style.method(method).name}")
            continue
        is_apart = tested["p_holm"] < stats.SIGNIFICANCE
        of_main = {"better": tested[is_apart & (tested["mean"] < 0)], "worse": tested[is_apart & (tested["mean"] > 0)]}
        counts = []
        for word, those in of_main.items():
            names = ", ".join(f"{name} by {100 * abs(mean):.1f} points" for name, mean in those["mean"].items())
            counts.append((len(those), f"{word} ({names})"))
        counts.append((len(tested) - is_apart.sum(), "without a significant difference"))
        counts.append((len(variants) - len(tested), f"not tested ({why})"))
        found = ", ".join(f"{count} {outcome}" for count, outcome in counts if count)
        yield (
            f"Variants of {style.method(method).name} against its main run on {title}: {found}; paired t test over "
            "seeds, Holm-corrected over variants."
        )
    if untested:
        yield f"Variants that were not tested against their main run on {title} ({why}): {', '.join(untested)}."


def _lost(frame: pd.DataFrame) -> Iterator[str]:
    """Count diverged runs, runs without a final score, and sets that were not there."""
    runs = frame.drop_duplicates("run_id")
    diverged = frame.loc[frame["status"] == "diverged", "run_id"].unique()
    if len(diverged):
        counts = []
        for (method, variant), rows in tidy.curves(runs).items():
            count = rows["run_id"].isin(diverged).sum()
            if count:
                counts.append(f"{style.variant(method, variant)} {count} of {len(rows)}")
        lost = f"{len(diverged)} of {len(runs)} runs ({'; '.join(counts)})"
        yield f"Diverged, and counted as guessing in every mean of scores: {lost}."
    final = tidy.final_scores(frame)
    absent = final.loc[final["status"] == "absent", "run_id"].nunique()
    if absent:
        yield f"Without a final score: {absent} of {len(runs)} runs."
    missing = final[(final["kind"] == "eval") & (final["status"] == "missing")]
    if len(missing):
        titles = ", ".join(missing["title"].unique())
        yield f"Evaluation sets that were not there, and are in no average: {titles}."
