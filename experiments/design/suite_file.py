"""What may stand in the files of `experiments/suites/` and `experiments/ablations/`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, JsonValue, model_validator

from analysis import artifacts
from engine.schema.base import Frozen, check_known
from engine.schema.run import AugmentationSpec, OptimizerSpec
from engine.schema.suite import Draw
from experiments.design.tuning import Tuning

Options = dict[str, JsonValue]
Factors = dict[str, float]

Fraction = Annotated[float, Field(gt=0, le=1)]
"""Of a training."""


class NormalizerErrorPlan(Frozen):
    """As `NormalizerErrorSpec`, with shares of the training."""

    at: tuple[Fraction, ...] = (1.0,)
    num_anchors: int = 2048
    control_size: int = 1024


class GradientErrorPlan(Frozen):
    """As `GradientErrorSpec`, with shares of the training."""

    at: tuple[Fraction, ...] = (1.0,)
    population: int = 16384
    num_rounds: int = 8


class Training(Frozen):
    """Training of every run of a suite; lengths may be given in epochs or samples, warm-up as a share."""

    global_batch_size: int = Field(ge=2)
    epochs: float | None = Field(default=None, gt=0)
    samples_seen: int | None = Field(default=None, ge=2)
    milestones: tuple[Fraction, ...] = (1.0,)
    """Shares of the training; the end is always one."""
    warmup_fraction: float | None = Field(default=None, ge=0, lt=1)
    optimizer: OptimizerSpec = OptimizerSpec()
    augmentation: AugmentationSpec = AugmentationSpec()
    precision: str = "fp32"
    method_tf32: bool = False
    """See `RunSpec.method_tf32`."""
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
    methods: tuple[str, ...] | None = Field(default=None, min_length=1)
    seeds: tuple[int, ...] | None = Field(default=None, min_length=1)
    model: str | None = None
    dataset: str | None = None
    data_fraction: float | None = Field(default=None, gt=0, lt=1)
    """Train on a part of the suite's data, see `cards.subset`."""
    defaults: bool = False
    """Leave out what the suite says of the methods: their options are their own defaults, their training is the
    suite's."""
    tuned: str | None = None
    """As the suite's, for these runs, with the variant's changes; None: the suite's."""
    control: str | None = None
    """A method of this repository that is trained in the place of each, such as ``neuclip_exact``, with those of its
    options that it has. Tables show it as a variant of that method, by its label."""
    options: Options = Field(default_factory=dict)
    options_times: Factors = Field(default_factory=dict)
    """Factors by which options change: one ablation then makes sense at every scale. ``fastclip.rho`` is an option of
    that method only, and counts there in place of ``rho``."""
    training: Options = Field(default_factory=dict)
    training_times: Factors = Field(default_factory=dict)
    """Factors by which settings of the training change, such as ``optimizer.lr``."""

    @model_validator(mode="after")
    def _check(self) -> Variant:
        if self.control is not None and not (self.label and self.tuned is None):
            raise ValueError(f"control = {self.control!r}: give it a label, and no tuned")
        if self.defaults and self.tuned is not None:
            raise ValueError(f"defaults: true leaves out what tuned = {self.tuned!r} would choose: give one of them")
        # The method in `fastclip.rho` is no part of the option's name.
        options = [key.rpartition(".")[2] for key in self.options_times]
        for where, given, keys in (
            ("options", self.options, options),
            ("training", self.training, self.training_times),
        ):
            for key in keys:
                value: JsonValue = given
                for part in key.split("."):
                    value = value.get(part) if isinstance(value, dict) else None
                if value is not None:
                    both = f"{where} sets {key} to {value!r}, and {where}_times multiplies it"
                    raise ValueError(f"{both}: write the product in {where}")
        return self


class Suite(Frozen):
    """One file of `experiments/suites/`, or one of a user's, which may name cards by their files, relative to its own.

    A model that open_clip does not know is named by its config's file, ``path/to/NAME.json``.
    """

    title: str
    dataset: str
    data_fraction: float | None = Field(default=None, gt=0, lt=1)
    """Train on a part of the data, see `cards.subset`; a variant's is a part of that part."""
    model: str
    evaluation: str
    seeds: tuple[int, ...] = Field(min_length=1)
    training: Options
    methods: dict[str, MethodEntry] = Field(min_length=1)
    variants: tuple[Variant, ...] = Field(default=(Variant(),), min_length=1)
    ablations: tuple[str, ...] = ()
    """Ablations that are asked for along with it, by name or pattern; see `experiments.design.names`."""
    tuning: Tuning | None = None
    """Trials of settings: ``tuning@SUITE``."""
    tuned: str | None = None
    """The suite whose tuning has chosen settings of the methods: they lie over what is written here. It may be this
    suite, or one with the same data set, model, training and options."""
    over_training: bool = True
    """Evaluate all milestones; False: the end of training alone."""
    hypotheses: tuple[str, ...] = ()
    """What is claimed before the first run is trained, such as ``neuclip > openclip@256``; see
    `experiments.design.hypotheses`."""
    draw: Draw = Draw()
    """Tables and figures to leave out, or the only ones to draw."""

    @model_validator(mode="after")
    def _check(self) -> Suite:
        for key, names in (("only", self.draw.only or ()), ("leave_out", self.draw.leave_out)):
            for name in names:
                check_known("table or figure", name, {*artifacts.tables(), *artifacts.figures()}, f"draw: {key}")
        for method in self.tuning.methods if self.tuning else ():
            check_known("method", method, self.methods, "tuning")
        return self


class Ablation(Frozen):
    """One file of `experiments/ablations/`: what varies, whichever suite it is applied to."""

    title: str
    methods: tuple[str, ...] | None = Field(default=None, min_length=1)
    """None: all of the suite's."""
    seeds: tuple[int, ...] | None = Field(default=None, min_length=1)
    """None: the suite's."""
    over_training: bool = False
    """Evaluate all milestones of the suite; False: the end of training alone, as most ablations need no more."""
    by_name_only: bool = False
    """Leave it out of `ablations@SUITE`, as it costs many runs."""
    variants: tuple[Variant, ...] = Field(min_length=1)
    """A variant that the suite's main run already is, at this scale, is that run: trained once, not listed twice."""
