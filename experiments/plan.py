"""Plan suites: the runs, hours and disk that they still need, and missing data. `python -m experiments plan`.

Hours are estimates, from the step times of the most similar recorded runs. Without a recorded run of the model they are
scaled from published hours; without those there is no estimate.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from engine import paths
from engine.evaluation import card_files
from engine.jobs import cluster
from engine.schema.base import Frozen
from engine.schema.run import Execution, ModelSpec, RunSpec
from engine.schema.suite import ExpandedSuite, SuiteRun
from engine.training.checkpoint import KEEP
from experiments import needs
from experiments.design import cards
from experiments.hours import EVALUATION_BASIS, PUBLISHED_BASIS, Estimate, estimate, evaluation_sec, finished_runs
from experiments.watch import ENDED, STATES, RunView, Watcher

FEW = 3
"""So many missing evaluation sets are shown by their names, more as one row."""


class Amount(Frozen):
    """The work that is left of a suite."""

    name: str
    states: dict[str, int]
    """Number of runs by state."""
    evaluations_left: int
    """Models to evaluate."""
    training_hours: float
    """Of one GPU, or one process on a CPU: the sum over the runs that have an estimate, of what is likely."""
    most_hours: float
    """The same at the slowest rate of each run."""
    longest_hours: float | None
    """Of the clock, that its longest run still takes if processes share the work evenly; None without an estimate."""
    runs_without_estimate: int
    evaluation_hours: float | None
    """None where nobody published a time."""
    disk_bytes: int
    """Size of the weights of all its runs once they are finished."""
    checkpoint_bytes: int
    """Size of the checkpoints of its largest run while it trains."""


class Missing(Frozen):
    """Data that must be fetched before the runs can start."""

    kind: str
    """training or evaluation."""
    name: str
    path: str
    how: str
    suites: tuple[str, ...] = ()
    """Those whose sets `snakemake evaluation_data` fetches with this one; none for data that it does not fetch."""


class Need(Frozen):
    """What a process needs at most for runs that are to be trained, of a model, a precision and a number of pairs."""

    model: str
    precision: str
    pairs: int
    """Encoded at a time: its share of the batch, or a part of that share with accumulation."""
    memory_bytes: int | None
    """None with gradient checkpointing, which keeps much less."""
    pairs_per_sec: tuple[float, float] | None
    """That one GPU, or one process on a CPU, takes: from the slowest known to the fastest; None without an estimate."""
    loader_processes: tuple[int, int] | None
    """Those that keep up with it at the fastest, with JPEGs of 256 and of 512 pixels, each on a core; None likewise."""


class Plan(Frozen):
    """The work that is left of some suites."""

    suites: tuple[Amount, ...]
    total: Amount
    """Over all of them, with each run once."""
    place: str
    """What the runs that are to be trained are taken to run on."""
    basis: tuple[str, ...]
    """Sources of the estimated hours."""
    missing: tuple[Missing, ...]
    wrong: tuple[str, ...]
    """Sets that do not fit their cards, a line each."""
    needs: tuple[Need, ...]
    warnings: tuple[str, ...]
    """What of the runs that are to be trained will surely fail or mislead, a line each."""


def make(suites: Sequence[ExpandedSuite], place: cluster.Cluster | None = None) -> Plan:
    """Work out what is left of suites, from the files in the working directory.

    Args:
        suites: The suites.
        place: Where they are to run, for what a process needs; None is this machine.
    """
    place = place or cluster.Cluster()
    views = {view.run_id: view for view in Watcher(suites).look().runs}
    specs = {run.spec.run_id: run.spec for suite in suites for run in suite.runs}
    runs = {run.spec.run_id: run for suite in suites for run in suite.runs}
    to_train = {run_id: spec for run_id, spec in specs.items() if views[run_id].state not in ENDED}
    finished = list(finished_runs())
    estimates = {run_id: estimate(spec, finished, runs[run_id].num_extra_pairs) for run_id, spec in to_train.items()}
    to_evaluate = {suite.name: _to_evaluate(suite) for suite in suites}
    hours = {suite.evaluation.key: evaluation_sec(suite.evaluation) / 3600 for suite in suites}
    there: dict[str, tuple[cluster.Request, Execution]] = {}
    refused: Counter[str] = Counter()
    for run_id, spec in to_train.items():
        try:
            there[run_id] = cluster.resolve(place, "train", spec, runs[run_id].num_extra_pairs)
        except ValueError as error:
            refused[str(error).removeprefix(f"{run_id}: ")] += 1

    def amount(name: str, run_ids: set[str], models: set[tuple[str, int, str]]) -> Amount:
        known = {i: found for i in run_ids & to_train.keys() if (found := estimates[i]) is not None}
        counts = Counter(views[i].state for i in run_ids)
        left = {i: _share_left(views[i]) * found.hours for i, found in known.items()}
        clock = [
            left[i] / _num_processes(there[i][0])
            for i in left.keys() & there.keys()
            # What was published of GPUs says nothing of a process without one.
            if there[i][0].gpus_per_node or known[i].basis != PUBLISHED_BASIS
        ]
        evaluation_hours = sum(hours[key] for _, _, key in models)
        return Amount(
            name=name,
            states={state: counts[state] for state in STATES if counts[state]},
            evaluations_left=len(models),
            training_hours=sum(left.values()),
            most_hours=sum(_share_left(views[i]) * found.most_hours for i, found in known.items()),
            longest_hours=max(clock, default=None),
            runs_without_estimate=len(run_ids & to_train.keys()) - len(known),
            evaluation_hours=None if math.isnan(evaluation_hours) else evaluation_hours,
            disk_bytes=sum(len(specs[i].milestones) * _weights_bytes(specs[i].model) for i in run_ids),
            checkpoint_bytes=max((_checkpoint_bytes(to_train[i]) for i in run_ids & to_train.keys()), default=0),
        )

    of_runs, warnings = _needs([runs[run_id] for run_id in to_train], estimates, there, refused)
    basis = sorted({found.basis for found in estimates.values() if found})
    if any(math.isfinite(hours[key]) for models in to_evaluate.values() for _, _, key in models):
        basis.append(EVALUATION_BASIS)
    return Plan(
        suites=tuple(
            amount(suite.name, {run.spec.run_id for run in suite.runs}, to_evaluate[suite.name]) for suite in suites
        ),
        total=amount("all together", set(specs), set().union(*to_evaluate.values())),
        place=_said(place, [request for request, _ in there.values()]),
        basis=tuple(basis),
        missing=(
            *_missing_training(spec.dataset.name for spec in to_train.values()),
            *_missing_evaluation([suite for suite in suites if to_evaluate[suite.name]]),
        ),
        wrong=(
            *_miscounted(spec.dataset.name for spec in to_train.values()),
            *cards.wrong(suite.evaluation for suite in suites if to_evaluate[suite.name]),
        ),
        needs=of_runs,
        warnings=warnings,
    )


def _needs(
    runs: Iterable[SuiteRun],
    estimates: Mapping[str, Estimate | None],
    there: Mapping[str, tuple[cluster.Request, Execution]],
    refused: Mapping[str, int],
) -> tuple[tuple[Need, ...], tuple[str, ...]]:
    """Return what processes of runs need there, and what will fail or mislead."""
    alike: dict[tuple[str, str, int], list[tuple[Need, RunSpec]]] = {}
    warnings = Counter(refused)
    for run in runs:
        spec = run.spec
        warnings.update(needs.doubts(spec, run.num_extra_pairs))
        if spec.run_id not in there:
            continue
        request, execution = there[spec.run_id]
        num_pairs = spec.global_batch_size // _num_processes(request) // execution.accumulation_steps
        estimated = estimates[spec.run_id]
        need = Need(
            model=spec.model.name,
            precision=spec.precision,
            pairs=num_pairs,
            memory_bytes=None if execution.gradient_checkpointing else needs.memory_bytes(spec, num_pairs),
            pairs_per_sec=estimated and estimated.pairs_per_sec,
            loader_processes=estimated and needs.loader_processes(spec, estimated.pairs_per_sec[1]),
        )
        key = (need.model, need.precision, need.pairs)
        alike.setdefault(key, []).append((need, spec))
    largest = []
    for _, group in sorted(alike.items()):
        # Methods differ a little in their state: the largest speaks for all.
        most = max(group, key=lambda found: (found[0].memory_bytes or 0, found[0].loader_processes or (0, 0)))
        largest.append(most[0])
        for need, spec in group:
            warnings.update(_shortages(need, most, *there[spec.run_id]))
    lines = (f"{number} run{'s' if number > 1 else ''}: {text}" for text, number in sorted(warnings.items()))
    return tuple(largest), tuple(lines)


def _num_processes(request: cluster.Request) -> int:
    return request.nodes * request.tasks


def _said(place: cluster.Cluster, requests: Iterable[cluster.Request]) -> str:
    """Say where runs are taken to run, and on how much of it each."""
    words = []
    for nodes, gpus, tasks in sorted({(each.nodes, each.gpus_per_node, each.tasks) for each in requests}):
        on_a_node = f"{gpus} GPU{'s' * (gpus > 1)}" if gpus else f"{tasks} process{'es' * (tasks > 1)} without a GPU"
        words.append(f"{nodes} nodes x {on_a_node}" if nodes > 1 else on_a_node)
    where = "this machine" if place.scheduler == "local" else "a Slurm cluster"
    return f"{where}, each run on {' or '.join(words)}" if words else where


def _shortages(own: Need, most: tuple[Need, RunSpec], request: cluster.Request, execution: Execution) -> Iterator[str]:
    """Say what a process has too little of, in the words of the one that needs most."""
    need, spec = most

    def cards_too_small(each: Need) -> list[int]:
        return [gb for gb in needs.CARDS_GB if (each.memory_bytes or 0) > gb * 1e9]

    if cards_too_small(own):
        card = max(cards_too_small(need))
        parts = needs.num_parts(spec, need.pairs, card)
        advice = (
            f"{parts} times as many processes or accumulation_steps fit"
            if parts
            else "one pair does not fit: use gradient_checkpointing"
        )
        yield (
            f"{need.model} in {need.precision} with {need.pairs} pairs a process takes about "
            f"{_size(need.memory_bytes or 0)}, more than a card of {card} GB has: {advice}"
        )
    wanted = need.loader_processes
    if request.gpus_per_node and own.loader_processes and wanted and execution.num_workers < own.loader_processes[0]:
        yield (
            f"{need.model} waits for its pictures: a GPU takes as many as {wanted[0]} loader processes bring (of 256 "
            f"pixels; {wanted[1]} of 512), and execution.num_workers = {execution.num_workers}; each wants a core"
        )


def show(plan: Plan, console: Console) -> None:
    """Print a plan."""
    right = (
        Column(title, justify="right")
        for title in (
            *("Runs", "Done", "Running", "To do", "Training hours", "Longest run", "To evaluate", "Evaluation hours"),
            *("Disk", "While training"),
        )
    )
    about = (
        "Hours are estimates: those of all runs together, of one GPU or of one process on a CPU. Only those of the "
        "longest run are of the clock: with room for all runs at once, training takes no longer."
    )
    table = Table("Suite", *right, caption=about)
    for amount in (*plan.suites, *([plan.total] if len(plan.suites) > 1 else [])):
        states = amount.states
        done = sum(states.get(state, 0) for state in ENDED)
        running = states.get("running", 0)
        total = sum(states.values())
        table.add_row(
            amount.name,
            str(total),
            str(done),
            str(running),
            str(total - done - running),
            _hours(amount),
            "" if amount.longest_hours is None else _rounded(amount.longest_hours),
            str(amount.evaluations_left),
            "" if amount.evaluation_hours is None else _rounded(amount.evaluation_hours),
            _size(amount.disk_bytes),
            _size(amount.checkpoint_bytes),
        )
    console.print(table)
    others = "--config cluster=NAME, or 'train={\"gpus_per_node\": 8}', as for snakemake"
    console.print(f"Where: {plan.place}. Other places: {others}.", highlight=False, markup=False)
    for line in plan.basis:
        console.print(f"Hours, {line}.", highlight=False)
    if plan.total.runs_without_estimate:
        console.print(
            f"No basis for hours of {plan.total.runs_without_estimate} runs: nothing is known of their model."
        )
    if plan.missing:
        missing = Table("Missing", "", "Where", Column("How to get it", overflow="fold"))
        for item in _few(plan.missing):
            missing.add_row(item.kind, item.name, item.path, item.how)
        console.print(missing)
    elif not plan.wrong:
        console.print("All data are there, or the workflow makes them.")
    if plan.needs:
        console.print(_table_of(plan.needs))
    for line in plan.wrong:
        console.print(f"Wrong: {line}", highlight=False, markup=False, soft_wrap=True)
    for line in plan.warnings:
        console.print(f"Warning: {line}.", highlight=False, markup=False)


def _table_of(found: Iterable[Need]) -> Table:
    right = (Column(title, justify="right") for title in ("Pairs at a time", "Memory", "Pairs/s", "Loader processes"))
    about = (
        "What a process needs, without a GPU's workspaces; pairs from the slowest card or run that is known to the "
        "fastest; loader processes that keep up with that, with JPEGs of 256 / 512 pixels, each on a core."
    )
    table = Table("Model", "Precision", *right, caption=about)
    for need in found:
        memory = "" if need.memory_bytes is None else _size(need.memory_bytes)
        loader = "" if need.loader_processes is None else " / ".join(map(str, need.loader_processes))
        rate = (
            ""
            if need.pairs_per_sec is None
            else " to ".join(dict.fromkeys(f"{each:,.0f}" for each in need.pairs_per_sec))
        )
        table.add_row(need.model, need.precision, str(need.pairs), memory, rate, loader)
    return table


def _hours(amount: Amount) -> str:
    left = sum(amount.states.get(state, 0) for state in STATES if state not in ENDED)
    if left and amount.runs_without_estimate == left:
        return "no basis"
    hours, most = _rounded(amount.training_hours), _rounded(amount.most_hours)
    hours = hours if hours == most else f"{hours} to {most}"
    return f"{hours} + {amount.runs_without_estimate} runs" if amount.runs_without_estimate else hours


def _rounded(hours: float) -> str:
    return f"{hours:,.1f}" if hours < 10 else f"{hours:,.0f}"


def _few(missing: Sequence[Missing]) -> list[Missing]:
    """Put one row in the place of evaluation sets that one command fetches, where they are many."""
    fetched = [item for item in missing if item.suites]
    if len(fetched) <= FEW:
        return list(missing)
    suites = dict.fromkeys(name for item in fetched for name in item.suites)
    row = Missing(
        kind="evaluation",
        name=f"{len(fetched)} sets",
        path=", ".join(sorted({str(Path(item.path).parent) for item in fetched})),
        how=f"`snakemake evaluation_data --config suites={','.join(suites)}`",
    )
    return [*(item for item in missing if not item.suites), row]


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:,.0f} MB"


def _share_left(view: RunView) -> float:
    return 1 - min(1.0, view.samples_seen / view.samples_total)


def _to_evaluate(suite: ExpandedSuite) -> set[tuple[str, int, str]]:
    """Run, milestone and evaluation of the models that are not evaluated yet."""
    key = suite.evaluation.key
    models = ((run.spec.run_id, milestone, key) for run in suite.runs for milestone in run.milestones)
    return {model for model in models if not paths.evaluated(*model).exists()}


def _weights_bytes(model: ModelSpec) -> int:
    return 4 * needs.sizes(model)[0]


def _checkpoint_bytes(spec: RunSpec) -> int:
    """Return the size of a run's checkpoints: weights, AdamW's two moments and the method's state in each."""
    # One more than are kept is there while it is written.
    return (KEEP + 1) * (3 * _weights_bytes(spec.model) + needs.method_bytes(spec))


