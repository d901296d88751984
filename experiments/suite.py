"""A suite: one YAML that says which runs make a table or a figure. Expanding it gives fully resolved run specs."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

from pydantic import Field, JsonValue, ValidationError

from engine.registry import keep, method_names, resolve_config
from engine.schema.base import Frozen, explain_validation_error, unknown_name
from engine.schema.run import AugmentationSpec, DatasetSpec, MethodSource, MethodSpec, ModelSpec, OptimizerSpec, RunSpec
from engine.schema.suite import ExpandedSuite, SuiteRun
from experiments import cards, names

Options = dict[str, JsonValue]
Factors = dict[str, float]
_OWN_MODELS = cards.FOLDER.parent / "engine" / "models"


class NormalizerErrorPlan(Frozen):
    """As `NormalizerErrorSpec`, with shares of the training, in (0, 1]."""

    at: tuple[float, ...] = (1.0,)
    num_anchors: int = 2048
    control_size: int = 1024


class GradientErrorPlan(Frozen):
    """As `GradientErrorSpec`, with shares of the training, in (0, 1]."""

    at: tuple[float, ...] = (1.0,)
    population: int = 16384
    num_rounds: int = 8


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
    batch_norm_sample: int | None = Field(default=None, ge=2)
    """Pairs whose batch-norm statistics are taken together, also where an ablation changes the batch; None: all."""
    normalizer_error: NormalizerErrorPlan | None = None
    gradient_error: GradientErrorPlan | None = None


class MethodEntry(Frozen):
    """A method of a suite: its options, and where its training differs from the suite's."""

    class_: str | None = Field(default=None, alias="class")
    """``file.py:ClassName``, relative to the suite's file, for a method that is not in this repository."""
    options: Options = Field(default_factory=dict)
    training: Options = Field(default_factory=dict)


class Variant(Frozen):
    """The suite's runs with something changed; the empty variant is the main run."""

    label: str = ""
    """What tables call it. ``{key}`` is replaced by the value that an option or a training setting then has."""
    methods: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None
    model: str | None = None
    dataset: str | None = None
    data_fraction: float | None = Field(default=None, gt=0, lt=1)
    """Train on a part of the data, see `cards.subset`."""
    options: Options = Field(default_factory=dict)
    options_times: Factors = Field(default_factory=dict)
    """Factors by which options change: one ablation then makes sense at every scale. ``fastclip.rho`` is an option of
    that method only."""
    training: Options = Field(default_factory=dict)
    training_times: Factors = Field(default_factory=dict)


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
    ablations: tuple[str, ...] = ()
    """Ablations that are asked for along with it, by name or pattern; see `experiments.names`."""


class Ablation(Frozen):
    """One file of `experiments/ablations/`: what varies, whichever suite it is applied to."""

    title: str
    methods: tuple[str, ...] | None = None
    """None: all of the suite's."""
    seeds: tuple[int, ...] | None = None
    """None: the suite's."""
    variants: tuple[Variant, ...] = Field(min_length=1)
    """A variant that the suite's main run already is, at this scale, is that run: trained once, not listed twice."""


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


def _times(values: Options, factors: Factors, where: str) -> Options:
    """Multiply the named values: integers stay integers of at least 1, None (worked out elsewhere) stays None."""
    changed: Options = {}
    for key, factor in factors.items():
        if key not in values:
            raise ValueError(f"{where}_times: " + unknown_name("key", key, values))
        value = values[key]
        if isinstance(value, bool) or not isinstance(value, (int, float, type(None))):
            raise ValueError(f"{where}_times: {key} is {value!r}, no number to multiply; give it in {where} instead")
        if value is not None:
            # Twelve digits: 0.1 * 3 is to be 0.3, so that a run's id does not depend on how a value came about.
            changed[key] = max(1, round(value * factor)) if isinstance(value, int) else float(f"{value * factor:.12g}")
    return changed


def _changed(suite: Suite, method: str, source: MethodSource | None, variant: Variant) -> tuple[Options, Options]:
    """Return a method's resolved options and its training, with a variant's changes."""
    entry = suite.methods[method]
    known = {*method_names(), *suite.methods}
    factors: Factors = {}
    for key, factor in variant.options_times.items():
        owner, _, option = key.rpartition(".")
        if owner and owner not in known:
            raise ValueError(f"options_times: {key}: " + unknown_name("method", owner, known))
        if owner in ("", method):
            factors[option] = factor
    options = resolve_config(method, entry.options, source).model_dump(mode="json")
    changes = merge(variant.options, _times(options, factors, "options"))
    config = resolve_config(method, merge(entry.options, changes), source).model_dump(mode="json")

    training = merge(suite.training, entry.training)
    plan = Training.model_validate(training).model_dump()
    changes = merge(variant.training, _times(plan, variant.training_times, "training"))
    return config, merge(training, changes)


def _label(variant: Variant, values: Options) -> str:
    try:
        return variant.label.format_map(values)
    except KeyError as error:
        raise ValueError(f"label {variant.label!r}: " + unknown_name("key", str(error.args[0]), values)) from None


