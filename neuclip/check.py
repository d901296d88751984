"""Three first checks of NeuCLIP on synthetic data: ``python -m neuclip.check``, half a minute at most on one core.

    1 objective     UNIFIED at alpha* = log(eps + g) is RGCL, in value and gradients
    2 convergence   the alternation settles at the end point of full-batch optimisation of RGCL
    3 prediction    the network's log-normalizers are nearer to the exact ones than other estimates

Prints each measured number beside its bound and draws one figure (explained in `docs/first-checks.md`). Exit status 1
means that a check failed.

Shape suffixes: 2 sides (image anchors, text anchors), N pairs of the set, B batch, D embedding, I input.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import normalize

from engine.contrastive import add_eps, log_partitions
from engine.method import Features, MethodEnv, Progress
from neuclip import check_figure
from neuclip.controls.neuclip_average import NeuCLIPAverage
from neuclip.controls.neuclip_batch import NeuCLIPBatch
from neuclip.controls.neuclip_exact import NeuCLIPExact
from neuclip.method import NeuCLIP, Unified
from neuclip.objective import conjugate, rgcl, unified

EPS = 1e-14
EMBED_DIM = 16


class Measure(NamedTuple):
    """A measured number and its bound."""

    what: str
    value: float
    bound: float

    @property
    def passed(self) -> bool:
        """Tell whether the bound is kept; NaN keeps none."""
        return self.value <= self.bound


class Found(NamedTuple):
    """Result of a check: what is held against a bound, and what the figure draws by name."""

    measures: list[Measure]
    drawn: dict[str, Any]


def synthetic_pairs(num_pairs: int, *, num_kinds: int = 64, num_inputs: int = 16, seed: int) -> Tensor:
    """Draw the inputs of images and texts, (2, N, I): two noisy views of one vector.

    The vectors come in kinds. As in real data, few kinds are frequent and most are rare. An anchor of a frequent kind
    has many near-equal pairs, one of a rare kind hardly any, so their normalizers differ by orders of magnitude.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    kind_N = torch.multinomial(1 / torch.arange(1.0, num_kinds + 1), num_pairs, replacement=True, generator=generator)
    shared_NI = noise(num_kinds, num_inputs)[kind_N] + 0.5 * noise(num_pairs, num_inputs)
    input_2NI: Tensor = shared_NI @ noise(2, num_inputs, num_inputs) / num_inputs**0.5
    return input_2NI + 0.3 * noise(2, num_pairs, num_inputs)


