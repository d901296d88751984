"""A suite: one YAML that says which runs make a table or a figure. Expanding it gives fully resolved run specs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from analysis import artifacts
from engine.evaluation import card_files
from engine.registry import method_names
from engine.schema.base import check_known, fingerprint, gathered, located, unknown_name, validated
from engine.schema.evaluation import EvalCard, Evaluation
from engine.schema.run import DatasetSpec, MethodSource, MethodSpec, RunSpec
from engine.schema.suite import DEFAULTS, ExpandedSuite, Hypothesis, SuiteRun, TrainingSet
from experiments.design import cards, hypotheses, models, names
from experiments.design.answers import Answers
from experiments.design.suite_file import Factors, MethodEntry, Options, Suite, Training, Variant
from experiments.design.tuning import SCORE, Tuned, Tuning, described, nested, trial
from experiments.design.values import label_of, merge, times

_FACTORS = ("options_times", "training_times")


def _read(asked: names.Asked) -> Suite:
    """Read a suite's file; paths in it are then absolute, and its data sets are known by their names.

    Raises:
        ValueError: Naming all cards of training sets that are wrong.
    """
    suite = asked.said
    place = partial(card_files.placed, folder=asked.file.parent)
    named = dict.fromkeys([suite.dataset, *(each.dataset for each in suite.variants if each.dataset is not None)])
    evaluation = place(suite.evaluation)
    reads: list[Callable[[], str]] = [partial(cards.keep, place(name)) for name in named]
    # The evaluation is read along: a user then reads of all cards that are wrong at once.
    *kept, _ = gathered([*reads, lambda: cards.evaluation(evaluation).name])
    called = dict(zip(named, kept, strict=True))

    def model(name: str | None) -> str | None:
        return name and card_files.placed(name, asked.file.parent, models.SUFFIX)

    variants = tuple(
        each.model_copy(update={"dataset": each.dataset and called[each.dataset], "model": model(each.model)})
        for each in suite.variants
    )
    tuning = suite.tuning and suite.tuning.model_copy(update={"score": tuple(map(place, suite.tuning.score))})
    changes = {"dataset": called[suite.dataset], "model": model(suite.model), "evaluation": evaluation}
    return suite.model_copy(update={**changes, "variants": variants, "tuning": tuning})


def _changed(
    suite: Suite, variant: Variant, method: str, source: MethodSource | None, answers: Answers
) -> tuple[Options, Options]:
    """Return a method's resolved options and its training, with a variant's changes."""
    entry = MethodEntry() if variant.defaults else suite.methods[method]
    factors: Factors = {}
    # A method's own factor counts, not the one for all.
    for key, factor in sorted(variant.options_times.items(), key=lambda item: "." in item[0]):
        owner, _, option = key.rpartition(".")
        if owner:
            check_known("method", owner, {*method_names(), *suite.methods}, f"options_times: {key}")
        if owner in ("", method):
            factors[option] = factor
    options = answers.config(method, entry.options, source)
    changes = merge(variant.options, times(options, factors, "options"))
    said, (name, source) = entry.options, _trained(variant, method, source)
    if variant.control is not None:
        taken = answers.config(name, {}, None)
        said = {key: value for key, value in said.items() if key in taken}
    config = answers.config(name, merge(said, changes), source)

    training = merge(suite.training, entry.training)
    plan = _training(training).model_dump()
    changes = merge(variant.training, times(plan, variant.training_times, "training"))
    return config, merge(training, changes)


def _trained(variant: Variant, method: str, source: MethodSource | None) -> tuple[str, MethodSource | None]:
    """Return the name and source of what is trained: the method, or a control of it."""
    return (method, source) if variant.control is None else (variant.control, None)


def _training(said: Options) -> Training:
    with located("training", Training):
        for key in said:  # before what is missing: a misspelt key is missing too
            check_known("key", key, Training.model_fields)
        if "global_batch_size" not in said:
            raise ValueError("global_batch_size is missing: write how many pairs a batch has")
        return validated(Training, said)


def _card(suite: Suite, variant: Variant, answers: Answers) -> cards.DatasetCard:
    card = cards.dataset(variant.dataset or suite.dataset)
    fractions = [fraction for fraction in (suite.data_fraction, variant.data_fraction) if fraction is not None]
    return answers.subset(card, float(f"{math.prod(fractions):.12g}")) if fractions else card


def _runs_of(
    suite: Suite, variant: Variant, method: str, source: MethodSource | None, seeds: Iterable[int], answers: Answers
) -> Iterator[SuiteRun]:
    """Yield a method's runs of a variant, one a seed."""
    config, training = _changed(suite, variant, method, source, answers)
    name, source = _trained(variant, method, source)
    plan = _training(training)
    card = _card(suite, variant, answers)
    batch, num_steps = plan.global_batch_size, _num_steps(plan, card)
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
    settings = {
        "method": MethodSpec(name=name, config=config, source=source),
        "dataset": DatasetSpec(name=card.name, revision=card.revision, pairs=card.pairs, captions=card.captions),
        "model": models.model(variant.model or suite.model),
        "global_batch_size": batch,
        "samples_seen": num_steps * batch,
        "milestones": samples_at((*plan.milestones, 1.0)),
        "optimizer": optimizer,
        "augmentation": plan.augmentation,
        "precision": plan.precision,
        "method_tf32": plan.method_tf32,
        "batch_norm_groups": batch // sample,
        "normalizer_error": error and {**error.model_dump(), "at": samples_at(error.at)},
        "gradient_error": gradients and {**gradients.model_dump(), "at": samples_at(gradients.at)},
    }
    label = label_of(variant, {**training, **config})
    with located("label"):
        artifacts.refuse_unprintable(label)  # or tables would refuse it, after training
    for seed in seeds:
        spec = RunSpec.model_validate({**settings, "seed": seed})
        num_extra_pairs = answers.num_extra_pairs(spec, models.embed_dim(spec.model))
        yield SuiteRun(
            variant=label,
            spec=spec,
            control_of=None if variant.control is None else method,
            num_extra_pairs=num_extra_pairs,
            over_training=suite.over_training,
        )


