"""Evaluation sets, lists of them with their averages, and the result of a model on a set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from engine.schema.base import SCHEMA_VERSION, Frozen, Sealed, fingerprint, unknown_name

TASK_METRICS = {
    "zeroshot_classification": (
        "acc1",
        "mean_per_class_recall",
        "F1-macro_all",
        "acc_worst_region",
        "acc_top5_wg",
        "acc_wg",
    ),
    "zeroshot_retrieval": ("mean_recall@1",),
    "image_caption_selection": ("text_acc",),
    "association": ("jaccard_score_10-12",),
}
"""Main metrics by task, under DataComp's names."""
WORST_GROUP = {"acc_worst_region": 1, "acc_wg": 1, "acc_top5_wg": 5}
"""Metrics that are the lowest top-k accuracy of any group of images, with their k."""
Precision = Literal["fp32", "bf16"]
"""Precision of the encoders; bf16 is autocast, and moves accuracies by some tenths of a point."""
WhenMissing = Literal["refuse", "no_average", "average_of_available"]
"""Treatment of a set that is not on disk: stop; leave out the averages it belongs to; average over the others, and name
the average so."""


Status = Literal["evaluated", "absent", "diverged", "missing"]
"""absent: the run never reached the milestone; diverged: embeddings are not finite; missing: the set is not on disk."""


class Original(Frozen):
    """The files that a set is made from, if nobody offers it in a layout that `engine.evaluation.reading` reads."""

    layout: Literal["folders", "medmnist", "winogavil"]
    """Their layout; see `experiments.fetch.layouts`."""
    files: tuple[str, ...] = Field(min_length=1)
    """Their names: those in the repository, or the name for the file behind `url`."""
    url: str | None = None
    """Address of a file that is in no repository."""
    md5: str | None = Field(default=None, pattern="^[0-9a-f]{32}$")
    """Digest of that file, as its publisher states it."""
    folders: tuple[str, ...] = ()
    """Layout ``folders``: the folder of each class, in the order of the classes."""


class EvalCard(Frozen):
    """One evaluation set: its place, its metric, and the counts that must be found."""

    name: str
    title: str
    """A word or two: the name of a column."""
    description: str = ""
    task: Literal["zeroshot_classification", "zeroshot_retrieval", "image_caption_selection", "association"]
    metric: str
    """One of `TASK_METRICS`."""
    path: str
    split: str = "test"
    images: int = Field(ge=1)
    """Number of images; of instances in an association set."""
    classes: int | None = None
    captions: int | None = None
    metadata: tuple[str, ...] = ()
    """Columns of each image's ``key.npy``; empty if none is needed."""
    group_by: str | None = None
    """The column whose groups a worst-group metric compares."""
    chance: float = Field(ge=0, le=1)
    sha256: str | None = None
    """Digest of the folder by `engine.files.folder_sha256`; None compares only the counts."""
    hf_repo: str | None = None
    """Data set repository on the Hugging Face Hub, of which `path` is a copy."""
    hf_revision: str | None = Field(default=None, pattern="^[0-9a-f]{40}$")
    """Its commit; None until one has been pinned."""
    original: Original | None = None
    """The files that `path` is made from, if it is made."""
    class_names: tuple[str, ...] = ()
    """Names of classes in prompts, of a set that is made from other files."""
    templates: tuple[str, ...] = ()
    """Prompts of such a set, with {c} for the class."""
    licence: str
    source: str
    build: str | None = None
    """Command by which the workflow makes the set; None if a person must fetch it."""
    ready: str | None = None
    """File that exists once `build` has succeeded."""
    fetch: str | None = None
    """Advice for a person on how to fetch it; the workflow never runs it."""
    file: str | None = None
    """The card's own file, where that is none of this repository; `path` is then absolute."""

    @model_validator(mode="after")
    def _check(self) -> EvalCard:
        if self.metric not in TASK_METRICS[self.task]:
            raise ValueError(unknown_name(f"metric of {self.task}", self.metric, TASK_METRICS[self.task]))
        if (self.metric in WORST_GROUP) != (self.group_by is not None):
            raise ValueError(f"group_by goes with the metrics {', '.join(WORST_GROUP)}, and only with them")
        if self.group_by is not None and self.group_by not in self.metadata:
            raise ValueError("group_by: " + unknown_name("metadata column", self.group_by, self.metadata))
        if self.original is not None:
            if (self.original.url is None) != (self.original.md5 is None):
                raise ValueError("original: url and md5 go together")
            if (self.original.url is None) == (self.hf_repo is None):
                raise ValueError("original: give a url, or hf_repo beside it")
            if self.task == "zeroshot_classification" and not (self.templates and self.class_names):
                raise ValueError("a set that is made from other files needs class_names and templates")
        if self.class_names and len(self.class_names) != self.classes:
            raise ValueError(f"{len(self.class_names)} class_names, classes is {self.classes}: make them equal")
        return self

    @property
    def place(self) -> str:
        """The card's file."""
        return self.file or f"experiments/evals/{self.name}.yaml"

    @property
    def reference(self) -> str:
        """Name that asks for the set, or its card's file."""
        return self.file or self.name

    @property
    def revision(self) -> str:
        """Changes when the set's content does."""
        return self.sha256 or self.hf_revision or "unpinned"

    @property
    def identity(self) -> str:
        """Digest of all fields that can change a result: not of the set's place or description."""
        told = {"path", "title", "description", "licence", "source", "build", "ready", "fetch", "hf_repo", "original"}
        return fingerprint(self.model_dump(mode="json", exclude=told | {"file"}))