class Training:
    """A training of linear encoders and a temperature by Adam; so little to learn that it reaches an optimum.

    Args:
        kind: NeuCLIP, or a control of it.
        input_2NI: The pairs.
        batch_size: B.
        num_steps: Steps in all.
        seed: Decides the encoders' start and the order of pairs.
        options: The method's.
    """

    def __init__(
        self, kind: type[Unified], input_2NI: Tensor, *, batch_size: int, num_steps: int, seed: int, **options: Any
    ) -> None:
        self.input_2NI, self.batch_size, self.num_steps, self.seed = input_2NI, batch_size, num_steps, seed
        num_pairs, num_inputs = input_2NI.shape[1:]
        start = torch.randn(2, num_inputs, EMBED_DIM, generator=torch.Generator().manual_seed(seed))
        self.encoders = nn.Parameter(start / num_inputs**0.5)
        self.env = MethodEnv(EMBED_DIM, num_pairs, batch_size, num_pairs // batch_size, num_steps, seed)
        self.method = self.make(kind, **options)

    def make(self, kind: type[Unified], **options: Any) -> Any:
        """Make a method for this training."""
        return kind(kind.Config.model_validate({"eps": EPS, **options}), self.env)

    def encode(self, index_B: Tensor | None = None) -> Features:
        """Embed the pairs at some positions, by default all in order."""
        index_B = torch.arange(self.input_2NI.shape[1]) if index_B is None else index_B
        image_BD, text_BD = normalize(torch.bmm(self.input_2NI[:, index_B], self.encoders), dim=2)
        return Features(image_BD, text_BD, index_B)

    def steps(self, lr: float) -> Iterator[tuple[Progress, Features]]:
        """Train; yields at every step, after its loss and before encoders and temperature move."""
        generator = torch.Generator().manual_seed(self.seed)
        temperature = [parameter for group in self.method.param_groups() for parameter in group.params]
        optimizer = torch.optim.Adam([self.encoders, *temperature], lr=lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.num_steps)
        for step in range(self.num_steps):
            progress = Progress(step, self.env.steps_per_epoch, self.num_steps, self.batch_size)
            if progress.step_in_epoch == 0:
                order_N = torch.randperm(self.input_2NI.shape[1], generator=generator)
            features = self.encode(order_N[progress.step_in_epoch * self.batch_size :][: self.batch_size])
            total = self.method.loss(features, progress).total
            yield progress, features
            optimizer.zero_grad()
            torch.autograd.backward(total)
            optimizer.step()
            schedule.step()
            self.method.after_step(progress)


def _log_gamma(features: Features, logit_scale: Tensor) -> Tensor:
    """Return log(eps + g) of pairs among themselves, (2, B)."""
    sides = (features.image_BD, features.text_BD)
    return add_eps(torch.stack(log_partitions(*sides, *sides, logit_scale)), EPS)


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def check_objective(*, num_pairs: int = 64, temperature: float = 0.05, seed: int = 0) -> Found:
    """Compare UNIFIED at alpha* with RGCL as the paper writes it, in float64.

    Args:
        num_pairs: Size of the data set, all of it one batch.
        temperature: tau; above 0.003, below which the exponentials as the paper writes them overflow.
        seed: Decides the embeddings.

    Source: NeuCLIP, arXiv:2511.08417 (RGCL, CONJ, UNIFIED).
    """
    # Any value works; a large one keeps the loss away from 0, where relative differences mean nothing.
    rho = 40.0
    generator = torch.Generator().manual_seed(seed)
    image_BD, noise_BD = torch.randn(2, num_pairs, EMBED_DIM, generator=generator, dtype=torch.float64)
    image_BD, text_BD = (normalize(side, dim=1).requires_grad_() for side in (image_BD, image_BD + noise_BD))
    tau = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)

    sim_BB, is_other_BB = image_BD @ text_BD.T, ~torch.eye(num_pairs, dtype=torch.bool)
    exp_2BB = ((torch.stack((sim_BB, sim_BB.T)) - sim_BB.diag()[:, None]) / tau).exp()
    g_2B = (exp_2BB * is_other_BB).sum(dim=2) / (num_pairs - 1)
    as_written = tau / 2 * (EPS + g_2B).log().sum(dim=0).mean() + rho * tau

    log_gamma_2B = _log_gamma(Features(image_BD, text_BD, torch.arange(num_pairs)), 1 / tau)
    best_2B = log_gamma_2B.detach()
    ours = unified(log_gamma_2B, best_2B, tau, rho=rho)

    # A sum of 64 terms over ten orders of magnitude has some tens of roundings.
    bound = 50 * torch.finfo(torch.float64).eps
    names = ("value", "image gradient", "text gradient", "temperature gradient")
    found, expected = ([loss, *torch.autograd.grad(loss, (image_BD, text_BD, tau))] for loss in (ours, as_written))
    measures = [
        Measure(f"UNIFIED at alpha* - RGCL, relative: {name}", _relative(a.detach(), b.detach()), bound)
        for name, a, b in zip(names, found, expected, strict=True)
    ]
    shifts = torch.linspace(-1.6, 2.4, 41, dtype=torch.float64)
    with torch.no_grad():
        excess = [float(unified(best_2B, best_2B + shift, tau, rho=rho) - as_written) for shift in shifts]
    measures.append(Measure("RGCL - UNIFIED at other alphas, largest", -min(excess), bound))
    return Found(measures, {"temperature": temperature, "shift": shifts.tolist(), "excess": excess})


