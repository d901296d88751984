"""Suites that compare at the settings that were chosen say the same."""

from __future__ import annotations

from typing import Any

import pytest

from experiments.design.suite import expand

Settings = dict[tuple[str, int, str], tuple[dict[str, Any], float]]


def settings(name: str) -> Settings:
    """Options and learning rate of a suite's runs, by method, batch size and variant."""
    specs = [(run.spec, run.variant) for run in expand(name).runs]
    return {
        (spec.method.name, spec.global_batch_size, variant): (spec.method.config, spec.optimizer.lr)
        for spec, variant in specs
    }


@pytest.mark.parametrize(
    ("name", "but"),
    [
        ("quickstart", {("openclip", 128, "")}),
        ("laptop_over_training", set()),
        # The rate of OpenCLIP that three seeds chose.
        ("laptop_second_confirmation", {("openclip", 32, ""), ("neuclip", 64, "")}),
        ("laptop_hard_fixed", {(method, 256, "") for method in ("neuclip", "openclip")}),
    ],
)
def test_main_runs_have_the_settings_of_laptop(name: str, but: set[tuple[str, int, str]]) -> None:
    chosen = settings("laptop")
    found = {key: value for key, value in settings(name).items() if not key[2] and key not in but}
    assert found
    for key, (config, lr) in found.items():
        assert (config, lr) == (chosen[key][0], pytest.approx(chosen[key][1], rel=1e-3)), key


def test_openclip_at_its_tuned_fixed_temperature_is_the_same_everywhere() -> None:
    fixed = settings("laptop")["openclip", 32, "fixed temperature"]
    assert settings("laptop_third_confirmation")["openclip", 32, ""] == fixed
    assert settings("laptop_hard_fixed")["openclip", 32, "fixed temperature"] == fixed
    assert fixed[0]["temperature"]["learnable"] is False
