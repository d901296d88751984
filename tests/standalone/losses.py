"""Small losses, a small model and their comparison, for the tests of the losses for other training code."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from baselines import AmorLIPLoss, FastCLIPLoss
from engine.standalone import StandaloneLoss
from neuclip import NeuCLIPLoss

DIM, BATCH, PAIRS = 16, 8, 20
SCHEDULE = {"steps_per_epoch": 2, "num_epochs": 4}
NEUCLIP = {"num_prototypes": 12, "restart_period": 3, "num_updates": 2, "rho": 1.0}
"""More prototypes than a batch has pairs, and two restarts after the first within six steps."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "neuclip": ("neuclip", NEUCLIP),
    "neuclip full": ("neuclip", NEUCLIP | {"npn_gradient": "full", "chunk_rows": 3}),
    "neuclip batch": ("neuclip_batch", {"rho": 1.0}),
    "neuclip mlp": ("neuclip", NEUCLIP | {"architecture": "mlp"}),
    "neuclip queue": ("neuclip_queue", {"num_prototypes": 12, "rho": 1.0}),
    "fastclip v0": ("fastclip", {"version": "v0", "form": 2024}),
    "fastclip v3": ("fastclip", {"rho": 1.0}),
    "amorlip": ("amorlip", {"init_output_bias": True}),
    "amorlip average": ("amorlip", {"fit_w_prev": False}),
}
STEPS = 6
"""Three epochs."""


def make_loss(name: str, options: dict[str, Any], **common: Any) -> StandaloneLoss:
    sizes = {"global_batch_size": BATCH} | common
    if name == "neuclip":
        return NeuCLIPLoss(DIM, **sizes, **options)
    if name.startswith("neuclip_"):
        return NeuCLIPLoss(DIM, control=name, **sizes, **options)
    if name == "amorlip":
        return AmorLIPLoss(DIM, **sizes, **SCHEDULE, **options)
    return FastCLIPLoss(PAIRS, **sizes, **SCHEDULE, **options)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, list) else a == b


class TwoTowers(nn.Module):
    """The least that open_clip's loop needs of a model."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.image, self.text = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.logit_bias = nn.Parameter(torch.tensor(-10.0)) if bias else None

    def forward(self, images: Tensor, texts: Tensor) -> dict[str, Tensor]:
        image_features, text_features = normalize(self.image(images), dim=1), normalize(self.text(texts), dim=1)
        output = {"image_features": image_features, "text_features": text_features}
        output["logit_scale"] = self.logit_scale.exp()
        return output if self.logit_bias is None else output | {"logit_bias": self.logit_bias}
