"""Define a run (`RunSpec`), its id, and how a process carries it out (`Execution`).

Settings that can change a result are in `RunSpec` and enter the run's id. Others (devices, workers, log interval) are
in `Execution`, another type, so that they cannot enter by mistake.
"""

from __future__ import annotations

import functools
from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from engine.schema.base import ID_PATTERN, SCHEMA_VERSION, Frozen, fingerprint

Digest = Literal["bytes", "members"]
"""The part of a shard that the index step reads. ``bytes``: all of it; the digest is the file's SHA-256, and captions
are checked. ``members``: headers only; the digest covers members' names, offsets and sizes, and the file's size."""


class MethodSource(Frozen):
    """The class and file of a method from outside this repository; a copy of the file is kept."""

    class_name: str
    sha256: str
    """Digest of the file."""


class MethodSpec(Frozen):
    """A training method by name, with every option of its `Config` written out."""

    name: str = Field(pattern=ID_PATTERN)
    config: dict[str, JsonValue]
    source: MethodSource | None = None
    """None for a method of this repository."""


class CaptionSource(Frozen):
    """The place of a sample's caption: member ``key.txt``, or a field of ``key.json`` (text, or a list of texts)."""

    member: str = "txt"
    field: str | None = None


class DatasetSpec(Frozen):
    """A training set: its card's name, the revision of its content, its number of pairs, the place of captions."""

    name: str = Field(pattern=ID_PATTERN)
    revision: str
    pairs: int = Field(ge=2)
    captions: CaptionSource = CaptionSource()


class ModelSpec(Frozen):
    """An open_clip model by name, with the digest of its config file if that is none of open_clip's."""

    name: str
    config_sha256: str | None = None
    is_own: bool = False
    """True if the file is none of this repository either: a copy is kept, and the run executes that."""


Decay = Annotated[float, Field(ge=0, lt=1)]
"""Of a moving average, per step."""


class OptimizerSpec(Frozen):
    """AdamW with linear warm-up and cosine decay. Defaults are open_clip's for ViT models."""

    lr: float = Field(default=5e-4, gt=0)
    lr_min: float = Field(default=0.0, ge=0)
    weight_decay: float = Field(default=0.2, ge=0)
    betas: tuple[Decay, Decay] = (0.9, 0.98)
    eps: float = Field(default=1e-6, gt=0)
    warmup_steps: int = Field(default=0, ge=0)
    grad_clip_norm: float | None = Field(default=None, gt=0)
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Export an exponential moving average of the encoders' weights, with this decay per step, in their place."""


class AugmentationSpec(Frozen):
    """Augmentation of training images.

    ``shift`` moves a picture by up to `max_shift_px` pixels. ``random_resized_crop`` is open_clip's default (area in
    `crop_scale`, aspect ratio in [3/4, 4/3], bicubic). ``none`` only resizes.
    """

    kind: Literal["none", "shift", "random_resized_crop"] = "random_resized_crop"
    max_shift_px: int = Field(default=2, ge=0, le=1024)
    crop_scale: tuple[float, float] = (0.9, 1.0)
    resize: Literal["pillow", "torch"] = "pillow"
    """Whose bicubic resizes. ``torch``, faster, differs by a few of 255 levels."""
    jpeg: Literal["full", "reduced"] = "full"
    """``reduced`` decodes a JPEG at the least of 1/8, 1/4, 1/2 of its size that is enough for the smallest crop: much
    faster for large ones."""

    @model_validator(mode="after")
    def _check(self) -> AugmentationSpec:
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale = {list(self.crop_scale)}: allowed are two shares, 0 < low <= high <= 1")
        return self


class NormalizerErrorSpec(Frozen):
    """Measurements of the method's log-normalizers against the exact ones over the whole training set."""

    at: tuple[int, ...]
    """Samples seen at which to measure."""
    num_anchors: int = Field(default=2048, ge=2)
    """Pairs whose image and text side are compared."""
    control_size: int = Field(default=1024, ge=2)
    """Random pairs of the control, an estimate that learns nothing."""


class GradientErrorSpec(Frozen):
    """Compare the method's gradients with that of the loss over a part of the training set, and when."""

    at: tuple[int, ...]
    """Samples seen at which this is done."""
    population: int = Field(default=16384, ge=2)
    """Random pairs whose loss the batches stand in for: of the whole set if it has no more, and whole batches of it."""
    num_rounds: int = Field(default=8, ge=2)
    """Batches that hold each of them: so often all of them are put in random order and cut into batches."""


