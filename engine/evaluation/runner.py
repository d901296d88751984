"""Evaluate one model on every set of an evaluation, in this process.

Zero-shot classification and choosing a caption call clip_benchmark. Recall, and the metrics that it lacks, are in
`engine.evaluation.scoring`.

The model is built once and every image is encoded once. A class that two sets describe with the same prompts gets one
vector. One JSON per set is written as soon as it is known: a set that is done with the same weights and the same card
is not evaluated again. A milestone that a diverged run never reached is written as ``absent``.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor

from engine import files, paths, versions
from engine.evaluation import card_files, loading, reading, scoring
from engine.evaluation.digest import folder_digest
from engine.evaluation.pictures import ImageBatches, split_transform
from engine.evaluation.reading import EvalData
from engine.imports import late
from engine.schema.base import parse, unknown_name
from engine.schema.evaluation import WORST_GROUP, EvalCard, EvalResult, Evaluation, Outcomes
from engine.schema.record import Record
from engine.training.towers import CONFIG_FILE, load_export

with late("sklearn", "sklearn.metrics"):
    from clip_benchmark.metrics import image_caption_selection
    from clip_benchmark.metrics import zeroshot_classification as zsc

BATCH_SIZE = 64
"""Fixed: another batch size moves logits by about 1e-5."""
RECALL_AT = (1, 5, 10)
EVALUATOR = ("clip_benchmark", "open_clip_torch", "torch")


class Subject(NamedTuple):
    """The model that is evaluated, as results name it."""

    run_id: str
    milestone: int
    weights_sha256: str | None
    """None: the run never reached the milestone."""


class Model:
    """An open_clip model that encodes on a device, in float32 or under bfloat16 autocast; remembers class vectors.

    Args:
        clip: open_clip model in eval mode.
        transform: From a PIL image to a tensor.
        tokenizer: From texts to token ids.
        device: As torch spells it, e.g. ``cpu``.
        precision: ``fp32`` or ``bf16``.
        num_workers: Processes that decode the images of large sets.
    """

    def __init__(
        self,
        clip: Any,
        transform: Any,
        tokenizer: Any,
        device: str,
        *,
        precision: str = "fp32",
        num_workers: int = 0,
    ) -> None:
        self.clip, self.tokenizer = clip.to(device), tokenizer
        self._pixels, self._finish = split_transform(transform)
        self.device, self.num_workers = device, num_workers
        self._autocast = precision == "bf16"
        self._class_vectors: dict[tuple[str, tuple[str, ...]], Tensor] = {}

    def encode_image(self, batch: Tensor) -> Tensor:
        """Encode a batch of `images` to float32 embeddings (B, D), not normalised."""
        image_BCHW = self._finish(batch)
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self._autocast):
            embedding_BD: Tensor = self.clip.encode_image(image_BCHW)
        return embedding_BD.float()

    def encode_text(self, tokens_BT: Tensor) -> Tensor:
        """Encode token ids to float32 embeddings (B, D), not normalised."""
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self._autocast):
            embedding_BD: Tensor = self.clip.encode_text(tokens_BT)
        return embedding_BD.float()

    def images(self, data: EvalData) -> ImageBatches:
        """Return a set's images in batches, as `encode_image` takes them."""
        return ImageBatches(data, self._pixels, batch_size=BATCH_SIZE, num_workers=self.num_workers)

    @torch.no_grad()
    def unit_images(self, images: ImageBatches) -> Tensor:
        """Encode images to unit embeddings (N, D) on the CPU."""
        return torch.cat([F.normalize(self.encode_image(batch.to(self.device)), dim=-1).cpu() for batch in images])

    @torch.no_grad()
    def unit_texts(self, texts: list[str]) -> Tensor:
        """Encode texts to unit embeddings (M, D) on the CPU."""
        return F.normalize(self.encode_text(self.tokenizer(texts).to(self.device)), dim=-1).cpu()

    def classifier(self, classes: list[str], templates: list[str]) -> Tensor:
        """Return the classes' vectors (D, C): clip_benchmark's, each computed once however many sets ask for it."""
        keys = [(name, tuple(templates)) for name in classes]
        new = list(dict.fromkeys(key for key in keys if key not in self._class_vectors))
        if new:
            names = [name for name, _ in new]
            vectors_DC = zsc.zero_shot_classifier(self, self.tokenizer, names, templates, self.device, amp=False)
            self._class_vectors.update(zip(new, vectors_DC.unbind(dim=1), strict=True))
        return torch.stack([self._class_vectors[key] for key in keys], dim=1)


