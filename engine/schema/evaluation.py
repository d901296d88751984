"""What a model is evaluated on, and the schema of a result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from engine.schema.base import SCHEMA_VERSION, Frozen, fingerprint, unknown_name

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
"""Metrics that are the lowest top-k accuracy over groups of images, with their k."""
Precision = Literal["fp32", "bf16"]
"""Of the encoders; bf16 is autocast, and moves accuracies by some tenths of a point."""
WhenMissing = Literal["refuse", "no_average", "average_of_available"]
"""What to do where a set is not on disk: stop; leave out the averages it belongs to; average over the others, and say
so in the average's name."""


class Original(Frozen):
    """The files that a set is made from, where nobody offers it as `engine.evaluation.reading` reads it."""

    layout: Literal["folders", "medmnist", "winogavil"]
    """How to read them; see `experiments.fetch.layouts`."""
    files: tuple[str, ...] = Field(min_length=1)
    """Their names: in the repository, or the one that `url` gets here."""
    url: str | None = None
    """Where a file is that is in no repository."""
    md5: str | None = Field(default=None, pattern="^[0-9a-f]{32}$")
    """Its digest, as its publisher states it."""
    folders: tuple[str, ...] = ()
    """Layout ``folders``: the folder of each class, in the order of the classes."""


class EvalCard(Frozen):
    """One evaluation set: where it lies, its metric, and what must be found there."""

    name: str
    title: str
    """A word or two: the name of a column."""
    description: str = ""
    task: Literal["zeroshot_classification", "zeroshot_retrieval", "image_caption_selection", "association"]
    metric: Literal[
        "acc1",
        "mean_per_class_recall",
        "mean_recall@1",
        "text_acc",
        "F1-macro_all",
        "acc_worst_region",
        "acc_top5_wg",
        "acc_wg",
        "jaccard_score_10-12",
    ]
    path: str
    split: str = "test"
    images: int = Field(ge=1)
    """Images; of an association set, its instances."""
    classes: int | None = None
    captions: int | None = None
    metadata: tuple[str, ...] = ()
    """Columns of each image's ``key.npy``; empty if there is none, or none that is needed."""
    group_by: str | None = None
    """The column whose groups a worst-group metric compares."""
    chance: float = Field(ge=0, le=1)
    sha256: str | None = None
    """Digest of the folder as `engine.files.folder_sha256` takes it; None compares only the counts."""
    hf_repo: str | None = None
    """Data set repository on the Hugging Face Hub that `path` is a copy of."""
    hf_revision: str | None = Field(default=None, pattern="^[0-9a-f]{40}$")
    """Its commit; None until one has been pinned."""
    original: Original | None = None
    """Set where `path` is made from other files."""
    class_names: tuple[str, ...] = ()
    """Of a set that is made from other files: what prompts call the classes."""
    templates: tuple[str, ...] = ()
    """Of such a set: the prompts, with {c}."""
    licence: str
    source: str
    build: str | None = None
    """Command by which the workflow makes it; None when it must be fetched by hand."""
    ready: str | None = None
    """File that exists once `build` has succeeded."""
    fetch: str | None = None
    """What to run or read to fetch it by hand. Never run by the workflow."""

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
    def revision(self) -> str:
        """Changes when the set's content does."""
        return self.sha256 or self.hf_revision or "unpinned"

    @property
    def identity(self) -> str:
        """Digest of what can change a result: not where the set lies, nor how it is described."""
        told = {"path", "title", "description", "licence", "source", "build", "ready", "fetch", "hf_repo", "original"}
        # Came later: left out while unused, so that the cards that were there before keep their identity.
        later: dict[str, Any] = {
            "metadata": (),
            "group_by": None,
            "hf_revision": None,
            "class_names": (),
            "templates": (),
        }
        unused = {name for name, default in later.items() if getattr(self, name) == default}
        return fingerprint(self.model_dump(mode="json", exclude=told | unused))


class Average(NamedTuple):
    """An average over evaluation sets."""

    name: str
    """As asked for; with what it is over, where that is not all of its sets."""
    value: float | None
    chance: float
    """The same average of what guessing scores."""
    num_sets: int


class Evaluation(Frozen):
    """Evaluation sets and their averages: averages of a set's main metric, unweighted."""

    name: str
    sets: dict[str, EvalCard]
    averages: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]]
    precision: Precision = "fp32"
    when_missing: WhenMissing = "refuse"

    @model_validator(mode="after")
    def _check(self) -> Evaluation:
        for average, members in self.averages.items():
            for member in members:
                if member not in self.sets:
                    raise ValueError(f"average {average!r}: " + unknown_name("evaluation set", member, self.sets))
        return self

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
            The averages by their plain names. One has no value if one of its sets has none, except that
            `when_missing` may leave missing sets out, and then its name says over how many it is.
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
    """What a model made of a set's samples, counted: all that resampling them needs.

    Samples are images; of an association set, instances. They are drawn within strata: the classes of a metric that is
    a mean over classes, the groups of a worst-group metric, else all together.
    """

    stratum: tuple[int, ...]
    outcome: tuple[tuple[float, ...], ...]
    """(score,); of ``F1-macro_all`` (predicted class,), the stratum being the true one; of ``mean_recall@1`` (captions
    that find the image, its captions, whether it finds one of them)."""
    count: tuple[int, ...]
    """Samples of this stratum with this outcome."""


class EvalResult(Frozen):
    """What one model reaches on one set; metrics are fractions."""

    schema_version: int = SCHEMA_VERSION
    run_id: str
    milestone: int
    eval_set: str
    status: Literal["evaluated", "absent", "missing"]
    """absent: the run never reached the milestone; missing: the set is not on disk."""
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
    """Behind the main metric; None in results from before they were kept."""
