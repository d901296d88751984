"""Time and memory of each method's loss and its gradients, relative to OpenCLIP's and to a named model's encoder step.

All take turns in one process. Ratios are medians over rounds, with quartiles. CPU: one thread, processor time. CUDA:
wall time, synchronised. Memory: the most that torch's allocator holds in a step above what it held before.

encoder step   both encoders forward and backward on B pairs, and AdamW, in a named precision; methods work in fp32
as written     FastCLIP's form of 2024 as its authors' formulas say it, without this suite's metrics and memory bounds
npn            NeuCLIP's T_u updates of m prototypes per side, by plain autograd and torch.optim.Adagrad, relative to
               the closed form that the method uses; on a GPU also that form replayed as a CUDA graph (`method_graphs`)
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import cases
from engine.contrastive import add_eps, log_partitions
from engine.distributed import Collectives
from engine.graphs import CudaGraph, Recorder, just_run
from engine.method import Features
from engine.training.encoder import AUTOCAST
from engine.training.towers import build_towers
from neuclip.normalizer import ADAGRAD_EPS, Anchors, Prototypes
from neuclip.objective import conjugate_slope, unified

EPS = 1e-14
LR = 0.008
BASE = "openclip"


def encoder_step(model: str, batch: int, precision: str, device: torch.device) -> Callable[[], None]:
    """Return a call that encodes a batch, computes gradients and moves the encoders."""
    dtype = AUTOCAST.get(precision)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    towers = build_towers(model, seed=0).to(device)
    adamw = torch.optim.AdamW((p for p in towers.parameters() if p.requires_grad), fused=True)
    generator = torch.Generator().manual_seed(0)
    shape = (batch, 3, towers.image_size, towers.image_size)
    image_BCHW = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    # The layout of the trainer.
    image_BCHW = image_BCHW.contiguous(memory_format=torch.channels_last).to(device)
    towers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    size = (batch, towers.clip.context_length)
    tokens_BT = torch.randint(1, towers.clip.vocab_size, size, generator=generator).to(device)

    def step() -> None:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            sides = towers(image_BCHW, tokens_BT)
        torch.autograd.backward(sides, [scaler.scale(torch.ones_like(side_BD)) for side_BD in sides])
        scaler.step(adamw)
        scaler.update()
        adamw.zero_grad()

    return step


def npn_updates(features: Features, num_prototypes: int, num_updates: int) -> dict[str, Callable[[], Tensor]]:
    """Return calls that train and return new prototypes from one start, by the form in which they do."""
    sides = (features.image_BD.detach(), features.text_BD.detach())
    embedding_2GD, positive_G = torch.stack(sides), (sides[0] * sides[1]).sum(dim=1)
    scale = torch.tensor(1 / 0.07, device=positive_G.device)
    log_gamma_2G = add_eps(torch.stack(log_partitions(*sides, *sides, scale)), EPS)
    anchors = Anchors(embedding_2GD, positive_G, log_gamma_2G, scale)
    generator = torch.Generator().manual_seed(1)
    start_2MD = torch.randn(2, num_prototypes, embedding_2GD.shape[2], generator=generator)
    start_2MD = normalize(start_2MD, dim=2).to(scale.device)
    network = Prototypes(
        num_prototypes, start_2MD.shape[2], num_remembered=0, eps=EPS, chunk_rows=1024, collectives=Collectives()
    ).to(scale.device)

    def closed(run: Recorder = just_run) -> Tensor:
        network.weights = start_2MD.clone()
        network.accumulator = torch.zeros_like(start_2MD)
        network.fit(anchors, slope=conjugate_slope, num_updates=num_updates, lr=LR, run=run)
        return network.weights

    def plain() -> Tensor:
        leaf_2MD = start_2MD.clone().requires_grad_()
        adagrad = torch.optim.Adagrad([leaf_2MD], lr=LR, eps=ADAGRAD_EPS)
        for _ in range(num_updates):
            logit_2GM = scale * (torch.bmm(embedding_2GD, normalize(leaf_2MD, dim=2).mT) - positive_G[:, None])
            alpha_2G = add_eps(logit_2GM.logsumexp(dim=2) - math.log(num_prototypes), EPS)
            adagrad.zero_grad()
            torch.autograd.backward(unified(log_gamma_2G, alpha_2G, 1 / scale, rho=0.0))
            adagrad.step()
        return leaf_2MD.detach()

    forms: dict[str, Callable[[], Tensor]] = {"closed": closed, "plain": plain}
    if scale.device.type == "cuda":
        forms["graph"] = functools.partial(closed, CudaGraph())
    return forms


def fastclip_as_written(features: Features) -> Callable[[], None]:
    """Return a call that computes FastCLIP-v3's loss of the first epoch, and its gradients, formula by formula.

    Source: FastCLIP, arXiv:2407.01445; anchors and negatives in two halves, as the code of 2024 has them.
    """
    image_BD, text_BD, index_B = features.image_BD, features.text_BD, features.index_B
    log_scale = torch.full((), math.log(1 / 0.07), device=index_B.device, requires_grad=True)
    u_2N = torch.zeros(2, 100 * len(index_B), device=index_B.device)

    def step() -> None:
        scale, others_BB = log_scale.exp(), 1 - torch.eye(len(index_B), device=index_B.device)
        surrogate = torch.zeros((), device=index_B.device)
        sides = ((image_BD, text_BD), (text_BD, image_BD))
        for u_N, (anchor_BD, other_BD) in zip(u_2N, sides, strict=True):
            for a_BD, o_BD, p_BD in ((anchor_BD, other_BD.detach(), other_BD), (anchor_BD.detach(), other_BD, None)):
                positive_B = (a_BD * (other_BD.detach() if p_BD is None else p_BD)).sum(dim=1)
                exp_BB = ((a_BD @ o_BD.T - positive_B[:, None]) * scale).exp() * others_BB
                g_B = exp_BB.sum(dim=1) / (len(index_B) - 1)
                if p_BD is not None:
                    u_N[index_B] = g_B.detach()
                surrogate = surrogate + (g_B / (u_N[index_B] + EPS)).mean() / 2
        mean_log_u = u_2N[:, index_B].log().mean()
        torch.autograd.backward(surrogate / scale.detach() + (6.5 + mean_log_u) / scale)
        image_BD.grad = text_BD.grad = log_scale.grad = None

    return step


def time_calls(
    contestants: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Time calls in turn; returns the seconds of every round, by name."""
    turns = cases.take_turns(contestants, rounds, device=device)
    return {name: [seconds.on(device) for seconds in measured] for name, measured in turns.items()}


