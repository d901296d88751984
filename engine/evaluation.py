"""What a model is evaluated on, and the schema of a result."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from engine.spec import SCHEMA_VERSION, Frozen, fingerprint, unknown_name


class EvalCard(Frozen):
    """One evaluation set: where it lies, its metric, and what must be found there."""

    name: str
    title: str
    """A word or two: the name of a column."""
    description: str = ""
    task: Literal["zeroshot_classification", "zeroshot_retrieval"]
    metric: Literal["acc1", "mean_per_class_recall", "mean_recall@1"]
    path: str
    split: str = "test"
    images: int = Field(ge=1)
    classes: int | None = None
    captions: int | None = None
    chance: float = Field(ge=0, le=1)
    sha256: str | None = None
    """Digest of the folder as `engine.paths.folder_sha256` takes it; None compares only the counts."""
    licence: str
    source: str
    build: str | None = None
    """Command that makes or fetches it; None when it must be fetched by hand."""
    ready: str | None = None
    """File that exists once `build` has succeeded."""

    @property
    def revision(self) -> str:
        """Changes when the set's content does."""
        return self.sha256 or "unpinned"

    @property
    def identity(self) -> str:
        """Digest of what can change a result: not where the set lies, nor how it is described."""
        told = {"path", "title", "description", "licence", "source", "build", "ready"}
        return fingerprint(self.model_dump(mode="json", exclude=told))


class Evaluation(Frozen):
    """Evaluation sets and their averages: averages of a set's main metric, unweighted."""

    name: str
    sets: dict[str, EvalCard]
    averages: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]]

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
        return f"{self.name}-{fingerprint({name: card.identity for name, card in self.sets.items()})[:8]}"


class EvalResult(Frozen):
    """What one model reaches on one set; metrics are fractions."""

    schema_version: int = SCHEMA_VERSION
    run_id: str
    milestone: int
    eval_set: str
    status: Literal["evaluated", "absent"]
    metrics: dict[str, float]
    main_metric: str
    value: float | None
    num_samples: int | None
    weights_sha256: str | None
    card_sha256: str
    evaluator: dict[str, str]
