"""The losses for other training code in several processes, with a model in DDP."""

from typing import Any

import torch
from losses import STEPS, VARIANTS, TwoTowers, make_loss, same
from support.small import local_part, random_features
from support.spawn import run_in_processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from engine.distributed import Collectives, ProcessGroup


def train_all(alone: bool = False) -> dict[str, Any]:
    """Train a model with every variant, in this process or as one of several; returns weights, values and states."""
    ours = Collectives() if alone else ProcessGroup()
    results = {}
    for label, (name, options) in VARIANTS.items():
        loss = make_loss(name, options).double()
        model: nn.Module = TwoTowers().double()
        model = model if alone else DistributedDataParallel(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(STEPS):
            local = local_part(random_features(step), ours)
            value = loss(**model(local.image_BD, local.text_BD), index=local.index_B)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        weights = [p.detach() for p in model.parameters()]
        value = ours.all_reduce(value.detach(), "mean")
        results[label] = {"weights": weights, "value": value, "state": dict(loss.state_dict())}
    return results


def test_processes_train_as_one_does() -> None:
    expected = train_all(alone=True)
    first, second = run_in_processes(train_all, 2)

    assert same(first, second)
    # Only the order of summation differs. (Adam's first step is a sign, hence not tighter.)
    torch.testing.assert_close(first, expected, rtol=1e-7, atol=1e-9)