def check_convergence(
    *, num_pairs: int = 384, batch_size: int = 32, num_steps: int = 800, full_batch_steps: int = 300, seed: int = 0
) -> Found:
    """Minimise RGCL by NeuCLIP's alternation on small batches, and by plain descent on the whole set at once.

    A third run takes the normalizers of each small batch from the batch itself. It shows the bias that NeuCLIP removes;
    it is drawn, and has no bound. Drawn are (step, value) over the whole set.
    """
    input_2NI = synthetic_pairs(num_pairs, seed=seed)
    # rho is below log(B - 1) = 3.4 nats, so that the temperature has an optimum inside its bounds.
    common: dict[str, Any] = {"rho": 2.5, "temperature": {"lr_schedule": "encoder"}}
    network = {"num_prototypes": 4 * batch_size, "restart_period": num_steps // 4, "npn_lr": 0.03}
    curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
    gaps: list[float] = []

    @torch.no_grad()
    def measure(name: str, training: Training, progress: Progress) -> None:
        features, method = training.encode(), training.method
        log_gamma_2N, tau = _log_gamma(features, method.logit_scale), 1 / method.logit_scale
        curves[name].append((progress.step, float(rgcl(log_gamma_2N, tau, rho=method.rho, eps=EPS))))
        if name == "RGCL, NeuCLIP":
            alpha_2N = torch.stack(method.log_normalizers(features, progress))
            gaps.append(float((conjugate(log_gamma_2N, alpha_2N) - log_gamma_2N).mean()))
            curves["UNIFIED, NeuCLIP"].append((progress.step, curves[name][-1][1] + gaps[-1] * float(tau)))

    for name, kind, rows, steps, lr in (
        ("RGCL, full batch", NeuCLIPBatch, num_pairs, full_batch_steps, 0.02),
        ("RGCL, batch's own", NeuCLIPBatch, batch_size, num_steps, 0.01),
        ("RGCL, NeuCLIP", NeuCLIP, batch_size, num_steps, 0.01),
    ):
        options = common | (network if kind is NeuCLIP else {})
        training = Training(kind, input_2NI, batch_size=rows, num_steps=steps, seed=seed, **options)
        for progress, _ in training.steps(lr):
            if progress.step % 10 == 0:
                measure(name, training, progress)
        measure(name, training, Progress(steps, num_pairs // rows, steps, rows))

    start, best = (curves["RGCL, full batch"][number][1] for number in (0, -1))
    ours = [value for _, value in curves["RGCL, NeuCLIP"]]
    last = -(-len(ours) // 10)
    swing = max(ours[-last:]) - min(ours[-last:])
    measures = [
        Measure("RGCL ends above the full batch's, share of its decrease", (ours[-1] - best) / (start - best), 0.015),
        Measure("encoders settle: RGCL's range in the last tenth, share", swing / (ours[0] - ours[-1]), 0.005),
        Measure("network settles: UNIFIED - RGCL in the last tenth, nats", max(gaps[-last:]), 0.15),
    ]
    return Found(measures, dict(curves))


def check_prediction(
    *, num_pairs: int = 4096, batch_size: int = 64, num_prototypes: int = 256, num_steps: int = 640, seed: int = 0
) -> Found:
    """Compare the network's log-normalizers with the exact ones over the whole set while NeuCLIP trains the encoders.

    One training at a fixed temperature serves all estimators: controls of NeuCLIP, which see the batches of its steps.
    They are measured in the last third of them. Drawn are estimates minus exact values in nats, the best last.
    """
    common: dict[str, Any] = {"temperature": {"learnable": False, "init": 0.05}}
    network = common | {"num_prototypes": num_prototypes, "restart_period": 250, "npn_lr": 0.04}
    input_2NI = synthetic_pairs(num_pairs, seed=seed)
    training = Training(NeuCLIP, input_2NI, batch_size=batch_size, num_steps=num_steps, seed=seed, **network)
    averages = [training.make(NeuCLIPAverage, average_gamma=rate, **common) for rate in (0.2, 0.5, 0.8)]
    untrained = training.make(NeuCLIP, num_updates=0, **network)
    batch, mean = training.make(NeuCLIPBatch, **common), training.make(NeuCLIPExact, **common)
    errors: dict[str, list[Tensor]] = defaultdict(list)
    for progress, features in training.steps(lr=5e-3):
        with torch.no_grad():
            for method in (*averages, untrained):
                method.loss(features, progress)
            # 7 shares no factor with the restart period, so that every age of the prototypes is measured.
            if progress.step < num_steps * 2 / 3 or progress.step % 7:
                continue
            everything = dataclasses.replace(features, extra=training.encode())
            exact_2B = torch.stack(mean.log_normalizers(everything, progress))
            drawn_N = torch.randperm(num_pairs, generator=training.env.generator("fresh", progress.step))
            fresh = dataclasses.replace(features, extra=training.encode(drawn_N[:num_prototypes]))
            estimates = {
                "moving average": [(average, features) for average in averages],
                "batch's own": [(batch, features)],
                "M fresh embeddings": [(mean, fresh)],
                "untrained prototypes": [(untrained, features)],
                "NeuCLIP": [(training.method, features)],
            }
            for name, asked in estimates.items():
                found = [torch.stack(of.log_normalizers(about, progress)) - exact_2B for of, about in asked]
                errors[name].append(min(found, key=lambda error_2B: float(error_2B.square().mean())).flatten())
    joined = {name: torch.cat(parts) for name, parts in errors.items()}
    mse = {name: float(error.square().mean()) for name, error in joined.items()}
    bounds = {"batch's own": 0.5, "moving average": 0.5, "M fresh embeddings": 0.95, "untrained prototypes": 0.95}
    measures = [
        Measure(f"squared error of the network, share of: {name}", mse["NeuCLIP"] / mse[name], bounds[name])
        for name in bounds
    ]
    return Found(measures, {name: joined[name] for name in sorted(mse, key=mse.__getitem__, reverse=True)})


def table(found: dict[str, Found]) -> Table:
    """Set out what was measured beside its bound."""
    rows = Table("check", "measured", "value", "at most", "")
    for check, (measures, _) in found.items():
        for number, measure in enumerate(measures):
            verdict = "[green]pass[/]" if measure.passed else "[bold red]FAIL[/]"
            rows.add_row("" if number else check, measure.what, f"{measure.value:.2g}", f"{measure.bound:.2g}", verdict)
        rows.add_section()
    return rows


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m neuclip.check",
        description=(__doc__ or "").partition("\nShape suffixes")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("results/first-checks"), help="the figure's (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="decides data, start and draws (%(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    start = time.perf_counter()
    found = {
        "1 objective": check_objective(seed=args.seed),
        "2 convergence": check_convergence(seed=args.seed),
        "3 prediction": check_prediction(seed=args.seed),
    }
    console = Console()
    console.print(table(found))
    check_figure.save(args.out, *found.values())
    console.print(f"{time.perf_counter() - start:.0f} s; figure: {args.out / 'first-checks.png'} (also .pdf, .svg)")
    if not all(measure.passed for check in found.values() for measure in check.measures):
        sys.exit(1)


if __name__ == "__main__":
    main()