class Average(NamedTuple):
    """An average over evaluation sets."""

    name: str
    """The name in the evaluation; with the number of sets, if some are left out."""
    value: float | None
    chance: float
    """The same average of the scores of guessing."""
    num_sets: int


class Evaluation(Sealed):
    """Evaluation sets and their averages, which are unweighted means of main metrics."""

    name: str
    sets: dict[str, EvalCard]
    averages: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]]
    precision: Precision = "fp32"
    when_missing: WhenMissing = "refuse"
    file: str | None = None
    """The list's own file, where that is none of this repository."""

    @model_validator(mode="after")
    def _check(self) -> Evaluation:
        for average, members in self.averages.items():
            for member in members:
                if member not in self.sets:
                    raise ValueError(f"average {average!r}: " + unknown_name("evaluation set", member, self.sets))
        return self

    @property
    def reference(self) -> str:
        """Name that asks for it, or its file."""
        return self.file or self.name

    @property
    def key(self) -> str:
        """``<name>-<8 hex>``: other sets, or other content of one, are another evaluation."""
        options = self.model_dump(mode="json", include={"precision", "when_missing"}, exclude_defaults=True)
        cards = {name: card.identity for name, card in self.sets.items()}
        return f"{self.name}-{fingerprint({**cards, **options})[:8]}"

    def averaged(self, values: Mapping[str, float | None], missing: frozenset[str]) -> dict[str, Average]:
        """Compute all averages.

        Args:
            values: Main metric by set; None where the model has none.
            missing: Sets that are not on disk.

        Returns:
            The averages by their plain names. An average has no value if one of its sets has none; but if
            `when_missing` leaves sets out, its name says over how many sets it is.
        """
        found = {}
        for key, members in self.averages.items():
            lacking = tuple(member for member in members if member in missing)
            name, over = key, members
            if lacking and self.when_missing == "average_of_available" and len(lacking) < len(members):
                over = tuple(member for member in members if member not in missing)
                name = f"{key} ({len(over)} of {len(members)} sets)"
            known = [value for member in over if (value := values.get(member)) is not None]
            value = math.fsum(known) / len(known) if len(known) == len(over) else None
            chance = math.fsum(self.sets[member].chance for member in over) / len(over)
            found[key] = Average(name, value, chance, len(over))
        return found


class Outcomes(Frozen):
    """Counts of a model's outcomes on the samples of a set, for resampling them.

    Samples are images; in an association set, instances. They are drawn within strata: the classes of a metric that is
    a mean over classes, the groups of a worst-group metric, else all together.
    """

    stratum: tuple[int, ...]
    outcome: tuple[tuple[float, ...], ...]
    """(score,); of ``F1-macro_all`` (predicted class,), the stratum being the true one; of ``mean_recall@1`` (captions
    that find the image, its captions, whether it finds one of them)."""
    count: tuple[int, ...]
    """Number of samples with this stratum and outcome."""


class EvalResult(Sealed):
    """Metrics of one model on one set, as fractions."""

    schema_version: int = SCHEMA_VERSION
    run_id: str
    milestone: int
    eval_set: str
    status: Status
    metrics: dict[str, float]
    main_metric: str
    value: float | None
    num_samples: int | None
    weights_sha256: str | None
    card_sha256: str
    evaluator: dict[str, str]
    data_sha256: str | None = None
    """Digest of the set's folder, as `EvalCard.sha256`."""
    outcomes: Outcomes | None = None
    """Outcomes behind the main metric; None in old results."""

    @property
    def precision(self) -> str:
        """Precision of the encoders, as in `Evaluation`."""
        return self.evaluator.get("precision", "fp32")
