"""Return every path of the project, relative to the working directory. No other module joins paths of results."""

from __future__ import annotations

import hashlib
from pathlib import Path

RESULTS = Path("results")


def suite(name: str) -> Path:
    """The expanded suite that a workflow is or was about: its runs and what they are evaluated on."""
    return RESULTS / "suites" / f"{name}.json"


def answers() -> Path:
    """What methods and tunings answered when suites were expanded, remembered."""
    return RESULTS / "answers.json"


def evaluation(key: str) -> Path:
    """A list of evaluation sets with their cards; `key` is ``<name>-<8 hex>``."""
    return RESULTS / "evaluations" / f"{key}.json"


def index(dataset: str) -> Path:
    """The index of a training set's shards."""
    return RESULTS / "index" / dataset / "index.json"


def sidecars(index_path: Path, key: str) -> Path:
    """Folder of the sidecars of an index's shards; sets over the same shards have the same `key`."""
    return index_path.parent.parent / "_shards" / key


def run(run_id: str) -> Path:
    """The folder of a run."""
    return RESULTS / "runs" / run_id


def replaced(run_id: str) -> Path:
    """A folder that is not there yet, for a run that is trained again."""
    folder = RESULTS / "replaced" / run_id
    return folder / str(1 + max((int(path.name) for path in folder.glob("[0-9]*")), default=0))


def spec(run_id: str) -> Path:
    """The run's `RunSpec`; written once, before it starts."""
    return run(run_id) / "spec.json"


def record(run_id: str) -> Path:
    """The run's `Record`; written last: a run is done exactly when this exists."""
    return run(run_id) / "record.json"


def outcome(run_id: str) -> Path:
    """A copy of `record` that a workflow does not know: before it runs a rule again, it removes the rule's output."""
    return run(run_id) / "outcome.json"


def metrics(run_id: str) -> Path:
    """One JSON line per logged step."""
    return run(run_id) / "metrics.jsonl"


def attempts(run_id: str) -> Path:
    """One JSON line per start of the run."""
    return run(run_id) / "attempts.jsonl"


def heartbeat(run_id: str) -> Path:
    """Signs of life of a run's processes, see `engine.heartbeat`."""
    return run(run_id) / "heartbeat"


def checkpoints(run_id: str) -> Path:
    """Rotating checkpoints for resuming."""
    return run(run_id) / "checkpoints"


def weights(run_id: str, samples_seen: int) -> Path:
    """The exported model of a milestone: an open_clip ``local-dir:`` folder."""
    return run(run_id) / "weights" / str(samples_seen)


def measurement(run_id: str, name: str, samples_seen: int) -> Path:
    """The result of a measurement after a number of samples; `name` as in `RunSpec.measurements`."""
    return run(run_id) / name / f"{samples_seen}.json"


def log_normalizers(run_id: str, samples_seen: int) -> Path:
    """Estimated and exact log-normalizers of some of the anchors behind a ``normalizer_error``."""
    return measurement(run_id, "normalizer_error", samples_seen).with_suffix(".safetensors")


def jobs(run_id: str) -> Path:
    """Logs and records of the scheduler's jobs."""
    return run(run_id) / "jobs"


def evaluate_jobs(run_id: str, milestone: int | str, key: str) -> Path:
    """Logs and records of the jobs of one evaluation of one milestone; `key` as in `evaluation`."""
    return jobs(run_id) / f"evaluate-{milestone}-{key}"


def prepare_jobs(name: str) -> Path:
    """Logs and records of the jobs that build or index data."""
    return RESULTS / "jobs" / name


def job(folder: Path) -> Path:
    """The record of the newest job of a folder of jobs."""
    return folder / "job.json"


def job_records() -> list[Path]:
    """The records of the newest jobs of all folders that exist, sorted."""
    return sorted((*RESULTS.glob("runs/*/jobs/*/job.json"), *RESULTS.glob("jobs/*/job.json")))


def code() -> Path:
    """Snapshots of the code that jobs run."""
    return RESULTS / "code"


def method(sha256: str) -> Path:
    """The copy of a method's file from outside this repository, by its digest."""
    return RESULTS / "methods" / f"{sha256}.py"


def model(sha256: str, name: str) -> Path:
    """The copy of a model's config from outside this repository, by its digest."""
    return RESULTS / "models" / sha256 / f"{name}.json"


def dataset(name: str) -> Path:
    """The copy of a training set's card from outside this repository."""
    return RESULTS / "datasets" / f"{name}.json"


def scheduler() -> Path:
    """States of jobs and holders of GPUs, which the launchers of this folder share."""
    return RESULTS / "scheduler"


def eval_result(run_id: str, milestone: int | str, eval_set: str) -> Path:
    """Result of one model on one evaluation set."""
    return RESULTS / "evals" / run_id / str(milestone) / f"{eval_set}.json"


def evaluated(run_id: str, milestone: int | str, key: str) -> Path:
    """Written when a model has been evaluated on every set of an evaluation."""
    return RESULTS / "evals" / run_id / str(milestone) / f"all-{key}.done"


def digest(folder: Path) -> Path:
    """The remembered digest of a folder of data."""
    return RESULTS / "digests" / f"{folder.name}-{_place(folder)}.json"


def collected(suite_name: str) -> Path:
    """The tidy frame of a suite."""
    return RESULTS / "collected" / f"{suite_name}.parquet"


def tables(suite_name: str) -> Path:
    """Folder of a suite's tables."""
    return RESULTS / "tables" / suite_name


def figures(suite_name: str) -> Path:
    """Folder of a suite's figures."""
    return RESULTS / "figures" / suite_name


def drawn(suite_name: str) -> Path:
    """Which tables and figures were drawn of a suite; written last."""
    return RESULTS / "drawn" / f"{suite_name}.json"


def report(name: str) -> Path:
    """The report of a suite and what it brings along, or of a group of ablations."""
    return RESULTS / "reports" / f"{name}.html"


def tensorboard() -> Path:
    """The metrics of all runs, in TensorBoard's format."""
    return RESULTS / "tensorboard"


def log(*parts: str) -> Path:
    """Log of a workflow rule."""
    return RESULTS / "logs" / Path(*parts).with_suffix(".log")


def _place(path: Path) -> str:
    """Tell paths of the same name apart."""
    return hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
