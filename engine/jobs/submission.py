"""Submit a module's command line to Slurm with submitit, and run it there.

The submitted object holds only text. It is pickled by reference, so that the job runs the class from the snapshot.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import submitit

from engine.jobs import process
from engine.jobs.cluster import Cluster, Request
from engine.stop import EXIT_REQUEUE

MARK_START = "start of job {} on "
"""Marks each start in the log: a job that was queued again has several."""
_WAIT_TO_BE_ENDED_SEC = 600


class ModuleJob:
    """A module's command line as a job, in as many processes as the job has; see `engine.jobs.process.run`."""

    def __init__(self, module: str, argv: list[str], scratch: str | None) -> None:
        self.module, self.argv, self.scratch = module, argv, scratch

    def __call__(self) -> None:
        """Run in the job."""
        environment = submitit.JobEnvironment()
        place, rank, job_id = environment.paths, environment.global_rank, environment.job_id
        ending = process.ending_path(Path(place.folder), job_id, rank)
        # A job that was queued again finds what its earlier start left; half a pickle would stop the next requeue.
        halves = [_half_of(place.result_pickle), *([_half_of(place.submitted_pickle)] if rank == 0 else [])]
        for path in (ending, place.result_pickle, *halves):
            path.unlink(missing_ok=True)
        # The submitting shell may have been part of another distributed job.
        for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            os.environ.pop(name, None)
        os.environ |= {"MASTER_PORT": str(process.rendezvous_port(job_id)), "NEUCLIP_JOB_ID": job_id}
        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        requeue: Callable[[int, FrameType | None], Any] = signal.getsignal(signal.SIGUSR2)  # type: ignore[assignment]
        # SIGTERM stays ignored: SIGKILL follows if it is meant so, and until then work goes on.
        stopped = process.run(self.module, self.argv, self.scratch, ending)
        if stopped is None:
            return
        number = signal.Signals(stopped.signal_number)
        if number == signal.SIGUSR2:
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)
            if rank == 0:
                try:
                    requeue(signal.SIGUSR2, None)
                except Exception as error:  # no more requeues, or Slurm refuses
                    process.leave(ending, f"stopped and saved, but not queued again: {error}")
                    sys.exit(1)
        else:
            # A warning may still follow; what it asks for is done at once, since everything is saved.
            signal.signal(signal.SIGUSR2, requeue)
        # Slurm ends the processes: only it knows whether the job was preempted, queued again or cancelled.
        time.sleep(_WAIT_TO_BE_ENDED_SEC)
        process.leave(ending, f"stopped by {number.name}, and nobody ended the job")
        sys.exit(128 + number)

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Return the job unchanged to be submitted again: the module goes on from what it saved."""
        return submitit.helpers.DelayedSubmission(self)


def write(folder: Path, name: str, command: tuple[str, ...], code: Path, cluster: Cluster, request: Request) -> Path:
    """Write all that a job needs, and return its batch script.

    Args:
        folder: A new folder, also for the job's logs.
        name: The job's name in Slurm.
        command: Module and arguments.
        code: The snapshot that it runs.
        cluster: Where it runs.
        request: What it asks for.
    """
    folder = folder.absolute()
    executor = submitit.SlurmExecutor(folder, max_num_timeout=cluster.max_requeues)
    executor.update_parameters(
        job_name=name, setup=_setup(folder, code, cluster), teardown=_TEARDOWN, **parameters(cluster, request)
    )
    module, *argv = command
    job = submitit.helpers.DelayedSubmission(ModuleJob(module, argv, cluster.scratch))
    job.set_timeout(request.timeout_min, cluster.max_requeues)
    job.dump(folder / "submitted.pkl")
    script = folder / "submission.sh"
    script.write_text(executor._make_submission_file_text(executor._submitit_command_str, ""))
    return script


_TEARDOWN = [
    "code=$?",
    f"[ $code != {EXIT_REQUEUE} ] || scontrol requeue $SLURM_JOB_ID",
    "exit $code",
]
"""A process that could do no more than exit may ask to be queued again by its exit code."""


def _setup(folder: Path, code: Path, cluster: Cluster) -> list[str]:
    """Return what the batch script does before Python starts. Whoever was cut off in submitting has no part in it."""
    gone = f"error: the code of this job is gone, {code}: start snakemake again, which submits it anew"
    pickle = f"{shlex.quote(str(folder))}/${{SLURM_JOB_ID}}_submitted.pkl"
    return [
        f'echo "{MARK_START.format("$SLURM_JOB_ID")}$SLURM_JOB_NODELIST" >&2',
        f"[ -d {shlex.quote(str(code))} ] || {{ echo {shlex.quote(gone)} >&2; exit 1; }}",
        f"[ -e {pickle} ] || cp {shlex.quote(str(folder))}/submitted.pkl {pickle}",
        """trap 'echo "error: a line of the cluster file'"'"'s setup failed: $BASH_COMMAND" >&2; exit 1' ERR""",
        *cluster.setup,
        "trap - ERR",
        # Packages come from the snapshot, and never from the working directory.
        f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1",
        # Where jobs start without the submitter's environment, srun would start processes without the script's.
        "export SLURM_EXPORT_ENV=ALL",
    ]


def parameters(cluster: Cluster, request: Request) -> dict[str, Any]:
    """Return the parameters of submitit's executor for a job."""
    gpus: int | None = request.gpus_per_node or None
    gres = cluster.gres
    if gres is not None and "{gpus_per_node}" in gres:
        gres = gres.format(gpus_per_node=gpus) if gpus else None
        gpus = None
    wanted = {
        "nodes": request.nodes,
        "ntasks_per_node": request.tasks,
        "cpus_per_task": request.cpus_per_task,
        "gpus_per_node": gpus,
        "mem": None if request.mem_gb is None else f"{round(request.mem_gb * 1024)}MB",
        "time": request.timeout_min,
        **{key: getattr(cluster, key) for key in ("partition", "account", "qos", "constraint", "exclude")},
        "gres": gres,
        "signal_delay_s": cluster.warn_before_limit_sec,
        "additional_parameters": {"requeue": True, **cluster.sbatch},
        # One process that fails ends the others; before Slurm 22.05 and after it, steps differ in inheriting CPUs.
        "srun_args": [
            "--kill-on-bad-exit=1",
            *([f"--cpus-per-task={n}"] if (n := request.cpus_per_task) else []),
        ],
    }
    return {key: value for key, value in wanted.items() if value is not None}


def _half_of(path: Path) -> Path:
    """Return the temporary file that submitit writes before it renames it."""
    return path.with_suffix(path.suffix + ".save_tmp")
