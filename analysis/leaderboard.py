"""The leaderboard: a page drawn from the committed results of one suite, the track, and from all entries."""

from __future__ import annotations

import dataclasses
import itertools

import pandas as pd

from analysis import cells, entries, headroom, stats, style, time_to_target
from analysis import frame as tidy
from analysis.entries import Entry, Track
from analysis.rendering import commits_of, to_markdown
from analysis.table import NO_VALUE, Cell, Row, Table, three_digits
from engine import files, paths

TARGET = 0.75
"""The share of the large batch's validation score whose time is shown; `time_to_target` has the others."""
HEADER = (
    "Rank",
    "Method",
    "By",
    "Average",
    "Validation",
    "Gap closed, %",
    f"Samples to {100 * TARGET:.0f} %",
    "Step, ms",
    "Temperature",
    "Trials",
    "Commit",
    "Device",
)


def write() -> None:
    """Draw the page anew."""
    files.write_text(paths.leaderboard(), draw())


def is_current() -> bool:
    """Tell whether the page is what the committed results draw."""
    page = paths.leaderboard()
    return page.exists() and page.read_bytes() == draw().encode()


def draw() -> str:
    """Write the page as Markdown.

    Raises:
        FileNotFoundError: If the track's results are not committed.
        ValueError: If an entry was changed, or is against a rule.
    """
    rules, ours = entries.track(), entries.committed()
    found = [entries.read(path.stem, ours, rules) for path in sorted(paths.entry("*").parent.glob("*.parquet"))]
    return page(ours, found, rules)


def page(ours: pd.DataFrame, found: list[Entry], rules: Track) -> str:
    """Write the page of the track's results and of entries.

    Args:
        ours: The track's results.
        found: Entries that keep the rules.
        rules: What the track's file says.
    """
    table = to_markdown(_table(ours, found, rules), level=2, columns=len(HEADER))
    return f"{_head()}\n{table}\n{_rules(rules.main(ours), rules)}"


def rank(scores: dict[str, pd.Series]) -> dict[str, int]:
    """Rank methods by their means, best first; those that do not differ from the best of their rank share it.

    Args:
        scores: By method, then by seed; methods are compared seed by seed, Holm-corrected over all pairs of methods.
    """
    order = sorted(scores, key=lambda method: (-scores[method].mean(), method))
    pairs = pd.MultiIndex.from_tuples(itertools.combinations(order, 2), names=["better", "worse"])
    p = stats.holm(pd.Series([_p_value(scores[a] - scores[b]) for a, b in pairs], index=pairs, dtype=float))
    ranks: dict[str, int] = {}
    best = ""
    for place, method in enumerate(order, start=1):
        if not best or p[best, method] < stats.SIGNIFICANCE:
            best, ranks[method] = method, place
        else:
            ranks[method] = ranks[best]
    return ranks


def _p_value(difference: pd.Series) -> float:
    difference = difference.dropna().round(12)
    # The same difference with every seed: seeds add no noise.
    is_constant = len(difference) >= stats.MIN_PAIRS_TO_TEST and difference.nunique() == 1
    return float(not difference.any()) if is_constant else stats.paired_t_test(difference)


def _table(ours: pd.DataFrame, found: list[Entry], rules: Track) -> Table:
    ours = ours[(ours["dataset"] == rules.dataset) & (ours["model"] == rules.model) & ours["seed"].isin(rules.seeds)]
    batches = (rules.global_batch_size, ours["global_batch_size"].max())
    ours = ours[ours["global_batch_size"].isin(batches)]
    together = pd.concat([ours, *(entry.rows.assign(method=entry.name) for entry in found)], ignore_index=True)
    frame = tidy.diverged_as_guessing(together)
    gaps, workloads = headroom.gaps(frame), time_to_target.workloads(frame)
    if not gaps:
        raise ValueError(
            f"{paths.committed(entries.TRACK)}: no runs of {style.method(headroom.BASELINE).name} at a larger batch; "
            "commit all results of the suite"
        )
    *at_small, at_large = gaps[0].contenders
    ranked = {one.method: one for one in at_small if not one.variant}
    ranks = rank({method: one.scores for method, one in ranked.items()})
    order = sorted(ranked.values(), key=lambda one: (ranks[one.method], -one.scores.mean(), one.method))
    cards = {entry.name: entry.card for entry in found}
    ratios = _ratios(workloads)
    rows: list[Row] = []
    for one in [*order, *(one for one in at_small if one.variant), at_large]:
        is_control = one is at_large or bool(one.variant)
        runs = frame[(frame["method"] == one.method) & (frame["global_batch_size"] == batches[one is at_large])]
        # The large batch is a variant with a label of its own in some suites.
        runs = runs[runs["variant"] == (tidy.variants(runs)[0] if one is at_large else one.variant)]
        card = cards.get(one.method)
        rows.append(
            (
                NO_VALUE if is_control else str(ranks[one.method]),
                one.label,
                "control" if is_control else card.by if card else "this repository",
                *_numbers(runs, one, ratios.get(one.label, Cell(None))),
                str(card.trials) if card else "",
                commits_of(runs),
                ", ".join(sorted(runs["device"].unique())),
            )
        )
    return Table(
        title=f"{gaps[0].score.title} in %, mean ± half-width of the 95 % interval over seeds",
        header=HEADER,
        rows=tuple(rows),
        num_keys=3,
        notes=_notes(rules),
    )