def make_call(name: str, *, batch: int, dim: int, settings: list[str], device: torch.device) -> Callable[[], None]:
    """Return a call that computes a method's loss and its gradients."""
    method = cases.make_method(name, batch=batch, dim=dim, options=cases.options_of(name, settings), device=device)
    return cases.method_step(method, cases.make_features(batch, dim, device))


def measure_methods(args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Time all methods and the encoder step for every size."""
    rows = []
    for precision, dim, batch in itertools.product(args.precision, args.dim, args.batch):
        contestants = {"encoder step": encoder_step(args.model, batch, precision, device)}
        methods = dict.fromkeys((BASE, *args.methods))
        method_call = functools.partial(make_call, batch=batch, dim=dim, settings=args.set, device=device)
        contestants |= {name: method_call(name) for name in methods}
        contestants["as written"] = fastclip_as_written(cases.make_features(batch, dim, device))
        seconds = time_calls(contestants, args.rounds, device)
        peaks = {name: cases.peak_bytes(functools.partial(method_call, name), device) for name in methods}
        for name, times in seconds.items():
            to_base, to_encoder = (cases.ratio(times, seconds[other]) for other in (BASE, "encoder step"))
            row = {"what": name, "batch": batch, "dim": dim, "median_sec": statistics.median(times)}
            row |= {"encoders": precision, "peak_bytes": peaks.get(name)}
            rows.append(row | {"to_openclip": to_base, "to_encoder": to_encoder})
    return rows


def measure_npn(args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Time the prototypes' updates in both forms, for every size."""
    rows = []
    sizes = itertools.product(args.dim, args.batch, args.prototypes, args.updates)
    for dim, batch, num_prototypes, num_updates in sizes:
        features = cases.make_features(batch, dim, device)
        forms = npn_updates(features, num_prototypes, num_updates)
        difference = float((forms["closed"]() - forms["plain"]()).abs().max())
        seconds = time_calls(forms, args.rounds, device)
        row = {"what": "npn", "batch": batch, "dim": dim, "prototypes": num_prototypes, "updates": num_updates}
        row |= {"median_sec": statistics.median(seconds["closed"]), "largest_difference": difference}
        row |= {
            f"{form}_to_closed": cases.ratio(seconds[form], seconds["closed"]) for form in forms if form != "closed"
        }
        rows.append(row)
    return rows


def main(argv: list[str] | None = None) -> None:
    """Measure, print two tables, write the file."""
    parser = cases.parser(__doc__, "methods", "set", "batch", "dim", "precision", "rounds", "device", rounds=9)
    parser.add_argument("--model", default="tiny-resnet", help="open_clip model of the encoder step")
    parser.add_argument("--prototypes", nargs="+", type=int, default=[1024], help="m of the npn comparison")
    parser.add_argument("--updates", nargs="+", type=int, default=[10], help="T_u of the npn comparison")
    args = parser.parse_args(argv)
    device = cases.start(args)
    methods, npn = measure_methods(args, device), measure_npn(args, device)

    title = f"loss and gradients; encoder step of {args.model}"
    table = Table("", "encoders", "B", "D", "ms", f"/ {BASE}", "/ encoder step", "peak MiB", title=title)
    for row in methods:
        cells = [row["what"], row["encoders"], row["batch"], row["dim"], f"{1e3 * row['median_sec']:.1f}"]
        peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.1f}"
        table.add_row(*map(str, cells), *(cases.show_ratio(row[key]) for key in ("to_openclip", "to_encoder")), peak)
    cases.show(table)
    table = Table(
        "B", "D", "m", "T_u", "closed ms", "plain / closed", "graph / closed", "largest difference", title="npn"
    )
    for row in npn:
        cells = [row[key] for key in ("batch", "dim", "prototypes", "updates")] + [f"{1e3 * row['median_sec']:.1f}"]
        ratios = [cases.show_ratio(row[key]) if key in row else "" for key in ("plain_to_closed", "graph_to_closed")]
        table.add_row(*map(str, cells), *ratios, f"{row['largest_difference']:.1e}")
    cases.show(table)
    cases.write_json(args.json, args, device, methods + npn)


if __name__ == "__main__":
    main()