class RunSpec(Frozen):
    """All settings that decide a run's result, with defaults written out."""

    schema_version: int = SCHEMA_VERSION
    method: MethodSpec
    dataset: DatasetSpec
    model: ModelSpec
    global_batch_size: int = Field(ge=2)
    samples_seen: int = Field(ge=2)
    """Pairs to train on in all; a multiple of `global_batch_size`."""
    milestones: tuple[int, ...]
    """Samples seen at which weights are kept and evaluated; the last is the end of training."""
    optimizer: OptimizerSpec
    augmentation: AugmentationSpec
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    method_tf32: bool = False
    """Let a GPU round what the method multiplies as matrices, in its loss, gradient and inner steps, to TF32: 10 bits
    of mantissa. A log-normalizer is off by up to 2^-9 / temperature (0.03 at 0.07, 0.2 at 0.01), half as much where it
    is rounded to nearest. Measurements round nothing."""
    batch_norm_groups: int = Field(default=1, ge=1)
    """Equal parts of the global batch that batch norm normalises apart: 1 is the whole batch, 8 is plain data parallel
    training on 8 GPUs. It changes results, so it does not follow from the number of processes."""
    normalizer_error: NormalizerErrorSpec | None = None
    gradient_error: GradientErrorSpec | None = None
    seed: int = Field(ge=0, lt=2**63)

    @model_validator(mode="after")
    def _check(self) -> RunSpec:
        if self.samples_seen % self.global_batch_size:
            raise ValueError(
                f"samples_seen = {self.samples_seen} is not a multiple of global_batch_size = "
                f"{self.global_batch_size}: only whole batches are trained on"
            )
        if self.global_batch_size > self.dataset.pairs:
            raise ValueError(
                f"global_batch_size = {self.global_batch_size} exceeds the {self.dataset.pairs} pairs of "
                f"{self.dataset.name!r}: use a smaller batch or a larger data set"
            )
        if self.global_batch_size % self.batch_norm_groups:
            raise ValueError(
                f"batch_norm_groups = {self.batch_norm_groups} does not divide global_batch_size = "
                f"{self.global_batch_size}: use a number that does"
            )
        if self.gradient_error is not None and self.gradient_error.population < self.global_batch_size:
            raise ValueError(
                f"gradient_error.population = {self.gradient_error.population} is less than global_batch_size = "
                f"{self.global_batch_size}: use several batches at least"
            )
        measured = {f"{name}.at": measurement.at for name, measurement in self.measurements.items()}
        points = {"milestones": self.milestones, **measured}
        for name, at in points.items():
            wrong = [n for n in at if n % self.global_batch_size or not 0 < n <= self.samples_seen]
            if wrong or list(at) != sorted(set(at)):
                raise ValueError(
                    f"{name} = {at}: allowed are increasing multiples of the global batch size "
                    f"{self.global_batch_size}, at most samples_seen = {self.samples_seen}"
                )
        if not self.milestones or self.milestones[-1] != self.samples_seen:
            raise ValueError("the last milestone must be samples_seen, so that the final model is evaluated")
        return self

    @property
    def measurements(self) -> dict[str, NormalizerErrorSpec | GradientErrorSpec]:
        """What is measured between two steps, by its name here and in the record."""
        both = {"normalizer_error": self.normalizer_error, "gradient_error": self.gradient_error}
        return {name: spec for name, spec in both.items() if spec is not None}

    @property
    def num_steps(self) -> int:
        """Number of optimiser steps in all."""
        return self.samples_seen // self.global_batch_size

    @functools.cached_property
    def run_id(self) -> str:
        """``<method>-<dataset>-<model>-s<seed>-<8 hex>``, with the first digits of the spec's `fingerprint`."""
        parts = (self.method.name, self.dataset.name, self.model.name, f"s{self.seed}", fingerprint(self)[:8])
        return "-".join(parts).lower().replace("/", "_")


def refuse_uneven(num_processes: int, **sizes: int) -> None:
    """Refuse sizes, given by name, that cannot be divided among the processes of a run.

    Raises:
        ValueError: Naming the first.
    """
    for name, size in sizes.items():
        if size % num_processes:
            raise ValueError(
                f"{name} = {size} cannot be divided among {num_processes} processes: use a number of processes that "
                "divides it"
            )


MAX_PROCESSES = 1024
"""And threads: more than the cores of a machine are a typing error, which would stop the machine."""


class Execution(Frozen):
    """Settings of a process that carries a run out; none changes a result beyond floating-point rounding.

    Nodes, GPUs, memory and time of a job are in `engine.jobs.cluster.Request`.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default=1, ge=1, le=MAX_PROCESSES)
    """CPU threads per process. With one, the default, sums have the same order on every machine."""
    num_workers: int = Field(default=0, ge=0, le=MAX_PROCESSES)
    """Data loader processes per training process; 0 loads in the training process."""
    cache_decoded: bool = True
    """Keep decoded pictures in memory if the augmentation allows it and they fit in `cache_gib`."""
    cache_gib: float = Field(default=2.0, ge=0)
    accumulation_steps: int = Field(default=1, ge=1)
    """Parts that each process's batch is encoded in; the gradient stays that of the whole batch. With batch norm, 1 or
    the number of `batch_norm_groups` in one process."""
    gradient_checkpointing: bool = False
    """Keep only the inputs of the encoders' layers and compute the rest again in the backward pass: less memory, about
    a third more time, the same numbers. Not for models with batch norm."""
    cudnn_benchmark: bool = True
    """On a GPU, let cuDNN time its convolutions in the first step and take the fastest. A run that is repeated there
    may take another one, which rounds otherwise."""
    method_graphs: bool = False
    """On one GPU, let it replay what NeuCLIP's network does in a step as one CUDA graph, without launching hundreds of
    small operations: the same numbers, and memory for one more copy of the network and the batch's embeddings."""
    max_replaced_fraction: float = Field(default=1e-3, ge=0, le=1)
    """Stop once more than this fraction of all samples that the run is to see was replaced, as it cannot be decoded."""
    log_every_steps: int = Field(default=10, ge=1)
    save_every_min: float = Field(default=10.0, ge=0)
    stall_sec: float = Field(default=300.0, gt=0)
    """Seconds without any progress after which the job ends, to be started again: a frozen node, a dead file system. At
    least ten steps, and half an hour until the first one is done."""
    compile: bool = False
