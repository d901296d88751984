"""Read the cluster files of `slurm/clusters/`, and work out from them what a job asks for and how it is carried out.

Imports no torch: the workflow reads it for every run before anything is submitted.
"""

from __future__ import annotations

import fnmatch
import shlex
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue, StrictInt, StrictStr, field_validator, model_validator

from engine.schema.base import Frozen, ModelT, located, unknown_name, validated
from engine.schema.run import Execution, RunSpec, refuse_uneven
from engine.schema.written import load_yaml
from engine.versions import ROOT

FOLDER = ROOT / "slurm" / "clusters"
LOCAL = "local"
"""Name of the cluster that is this machine; it needs no file."""
SIGNAL_SLACK_SEC = 60
"""Slurm may send the warning up to a minute earlier than it was asked to."""

Kind = Literal["train", "evaluate", "prepare"]
SbatchValue = StrictStr | StrictInt | Literal[True]

_SET_BY_US = {
    "job-name": "the run decides it",
    "nodes": "set 'nodes' in train or evaluate",
    "ntasks": "set 'tasks_per_node' in train or evaluate",
    "ntasks-per-node": "set 'tasks_per_node' in train or evaluate",
    "cpus-per-task": "set 'cpus_per_task' in train or evaluate",
    "gpus-per-node": "set 'gpus_per_node' in train or evaluate",
    "mem": "set 'mem_gb' in train or evaluate",
    "time": "set 'timeout_min' in train or evaluate",
    "signal": "set 'warn_before_limit_sec'",
    "partition": "set 'partition'",
    "account": "set 'account'",
    "qos": "set 'qos'",
    "constraint": "set 'constraint'",
    "gres": "set 'gres'",
    "exclude": "set 'exclude'",
    **dict.fromkeys(
        ("output", "error", "open-mode", "array", "requeue", "no-requeue", "wrap", "chdir"), "the launcher sets it"
    ),
}
_ONLY_SLURM = ("partition", "account", "qos", "constraint", "gres", "exclude", "setup", "sbatch")


class Request(Frozen):
    """Nodes, processes, GPUs, memory and time that a job asks for."""

    nodes: int = Field(default=1, ge=1)
    gpus_per_node: int = Field(default=0, ge=0)
    """GPUs that a job sees on each node; 0 runs on the CPU. With GPUs, device ``auto`` means ``cuda``: a job that does
    not find them fails."""
    tasks_per_node: int | None = Field(default=None, ge=1)
    """Processes on each node; None is one per GPU, one without GPUs."""
    cpus_per_task: int | None = Field(default=None, ge=1)
    """None is what the process uses: its threads and its data loader processes."""
    mem_gb: float | None = Field(default=None, ge=0)
    """Memory per node; None is the cluster's default, 0 all of a node's."""
    timeout_min: int = Field(default=24 * 60, ge=1)
    """Time limit. A training that reaches it saves, is queued again and goes on."""

    @property
    def tasks(self) -> int:
        """Processes on each node."""
        return self.tasks_per_node or max(1, self.gpus_per_node)


class Override(Frozen):
    """Other settings for the runs whose names match; patterns as in a shell (``ViT-B-*``)."""

    model: str = "*"
    dataset: str = "*"
    method: str = "*"
    train: Request = Request()
    """Only the keys that are written count, here and below."""
    evaluate: Request = Request()
    execution: Execution = Execution()

    def matches(self, spec: RunSpec) -> bool:
        """Tell whether these settings are for a run."""
        names = ((spec.model.name, self.model), (spec.dataset.name, self.dataset), (spec.method.name, self.method))
        return all(fnmatch.fnmatchcase(name, pattern) for name, pattern in names)