class Answer(NamedTuple):
    """The metrics of a model on a set, and the outcomes behind the main one."""

    metrics: dict[str, float]
    outcomes: Outcomes


def _classification(data: EvalData, model: Model, images: ImageBatches) -> Answer:
    classifier = model.classifier(data.classes, data.templates)
    pairs = images.beside(torch.from_numpy(data.labels))
    logits_NC, labels_N = zsc.run_classification(model, classifier, pairs, model.device, amp=False)
    ks = (1, 5) if len(data.classes) >= 5 else (1,)
    metrics = {f"acc{k}": acc for k, acc in zip(ks, zsc.accuracy(logits_NC, labels_N, topk=ks), strict=True)}
    true_N, predicted_N = labels_N.numpy(), logits_NC.argmax(dim=1).numpy()
    metrics["mean_per_class_recall"] = scoring.mean_per_class_recall(true_N, predicted_N)
    metric, group_by = data.card.metric, data.card.group_by
    outcomes = scoring.count_outcomes(
        np.zeros_like(true_N) if metric == "acc1" else true_N,
        predicted_N if metric == "F1-macro_all" else predicted_N == true_N,
    )
    if metric == "F1-macro_all":
        metrics[metric] = scoring.macro_f1(true_N, predicted_N)
    if group_by is not None:
        if WORST_GROUP[metric] > len(data.classes):
            reading.fail(data.card, f"{metric} is not defined with {len(data.classes)} classes")
        hit_N, group_N = scoring.in_top(logits_NC, labels_N, WORST_GROUP[metric]), data.column(group_by)
        metrics[metric] = scoring.worst_group(hit_N, group_N)
        smallest = scoring.MIN_GROUP
        metrics[f"{metric}_min{smallest}"] = scoring.worst_group(hit_N, group_N, smallest)
        outcomes = scoring.count_outcomes(group_N, hit_N)
    return Answer(metrics, outcomes)


def _retrieval(data: EvalData, model: Model, images: ImageBatches) -> Answer:
    image_ND = model.unit_images(images)
    # Tokenised and encoded with their images, as clip_benchmark does: other batches move scores by about 1e-5.
    starts = range(0, len(data.captions), BATCH_SIZE)
    batches = [list(itertools.chain(*data.captions[start : start + BATCH_SIZE])) for start in starts]
    text_MD = torch.cat([model.unit_texts(texts) for texts in batches if texts])
    image_of_text = [row for row, texts in enumerate(data.captions) for _ in texts]
    hits = scoring.retrieval_hits(image_ND, text_MD, image_of_text, RECALL_AT)
    metrics = {name: hit.float().mean().item() for name, hit in hits.items()}
    both = ("image_retrieval_recall@1", "text_retrieval_recall@1")
    found_M, finds_N = (hits[name].numpy() for name in both)
    num_images = len(data.captions)
    outcomes = scoring.count_outcomes(
        np.zeros(num_images, np.int64),
        np.bincount(image_of_text, weights=found_M, minlength=num_images),
        np.bincount(image_of_text, minlength=num_images),
        finds_N,
    )
    return Answer({**metrics, "mean_recall@1": sum(metrics[name] for name in both) / 2}, outcomes)


