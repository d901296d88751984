"""The schema of `record.json`, the result of a run. Imports no torch, so that the analysis can read it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from engine.schema.base import SCHEMA_VERSION, Frozen, Sealed
from engine.schema.run import RunSpec


class Signature(Frozen):
    """A sign of failure."""

    name: str
    first_step: int
    """The first logged step at which it shows."""
    last_step: int
    evidence: dict[str, float]
    """Medians of metrics over these steps, and the limits they are compared with."""
    advice: str


class Provenance(Frozen):
    """The origin of a run's numbers: code, data, device, versions."""

    commit: str
    """Commit of the checkout; "unknown" if git does not say."""
    dirty_sha256: str | None
    """Digest of uncommitted changes, untracked files included; None without any; "unknown" if git does not say."""
    lock_sha256: str
    dataset_sha256: str
    device: str
    device_count: int
    world_size: int
    threads: int
    """Threads that one process uses for one operation (`torch.set_num_threads`)."""
    python: str
    platform: str
    packages: dict[str, str | None]
    """Versions by package; None if it is not installed."""
    libraries: dict[str, str | None] = Field(default_factory=dict)
    """Versions that no package states: CUDA, cuDNN and NCCL of this torch, and the GPUs' driver; None without it. Empty
    in old records."""


class Attempt(Frozen):
    """One start of a run, described when it starts."""

    first_step: int
    provenance: Provenance
    host: str
    """The machine of the first process."""
    job_id: str | None = None
    """The scheduler's id of the job; None when started by hand."""


class Milestone(Frozen):
    """Weights that were kept at a number of samples seen."""

    weights: str
    """Path below the run's folder."""
    sha256: str
    config_sha256: str | None = None
    """Digest of open_clip's config beside them; None in old records."""


class NormalizerError(Frozen):
    """The error of a method's log-normalizers at one number of samples seen."""

    samples_seen: int
    temperature: float
    """The mean if anchors have temperatures of their own; each is compared at its own."""
    num_anchors: int
    """Anchors on each side."""
    num_without_estimate: int
    """Anchors of both sides for which the method has no estimate yet; the errors leave them out."""
    image_mse: float | None
    text_mse: float | None
    image_bias: float | None
    text_bias: float | None
    control_mse: float
    """Mean squared error, over both sides, of a plain mean over `control_size` random pairs."""
    control_size: int
    eps: float = 0.0
    """The eps in the log(eps + g) that is compared: that of the method's estimate; 0 in old records."""
    sample_sha256: str | None = None
    """Digest of the file with estimates and exact values of some anchors; None in old records."""


class GradientError(Frozen):
    """Error of a method's gradients against that of the loss over a population of pairs, at one milestone.

    Squares are sums over the pairs, relative to the squared norm of what they are compared with; `_se` is a standard
    error over pairs. Noise is taken off a squared bias, so that one of zero comes out on either side of it. What is not
    finite is None.
    """

    samples_seen: int
    temperature: float
    population: int
    """Pairs, both sides of each."""
    num_rounds: int
    """Batches that held each pair."""
    num_batches: int
    """In all."""
    factor: float | None
    """Of the mean gradient to that of RGCL, by least squares: taken out of what is compared with RGCL."""
    bias_squared: float | None
    bias_squared_se: float | None
    variance: float | None
    """Of one batch's gradient, summed over its components."""
    variance_se: float | None
    exact_factor: float | None
    """Of the mean gradient to that of the method's own loss over the population, likewise; None where the method gives
    none, here and below."""
    exact_bias_squared: float | None
    exact_bias_squared_se: float | None
    pull: float | None
    """Mean over batches of the derivative of the loss in log(1 / temperature), in nats: a step down raises the
    temperature where it is positive. Divided by the temperature and by the factor from RGCL's gradient to the exact
    one, or to the mean one without that. None where the loss has not one temperature."""
    pull_sd: float | None
    """Over batches."""
    exact_pull: float | None
    """The same of the method's own loss over the population, in the same units."""
    rgcl_pull: float | None
    """The same of RGCL over the population, without rho: KL, the mean divergence of an anchor's softmax over the others
    from uniform."""


class Divergence(Frozen):
    """The step at which the loss or its gradient was not finite; in fp16, at any loss scale."""

    step: int
    reason: str
    temperature: float | None
    """None if it was no number either: a method may move it before its loss is looked at."""
    indices: tuple[int, ...]
    """Positions of the first pairs of the batch."""

    def __str__(self) -> str:
        temperature = "not finite" if self.temperature is None else f"{self.temperature:.4g}"
        return f"diverged at step {self.step}: {self.reason} (temperature {temperature})"


class Record(Sealed):
    """The result of a run. Divergence is a result; failures of code or scheduler leave no record."""

    schema_version: int = SCHEMA_VERSION
    run_id: str
    fingerprint: str
    spec: RunSpec
    status: Literal["finished", "diverged"]
    samples_seen: int
    milestones: dict[str, Milestone]
    normalizer_error: tuple[NormalizerError, ...] = ()
    gradient_error: tuple[GradientError, ...] = ()
    clock_sec: dict[str, float]
    """Seconds by phase over the timed steps: all on a CPU, the logged ones on a GPU."""
    median_step_sec: float | None
    peak_memory_bytes: int
    attempts: tuple[Attempt, ...]
    """All starts of the run, in order; the last one finished it."""
    num_replaced: int = 0
    """Samples that could not be decoded and were replaced by their neighbours."""
    num_skipped: int = 0
    """Steps that fp16 skipped because their gradient was not finite."""
    loss_scale: float | None = None
    """Loss scale of fp16 at the end; None in other precisions."""
    first_indices: tuple[int, ...]
    """Positions of the first pairs of the run, to compare orders."""
    divergence: Divergence | None
    signatures: tuple[Signature, ...] = ()
    """Signs of failure in what was logged."""
    log_sha256: str | None = None
    """Digest of `metrics.jsonl`; None in old records."""

    @property
    def provenance(self) -> Provenance:
        """The provenance of the attempt that finished the run."""
        return self.attempts[-1].provenance
