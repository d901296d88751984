"""Three first checks of NeuCLIP on synthetic data: ``python -m neuclip.check``, half a minute at most on one core.

    1 objective     UNIFIED at alpha* = log(eps + g) is RGCL, in value and gradients
    2 convergence   the alternation settles at the end point of full-batch optimisation of RGCL
    3 prediction    the network's log-normalizers are nearer to the exact ones than other estimates

Prints each measured number beside its bound and draws one figure (explained in `docs/first-checks.md`). Exit status 1
means that a check failed.

Shape suffixes: 2 sides (image anchors, text anchors), N pairs of the set, B batch,
D embedding, I input, M prototypes.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import normalize

from engine.contrastive import add_eps, log_mix, log_partitions
from engine.method import Features, MethodEnv, Progress
from neuclip import check_figure
from neuclip.method import NeuCLIP
from neuclip.objective import conjugate, rgcl, unified

EPS = 1e-14
EMBED_DIM = 16
Loss = Callable[[Features, Progress], Tensor]


class Measure(NamedTuple):
    """A measured number and its bound."""

    what: str
    value: float
    bound: float

    @property
    def passed(self) -> bool:
        """Tell whether the bound is kept; NaN keeps none."""
        return self.value <= self.bound


class Objective(NamedTuple):
    """Result of check 1: UNIFIED - RGCL where all alphas lie `shift` nats above their optimum."""

    measures: list[Measure]
    temperature: float
    shift: list[float]
    excess: list[float]


class Convergence(NamedTuple):
    """Result of check 2: (step, value) over the whole set, of RGCL by how it was minimised, and of UNIFIED."""

    measures: list[Measure]
    rgcl: dict[str, list[tuple[int, float]]]
    unified: list[tuple[int, float]]


class Prediction(NamedTuple):
    """Result of check 3: estimates minus exact values in nats, by estimator, the best last."""

    measures: list[Measure]
    errors: dict[str, Tensor]


# What is trained, and how -------------------------------------------------------------------------------------------


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
        input_2NI: The pairs.
        batch_size: B.
        num_steps: Steps in all.
        seed: Decides the encoders' start and the order of pairs.
        options: NeuCLIP's.
    """

    def __init__(self, input_2NI: Tensor, *, batch_size: int, num_steps: int, seed: int, **options: Any) -> None:
        self.input_2NI, self.batch_size, self.num_steps, self.seed = input_2NI, batch_size, num_steps, seed
        num_pairs, num_inputs = input_2NI.shape[1:]
        start = torch.randn(2, num_inputs, EMBED_DIM, generator=torch.Generator().manual_seed(seed))
        self.encoders = nn.Parameter(start / num_inputs**0.5)
        config = NeuCLIP.Config.model_validate({"eps": EPS, **options})
        env = MethodEnv(EMBED_DIM, num_pairs, batch_size, num_pairs // batch_size, num_steps, seed)
        self.method = NeuCLIP(config, env)

    def encode(self, index_B: Tensor) -> Features:
        """Embed the pairs at some positions."""
        image_BD, text_BD = normalize(torch.bmm(self.input_2NI[:, index_B], self.encoders), dim=2)
        return Features(image_BD, text_BD, index_B)

    def everything(self) -> Features:
        """Embed all pairs, in order."""
        return self.encode(torch.arange(self.input_2NI.shape[1]))

    def rgcl(self, features: Features, progress: Progress) -> Tensor:
        """Return RGCL with the normalizers of the given pairs among themselves."""
        scale = self.method.logit_scale
        return rgcl(_log_g(features, scale), 1 / scale, rho=self.method.rho, eps=EPS)

    def unified(self, features: Features, progress: Progress) -> Tensor:
        """Return NeuCLIP's loss, after the network's updates."""
        return self.method.loss(features, progress).total

    def steps(self, loss: Loss, lr: float) -> Iterator[tuple[Progress, Features]]:
        """Train; yields at every step, after its loss and before encoders and temperature move."""
        generator = torch.Generator().manual_seed(self.seed)
        temperature = [parameter for group in self.method.param_groups() for parameter in group.params]
        optimizer = torch.optim.Adam([self.encoders, *temperature], lr=lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.num_steps)
        for step in range(self.num_steps):
            progress = Progress(step, self.method.env.steps_per_epoch, self.num_steps, self.batch_size)
            if progress.step_in_epoch == 0:
                order_N = torch.randperm(self.input_2NI.shape[1], generator=generator)
            features = self.encode(order_N[progress.step_in_epoch * self.batch_size :][: self.batch_size])
            total = loss(features, progress)
            yield progress, features
            optimizer.zero_grad()
            torch.autograd.backward(total)
            optimizer.step()
            schedule.step()
            self.method.after_step(progress)


def _log_g(features: Features, logit_scale: Tensor) -> Tensor:
    """Return log g of pairs among themselves, (2, B)."""
    sides = (features.image_BD, features.text_BD)
    return torch.stack(log_partitions(*sides, *sides, logit_scale))


def _log_g_among(features: Features, others: Features, logit_scale: Tensor) -> Tensor:
    """Return the log of the mean over `others` without an anchor's own pair, (2, B)."""
    positive_B1 = (features.image_BD * features.text_BD).sum(dim=1, keepdim=True)
    own_BM = features.index_B[:, None] == others.index_B
    log_count_B = (~own_BM).sum(dim=1).log()
    sides = ((features.image_BD, others.text_BD), (features.text_BD, others.image_BD))
    logits = [logit_scale * (anchor_BD @ other_MD.T - positive_B1) for anchor_BD, other_MD in sides]
    return torch.stack([side_BM.masked_fill(own_BM, -math.inf).logsumexp(dim=1) - log_count_B for side_BM in logits])


# The checks ---------------------------------------------------------------------------------------------------------


def check_objective(*, num_pairs: int = 64, temperature: float = 0.05, seed: int = 0) -> Objective:
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
    g_2B = torch.stack(
        [
            (((side_BB - sim_BB.diag()[:, None]) / tau).exp() * is_other_BB).sum(dim=1) / (num_pairs - 1)
            for side_BB in (sim_BB, sim_BB.T)
        ]
    )
    as_written = tau / 2 * (EPS + g_2B).log().sum(dim=0).mean() + rho * tau

    log_gamma_2B = add_eps(_log_g(Features(image_BD, text_BD, torch.arange(num_pairs)), 1 / tau), EPS)
    best_2B = log_gamma_2B.detach()
    ours = unified(log_gamma_2B, best_2B, tau, rho=rho)

    # A sum of 64 terms over ten orders of magnitude has some tens of roundings.
    bound = 50 * torch.finfo(torch.float64).eps
    inputs = (image_BD, text_BD, tau)
    pairs = zip(
        ("value", "image gradient", "text gradient", "temperature gradient"),
        (ours, *torch.autograd.grad(ours, inputs)),
        (as_written, *torch.autograd.grad(as_written, inputs)),
        strict=True,
    )
    measures = [
        Measure(f"UNIFIED at alpha* - RGCL, relative: {what}", _relative(actual, expected), bound)
        for what, actual, expected in pairs
    ]
    shifts = torch.linspace(-1.6, 2.4, 41, dtype=torch.float64)
    with torch.no_grad():
        excess = [float(unified(log_gamma_2B, best_2B + shift, tau, rho=rho) - as_written) for shift in shifts]
    measures.append(Measure("RGCL - UNIFIED at other alphas, largest", -min(excess), bound))
    return Objective(measures, temperature, shifts.tolist(), excess)


def check_convergence(
    *, num_pairs: int = 384, batch_size: int = 32, num_steps: int = 800, full_batch_steps: int = 300, seed: int = 0
) -> Convergence:
    """Minimise RGCL by NeuCLIP's alternation on small batches, and by plain descent on the whole set at once.

    A third run takes the normalizers of each small batch from the batch itself. It shows the bias that NeuCLIP removes;
    it is drawn, and has no bound.

    Args:
        num_pairs: Size of the data set.
        batch_size: B of the small batches.
        num_steps: Steps on them.
        full_batch_steps: Steps on the whole set.
        seed: Decides pairs, start and order.
    """
    input_2NI = synthetic_pairs(num_pairs, seed=seed)
    # rho is below log(B - 1) = 3.4 nats, so that the temperature has an optimum inside its bounds.
    options = {
        "rho": 2.5,
        "num_prototypes": 4 * batch_size,
        "restart_period": num_steps // 4,
        "npn_lr": 0.03,
        "temperature": {"lr_schedule": "encoder"},
    }
    curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
    bounds: list[tuple[int, float]] = []
    gaps: list[float] = []

    def measure(name: str, training: Training, progress: Progress) -> None:
        with torch.no_grad():
            features = training.everything()
            value = float(training.rgcl(features, progress))
            curves[name].append((progress.step, value))
            if name == "NeuCLIP":
                alpha_2N = torch.stack(training.method.log_normalizers(features, progress))
                log_gamma_2N = add_eps(_log_g(features, training.method.logit_scale), EPS)
                gaps.append(float((conjugate(log_gamma_2N, alpha_2N) - log_gamma_2N).mean()))
                bounds.append((progress.step, value + gaps[-1] / float(training.method.logit_scale)))

    for name, rows, steps, lr in (
        ("full batch", num_pairs, full_batch_steps, 0.02),
        ("batch's own", batch_size, num_steps, 0.01),
        ("NeuCLIP", batch_size, num_steps, 0.01),
    ):
        training = Training(input_2NI, batch_size=rows, num_steps=steps, seed=seed, **options)
        for progress, _ in training.steps(training.unified if name == "NeuCLIP" else training.rgcl, lr):
            if progress.step % 10 == 0:
                measure(name, training, progress)
        measure(name, training, Progress(steps, num_pairs // rows, steps, rows))

    start, best = curves["full batch"][0][1], curves["full batch"][-1][1]
    ours = [value for _, value in curves["NeuCLIP"]]
    last = -(-len(ours) // 10)
    swing = max(ours[-last:]) - min(ours[-last:])
    measures = [
        Measure("RGCL ends above the full batch's, share of its decrease", (ours[-1] - best) / (start - best), 0.015),
        Measure("encoders settle: RGCL's range in the last tenth, share", swing / (ours[0] - ours[-1]), 0.005),
        Measure("network settles: UNIFIED - RGCL in the last tenth, nats", max(gaps[-last:]), 0.15),
    ]
    return Convergence(measures, dict(curves), bounds)


def check_prediction(
    *, num_pairs: int = 4096, batch_size: int = 64, num_prototypes: int = 256, num_steps: int = 640, seed: int = 0
) -> Prediction:
    """Compare the network's log-normalizers with the exact ones over the whole set while NeuCLIP trains the encoders.

    One training at a fixed temperature serves all estimators. Each estimates on the batches of its steps, and is
    measured in the last third of them. Beside NeuCLIP: the batch's own mean; its moving average (FastCLIP's) at the
    best of three rates; prototypes that are restarted and never trained; M fresh random embeddings.

    Args:
        num_pairs: Size of the data set.
        batch_size: B.
        num_prototypes: M.
        num_steps: Steps of training.
        seed: Decides pairs, start, order and draws.
    """
    options = {
        "num_prototypes": num_prototypes,
        "restart_period": 250,
        "npn_lr": 0.04,
        "temperature": {"learnable": False, "init": 0.05},
    }
    input_2NI = synthetic_pairs(num_pairs, seed=seed)
    training = Training(input_2NI, batch_size=batch_size, num_steps=num_steps, seed=seed, **options)
    untrained = NeuCLIP(training.method.config.model_copy(update={"num_updates": 0}), training.method.env)
    rates = (0.2, 0.5, 0.8)
    log_u_2N = {rate: torch.full((2, num_pairs), math.nan) for rate in rates}
    errors: dict[str, list[Tensor]] = defaultdict(list)
    for progress, features in training.steps(training.unified, lr=5e-3):
        with torch.no_grad():
            scale, index_B = training.method.logit_scale, features.index_B
            untrained.loss(features, progress)
            own_2B = add_eps(_log_g(features, scale), EPS)
            for rate, log_u in log_u_2N.items():
                old_2B = log_u[:, index_B]
                log_u[:, index_B] = torch.where(old_2B.isnan(), own_2B, log_mix(old_2B, own_2B, rate))
            # 7 shares no factor with the restart period, so that every age of the prototypes is measured.
            if progress.step < num_steps * 2 / 3 or progress.step % 7:
                continue
            drawn_M = torch.randperm(num_pairs, generator=training.method.env.generator("fresh", progress.step))
            fresh = training.encode(drawn_M[:num_prototypes])
            exact_2B = add_eps(_log_g_among(features, training.everything(), scale), EPS)
            estimates = {
                "moving average": min(
                    (log_u[:, index_B] for log_u in log_u_2N.values()),
                    key=lambda u: float((u - exact_2B).square().mean()),
                ),
                "batch's own": own_2B,
                "M fresh embeddings": add_eps(_log_g_among(features, fresh, scale), EPS),
                "untrained prototypes": torch.stack(untrained.log_normalizers(features, progress)),
                "NeuCLIP": torch.stack(training.method.log_normalizers(features, progress)),
            }
            for name, estimate_2B in estimates.items():
                errors[name].append((estimate_2B - exact_2B).flatten())
    joined = {name: torch.cat(parts) for name, parts in errors.items()}
    mse = {name: float(error.square().mean()) for name, error in joined.items()}
    bounds = {"batch's own": 0.5, "moving average": 0.5, "M fresh embeddings": 0.95, "untrained prototypes": 0.95}
    measures = [
        Measure(f"squared error of the network, share of: {name}", mse["NeuCLIP"] / mse[name], bounds[name])
        for name in bounds
    ]
    return Prediction(measures, {name: joined[name] for name in sorted(mse, key=mse.__getitem__, reverse=True)})


def _relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).detach().abs().max() / expected.detach().abs().max())


def table(found: dict[str, list[Measure]]) -> Table:
    """Set out what was measured beside its bound."""
    rows = Table("check", "measured", "value", "at most", "")
    for check, measures in found.items():
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
    parser.add_argument(
        "--out", type=Path, default=Path("results/first-checks"), help="folder of the figure (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides data, start and draws (%(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    start = time.perf_counter()
    objective = check_objective(seed=args.seed)
    convergence = check_convergence(seed=args.seed)
    prediction = check_prediction(seed=args.seed)
    found = {
        "1 objective": objective.measures,
        "2 convergence": convergence.measures,
        "3 prediction": prediction.measures,
    }
    console = Console()
    console.print(table(found))
    args.out.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(check_figure.STYLE):
        figure = check_figure.draw(objective, convergence, prediction)
        # No dates inside: the same numbers give the same bytes.
        for suffix, metadata in (("pdf", {"CreationDate": None}), ("svg", {"Date": None}), ("png", {})):
            figure.savefig(args.out / f"first-checks.{suffix}", dpi=300, metadata=metadata)
    console.print(f"{time.perf_counter() - start:.0f} s; figure: {args.out / 'first-checks.png'} (also .pdf, .svg)")
    if not all(measure.passed for measures in found.values() for measure in measures):
        sys.exit(1)


if __name__ == "__main__":
    main()