def _selection(data: EvalData, model: Model, images: ImageBatches) -> Answer:
    pairs = images.beside(data.captions)
    found = image_caption_selection.evaluate(model, pairs, model.tokenizer, model.device, amp=False)
    # Of one image and several captions: whether the image's best is the first. The other two metrics say nothing more.
    count = len(data.captions)
    hits = round(found["text_acc"] * count)
    outcomes = scoring.count_outcomes(np.zeros(count, np.int64), np.arange(count) < hits)
    return Answer({"text_acc": found["text_acc"]}, outcomes)


def _association(data: EvalData, model: Model, images: ImageBatches) -> Answer:
    image_ND = model.unit_images(images)
    row_of = {location.key: row for row, location in enumerate(data.locations)}
    prompts = list(dict.fromkeys(scoring.cue_prompt(instance.cue) for instance in data.instances))
    starts = range(0, len(prompts), BATCH_SIZE)
    vectors = torch.cat([model.unit_texts(prompts[start : start + BATCH_SIZE]) for start in starts])
    vector_of = dict(zip(prompts, vectors, strict=True))
    scores: dict[str, list[float]] = {}
    for instance in data.instances:
        rows = [row_of[candidate] for candidate in instance.candidates]
        similarity = image_ND[rows] @ vector_of[scoring.cue_prompt(instance.cue)]
        is_association = np.isin(instance.candidates, instance.associations)
        score = scoring.jaccard(similarity.numpy(), is_association)
        parts = ("", "_5-6" if len(rows) <= 6 else "_10-12" if len(rows) >= 10 else "")
        for part in set(parts):
            scores.setdefault(f"jaccard_score{part}", []).append(score)
    main_N = np.array(scores.get(data.card.metric, []))
    outcomes = scoring.count_outcomes(np.zeros(len(main_N), np.int64), main_N)
    return Answer({name: math.fsum(values) / len(values) for name, values in scores.items()}, outcomes)


TASKS = {
    "zeroshot_classification": _classification,
    "zeroshot_retrieval": _retrieval,
    "image_caption_selection": _selection,
    "association": _association,
}


def answer_set(data: EvalData, model: Model) -> Answer:
    """Let a model answer one set.

    Returns:
        Metrics as fractions, with the outcomes behind the main one; what is undefined is left out, e.g. acc5 with fewer
        than five classes.

    Raises:
        ValueError: If an image cannot be decoded, or the set does not support its own main metric.
    """
    images = model.images(data)
    answer = TASKS[data.card.task](data, model, images)
    if images.num_transparent:
        sys.stderr.write(
            f"evaluation set {data.card.name!r}: {images.num_transparent} images have an alpha channel; it is dropped "
            "and the colours below it are seen, as in clip_benchmark\n"
        )
    metrics = {name: float(value) for name, value in answer.metrics.items() if math.isfinite(value)}
    if data.card.metric not in metrics:
        reading.fail(data.card, f"it has no {data.card.metric}, only {', '.join(metrics)}")
    return Answer(metrics, answer.outcomes)


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
        metrics: dict[str, float] = {}
        data, outcomes = None, None
        if subject.weights_sha256 and card not in lost:
            data = reading.read(card)
            model = model or load()
            metrics, outcomes = answer_set(data, model)
        results[name] = EvalResult(
            run_id=subject.run_id,
            milestone=subject.milestone,
            eval_set=name,
            status="evaluated" if data else "missing" if card in lost else "absent",
            metrics=metrics,
            main_metric=card.metric,
            value=metrics.get(card.metric),
            num_samples=card.images if data else None,
            weights_sha256=subject.weights_sha256,
            card_sha256=card.identity,
            evaluator=evaluator,
            data_sha256=data.sha256 if data else None,
            outcomes=outcomes,
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
    subject = Subject(f"{name} {pretrained or ('random weights' if random_weights else '')}".strip(), 0, weights)
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