def _numbers(runs: pd.DataFrame, one: headroom.Contender, ratio: Cell) -> tuple[Cell, ...]:
    finals = runs[runs["is_final"] & runs["is_main"]]
    diverged = finals.loc[finals["status"] == "diverged", "run_id"].nunique()
    validation = finals.loc[finals["kind"] == "validation", "value"]
    steps = runs[(runs["kind"] == "cost") & (runs["name"] == "median_step_sec") & ~tidy.moved(runs)]["value"]
    logged = runs[runs["name"] == entries.TEMPERATURE].sort_values("samples_seen")
    temperature = float(logged.groupby("run_id")["value"].last().mean())
    return (
        dataclasses.replace(cells.mean(100 * one.scores), remark=f"({diverged} diverged)" if diverged else ""),
        cells.mean(100 * validation),
        cells.percent(one.closed, of="gap"),
        ratio,
        cells.mean(1e3 * steps, three_digits(1e3 * steps.mean())),
        Cell(temperature, form=three_digits(temperature)),
    )


def _ratios(workloads: list[time_to_target.Workload]) -> dict[str, Cell]:
    """Return the time to the page's target relative to the baseline's, by label; empty without validation scores."""
    return {
        one.label: cells.ratio(time_to_target.ratio(one.samples, workload.contenders[0].samples))
        for workload in workloads
        if workload.share == TARGET
        for one in workload.contenders
    }


def _notes(rules: Track) -> tuple[str, ...]:
    baseline = style.method(headroom.BASELINE).name
    return (
        "Rank: by the average; methods that do not differ significantly from the best of a rank share it. Paired t "
        f"test over seeds, level {stats.SIGNIFICANCE}, Holm-corrected over all pairs. Controls have none: they use "
        "what an entry may not, or settings that were chosen apart.",
        "A run that diverged counts as guessing, and is said. Validation: mean of the sets that no average has. Gap "
        f"closed: share of the way from {baseline} to {baseline} at the large batch (95 % interval).",
        f"Samples to {100 * TARGET:.0f} %: until that share of what the large batch scores above chance on validation "
        f"sets, relative to {baseline}'s. > and < are bounds, where not all get there; without a number, neither does.",
        "Step: median time of a step, which compares on one device only. Temperature: at the end, where one is logged. "
        f"Trials: runs that went into an entry's tuning; the suite's own methods have at most {rules.trials} each. "
        "[Statistics](../statistics.md) says how all of it is computed.",
    )


def _head() -> str:
    suite = f"[{entries.TRACK}](../../experiments/suites/{entries.TRACK}.yaml)"
    return "\n".join(
        (
            "# Leaderboard",
            "",
            f"Methods for small batches, trained under the rules of suite {suite}: same data in the same order, same",
            "start, same length. `python -m analysis leaderboard` draws this page from the results beside it.",
            "[Enter the leaderboard](../add-a-method.md#enter-the-leaderboard) says how a method of yours gets here.",
            "",
        )
    )


def _rules(ours: pd.DataFrame, rules: Track) -> str:
    """Write the rules, with the numbers of the track, and what is checked of each."""
    pairs = ours["dataset_pairs"].iloc[0]
    milestones = sorted(ours.loc[ours["kind"] == "average", "samples_seen"].unique())
    shares = ", ".join(f"{100 * seen / milestones[-1]:g}" for seen in milestones)
    seeds = ", ".join(map(str, rules.seeds))
    always, once = "always", "on entering"
    rows = (
        ("Data", f"{rules.dataset}, {pairs:,} pairs", f"{always}; revision and captions {once}"),
        ("Model", rules.model, f"{always}; its configuration {once}"),
        (
            "Batch",
            f"{rules.global_batch_size} pairs; pairs that are encoded beside it cost time, which is shown",
            always,
        ),
        ("Length", f"{milestones[-1]:,} samples, evaluated at {shares} %", always),
        ("Augmentation, precision, batch norm", "the suite's", once),
        ("Evaluation", "the suite's sets, averages and options", f"{always} names, metrics, chance; contents {once}"),
        ("Seeds", f"{seeds}: all of them; further ones do not count", always),
        ("Runs", "all that the entry's suite says now; a diverged one counts as guessing", f"{once}; scores {always}"),
        ("Tuning", f"at most {rules.trials} runs, in the file that the suite names as tuned", always),
        ("Tuned on", "sets that no average has, with seeds of its own", once),
        ("Code", "committed; the file of a method from outside is kept beside the entry", always),
    )
    table = Table("Rules", ("What", "Allowed", "Checked"), rows, num_keys=3, notes=(_UNCHECKED,))
    return to_markdown(table, level=2)


_UNCHECKED = (
    "Free are the method, its options and AdamW's settings. No machine checks that nothing was tried by hand beside "
    "the tuning, that its trials were no longer than a run, that test sets were not looked at, that the commit can be "
    "had and changes nothing that methods share, and that results were computed and not written. Whoever merges an "
    "entry looks at these, and may train a seed again: the entry's card has all settings."
)
