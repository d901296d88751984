"""Submit one job through submitit and wait for it: on this machine or on Slurm, by configuration.

``python -m engine.launch engine.train results/runs/<run_id>/spec.json --execution '{...}'`` runs the module's command
line as a job. Two launchers of one run wait for each other, so that a run is never trained twice at once.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import submitit

from engine import paths
from engine.spec import Execution, parse

TAIL_LINES = 25
POLL_SEC = 0.5


class ModuleJob:
    """A module's command line as a job: holds only text, so that what is pickled stays tiny."""

    def __init__(self, module: str, argv: list[str]) -> None:
        self.module, self.argv = module, argv

    def __call__(self) -> None:
        """Run in the job. An error message that ends a command line becomes the job's failure."""
        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        try:
            importlib.import_module(self.module).main(self.argv)
        except SystemExit as stop:
            if stop.code:
                raise RuntimeError(str(stop.code)) from None

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Be submitted again as it was: the module goes on from what it saved."""
        return submitit.helpers.DelayedSubmission(self)


class JobFailedError(RuntimeError):
    """A job ended without a result; the message holds the end of its log."""


@contextmanager
def _only_launcher(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def submit_and_wait(module: str, argv: list[str], *, name: str, folder: Path, execution: Execution) -> None:
    """Submit a module's command line and wait until it has ended.

    Args:
        module: Module with a ``main(argv)``.
        argv: Its arguments.
        name: Name of the job.
        folder: Where submitit keeps the job's files and logs.
        execution: Where and with how much the job runs.

    Raises:
        JobFailedError: If the job ended without success.
    """
    executor = submitit.AutoExecutor(folder=str(folder / "%j"), cluster=execution.cluster)
    executor.update_parameters(
        name=name,
        timeout_min=execution.timeout_min,
        nodes=execution.nodes,
        tasks_per_node=execution.tasks_per_node,
        cpus_per_task=execution.threads + execution.num_workers,
        gpus_per_node=execution.gpus_per_node,
        **({f"slurm_{key}": value for key, value in execution.slurm.items()} if execution.cluster == "slurm" else {}),
    )
    job = executor.submit(ModuleJob(module, argv))
    while not job.done():
        time.sleep(POLL_SEC)
    try:
        job.results()
    except (submitit.core.utils.FailedJobError, submitit.core.utils.UncompletedJobError) as error:
        raise JobFailedError(_explain_failure(job, name, error)) from None


def _explain_failure(job: Any, name: str, error: Exception) -> str:
    log = Path(job.paths.stderr)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else [str(error)]
    tail = "\n".join(f"  | {line}" for line in lines[-TAIL_LINES:])
    return f"job {job.job_id} ({name}) failed ({type(error).__name__}). The end of {log}:\n{tail}"


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m engine.launch", description=__doc__)
    parser.add_argument("module", help="engine.train or engine.evaluate")
    parser.add_argument("input", type=Path, help="spec.json or record.json of the run")
    parser.add_argument("arguments", nargs="*", help="further arguments of the module")
    parser.add_argument("--milestone", help="samples seen by the weights to evaluate")
    parser.add_argument("--execution", default="{}", help="execution settings as JSON")
    args = parser.parse_args(argv)
    run_id = args.input.parent.name
    job_argv = [str(args.input), *args.arguments, "--execution", args.execution]
    if args.milestone:
        job_argv += ["--milestone", args.milestone]
    kind = args.module.rpartition(".")[2]
    folder = paths.jobs(run_id) / "-".join(filter(None, (kind, args.milestone)))
    try:
        execution = parse(Execution, args.execution, "execution")
        if args.module == "engine.evaluate":
            # One process evaluates a model, however many train it.
            execution = execution.model_copy(update={"nodes": 1, "tasks_per_node": 1})
        with _only_launcher(folder):
            submit_and_wait(args.module, job_argv, name=f"{kind}-{run_id}", folder=folder, execution=execution)
    except (JobFailedError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
