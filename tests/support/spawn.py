"""Runs a function in several processes that share a group."""

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from engine import registry


def forkserver() -> Any:
    """Return the context whose processes are forked from one that has torch loaded."""
    context = multiprocessing.get_context("forkserver")
    methods = {registry.method_class(name).__module__ for name in registry.method_names()}
    context.set_forkserver_preload(["engine.train", *sorted(methods)])
    return context


def run_in_processes(
    work: Callable[..., Any], world_size: int, *args: Any, backend: str = "gloo", timeout_sec: float = 300.0
) -> list[Any]:
    """Call ``work(*args)`` in `world_size` processes and return what each returned, in rank order.

    Args:
        work: A module-level function; returns tensors, plain values, and lists and dicts of such.
        world_size: Number of processes.
        *args: Given to every process.
        backend: What tensors travel by.
        timeout_sec: Time for all of them together.

    Raises:
        TimeoutError: If they take longer; they are killed.
        Exception: If one of them fails; carries its traceback.
    """
    with tempfile.TemporaryDirectory() as folder:
        forkserver()  # This is the one that start_processes takes, too.
        context = torch.multiprocessing.start_processes(
            _enter, (world_size, folder, backend, work, args), nprocs=world_size, join=False, start_method="forkserver"
        )
        deadline = time.monotonic() + timeout_sec
        while not context.join(timeout=max(0.0, deadline - time.monotonic())):
            if time.monotonic() >= deadline:
                for process in context.processes:
                    process.kill()
                raise TimeoutError(f"{world_size} processes were not done after {timeout_sec} s")
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world_size)]


def _enter(
    rank: int, world_size: int, folder: str, backend: str, work: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    # A file to meet at: no port that another test could hold.
    dist.init_process_group(backend, init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    torch.save(work(*args), Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