class Cluster(Frozen):
    """A place where jobs run: this machine (the default), or a Slurm cluster."""

    scheduler: Literal["local", "slurm"] = "local"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gres: str | None = None
    """As for sbatch. With ``{gpus_per_node}`` in it (``gpu:h100:{gpus_per_node}``) it replaces ``--gpus-per-node``
    in jobs that ask for GPUs."""
    exclude: str | None = None
    """Nodes to avoid."""
    setup: tuple[str, ...] = ()
    """Shell lines before Python starts, such as ``module load cuda``."""
    scratch: str | None = None
    """Node-local folder for temporary files, exported as TMPDIR; may name environment variables."""
    sbatch: dict[str, SbatchValue] = Field(default_factory=dict)
    """Further options of sbatch by their long names, without the dashes; true for those without a value."""
    warn_before_limit_sec: int = Field(default=180, ge=10)
    """Seconds before its time limit at which a job is warned: enough for one step and one save."""
    max_requeues: int = Field(default=1000, ge=0)
    """Times that a job may reach its time limit and be queued again."""
    poll_sec: float = Field(default=15.0, gt=0)
    """Seconds between two questions to Slurm; one question is about all jobs."""
    train: Request = Request()
    evaluate: Request = Request()
    prepare: Request | None = None
    """For building and indexing data as jobs; None does that where Snakemake runs."""
    execution: Execution = Execution()
    overrides: tuple[Override, ...] = ()
    """Applied in order: the last one that matches wins, key by key."""

    @field_validator("sbatch")
    @classmethod
    def _check_sbatch(cls, options: dict[str, SbatchValue]) -> dict[str, SbatchValue]:
        named = {key.lstrip("-").replace("_", "-"): value for key, value in options.items()}
        for key in named:
            if key in _SET_BY_US:
                raise ValueError(f"option {key!r} does not belong here: {_SET_BY_US[key]}")
        return named

    @model_validator(mode="after")
    def _check(self) -> Cluster:
        if self.scheduler == "local":
            written = [key for key in _ONLY_SLURM if getattr(self, key)]
            if written:
                raise ValueError(f"{', '.join(written)}: these are for scheduler 'slurm', and the scheduler is 'local'")
        if self.gres is not None:
            try:
                self.gres.format(gpus_per_node=1)
            except (LookupError, ValueError, AttributeError, TypeError):
                raise ValueError(f"gres = {self.gres!r}: only {{gpus_per_node}} can stand in braces") from None
        return self


def load(name: str) -> Cluster:
    """Return a cluster by name or by the path of its YAML file.

    Args:
        name: ``local``, the name of a file in `slurm/clusters/`, or a path that ends in ``.yaml`` or ``.yml``.

    Raises:
        ValueError: If there is none, or its file is not valid; the message names every wrong key.
    """
    known = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
    if name == LOCAL:
        return Cluster()
    path = Path(name) if name.endswith((".yaml", ".yml")) else known.get(name)
    if path is None:
        raise ValueError(unknown_name("cluster", name, [LOCAL, *known]) + f" They are files in {FOLDER}.")
    if not path.is_file():
        raise ValueError(f"cluster file {path} is not there. By name there are: {', '.join([LOCAL, *known])}")
    said = load_yaml(path)
    with located(str(path), Cluster):
        return validated(Cluster, {} if said is None else said)


def configure(cluster: Cluster, settings: dict[str, JsonValue], where: str) -> Cluster:
    """Lay settings over a cluster's; they win over its overrides as well.

    Args:
        cluster: The cluster.
        settings: Mappings named ``train``, ``evaluate``, ``prepare`` or ``execution``, with any of their keys.
        where: What the settings are, for error messages.

    Raises:
        ValueError: If a key or value is not allowed.
    """
    models: dict[str, type[Frozen]] = dict.fromkeys(("train", "evaluate", "prepare"), Request)
    models["execution"] = Execution
    written: dict[str, Frozen] = {}
    for key, model in models.items():
        if settings.get(key) is not None:
            with located(f"{where} {key}", model):
                # Snakemake gives numbers of the command line as texts.
                written[key] = validated(model, settings[key])
    changes: dict[str, Any] = {}
    if "prepare" in written:
        changes["prepare"] = _over(cluster.prepare or Request(), written.pop("prepare"))
    if written:
        changes["overrides"] = (*cluster.overrides, Override.model_validate(written))
    return cluster.model_copy(update=changes)


