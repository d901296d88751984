"""Suites that repeat what tunings and their confirmations have chosen say the same."""

import pytest

from experiments.design.suite import expand


def chosen_settings(name: str) -> dict[tuple[str, int], tuple[dict, float]]:
    """The options and the learning rate of a suite's main runs, by method and batch size."""
    specs = [run.spec for run in expand(name).runs if not run.variant]
    return {
        (spec.method.name, spec.global_batch_size): (spec.method.config, pytest.approx(spec.optimizer.lr, rel=1e-12))
        for spec in specs
    }


CHOSEN = "laptop_second_confirmation"


def test_hard_scenes_are_trained_on_with_the_settings_of_the_easy_ones():
    hard = chosen_settings("laptop_hard")
    del hard["neuclip", 256]  # the second confirmation has no such run
    assert hard == chosen_settings(CHOSEN)


def test_ablations_at_the_best_rates_stand_at_those_of_the_second_confirmation():
    at_32 = {key: value for key, value in chosen_settings(CHOSEN).items() if key[1] == 32}
    ablated = chosen_settings("ablation_dataset_size@laptop_best_rates") | chosen_settings("laptop_best_rates")
    assert ablated == {key: at_32[key] for key in ablated}
    for (config, lr), (fixed, same_lr) in zip(at_32.values(), chosen_settings("laptop_fixed").values(), strict=True):
        assert fixed["temperature"].pop("learnable") is False
        assert config["temperature"].pop("learnable") is True
        # This alone was tuned anew.
        del config["temperature"]["init"], fixed["temperature"]["init"]
        assert (fixed, same_lr) == (config, lr)


def test_over_training_three_methods_have_the_settings_of_the_second_confirmation_but_openclips_better_rate():
    of, chosen = chosen_settings("laptop_over_training"), chosen_settings(CHOSEN)
    config, lr = of.pop(("openclip", 32))
    assert (config, 2 * lr.expected) == chosen["openclip", 32]
    assert of == {("neuclip", 32): chosen["neuclip", 32], ("amorlip", 32): chosen["amorlip", 32]}
    ours = {run.spec.run_id for run in expand("laptop_over_training").runs if run.spec.method.name == "neuclip"}
    assert ours < {run.spec.run_id for run in expand("laptop_third_confirmation").runs}


def test_a_fixed_temperature_in_a_variant_is_the_one_that_was_chosen_for_its_suite():
    fixed = [run for run in expand("laptop_best_rates").runs if run.variant == "fixed temperature"]
    assert {run.spec.method.name for run in fixed} == {"neuclip", "openclip"}
    assert {run.spec.run_id for run in fixed} < {run.spec.run_id for run in expand("laptop_fixed").runs}


def test_hard_scenes_at_a_fixed_temperature_differ_in_it_and_in_openclips_rates_alone():
    runs = [run for run in expand("laptop_hard_fixed").runs if run.spec.seed == 70]
    of = {(run.spec.method.name, run.spec.global_batch_size, run.variant): run.spec for run in runs}
    assert len(runs) == len(of) == 10
    hard, chosen = chosen_settings("laptop_hard"), next(iter(expand("laptop_fixed_openclip").runs)).spec
    for (method, batch, variant), spec in of.items():
        config, lr = hard[method, batch]
        temperature = dict(spec.method.config["temperature"])
        assert spec.method.config | {"temperature": None} == config | {"temperature": None}
        if variant:
            assert (temperature["learnable"], temperature["init"]) == (False, 0.07 if "0.07" in variant else 0.1)
        else:
            assert temperature == config["temperature"]
        if method == "neuclip" or (batch, variant) == (256, ""):
            assert spec.optimizer.lr == lr
        elif variant:
            assert spec.optimizer.lr == pytest.approx(chosen.optimizer.lr * (batch / 32) ** 0.5, rel=1e-3)
        else:  # what twenty seeds found better than what three had chosen
            assert spec.optimizer.lr == pytest.approx(lr.expected / 2, rel=1e-9)


@pytest.mark.parametrize("name", ["quickstart", "quickstart_ten_seeds"])
def test_the_quickstart_has_the_settings_of_the_second_confirmation_but_openclips_better_rate(name):
    quick, chosen = chosen_settings(name), chosen_settings(CHOSEN)
    openclip, at_twice = quick.pop(("openclip", 32)), chosen.pop(("openclip", 32))
    assert openclip[0] == at_twice[0]
    assert 2 * openclip[1].expected == at_twice[1]
    # With the square root of the batch.
    assert quick.pop(("openclip", 128)) == (at_twice[0], pytest.approx(2 * at_twice[1].expected, rel=1e-3))
    assert quick == {key: value for key, value in chosen.items() if key[1] == 32}
