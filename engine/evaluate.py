"""Evaluate one exported model on every set of an evaluation, with clip_benchmark's own metrics, in this process.

One JSON per set, written as soon as it is known: a set that is done with the same weights and the same card is not
evaluated again. A milestone that a diverged run never reached is written as ``absent``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch.utils.data import DataLoader

from engine import distributed, paths
from engine.evaluation import EvalCard, EvalResult, Evaluation
from engine.record import Record
from engine.spec import Execution, parse
from engine.towers import load_export

BATCH_SIZE = 64
"""Fixed: another batch size moves logits by about 1e-5."""
RECALL_AT = (1, 5, 10)
EVALUATOR = ("clip_benchmark", "open_clip_torch", "torch")


def evaluate_set(
    card: EvalCard, model: Any, transform: Any, tokenizer: Any, device: str
) -> tuple[dict[str, float], int]:
    """Compute clip_benchmark's metrics of one set.

    Args:
        card: The set.
        model: open_clip model in eval mode, on `device`.
        transform: From a PIL image to a tensor.
        tokenizer: From texts to token ids.
        device: As torch spells it, e.g. ``cpu``.

    Returns:
        Metrics as fractions (NaN ones left out, e.g. acc5 with fewer than five classes), and the images seen.

    Raises:
        FileNotFoundError: If the set is not on disk.
        ValueError: If it does not hold what its card says.
    """
    from clip_benchmark.datasets.builder import build_dataset
    from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval

    folder = Path(card.path)
    shard_count = folder / card.split / "nshards.txt"
    if not shard_count.exists():
        fetch = f"; `{card.build}` makes it" if card.build else ""
        raise FileNotFoundError(f"evaluation set {card.name!r}: {folder} is not there{fetch}")
    if card.sha256 is not None and paths.folder_sha256(folder) != card.sha256:
        again = f"run `{card.build}` again" if card.build else "fetch it again"
        raise ValueError(f"evaluation set {card.name!r}: {folder} does not hold what its card says: {again}")
    counting = _Counting(transform)
    with warnings.catch_warnings():
        # webdataset warns that shards are not shuffled, which is what an evaluation wants.
        warnings.filterwarnings("ignore", message=".*shardshuffle.*")
        dataset = build_dataset(
            f"wds/{card.name}",
            root=str(folder),
            transform=counting,
            split=card.split,
            download=False,
            task=card.task,
        )
        loader = DataLoader(dataset.batched(BATCH_SIZE), batch_size=None, shuffle=False, num_workers=0)
        if card.task == "zeroshot_retrieval":
            found = zeroshot_retrieval.evaluate(
                model, loader, tokenizer, device, amp=False, recall_k_list=list(RECALL_AT)
            )
            both = (found["image_retrieval_recall@1"], found["text_retrieval_recall@1"])
            metrics = {**{k: float(v) for k, v in found.items()}, "mean_recall@1": sum(map(float, both)) / 2}
        else:
            classes, templates = dataset.classes, dataset.templates
            if card.classes is not None and len(classes) != card.classes:
                raise ValueError(
                    f"evaluation set {card.name!r}: {len(classes)} class names, its card says {card.classes}"
                )
            metrics = zeroshot_classification.evaluate(model, loader, tokenizer, classes, templates, device, amp=False)
    if counting.count != card.images:
        raise ValueError(
            f"evaluation set {card.name!r}: {counting.count} images in {folder}, its card says {card.images}: "
            "build or fetch the set again"
        )
    return {k: float(v) for k, v in metrics.items() if math.isfinite(float(v))}, counting.count


class _Counting:
    """An image transform that counts: clip_benchmark does not say how many samples it saw."""

    def __init__(self, transform: Any) -> None:
        self.transform, self.count = transform, 0

    def __call__(self, image: Any) -> Any:
        self.count += 1
        return self.transform(image)


def evaluate(record: Record, milestone: int, evaluation: Evaluation, device: str) -> list[EvalResult]:
    """Evaluate one milestone of a run on all sets that are not done yet; write and return the results.

    Raises:
        ValueError: If the weights are not those that the record names.
    """
    done = record.milestones.get(str(milestone))
    weights = paths.run(record.run_id) / done.weights if done else None
    if done and weights and paths.file_sha256(weights) != done.sha256:
        raise ValueError(f"{weights} is not what record.json names: remove the run's folder and train it again")
    evaluator = {package: importlib.metadata.version(package) for package in EVALUATOR}
    model = None
    results = []
    for name, card in track(evaluation.sets.items(), record.run_id, disable=not sys.stderr.isatty()):
        path = paths.eval_result(record.run_id, milestone, name)
        card_sha256 = card.identity
        if path.exists():
            old = EvalResult.model_validate_json(path.read_text(encoding="utf-8"))
            wanted = (done.sha256 if done else None, card_sha256, evaluator)
            if (old.weights_sha256, old.card_sha256, old.evaluator) == wanted:
                results.append(old)
                continue
        metrics: dict[str, float] = {}
        num_samples = None
        if weights is not None:
            if model is None:
                model, transform, tokenizer = load_export(weights.parent)
                model = model.to(device)
            metrics, num_samples = evaluate_set(card, model, transform, tokenizer, device)
        result = EvalResult(
            run_id=record.run_id,
            milestone=milestone,
            eval_set=name,
            status="evaluated" if done else "absent",
            metrics=metrics,
            main_metric=card.metric,
            value=metrics[card.metric] if done else None,
            num_samples=num_samples,
            weights_sha256=done.sha256 if done else None,
            card_sha256=card_sha256,
            evaluator=evaluator,
        )
        paths.write_text(path, result.model_dump_json(indent=1) + "\n")
        results.append(result)
    paths.write_text(
        paths.evaluated(record.run_id, milestone, evaluation.key), json.dumps(sorted(evaluation.sets)) + "\n"
    )
    return results


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m engine.evaluate", description=__doc__)
    parser.add_argument("record", type=Path, help="record.json of the run")
    parser.add_argument("evaluation", type=Path, help="evaluation to carry out: a file of results/evaluations/")
    parser.add_argument("--milestone", type=int, required=True, help="samples seen by the weights to evaluate")
    parser.add_argument("--execution", default="{}", help="execution settings as JSON")
    args = parser.parse_args(argv)
    try:
        record = parse(Record, args.record.read_text(encoding="utf-8"), str(args.record))
        evaluation = parse(Evaluation, args.evaluation.read_text(encoding="utf-8"), str(args.evaluation))
        execution = parse(Execution, args.execution, "execution")
        torch.set_num_threads(execution.threads)
        device = distributed.choose_device(execution.device).type
        for result in evaluate(record, args.milestone, evaluation, device):
            value = "absent" if result.value is None else f"{100 * result.value:.2f} %"
            sys.stderr.write(f"{result.run_id} @ {result.milestone}: {result.eval_set} {result.main_metric} {value}\n")
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
