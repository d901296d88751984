"""Peak memory of each method's loss and its gradients, beside the dense loss and beside what chunks should take.

What is counted: bytes that torch's allocator holds at the same time, above those held before the step (embeddings,
networks, optimiser state). CPU: every allocation and release, from torch.profiler. CUDA: max_memory_allocated.
``--rss`` also runs each case in a process of its own, and tells by how much its resident memory peaks in the step:
that sees what torch's allocator does not, such as buffers inside libraries. Linux only.

dense    log g of both sides in plain autograd, from whole B x B matrices
blocks   (peak - gradients of the embeddings) / (4 chunk B bytes): float32 matrices of chunk x B that are alive at
         once; the same number for all B where memory is O(chunk x B)
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import record_function

from benchmarks import cases
from engine.registry import method_class

MIB = 2**20


def dense_step(batch: int, dim: int, device: torch.device) -> Callable[[], None]:
    """Return a call of the reference: the global contrastive loss from all pairs at once, and its gradients."""
    features = cases.make_features(batch, dim, device)
    own_BB = torch.eye(batch, dtype=torch.bool, device=device)
    scale = torch.tensor(1 / 0.07, device=device, requires_grad=True)

    def step() -> None:
        sim_BB = features.image_BD @ features.text_BD.T
        sides = (side_BB - side_BB.diag()[:, None] for side_BB in (sim_BB, sim_BB.T))
        log_g = [(scale * side_BB).masked_fill(own_BB, -torch.inf).logsumexp(dim=1).mean() for side_BB in sides]
        torch.autograd.backward(log_g[0] + log_g[1])
        features.image_BD.grad = features.text_BD.grad = None

    return step


def make_step(
    name: str, batch: int, dim: int, chunk: int | None, settings: list[str], *, device: torch.device
) -> Callable[[], None]:
    """Return a method's step, or that of the reference ``dense``."""
    if name == "dense":
        return dense_step(batch, dim, device)
    options = cases.options_of(name, settings) | ({} if chunk is None else {"chunk_rows": chunk})
    method = cases.make_method(name, batch=batch, dim=dim, options=options, device=device)
    return cases.method_step(method, cases.make_features(batch, dim, device))


def peak_bytes(*case: Any, device: torch.device) -> int:
    """Return the most bytes held at once in a case's second step, above what was held before it.

    The first step does not count: optimisers make their state in it, and networks start.
    """
    if device.type == "cuda":
        step = make_step(*case, device=device)
        step()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return int(torch.cuda.max_memory_allocated(device)) - before

    def two_steps() -> Callable[[], None]:
        step = make_step(*case, device=device)
        step()
        with record_function("measured step"):
            step()
        return step

    trace, _ = cases.trace_memory(two_steps)
    begin, end = trace.spans["measured step"]
    return trace.peak(begin, end) - trace.held(begin)


def peak_rss_bytes(*case: Any) -> int:
    """Return by how much this process's resident memory peaks in a case's second step; for a new process each time."""
    torch.set_num_threads(1)
    step = make_step(*case, device=torch.device("cpu"))
    step()
    Path("/proc/self/clear_refs").write_text("5")  # The peak starts anew from what is resident now.
    before = _resident_bytes("VmRSS")
    step()
    return _resident_bytes("VmHWM") - before


def _resident_bytes(which: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) * 1024


def measure(args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Measure all cases; the reference first for every size."""
    rows = []
    for dim, batch in itertools.product(args.dim, args.batch):
        chunked = [name for name in args.methods if "chunk_rows" in method_class(name).Config.model_fields]
        whole = [(name, None) for name in args.methods if name not in chunked]
        some = [(name, chunk) for chunk in args.chunk if chunk <= batch for name in chunked]
        if chunked and not some:
            # A chunk above the batch is the whole batch, which the smallest chunk that fits shows.
            some = [(name, batch) for name in chunked]
        for name, chunk in [("dense", None), *whole, *some]:
            case = (name, batch, dim, chunk, args.set)
            peak = peak_bytes(*case, device=device)
            if name == "dense":
                dense = peak
            row = {"method": name, "batch": batch, "dim": dim, "chunk": chunk, "peak_bytes": peak}
            rest = peak - 8 * batch * dim
            row |= {"of_dense": peak / dense, "blocks": rest / (4 * (chunk or batch) * batch)}
            if args.rss:
                # The C library would keep large blocks that are freed, and the next step would not make it grow.
                os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
                context = multiprocessing.get_context("spawn")
                with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
                    row["rss_bytes"] = pool.submit(peak_rss_bytes, *case).result()
            rows.append(row)
    return rows


def main(argv: list[str] | None = None) -> None:
    """Measure, print a table, write the file."""
    parser = cases.parser(__doc__)
    parser.add_argument("--chunk", nargs="+", type=int, default=[128, 1024], help="chunk_rows, for B not below it")
    parser.add_argument("--rss", action="store_true", help="CPU only: measure each case in a process of its own too")
    args = parser.parse_args(argv)
    if args.rss and args.device != "cpu":
        parser.error("--rss: resident memory says nothing about a GPU; leave it out, or use --device cpu")
    device = cases.start(args)
    rows = measure(args, device)
    table = Table("method", "B", "D", "chunk", "peak MiB", "/ dense", "blocks", *(["RSS MiB"] if args.rss else []))
    for row in rows:
        cells = [row["method"], row["batch"], row["dim"], row["chunk"] or "all", f"{row['peak_bytes'] / MIB:.1f}"]
        cells += [f"{row['of_dense']:.3f}", f"{row['blocks']:.1f}"]
        cells += [f"{row['rss_bytes'] / MIB:.1f}"] if args.rss else []
        table.add_row(*map(str, cells))
    Console().print(table)
    cases.write_json(args.json, args, device, rows)


if __name__ == "__main__":
    main()
