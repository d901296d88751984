"""Peak memory of each method's loss and its gradients, beside the dense loss and the size of its chunks.

Counts the most bytes that torch's allocator holds at one time, above those held before the step (embeddings, networks,
optimiser state). CPU: all allocations and releases, from torch.profiler. CUDA: max_memory_allocated.

dense    log g of both sides in plain autograd, from whole B x B matrices
blocks   (peak - gradients of the embeddings) / (4 chunk B bytes), the number of float32 matrices of chunk x B held at
         one time; the same for all B if memory is O(chunk x B)
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from typing import Any

import torch
from rich.table import Table
from torch.profiler import record_function

from benchmarks import cases
from engine.registry import method_class

MIB = 2**20


def dense_step(batch: int, dim: int, device: torch.device) -> Callable[[], None]:
    """Return a call that computes the reference: the global contrastive loss of all pairs at once, with gradients."""
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
    """Return the peak of a case's second step, in bytes above those held before it.

    Optimisers make their state in the first step, which does not count.
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

    spans, _ = cases.trace_memory(two_steps, ["measured step"])
    before, peak = spans["measured step"]
    return peak - before


def measure(args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Measure all cases, for every size the reference first."""
    rows = []
    for dim, batch in itertools.product(args.dim, args.batch):
        chunked = [name for name in args.methods if "chunk_rows" in method_class(name).Config.model_fields]
        whole = [(name, None) for name in args.methods if name not in chunked]
        some = [(name, chunk) for chunk in args.chunk if chunk <= batch for name in chunked]
        if chunked and not some:
            # All chunks are larger than the batch: measure one of its size.
            some = [(name, batch) for name in chunked]
        for name, chunk in [("dense", None), *whole, *some]:
            case = (name, batch, dim, chunk, args.set)
            peak = peak_bytes(*case, device=device)
            if name == "dense":
                dense = peak
            row = {"method": name, "batch": batch, "dim": dim, "chunk": chunk, "peak_bytes": peak}
            rest = peak - 8 * batch * dim
            row |= {"of_dense": peak / dense, "blocks": rest / (4 * (chunk or batch) * batch)}
            rows.append(row)
    return rows


def main(argv: list[str] | None = None) -> None:
    """Measure, print a table, write the file."""
    parser = cases.parser(__doc__, "methods", "set", "batch", "dim", "device")
    parser.add_argument("--chunk", nargs="+", type=int, default=[128, 1024], help="chunk_rows, for B not below it")
    args = parser.parse_args(argv)
    device = cases.start(args)
    rows = measure(args, device)
    table = Table("method", "B", "D", "chunk", "peak MiB", "/ dense", "blocks")
    for row in rows:
        cells = [row["method"], row["batch"], row["dim"], row["chunk"] or "all", f"{row['peak_bytes'] / MIB:.1f}"]
        cells += [f"{row['of_dense']:.3f}", f"{row['blocks']:.1f}"]
        table.add_row(*map(str, cells))
    cases.show(table)
    cases.write_json(args.json, args, device, rows)


if __name__ == "__main__":
    main()
