import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support import toy

from engine import paths, registry
from engine.data.index import build_index
from engine.schema.base import canonical_json, parse
from engine.schema.run import Execution, RunSpec
from experiments.__main__ import main
from experiments.design import answers, cards, expansion, names
from experiments.design.suite import expand
from experiments.design.suite_file import Suite

SUITES = cards.names("suites")
ABLATIONS = cards.names("ablations")


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The cards in a folder of their own, to be changed."""
    folder = tmp_path / "experiments"
    shutil.copytree(cards.FOLDER, folder)
    monkeypatch.setattr(cards, "FOLDER", folder)
    return folder


def change(folder: Path, **changes: object) -> None:
    path = folder / "suites" / "smoke.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_expands_to_runs_of_known_methods(name):
    suite = expand(name)
    assert suite.runs
    assert len({run.spec.run_id for run in suite.runs}) == len(suite.runs)
    assert set(suite.evaluation.sets) <= set(cards.names("evals"))


@pytest.mark.parametrize("base", ["smoke", "cc3m"])
@pytest.mark.parametrize("what", ABLATIONS)
def test_every_ablation_applies_to_a_small_and_to_a_large_suite(what, base):
    suite = expand(f"ablation_{what}@{base}")
    variants = {(run.variant, run.spec.global_batch_size, run.spec.dataset.pairs) for run in suite.runs}
    assert len(variants) > 1
    assert len({run.spec.run_id for run in suite.runs}) == len(suite.runs)


@pytest.mark.parametrize("what", [what for what in ABLATIONS if "_error" not in what])
def test_the_default_variant_of_an_ablation_is_the_main_run_itself(what):
    ablation = expand(f"ablation_{what}@cc3m")
    main = {run.spec.run_id: run.spec for run in expand("cc3m").runs}
    shared = [run for run in ablation.runs if run.spec.run_id in main]
    of_suite = {spec.method.name for spec in main.values()}  # controls of an ablation are no methods of the suite
    assert {(run.spec.method.name, run.spec.seed) for run in shared} == {
        (run.spec.method.name, run.spec.seed) for run in ablation.runs if run.spec.method.name in of_suite
    }
    assert {run.variant for run in shared} == {""}


def test_the_papers_suites_take_as_many_steps_as_the_authors_scripts():
    # The authors round each epoch up to a multiple of their loader's workers; we drop an incomplete batch.
    for name, steps in (("cc3m", 98_568), ("cc12m", 148_104), ("dfn192m", 262_752)):
        assert [run.spec.num_steps for run in expand(name).runs] == pytest.approx(
            [steps] * len(expand(name).runs), rel=2e-3
        )


def test_the_small_sets_have_three_paired_seeds_and_the_large_ones_one():
    for name, num_seeds in (("cc3m", 3), ("cc12m", 3), ("dfn14m", 3), ("dfn192m", 1), ("dfn1b", 1)):
        seeds = {}
        for run in expand(name).runs:
            seeds.setdefault(run.spec.method.name, set()).add(run.spec.seed)
        assert set(seeds) == {"amorlip", "fastclip", "neuclip", "openclip", "siglip"}
        assert {frozenset(found) for found in seeds.values()} == {frozenset(range(num_seeds))}


@pytest.mark.parametrize("name", [*SUITES, *names.ablations("cc3m"), *names.ablations()])
def test_no_suite_measures_normalizers_only_where_the_network_restarts(name):
    # The error is a saw-tooth over the restart period: points at one phase of it would show one height only.
    for run in expand(name).runs:
        period = run.spec.method.config.get("restart_period", "never")
        points = run.spec.normalizer_error.at if run.spec.normalizer_error else ()
        if len(points) > 1 and period != "never" and period > 20:
            phases = {samples // run.spec.global_batch_size % period for samples in points}
            assert phases != {0}
            assert len(phases) > 1


def test_what_suites_have_in_common_is_trained_once():
    def ids(name):
        return {run.spec.run_id for run in expand(name).runs}

    assert ids("dfn14m") < ids("scales")
    assert ids("ablation_restart_period@cc3m") & ids("ablation_acceleration@cc3m") > ids("cc3m") & ids(
        "ablation_restart_period@cc3m"
    )


def test_a_variant_that_the_main_run_is_at_this_scale_is_listed_once():
    labels = {base: {run.variant for run in expand(f"ablation_num_updates@{base}").runs} for base in ("cc3m", "laptop")}
    assert labels["cc3m"] == {"", "no update", "1 update", "5 updates", "20 updates", "50 updates"}
    assert labels["laptop"] == {"", "no update", "1 update", "10 updates", "20 updates", "50 updates"}


def test_factors_scale_with_the_suite_and_labels_say_the_outcome():
    labels = {
        base: {run.variant for run in expand(f"ablation_restart_period@{base}").runs} for base in ("cc3m", "laptop")
    }
    periods = {"cc3m": (20, 100, 2500), "laptop": (4, 20, 500)}
    for base, found in labels.items():
        assert found == {"", "never restarted", *(f"restart every {period}" for period in periods[base])}


def test_batches_are_compared_at_equal_samples_and_at_equal_steps():
    runs = [run for run in expand("ablation_batch_size@cc3m").runs if run.spec.global_batch_size == 512]
    main = expand("cc3m").runs[0].spec
    assert {run.spec.samples_seen for run in runs if run.variant == ""} == {main.samples_seen}
    assert {run.spec.num_steps for run in runs if run.variant == "equal steps"} == {main.num_steps}
    decay = {run.variant: run.spec.method.config["gamma_decay_epochs"] for run in runs if "fastclip" in run.spec.run_id}
    assert decay == {"": 18, "equal steps": 9}


def test_batch_norm_sees_as_many_pairs_at_a_time_whatever_the_batch():
    runs = [run.spec for suite in ("cc3m", *names.ablations("cc3m")) for run in expand(suite).runs]
    found = {run.global_batch_size: run.global_batch_size // run.batch_norm_groups for run in runs}
    assert found == {64: 64, 128: 128, 256: 128, 512: 128, 1024: 128, 2048: 128, 8192: 128}
    assert {run.spec.batch_norm_groups for run in expand("laptop").runs} == {1}


def test_a_part_of_a_training_set_has_as_many_pairs_as_its_index(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    toy.write_shards(tmp_path / "shards")
    whole = cards.dataset("scenes_tiny").model_copy(update={"pairs": toy.NUM_PAIRS, "shards": "shards"})
    part = cards.subset(whole, 0.3)
    found = build_index(
        part.name,
        part.revision,
        Path(part.shards),
        part.captions,
        paths.index(part.name),
        pairs=part.pairs,
        fraction=part.fraction,
    )
    assert found.pairs == part.pairs < toy.NUM_PAIRS
    assert cards.dataset("scenes-0.1").fraction == 0.1
    assert cards.dataset("scenes-0.1", pairs=7).pairs == 7
    tiny = cards.subset(cards.dataset("cc3m"), 1e-5)
    assert tiny.name == "cc3m-0.00001"
    assert cards.dataset(tiny.name) == tiny
    with pytest.raises(ValueError, match="a part of another already"):
        cards.subset(part, 0.5)
    with pytest.raises(ValueError, match=r"unknown data set 'scene-0\.1'"):
        cards.dataset("scene-0.1")


def test_names_of_suites_and_ablations(own):
    by_name_only = {"attribution_network", "batch_size_lr"}
    everything = [f"ablation_{what}@smoke" for what in ABLATIONS if what not in by_name_only]
    assert names.resolve(["smoke"]) == ["smoke"]
    assert names.resolve(["ablations@smoke"]) == everything
    assert names.resolve(["ablation_updates@smoke", "ablations@smoke"])[0] == "ablation_updates@smoke"
    assert names.resolve(["ablation_updates"]) == ["ablation_updates@laptop"]
    assert names.resolve(["laptop"])[:2] == ["laptop", "ablation_architecture@laptop"]
    asked = [f"ablation_{what}@smoke" for what in sorted(by_name_only)]
    assert names.resolve(asked) == asked
    change(own, ablations=["normalizer_*", "updates"])
    bundle = ["normalizer_error_batch_size", "normalizer_error_dataset_size", "updates"]
    assert names.resolve(["smoke"]) == ["smoke", *(f"ablation_{what}@smoke" for what in bundle)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smok", "unknown suite 'smok'; did you mean 'smoke'"),
        ("ablation_update@smoke", "unknown ablation 'update'; did you mean 'updates'"),
        ("ablation_updates@smok", "unknown suite 'smok'; did you mean 'smoke'"),
        ("ablations@smok", "unknown suite 'smok'; did you mean 'smoke'"),
        ("smoke@cc3m", "unknown suite 'smoke@cc3m'"),
    ],
)
def test_a_mistyped_name_is_one_clear_error(name, message):
    with pytest.raises(ValueError, match=message):
        names.resolve([name])


def test_an_ablation_is_one_file(own):
    (own / "ablations" / "eps.yaml").write_text(
        "title: The constant in the logarithm\n"
        "methods: [neuclip]\n"
        "variants:\n"
        "  - {}\n"
        '  - {label: "eps {eps}", options_times: {eps: 100}}\n'
    )
    assert "ablation_eps@quickstart" in names.resolve(["ablations@quickstart"])
    suite = expand("ablation_eps@quickstart")
    assert {run.variant: run.spec.method.config["eps"] for run in suite.runs} == {"": 1e-14, "eps 1e-12": 1e-12}
    assert suite.title.startswith("The constant in the logarithm (Quickstart")
    assert len(suite.runs) == 6


@pytest.mark.parametrize(
    ("line", "milestones"), [("", (64000,)), ("over_training: true\n", (25600, 38400, 51200, 64000))]
)
def test_an_ablation_is_evaluated_at_the_end_of_training_unless_it_says_otherwise(own, line, milestones):
    (own / "ablations" / "eps.yaml").write_text(f"title: The constant\nmethods: [neuclip]\n{line}variants: [{{}}]\n")
    runs = expand("ablation_eps@laptop").runs
    assert {run.milestones for run in runs} == {milestones}
    # The run has all of them: it is the suite's own.
    of_suite = {run.spec.run_id: run for run in expand("laptop").runs}
    assert {of_suite[run.spec.run_id].milestones for run in runs} == {(25600, 38400, 51200, 64000)}


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (
            {"label": "x", "options_times": {"restart_perod": 2}},
            "unknown key 'restart_perod'; did you mean 'restart_period'",
        ),
        (
            {"label": "x", "options_times": {"objective": 2}},
            "options_times: objective is 'unified', no number to multiply",
        ),
        ({"label": "x", "options_times": {"neuclp.rho": 2}}, "unknown method 'neuclp'; did you mean 'neuclip'"),
        (
            {"label": "x", "training_times": {"optimizer.lrr": 2}},
            "training_times: unknown key 'lrr'; did you mean 'lr'",
        ),
        ({"label": "x", "training_times": {"precision.x": 2}}, "training_times: unknown key 'x'"),
        ({"label": "x", "training_times": {"epoch": 2}}, "training_times: unknown key 'epoch'; did you mean 'epochs'"),
        (
            {"label": "x", "options": {"rho": 3.0}, "options_times": {"neuclip.rho": 2}},
            "options sets rho to 3.0, and options_times multiplies it: write the product in options",
        ),
        (
            {"label": "x", "training": {"optimizer": {"lr": 0.1}}, "training_times": {"optimizer.lr": 2}},
            "training sets optimizer.lr to 0.1, and training_times multiplies it: write the product in training",
        ),
        ({"label": "{rh}", "options_times": {"rho": 2}}, "label '{rh}': unknown key 'rh'; did you mean 'rho'"),
        ({"label": "中 {rho}", "options": {"rho": 3.0}}, "label: LaTeX tables cannot show '中'"),
        ({"label": "x", "methods": []}, "methods: .*at least 1 item"),
        ({"label": "x", "seeds": []}, "seeds: .*at least 1 item"),
        ({"label": "the same"}, None),
        ({"label": "x", "data_fraction": 1.0}, "data_fraction: .*less than 1"),
        ({"label": "x", "model": "tiny-vitt"}, "unknown model 'tiny-vitt'; did you mean 'tiny-vit'"),
    ],
)
def test_a_mistake_in_an_ablation_is_one_clear_error(own, variant, message):
    text = {"title": "Mistakes", "methods": ["neuclip"], "variants": [{}, variant]}
    (own / "ablations" / "mistakes.yaml").write_text(yaml.safe_dump(text))
    if message is None:
        assert {run.variant for run in expand("ablation_mistakes@smoke").runs} == {""}
        return
    with pytest.raises(ValueError, match=message) as caught:
        expand("ablation_mistakes@smoke")
    assert len(str(caught.value).splitlines()) == 1


def test_a_method_s_own_factor_counts_in_whatever_order(own):
    for number, factors in enumerate(({"rho": 2, "neuclip.rho": 4}, {"neuclip.rho": 4, "rho": 2})):
        text = {"title": "Factors", "methods": ["fastclip", "neuclip"], "variants": [{"options_times": factors}]}
        (own / "ablations" / f"factors{number}.yaml").write_text(yaml.safe_dump(text, sort_keys=False))
        before, after = (
            {run.spec.method.name: run.spec.method.config.get("rho") for run in expand(name).runs}
            for name in ("smoke", f"ablation_factors{number}@smoke")
        )
        assert after == {"fastclip": 2 * before["fastclip"], "neuclip": 4 * before["neuclip"]}


def test_a_misspelt_ablation_of_a_suite_is_refused(own):
    change(own, ablations=["num_update"])
    with pytest.raises(ValueError, match=r"smoke.yaml: ablations: unknown ablation 'num_update'; did you mean 'num_up"):
        names.resolve(["smoke"])


def test_a_title_that_tables_cannot_show_is_refused(own):
    path = own / "evals" / "scenes_tiny_sketched.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"title": "中"}))
    with pytest.raises(ValueError, match=r"scenes_tiny_sketched.yaml: title: LaTeX tables cannot show '中'"):
        expand("smoke")


def test_two_variants_of_an_ablation_that_are_the_same_are_refused(own):
    twice = [{"label": "a", "options": {"rho": 1.0}}, {"label": "b", "options": {"rho": 1.0}}]
    text = {"title": "Twice", "methods": ["neuclip"], "variants": twice}
    (own / "ablations" / "twice.yaml").write_text(yaml.safe_dump(text))
    with pytest.raises(ValueError, match="variant 'b' of neuclip with seed 0 occurs twice"):
        expand("ablation_twice@smoke")


def test_an_ablation_of_a_method_that_the_suite_lacks_says_so(own):
    change(own, methods={"openclip": {}})
    with pytest.raises(ValueError, match="ablation 'updates': unknown method 'neuclip'"):
        expand("ablation_updates@smoke")


def test_missing_training_data_are_one_clear_error_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cards.refuse_missing(["scenes"])  # the workflow builds it
    message = r"'cc3m': no \*\.tar shards in data/cc3m\. To fetch it, `snakemake fetch_cc3m` \(about 89 GB\) runs: hf "
    with pytest.raises(ValueError, match=message) as caught:
        cards.refuse_missing(["scenes", "cc12m-0.1", "cc3m"])
    assert len(str(caught.value).splitlines()) == 4  # each may be copied, or crawled
    for name in ("cc12m", "cc3m"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "00000.tar").touch()
    cards.refuse_missing(["scenes", "cc12m-0.1", "cc3m"])


def test_the_quickstart_compares_all_five_methods_with_paired_seeds():
    main = [run.spec for run in expand("quickstart").runs if run.variant == ""]
    seeds = {}
    for spec in main:
        seeds.setdefault(spec.method.name, set()).add(spec.seed)
    assert set(seeds) == {"amorlip", "fastclip", "neuclip", "openclip", "siglip"}
    assert all(found == {0, 1, 2} for found in seeds.values())


def test_a_suite_asks_for_errors_of_gradients_by_shares_of_the_training(own):
    training = yaml.safe_load((own / "suites" / "smoke.yaml").read_text())["training"]
    before = {run.spec.run_id for run in expand("smoke").runs}
    change(own, training=training | {"gradient_error": {"at": [0.5, 1.0], "population": 256}})
    runs = expand("smoke").runs
    assert not before & {run.spec.run_id for run in runs}
    for spec in (run.spec for run in runs):
        asked = spec.gradient_error
        assert asked.at == (round(0.5 * spec.num_steps) * spec.global_batch_size, spec.samples_seen)
        assert (asked.population, asked.num_rounds) == (256, 8)


def test_an_expansion_says_which_runs_ask_for_pairs_beyond_the_batch():
    runs = expand("ablation_headroom@laptop").runs
    assert {run.variant: run.num_extra_pairs for run in runs if run.num_extra_pairs} == {"exact normalizer": 256}


def test_a_run_id_is_pinned_for_ever():
    # If this changes, no earlier result is found again: raise SCHEMA_VERSION and say so in the change log.
    spec = RunSpec.model_validate(
        {
            "method": {"name": "openclip", "config": {"temperature": {"init": 0.07}}},
            "dataset": {"name": "toy", "revision": "1", "pairs": 96},
            "model": {"name": "tiny-vit"},
            "global_batch_size": 16,
            "samples_seen": 160,
            "milestones": (160,),
            "optimizer": {},
            "augmentation": {},
            "seed": 0,
        }
    )
    assert spec.run_id == "openclip-toy-tiny-vit-s0-158e6eeb"


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"global_batch_size": 8},
        {"precision": "bf16"},
        {"method_tf32": True},
        {"optimizer": {"lr": 1e-3}},
        {"augmentation": {"kind": "none"}},
        {"method": {"name": "openclip", "config": {"temperature": {"init": 0.05}}}},
        {"dataset": {"name": "toy", "revision": "2", "pairs": 96}},
        {"samples_seen": 320, "milestones": (160, 320)},
    ],
)
def test_whatever_changes_a_result_changes_the_run_id(changes):
    spec = expand("smoke").runs[0].spec.model_dump(mode="json")
    spec |= {"global_batch_size": 16, "samples_seen": 160, "milestones": (160,), "normalizer_error": None}
    before = RunSpec.model_validate(spec)
    assert RunSpec.model_validate(spec | changes).run_id.split("-")[-1] != before.run_id.split("-")[-1]


def test_how_a_run_is_carried_out_has_no_field_in_common_with_what_it_is():
    assert not set(Execution.model_fields) & set(RunSpec.model_fields)


def test_the_order_of_keys_and_methods_does_not_matter(own):
    before = expand("smoke")
    suite = yaml.safe_load((own / "suites" / "smoke.yaml").read_text())
    change(own, methods=dict(reversed(suite["methods"].items())))
    assert expand("smoke").runs == before.runs


def test_adding_a_seed_adds_runs_and_changes_none(own):
    before = {run.spec.run_id for run in expand("smoke").runs}
    change(own, seeds=[0, 1])
    after = {run.spec.run_id for run in expand("smoke").runs}
    assert before < after
    assert len(after) == 2 * len(before)


def test_different_runs_that_tables_would_take_for_one_are_refused(own):
    change(own, variants=[{}, {"methods": ["openclip"], "training": {"optimizer": {"lr": 5e-4}}}])
    said = "openclip on scenes_tiny differ in more than their seeds, 0 and {}, and have no label: tables would not"
    with pytest.raises(ValueError, match=said.format(0)):
        expand("smoke")
    change(own, variants=[{}, {"methods": ["openclip"], "seeds": [1], "training": {"optimizer": {"lr": 5e-4}}}])
    with pytest.raises(ValueError, match=said.format(1)):
        expand("smoke")
    change(own, variants=[{}, {"methods": ["openclip"], "training": {"global_batch_size": 16}}])
    assert {run.spec.global_batch_size for run in expand("smoke").runs if run.spec.method.name == "openclip"} > {16}


def test_a_variant_that_changes_nothing_is_refused(own):
    change(own, variants=[{}, {"label": "the same"}])
    with pytest.raises(ValueError, match="variant 'the same' of amorlip with seed 0 occurs twice"):
        expand("smoke")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datset": "scenes"}, "unknown key 'datset'; did you mean 'dataset'"),
        ({"dataset": "scene_tiny"}, "unknown data set 'scene_tiny'; did you mean 'scenes_tiny'"),
        ({"model": "tiny-vitt"}, "unknown model 'tiny-vitt'; did you mean 'tiny-vit'"),
        ({"evaluation": "datacomp"}, "unknown evaluation 'datacomp'"),
        ({"methods": {"neuclipp": {}}}, "unknown method 'neuclipp'; did you mean 'neuclip'"),
        (
            {"methods": {"neuclip": {"options": {"num_protypes": 3}}}},
            "unknown key 'num_protypes'; did you mean 'num_prot",
        ),
        ({"methods": {"neuclip": {"options": {"num_prototypes": "many"}}}}, r"num_prototypes: .*valid integer.*'many'"),
        ({"training": {"global_batch_size": 64, "epoch": 2}}, "unknown key 'epoch'; did you mean 'epochs'"),
        (
            {"training": {"global_batchsize": 64, "epochs": 2}},
            "suite 'smoke': training: unknown key 'global_batchsize'; did you mean 'global_batch_size'",
        ),
        ({"training": {"epochs": 2}}, "suite 'smoke': training: global_batch_size is missing: write how many"),
        ({"training": {"global_batch_size": "a"}}, "suite 'smoke': training: global_batch_size: .*integer.*'a'"),
        ({"training": {"global_batch_size": 64}}, "give either epochs or samples_seen"),
        ({"training": {"global_batch_size": 4096, "samples_seen": 4096}}, "4096 exceeds the 1500 pairs"),
        (
            {"training": {"global_batch_size": 64, "epochs": 1, "batch_norm_sample": 48}},
            "batch_norm_sample = 48 does not divide global_batch_size = 64",
        ),
        ({"seeds": []}, "seeds: Tuple should have at least 1 item"),
        ({"variants": [{"methods": ["openclipp"]}]}, "unknown method 'openclipp'; did you mean 'openclip'"),
    ],
)
def test_a_mistake_is_one_clear_error(own, changes, message):
    change(own, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        expand("smoke")
    assert len(str(caught.value).splitlines()) <= 2
    assert "smoke" in str(caught.value)


def test_without_a_command_that_fetches_it_the_source_of_a_set_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    card = {"name": "mine", "title": "", "revision": "1", "pairs": 2, "shards": "s", "licence": "", "source": "here"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(card))
    with pytest.raises(ValueError, match=r"To fetch it, put its shards there \(the card's source: here\)\n"):
        cards.refuse_missing([cards.keep("mine.yaml")])


def test_broken_yaml_names_the_file(own):
    (own / "suites" / "smoke.yaml").write_text("title: [unclosed")
    with pytest.raises(ValueError, match=r"smoke\.yaml: not valid YAML"):
        expand("smoke")


def test_a_typo_in_a_card_names_the_card(own):
    path = own / "datasets" / "scenes_tiny.yaml"
    path.write_text(path.read_text().replace("pairs:", "pears:"))
    with pytest.raises(ValueError, match=r"scenes_tiny\.yaml: pears: unknown key 'pears'; did you mean 'pairs'"):
        expand("smoke")


def test_what_methods_answered_is_asked_again_only_when_code_has_changed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []
    honest = registry.resolve_config
    monkeypatch.setattr(registry, "resolve_config", lambda *args: asked.append(args[0]) or honest(*args))
    first = expansion.load(["smoke"])
    assert {"amorlip", "fastclip", "neuclip", "openclip", "siglip"} == set(asked)
    asked.clear()
    assert expansion.load(["smoke"]) == first
    assert asked == []
    # What was changed by others is not believed.
    text = paths.answers().read_text()
    for damage in (text.replace('"rho":', '"rh":'), text[:-9], "", "null"):
        paths.answers().write_text(damage)
        assert expansion.load(["smoke"]) == first
    asked.clear()
    monkeypatch.setattr(answers, "sources_sha256", lambda: "changed")
    assert expansion.load(["smoke"]) == first
    assert asked
    # To look at a suite is to run nothing of it: only what is written for a workflow is seen by others.
    assert list(paths.RESULTS.iterdir()) == [paths.answers()]
    assert expansion.written() == []
    expansion.write(first["smoke"])
    assert expansion.written() == [first["smoke"].sealed()]
    run = first["smoke"].runs[0].spec
    assert parse(RunSpec, paths.spec(run.run_id).read_text(), "spec") == run


def test_an_expansion_that_was_made_before_imports_neither_torch_nor_scipy(tmp_path):
    code = "import sys; from experiments.design import expansion; expansion.load(sys.argv[1:]); print(*sys.modules)"
    asked = ["smoke", "ablation_headroom@smoke", "tuning@one_gpu"]
    command, environment = [sys.executable, "-c", code, *asked], {**os.environ, "PYTHONPATH": str(answers.ROOT)}
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "check": True}
    first, second = (set(subprocess.run(command, **options).stdout.split()) for _ in range(2))
    assert {"torch", "scipy"} <= first
    assert not {"torch", "scipy"} & second


def test_an_answer_depends_on_this_repositorys_code_and_on_no_environment(tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "ROOT", tmp_path)
    ours = tmp_path / "engine" / "training" / "step.py"
    digests = []
    for path in (ours, tmp_path / ".venv" / "lib" / "x.py", tmp_path / "results" / "code" / "x" / "engine" / "y.py"):
        path.parent.mkdir(parents=True)
        path.write_text("")
        digests.append(answers.sources_sha256())
    assert len(set(digests)) == 1
    ours.write_text("changed = True\n")
    assert answers.sources_sha256() != digests[0]


def test_canonical_json_refuses_what_is_not_a_number():
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


def test_a_suite_file_needs_nothing_but_its_fields():
    assert set(yaml.safe_load((cards.FOLDER / "suites" / "smoke.yaml").read_text())) <= set(Suite.model_fields)


def test_the_command_line_lists_explains_and_compares(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*args):
        main(args)
        return capsys.readouterr().out

    run("expand", "smoke")
    first, second = sorted(p.name for p in (tmp_path / "results" / "runs").iterdir())[:2]
    assert "smoke" in run("list", "smoke")
    monkeypatch.setenv("COLUMNS", "80")
    assert "ablation_normalizer_error_dataset_size " in run("list")
    assert "method.config" in run("explain", first)
    # A shell completes the name of a run's folder.
    assert run("explain", f"results/runs/{first}/") == run("explain", first)
    assert "method.name" in run("diff", first, second)
    listed, *_ = json.loads(run("list", "smoke", "--json"))
    assert {item["run_id"] for item in listed["runs"]} > {first, second}
    assert json.loads(run("explain", first, "--json"))["dataset"]["name"] == "scenes_tiny"
    names_of = json.loads(run("diff", first, second, "--json"))["method.name"]
    assert {name: json.loads(value) for name, value in names_of.items()} == {
        run_id: run_id.partition("-")[0] for run_id in (first, second)
    }
    with pytest.raises(SystemExit, match=r"error: .*no run 'nothing'"):
        run("explain", "nothing")