def _run(suite: Suite, variant: Variant, method: str, source: MethodSource | None, seed: int) -> SuiteRun:
    config, training = _changed(suite, method, source, variant)
    plan = Training.model_validate(training)
    card = cards.dataset(variant.dataset or suite.dataset)
    if variant.data_fraction is not None:
        card = cards.subset(card, variant.data_fraction)
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
    sample = plan.batch_norm_sample or batch
    if batch % sample:
        raise ValueError(f"training: batch_norm_sample = {sample} does not divide global_batch_size = {batch}")
    optimizer = plan.optimizer
    if plan.warmup_fraction is not None:
        if optimizer.warmup_steps:
            raise ValueError("training: give either warmup_fraction or optimizer.warmup_steps")
        optimizer = optimizer.model_copy(update={"warmup_steps": round(plan.warmup_fraction * num_steps)})

    def samples_at(shares: tuple[float, ...]) -> tuple[int, ...]:
        return tuple(sorted({max(1, round(share * num_steps)) * batch for share in shares}))

    error, gradients = plan.normalizer_error, plan.gradient_error
    spec = RunSpec.model_validate(
        {
            "method": MethodSpec(name=method, config=config, source=source),
            "dataset": DatasetSpec(name=card.name, revision=card.revision, pairs=card.pairs, captions=card.captions),
            "model": _model(variant.model or suite.model),
            "global_batch_size": batch,
            "samples_seen": num_steps * batch,
            "milestones": samples_at((*plan.milestones, 1.0)),
            "optimizer": optimizer,
            "augmentation": plan.augmentation,
            "precision": plan.precision,
            "batch_norm_groups": batch // sample,
            "normalizer_error": error and {**error.model_dump(), "at": samples_at(error.at)},
            "gradient_error": gradients and {**gradients.model_dump(), "at": samples_at(gradients.at)},
            "seed": seed,
        }
    )
    return SuiteRun(variant=_label(variant, {**training, **config}), spec=spec)


def _read(what: str | None, file: Path) -> Suite:
    """Read a suite; with an ablation, put that in the place of its variants."""
    suite = cards.read_yaml(file, Suite)
    if what is None:
        return suite
    ablation = cards.read_yaml(cards.FOLDER / "ablations" / f"{what}.yaml", Ablation)
    methods = ablation.methods or tuple(suite.methods)
    for method in methods:
        if method not in suite.methods:
            raise ValueError(f"ablation {what!r}: " + unknown_name("method", method, suite.methods))
    return suite.model_copy(
        update={
            "title": f"{ablation.title} ({suite.title})",
            "seeds": ablation.seeds or suite.seeds,
            "methods": {method: suite.methods[method] for method in methods},
            "variants": ablation.variants,
        }
    )


def _sources(suite: Suite, folder: Path) -> dict[str, MethodSource | None]:
    """Find a suite's methods; of those that are not in this repository, a copy is kept."""
    sources: dict[str, MethodSource | None] = {}
    for method, entry in suite.methods.items():
        is_ours = method in method_names()
        if entry.class_ is None and not is_ours:
            message = unknown_name("method", method, method_names())
            raise ValueError(f"{message} A method of your own needs its file: class: file.py:ClassName")
        if entry.class_ is not None and is_ours:
            raise ValueError(f"method {method!r} has a class, but that name is one of this repository's: take another")
        sources[method] = None if entry.class_ is None else keep(entry.class_, folder)
    return sources


def expand(name: str) -> ExpandedSuite:
    """Read a suite, or an ablation of one, and return its runs, sorted by id.

    Args:
        name: As in `experiments.names`, but one suite, no group of them.

    Raises:
        ValueError: If anything in the suite, its cards or its methods is unknown or wrong, or if two runs are the same.
    """
    asked = names.split(name)
    what, where = asked.ablation, f"suite {asked.name!r}"
    suite = _read(what, asked.file)
    for variant in suite.variants:
        for method in variant.methods or ():
            if method not in suite.methods:
                raise ValueError(
                    f"{where}, variant {variant.label!r}: " + unknown_name("method", method, suite.methods)
                )
    runs: dict[str, SuiteRun] = {}
    try:
        sources = _sources(suite, asked.file.parent)
        evaluation = cards.evaluation(suite.evaluation)
        for variant in suite.variants:
            for method in variant.methods or tuple(suite.methods):
                for seed in variant.seeds or suite.seeds:
                    run = _run(suite, variant, method, sources[method], seed)
                    known = runs.setdefault(run.spec.run_id, run)
                    # At this scale, an ablation's variant may be what the main run already is.
                    if known is not run and not (what and known.variant == ""):
                        raise ValueError(f"variant {run.variant!r} of {method} with seed {seed} occurs twice")
    except ValidationError as error:
        raise ValueError(explain_validation_error(where, error, Training)) from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    ordered = tuple(runs[run_id] for run_id in sorted(runs))
    return ExpandedSuite(
        name=asked.name,
        title=suite.title,
        runs=ordered,
        evaluation=evaluation,
        file=None if asked.is_ours else str(asked.file),
    )