def _num_steps(plan: Training, card: cards.DatasetCard) -> int:
    batch = plan.global_batch_size
    if batch > card.pairs:
        raise ValueError(
            f"training: global_batch_size = {batch} exceeds the {card.pairs} pairs of {card.name!r}: use a smaller "
            "batch or a larger data set"
        )
    if (plan.epochs is None) == (plan.samples_seen is None):
        raise ValueError("training: give either epochs or samples_seen")
    if plan.epochs is not None:
        if not math.isfinite(plan.epochs * card.pairs):
            raise ValueError(f"training: epochs = {plan.epochs} are too many: use fewer")
        return round(plan.epochs * (card.pairs // batch))
    assert plan.samples_seen is not None
    if plan.samples_seen % batch:
        raise ValueError(f"training: samples_seen = {plan.samples_seen} is no multiple of the batch of {batch}")
    return plan.samples_seen // batch


def _with_ablation(suite: Suite, what: str) -> Suite:
    """Put an ablation in the place of a suite's variants."""
    ablation = names.ablation(what)
    methods = ablation.methods or tuple(suite.methods)
    for method in methods:
        check_known("method", method, suite.methods, f"ablation {what!r}")
    return suite.model_copy(
        update={
            "title": f"{ablation.title} ({suite.title})",
            "seeds": ablation.seeds or suite.seeds,
            "methods": {method: suite.methods[method] for method in methods},
            "variants": ablation.variants,
            "over_training": ablation.over_training,
        }
    )


def _check_tuning(suite: Suite, tuning: Tuning) -> None:
    """Refuse a tuning that looks at what the suite reports, or that treats its methods unequally."""
    seeds = {*suite.seeds, *(seed for variant in suite.variants for seed in variant.seeds or ())}
    if shared := sorted(seeds.intersection(tuning.seeds)):
        raise ValueError(f"seeds = {shared} are the suite's: take others, so that no reported run was tuned on")
    for average, members in cards.evaluation(suite.evaluation).averages.items():
        if shared_sets := sorted(_score(tuning).keys() & set(members)):
            raise ValueError(
                f"score: methods are compared by {', '.join(shared_sets)} (average {average!r}): judge trials by sets "
                "that are in no average, such as validation sets"
            )
    if _training(_training_of_trials(suite, tuning)).optimizer.grad_clip_norm is not None:
        raise ValueError(
            "training.optimizer.grad_clip_norm clips methods whose losses are large and leaves the others: leave it "
            "out, or give it to the methods that it is a part of, each under its own `training`"
        )


def _training_of_trials(suite: Suite, tuning: Tuning) -> Options:
    """Return what trials are trained with: no more is measured than their score."""
    measured = ("milestones", "normalizer_error", "gradient_error")
    of_suite = {key: value for key, value in suite.training.items() if key not in measured}
    training: Options = merge(of_suite, tuning.training)
    return training


def _of_score(evaluation: Evaluation, tuning: Tuning) -> Evaluation:
    """Return what trials are evaluated on: nothing that is reported."""
    sets = _score(tuning)
    # Without one of them a trial has no score: that must be said before it is trained.
    update = {"sets": sets, "averages": {SCORE: tuple(sets)}, "when_missing": "refuse"}
    return evaluation.model_copy(update=update)


def _score(tuning: Tuning) -> dict[str, EvalCard]:
    """Return the sets that judge trials, by name."""
    return {card.name: card for card in map(cards.eval_set, tuning.score)}


def _digest(suite: Suite, tuning: Tuning, method: str, answers: Answers) -> str:
    """Return the digest of all that a suite says of a method's trials: with another, they are other trials.

    Code is no part of it: what is chosen names its commit.
    """
    card, entry = _card(suite, Variant(), answers), suite.methods[method]
    return fingerprint(
        {
            "dataset": [card.name, card.revision, card.pairs],
            "model": models.model(suite.model).model_dump(mode="json"),
            "training": _training_of_trials(suite, tuning),
            "method": entry.model_dump(mode="json", include={"options", "training"}),
            "space": {
                name: each.model_dump(mode="json", exclude_defaults=True) for name, each in tuning.of(method).items()
            },
            "trials": [tuning.trials, *tuning.seeds],
            "score": {name: card.identity for name, card in _score(tuning).items()},
        }
    )


def _with_tuned(suite: Suite, asked: names.Asked, answers: Answers) -> Suite:
    """Lay the settings that a tuning has chosen over what a suite says of its methods."""
    if suite.tuned is None:
        return suite
    maker = asked.maker(suite.tuned)
    tuning = _read(maker).tuning
    command = f"snakemake tune --config suites={maker.base_reference}"
    if tuning is None:
        raise ValueError(f"suite {maker.base!r} has no `tuning`: write it, and run `{command}`")
    with located(f"tuned: {maker.base}", Training):
        _check_tuning(suite, tuning)
    if not maker.tuned.exists():
        raise ValueError(f"there is no {maker.tuned}: run `{command}`")
    chosen = cards.read_yaml(maker.tuned, Tuned).methods
    digests = {name: _digest(suite, tuning, name, answers) for name in suite.methods}
    stale = [name for name in suite.methods if name not in chosen or chosen[name].digest != digests[name]]
    if stale:
        raise ValueError(
            f"{maker.tuned} is of other trials than those of {', '.join(stale)} here: data set, model, training, "
            f"options, space or score differ; run `{command}`"
            + ("" if maker.base == asked.base else f", or write here what suite {maker.base!r} says")
        )
    methods = {
        name: entry.model_copy(update=merge(entry.model_dump(), nested(chosen[name].settings)))
        for name, entry in suite.methods.items()
    }
    return suite.model_copy(update={"methods": methods})


def _sources(suite: Suite, folder: Path, answers: Answers) -> dict[str, MethodSource | None]:
    """Find a suite's methods; of those that are not in this repository, a copy is kept."""
    sources: dict[str, MethodSource | None] = {}
    ours = method_names()
    for method, entry in suite.methods.items():
        is_ours = method in ours
        if entry.class_ is None and not is_ours:
            message = unknown_name("method", method, ours)
            raise ValueError(f"{message} A method of your own needs its file: class: file.py:ClassName")
        if entry.class_ is not None and is_ours:
            raise ValueError(f"method {method!r} has a class, but that name is one of this repository's: take another")
        sources[method] = None if entry.class_ is None else answers.source(entry.class_, folder)
    return sources


def _runs(suite: Suite, asked: names.Asked, answers: Answers) -> Iterator[SuiteRun]:
    """Yield the runs of all variants."""
    for variant in suite.variants:
        for method in variant.methods or ():
            check_known("method", method, suite.methods, f"variant {variant.label!r}")
    sources = _sources(suite, asked.file.parent, answers)
    tuned = _with_tuned(suite, asked, answers)
    for variant in suite.variants:
        for method in variant.methods or tuple(suite.methods):
            base, changes = tuned, variant
            if variant.tuned is not None:
                # What was chosen for the variant lies over what it says.
                base = _with_tuned(_as_variant(suite, variant, method, answers), asked, answers)
                changes = Variant.model_validate(variant.model_dump(include={"label", *_FACTORS}))
            yield from _runs_of(base, changes, method, sources[method], variant.seeds or suite.seeds, answers)


def _as_variant(suite: Suite, variant: Variant, method: str, answers: Answers) -> Suite:
    """Return the suite whose main run a method's variant would be."""
    entry = suite.methods[method]
    changed = entry.model_copy(update={"options": merge(entry.options, variant.options)})
    return suite.model_copy(
        update={
            "dataset": _card(suite, variant, answers).name,
            "data_fraction": None,
            "model": variant.model or suite.model,
            "training": merge(suite.training, variant.training),
            "methods": {method: changed},
            "tuned": variant.tuned,
        }
    )


def _trials(suite: Suite, tuning: Tuning, asked: names.Asked, answers: Answers) -> Iterator[SuiteRun]:
    """Yield the runs of a tuning: every method's trials, and it with its own defaults."""
    suite = suite.model_copy(update={"training": _training_of_trials(suite, tuning)})
    sources = _sources(suite, asked.file.parent, answers)
    for method in suite.methods:
        space = tuning.of(method)
        with located(f"tuning of {method}"):
            tried = answers.points(space, tuning.trials)
        for number, point in enumerate(tried, start=1):
            variant = Variant(label=trial(number), **nested(point))
            for run in _runs_of(suite, variant, method, sources[method], tuning.seeds, answers):
                yield run.model_copy(update={"settings": described(point, space)})
        defaults = Variant(label=DEFAULTS, defaults=True)
        yield from _runs_of(suite, defaults, method, sources[method], tuning.seeds, answers)


def _refuse_titles(evaluation: Evaluation) -> None:
    """Refuse titles of columns that tables could not show."""
    for card in evaluation.sets.values():
        with located(f"{card.place}: title"):
            artifacts.refuse_unprintable(card.title)
    for average in evaluation.averages:
        with located(f"averages of {evaluation.reference}"):
            artifacts.refuse_unprintable(average)


def _told(dataset: DatasetSpec) -> TrainingSet:
    card = cards.dataset(dataset.name, dataset.pairs)
    return TrainingSet(title=card.title, licence=card.licence, source=card.source)


def _refuse_one_name(runs: Iterable[SuiteRun]) -> None:
    """Refuse runs that differ in more than the seed and that tables would take for one: they would be averaged."""
    named: dict[tuple[str | int, ...], RunSpec] = {}
    for run in runs:
        spec = run.spec
        name = (spec.dataset.name, spec.model.name, spec.global_batch_size, run.method, run.variant)
        other = named.setdefault(name, spec)
        if spec.model_copy(update={"seed": other.seed}) != other:
            label = f"the label {run.variant!r}" if run.variant else "no label"
            raise ValueError(
                f"runs of {run.method} on {spec.dataset.name} differ in more than their seeds, {other.seed} and "
                f"{spec.seed}, and have {label}: tables would not tell them apart; label their variants"
            )


def expand(name: str, answers: Answers | None = None) -> ExpandedSuite:
    """Read a suite, or an ablation or the tuning of one, and return its runs, sorted by id.

    Args:
        name: As in `experiments.design.names`, but one suite, no group of them.
        answers: What is known of methods and tunings; None asks all anew.

    Raises:
        ValueError: If anything in the suite, its cards or its methods is unknown or wrong, if two runs are the same, or
            if they differ and have one name.
    """
    asked, answers = names.split(name), answers or Answers()
    with located(f"suite {asked.name!r}", Training):
        suite = _read(asked)
        evaluation, tuning, digests = cards.evaluation(suite.evaluation), suite.tuning, {}
        if tuning is not None:
            with located("tuning", Training):
                _check_tuning(suite, tuning)
        if asked.ablation is not None:
            suite = _with_ablation(suite, asked.ablation)
        if asked.part != names.TUNING:
            found = _runs(suite, asked, answers)
        elif tuning is None:
            raise ValueError(f"{asked.file} has no `tuning`: see docs/tuning.md")
        else:
            found, evaluation = _trials(suite, tuning, asked, answers), _of_score(evaluation, tuning)
            digests = {method: _digest(suite, tuning, method, answers) for method in suite.methods}
            suite = suite.model_copy(update={"title": f"Tuning ({suite.title})"})
        _refuse_titles(evaluation)
        runs: dict[str, SuiteRun] = {}
        for run in found:
            known = runs.setdefault(run.spec.run_id, run)
            # At this scale, an ablation's variant may be what the main run already is, and a trial what defaults are.
            if known is not run and run.variant != DEFAULTS and not (asked.ablation and known.variant == ""):
                spec = run.spec
                raise ValueError(f"variant {run.variant!r} of {run.method} with seed {spec.seed} occurs twice")
        _refuse_one_name(runs.values())
        claimed: tuple[Hypothesis, ...] = ()
        if asked.part is None and suite.hypotheses:
            batch = _training(suite.training).global_batch_size if "global_batch_size" in suite.training else None
            claimed = hypotheses.resolve(suite.hypotheses, asked.name, batch, runs.values())
    return ExpandedSuite(
        name=asked.name,
        title=suite.title,
        runs=tuple(runs[run_id] for run_id in sorted(runs)),
        evaluation=evaluation,
        file=None if asked.is_ours else str(asked.file),
        hypotheses=claimed,
        digests=digests,
        training_sets={run.spec.dataset.name: _told(run.spec.dataset) for run in runs.values()},
        draw=suite.draw,
    )
