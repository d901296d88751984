"""A suite: one YAML that says which runs make a table or a figure. Expanding it gives fully resolved run specs."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

from pydantic import Field, JsonValue, ValidationError

from engine.registry import method_names, resolve_config
from engine.spec import (
    AugmentationSpec,
    DatasetSpec,
    Frozen,
    MethodSpec,
    ModelSpec,
    OptimizerSpec,
    RunSpec,
    explain_validation_error,
    unknown_name,
)
from engine.suite import ExpandedSuite, SuiteRun
from experiments import cards

Options = dict[str, JsonValue]
_OWN_MODELS = cards.FOLDER.parent / "engine" / "models"


class NormalizerErrorPlan(Frozen):
    """As `NormalizerErrorSpec`, with shares of the training, in (0, 1]."""

    at: tuple[float, ...] = (1.0,)
    num_anchors: int = 2048
    control_size: int = 1024


class Training(Frozen):
    """How every run of a suite is trained; lengths may be given in epochs or samples, warm-up as a share."""

    global_batch_size: int = Field(ge=2)
    epochs: float | None = Field(default=None, gt=0)
    samples_seen: int | None = Field(default=None, ge=2)
    milestones: tuple[float, ...] = (1.0,)
    """Shares of the training, in (0, 1]; the end is always one."""
    warmup_fraction: float | None = Field(default=None, ge=0, lt=1)
    optimizer: OptimizerSpec = OptimizerSpec()
    augmentation: AugmentationSpec = AugmentationSpec()
    precision: str = "fp32"
    batch_norm_groups: int = Field(default=1, ge=1)
    normalizer_error: NormalizerErrorPlan | None = None


class MethodEntry(Frozen):
    """A method of a suite: its options, and where its training differs from the suite's."""

    options: Options = Field(default_factory=dict)
    training: Options = Field(default_factory=dict)


class Variant(Frozen):
    """The suite's runs with something changed; the empty variant is the main run."""

    label: str = ""
    methods: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None
    options: Options = Field(default_factory=dict)
    training: Options = Field(default_factory=dict)


class Suite(Frozen):
    """One file of `experiments/suites/`."""

    title: str
    dataset: str
    model: str
    evaluation: str
    seeds: tuple[int, ...] = Field(min_length=1)
    training: Options
    methods: dict[str, MethodEntry] = Field(min_length=1)
    variants: tuple[Variant, ...] = (Variant(),)


def merge(base: Any, change: Any) -> Any:
    """Return `base` with `change` laid over it: mappings are merged, anything else is replaced."""
    if isinstance(base, dict) and isinstance(change, dict):
        return {**base, **{key: merge(base.get(key), value) for key, value in change.items()}}
    return change


def _model(name: str) -> ModelSpec:
    own = _OWN_MODELS / f"{name}.json"
    if own.exists():
        return ModelSpec(name=name, config_sha256=hashlib.sha256(own.read_bytes()).hexdigest())
    # Looked up without importing open_clip, which takes seconds.
    package = importlib.util.find_spec("open_clip")
    assert package is not None
    assert package.origin is not None
    known = {p.stem for p in (Path(package.origin).parent / "model_configs").glob("*.json")}
    if name not in known:
        raise ValueError(unknown_name("model", name, {p.stem for p in _OWN_MODELS.glob("*.json")} | known))
    return ModelSpec(name=name)


def _run(suite: Suite, card: cards.DatasetCard, model: ModelSpec, variant: Variant, method: str, seed: int) -> RunSpec:
    entry = suite.methods[method]
    plan = Training.model_validate(merge(merge(suite.training, entry.training), variant.training))
    if (plan.epochs is None) == (plan.samples_seen is None):
        raise ValueError("training: give either epochs or samples_seen")
    batch = plan.global_batch_size
    if plan.epochs is not None:
        num_steps = round(plan.epochs * (card.pairs // batch))
    else:
        assert plan.samples_seen is not None
        if plan.samples_seen % batch:
            raise ValueError(f"training: samples_seen = {plan.samples_seen} is no multiple of the batch of {batch}")
        num_steps = plan.samples_seen // batch
    optimizer = plan.optimizer
    if plan.warmup_fraction is not None:
        if optimizer.warmup_steps:
            raise ValueError("training: give either warmup_fraction or optimizer.warmup_steps")
        optimizer = optimizer.model_copy(update={"warmup_steps": round(plan.warmup_fraction * num_steps)})

    def samples_at(shares: tuple[float, ...]) -> tuple[int, ...]:
        return tuple(sorted({max(1, round(share * num_steps)) * batch for share in shares}))

    error = plan.normalizer_error
    return RunSpec.model_validate(
        {
            "method": MethodSpec(
                name=method,
                config=resolve_config(method, merge(entry.options, variant.options)).model_dump(mode="json"),
            ),
            "dataset": DatasetSpec(name=card.name, revision=card.revision, pairs=card.pairs, captions=card.captions),
            "model": model,
            "global_batch_size": batch,
            "samples_seen": num_steps * batch,
            "milestones": samples_at((*plan.milestones, 1.0)),
            "optimizer": optimizer,
            "augmentation": plan.augmentation,
            "precision": plan.precision,
            "batch_norm_groups": plan.batch_norm_groups,
            "normalizer_error": error and {**error.model_dump(), "at": samples_at(error.at)},
            "seed": seed,
        }
    )


def expand(name: str) -> ExpandedSuite:
    """Read a suite and return its runs, sorted by id.

    Raises:
        ValueError: If anything in the suite or its cards is unknown or wrong, or if two runs are the same.
    """
    if name not in cards.names("suites"):
        raise ValueError(unknown_name("suite", name, cards.names("suites")))
    suite = cards.read_yaml(cards.FOLDER / "suites" / f"{name}.yaml", Suite)
    where = f"suite {name!r}"
    for variant in suite.variants:
        for method in variant.methods or ():
            if method not in suite.methods:
                raise ValueError(
                    f"{where}, variant {variant.label!r}: " + unknown_name("method", method, suite.methods)
                )
    runs: dict[str, SuiteRun] = {}
    try:
        for method in suite.methods:
            if method not in method_names():
                raise ValueError(unknown_name("method", method, method_names()))
        card, model = cards.dataset(suite.dataset), _model(suite.model)
        evaluation = cards.evaluation(suite.evaluation)
        for variant in suite.variants:
            for method in variant.methods or tuple(suite.methods):
                for seed in variant.seeds or suite.seeds:
                    run = _run(suite, card, model, variant, method, seed)
                    if run.run_id in runs:
                        raise ValueError(f"variant {variant.label!r} of {method} with seed {seed} occurs twice")
                    runs[run.run_id] = SuiteRun(variant=variant.label, spec=run)
    except ValidationError as error:
        raise ValueError(explain_validation_error(where, error, Training)) from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    ordered = tuple(runs[run_id] for run_id in sorted(runs))
    return ExpandedSuite(name=name, title=suite.title, runs=ordered, evaluation=evaluation)
