"""What is wrong with a loss is said in a sentence."""

import pytest
import torch
from support.small import make_method, progress_of, random_features
from torch import nn

from engine.method import LossOutput, wrong_form


def test_a_parameter_that_nothing_trains_and_a_side_without_a_gradient_are_named() -> None:
    method, features = make_method("openclip"), random_features(0, dtype=torch.float32)
    method.weight = nn.Parameter(torch.ones(()))
    (method.weight * features.image_BD.sum()).backward()
    side, idle = method.without_gradient_or_training(features)
    assert side.startswith("the text embeddings get no gradient: allowed is")
    assert idle == "parameter 'weight' gets a gradient, but param_groups does not return it: nothing trains it"
    method.moves_itself = ("weight",)
    method.loss(features, progress_of(method, 0)).total.backward()
    assert method.without_gradient_or_training(features) == []


@pytest.mark.parametrize("output", [torch.ones(()), LossOutput(torch.ones(64)), LossOutput(1.0)], ids=str)
def test_a_loss_that_is_no_scalar_is_told_with_what_is_allowed(output: object) -> None:
    assert "allowed is LossOutput(total, metrics) whose total is a scalar tensor" in str(wrong_form(output))
