"""Evaluate one model on every set of an evaluation, in this process.

The model is built once, and every image is encoded once. One JSON per set is written as soon as it is known: a set that
is done with the same weights and the same card is not evaluated again. A milestone that a diverged run never reached is
written as ``absent``, a model whose embeddings are not finite as ``diverged``.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rich.progress import track

from engine import files, paths, versions
from engine.evaluation import card_files, loading, reading
from engine.evaluation.digest import folder_digest
from engine.evaluation.model import Model
from engine.evaluation.tasks import NotFiniteError, answer_set
from engine.schema.base import parse, unknown_name
from engine.schema.evaluation import EvalCard, EvalResult, Evaluation, Status
from engine.schema.record import Record
from engine.training.towers import CONFIG_FILE, load_export

EVALUATOR = ("clip_benchmark", "open_clip_torch", "torch")


class Subject(NamedTuple):
    """The model that is evaluated, as results name it."""

    run_id: str
    milestone: int
    weights_sha256: str | None
    """None: the run never reached the milestone."""
    is_run: bool = True


def _has_changed(card: EvalCard, result: EvalResult) -> bool:
    """Tell whether the set on disk differs from the one behind a result. A pinned set cannot."""
    if result.data_sha256 is None or card.sha256 is not None or not card_files.is_there(card):
        return False
    return folder_digest(Path(card.path)) != result.data_sha256


def evaluate(
    subject: Subject,
    evaluation: Evaluation,
    load: Callable[[], Model],
    result_path: Callable[[str], Path],
) -> list[EvalResult]:
    """Evaluate one model on all sets that are not done yet; write and return the results.

    Args:
        subject: Whose results they are.
        evaluation: The sets.
        load: Returns the model; called once, and only if there is something to do.
        result_path: From a set's name to the file of its result.

    Raises:
        FileNotFoundError: If sets are not on disk, unless `Evaluation.when_missing` lets them be; names all of them.
        ValueError: If a set or the weights are not what they should be.
        NotFiniteError: If embeddings are not finite, of a model that is no run's.
    """
    evaluator = {package: importlib.metadata.version(package) for package in EVALUATOR}
    if evaluation.precision != "fp32":
        evaluator["precision"] = evaluation.precision
    results: dict[str, EvalResult] = {}
    for name, card in evaluation.sets.items():
        path = result_path(name)
        if path.exists():
            old = parse(EvalResult, files.read_text(path), str(path))
            wanted = (subject.weights_sha256, card.identity, evaluator)
            is_same = (old.weights_sha256, old.card_sha256, old.evaluator) == wanted
            if is_same and old.status != "missing" and not _has_changed(card, old):
                results[name] = old
    to_do = {name: card for name, card in evaluation.sets.items() if name not in results}
    lost = [card for card in to_do.values() if subject.weights_sha256 and not card_files.is_there(card)]
    if lost:
        if evaluation.when_missing == "refuse":
            raise FileNotFoundError(card_files.missing(lost))
        sys.stderr.write(card_files.missing(lost) + "\n")
    model = None
    for name, card in track(to_do.items(), subject.run_id, disable=not sys.stderr.isatty()):
        answer, data = None, None
        status: Status = "missing" if card in lost else "absent"
        if subject.weights_sha256 and card not in lost:
            data = reading.read(card)
            model = model or load()
            try:
                answer, status = answer_set(data, model), "evaluated"
            except NotFiniteError as error:
                problem = f"{subject.run_id} @ {subject.milestone}: {error}"
                if not subject.is_run:
                    raise NotFiniteError(problem) from None
                sys.stderr.write(f"{problem}: it counts as diverged\n")
                status = "diverged"
        results[name] = EvalResult(
            run_id=subject.run_id,
            milestone=subject.milestone,
            eval_set=name,
            status=status,
            metrics=answer.metrics if answer else {},
            main_metric=card.metric,
            value=answer.metrics[card.metric] if answer else None,
            num_samples=card.images if data else None,
            weights_sha256=subject.weights_sha256,
            card_sha256=card.identity,
            evaluator=evaluator,
            data_sha256=data.sha256 if data else None,
            outcomes=answer.outcomes if answer else None,
        ).sealed()
        if result_path(name).exists():
            # An evaluation that made the old result, with another card or precision, is to be done again.
            for mark in result_path(name).parent.glob(paths.evaluated("", "", "*").name):
                mark.unlink(missing_ok=True)
        files.write_text(result_path(name), results[name].model_dump_json(indent=1) + "\n")
    return [results[name] for name in evaluation.sets]


def evaluate_run(
    record: Record,
    milestone: int,
    evaluation: Evaluation,
    device: str,
    *,
    num_workers: int = 0,
) -> list[EvalResult]:
    """Evaluate one milestone of a run, as `evaluate` does.

    Raises:
        ValueError: If the weights are not those that the record names.
    """
    done = record.milestones.get(str(milestone))
    weights = paths.run(record.run_id) / done.weights if done else None
    if done and weights:
        for file, sha256 in ((weights, done.sha256), (weights.with_name(CONFIG_FILE), done.config_sha256)):
            if sha256 not in (None, files.file_sha256(file)):
                raise ValueError(f"{file} is not what record.json names: remove the run's folder and train it again")

    def load() -> Model:
        assert weights is not None
        exported = load_export(weights.parent)
        loading.warn_of_untrained(exported[0], str(weights))
        return Model(*exported, device, precision=evaluation.precision, num_workers=num_workers)

    return evaluate(
        Subject(record.run_id, milestone, done.sha256 if done else None),
        evaluation,
        load,
        lambda name: paths.eval_result(record.run_id, milestone, name),
    )


def evaluate_published(
    name: str,
    pretrained: str | None,
    evaluation: Evaluation,
    out: Path,
    device: str,
    *,
    random_weights: bool = False,
    num_workers: int = 0,
) -> list[EvalResult]:
    """Evaluate any open_clip model as `evaluate` does; results go to ``<out>/<set>.json``.

    Raises:
        ValueError: See `engine.evaluation.loading.load_model`.
    """
    loaded = loading.load_model(name, pretrained, random_weights=random_weights)
    weights = loading.weights_sha256(loaded[0])
    model = Model(*loaded, device, precision=evaluation.precision, num_workers=num_workers)
    subject = Subject(
        f"{name} {pretrained or ('random weights' if random_weights else '')}".strip(), 0, weights, is_run=False
    )
    return evaluate(subject, evaluation, lambda: model, lambda eval_set: out / f"{eval_set}.json")


def find_evaluation(name: str) -> Evaluation:
    """Return an evaluation by its name or its file: a JSON of results/evaluations/, a list's YAML or a set's card."""
    if name.endswith(".json"):
        return parse(Evaluation, files.read_text(Path(name)), name)
    return card_files.evaluation(versions.ROOT / "experiments", name)


def restrict(evaluation: Evaluation, sets: str | None) -> Evaluation:
    """Return the evaluation with some of its sets only."""
    if sets is None:
        return evaluation
    chosen = sets.split(",")
    for name in chosen:
        if name not in evaluation.sets:
            raise ValueError("--sets: " + unknown_name("evaluation set", name, evaluation.sets))
    return evaluation.model_copy(update={"sets": {name: evaluation.sets[name] for name in chosen}, "averages": {}})


def summarize(results: list[EvalResult], evaluation: Evaluation) -> str:
    """Return the results and the averages as text, one line each."""
    values = {result.eval_set: result.value for result in results}
    missing = frozenset(result.eval_set for result in results if result.status == "missing")
    lines = [
        f"{result.run_id} @ {result.milestone}: {result.eval_set} {result.main_metric} "
        + (result.status if result.value is None else f"{100 * result.value:.2f} %")
        for result in results
    ]
    for key, average in evaluation.averaged(values, missing).items():
        lacking = [name for name in evaluation.averages[key] if values.get(name) is None]
        value = "none" if average.value is None else f"{100 * average.value:.2f} %"
        without = f"; without {', '.join(lacking)}" if lacking else ""
        lines.append(f"average {average.name}: {value} (chance {100 * average.chance:.2f} %{without})")
    return "".join(f"{line}\n" for line in lines)