def _missing_training(datasets: Iterable[str]) -> Iterator[Missing]:
    for name in sorted(set(datasets)):
        card = cards.dataset(name, pairs=2)  # the number of a part's pairs does not matter here
        how = cards.how_to_get(card)
        if how is not None:
            yield Missing(kind="training", name=name, path=card.shards, how=how)


def _miscounted(datasets: Iterable[str]) -> Iterator[str]:
    yield from dict.fromkeys(filter(None, map(cards.miscounted, sorted(set(datasets)))))


def _reference(suite: ExpandedSuite) -> str:
    """Return the name that asks for a suite again: of one that is no suite of ours, with its file."""
    part, at, base = suite.name.rpartition("@")
    return f"{part}{at}{suite.file or base}"


def _missing_evaluation(suites: Sequence[ExpandedSuite]) -> Iterator[Missing]:
    found = {card.name: card for suite in suites for card in suite.evaluation.sets.values()}
    for card in found.values():
        if not card.build and not card_files.is_there(card):
            asking = tuple(_reference(suite) for suite in suites if card.name in suite.evaluation.sets)
            yield Missing(
                kind="evaluation",
                name=card.name,
                path=card.path,
                how=card_files.how_to_get(card),
                suites=asking if card_files.can_be_fetched(card) else (),
            )