def resolve(
    cluster: Cluster, kind: Kind, spec: RunSpec | None = None, num_extra_pairs: int = 0
) -> tuple[Request, Execution]:
    """Return what a job asks for and how its processes carry it out.

    Args:
        cluster: Where it runs.
        kind: What the job does.
        spec: The run that is trained or evaluated; None when data are prepared.
        num_extra_pairs: Those that the run's method asks for.

    Raises:
        ValueError: If this cannot run there; the message says what to change.
    """
    request = cluster.prepare or Request() if kind == "prepare" else getattr(cluster, kind)
    execution = cluster.execution
    for override in cluster.overrides:
        if spec is not None and override.matches(spec):
            if kind != "prepare":
                request = _over(request, getattr(override, kind))
            execution = _over(execution, override.execution)
    if request.cpus_per_task is None:
        request = request.model_copy(update={"cpus_per_task": execution.threads + execution.num_workers})
    if request.gpus_per_node and execution.device == "auto" and kind != "prepare":
        execution = execution.model_copy(update={"device": "cuda"})
    _check(cluster, kind, request, execution)
    if kind == "train" and spec is not None:
        with located(spec.run_id):
            batch = spec.global_batch_size
            refuse_uneven(request.nodes * request.tasks, global_batch_size=batch, num_extra_pairs=num_extra_pairs)
    return request, execution


def launch_options(cluster: Cluster, request: Request, on_interrupt: str) -> str:
    """Return the options of ``python -m engine.launch`` that say how, quoted for a shell."""
    resolved = {"train", "evaluate", "prepare", "execution", "overrides"}
    where = cluster.model_dump_json(exclude=resolved, exclude_defaults=True)
    what = request.model_dump_json(exclude_defaults=True)
    return shlex.join(["--cluster", where, "--request", what, "--on-interrupt", on_interrupt])


def _over(below: ModelT, above: ModelT) -> ModelT:
    """Return `below` with the keys that `above` was given."""
    return below.model_copy(update={key: getattr(above, key) for key in above.model_fields_set})


def _check(cluster: Cluster, kind: Kind, request: Request, execution: Execution) -> None:
    if execution.device == "cuda" and request.gpus_per_node == 0 and kind != "prepare":
        raise ValueError(
            f"device 'cuda' with {kind}.gpus_per_node = 0: a job sees no GPU then; set {kind}.gpus_per_node too"
        )
    if 0 < request.gpus_per_node < request.tasks:
        raise ValueError(
            f"{kind} asks for {request.tasks} tasks and {request.gpus_per_node} GPUs on each node: a process needs a "
            "GPU of its own; use as many tasks as GPUs"
        )
    if kind != "train" and request.nodes * request.tasks > 1:
        raise ValueError(
            f"{kind} asks for {request.nodes} nodes with {request.tasks} tasks: this is done by one process; "
            "use nodes 1 and tasks_per_node 1"
        )
    if cluster.scheduler == "local":
        if request.nodes > 1:
            raise ValueError(
                f"{kind}.nodes = {request.nodes}: this machine is one node; name a cluster, or use nodes 1"
            )
    elif 60 * request.timeout_min <= cluster.warn_before_limit_sec + SIGNAL_SLACK_SEC:
        raise ValueError(
            f"{kind}.timeout_min = {request.timeout_min}: a job would be told to stop as soon as it starts, "
            f"warn_before_limit_sec = {cluster.warn_before_limit_sec} (+ {SIGNAL_SLACK_SEC}) before the limit; "
            "use a longer time"
        )
