import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from engine import paths
from engine.spec import Execution, RunSpec, canonical_json, parse
from experiments import cards, expansion
from experiments.suite import Suite, expand

SUITES = cards.names("suites")


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


def test_the_quickstart_compares_all_five_methods_with_paired_seeds():
    main = [run.spec for run in expand("quickstart").runs if run.variant == ""]
    seeds = {}
    for spec in main:
        seeds.setdefault(spec.method.name, set()).add(spec.seed)
    assert set(seeds) == {"amorlip", "fastclip", "neuclip", "openclip", "siglip"}
    assert all(found == {0, 1, 2} for found in seeds.values())


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
    assert spec.run_id == "openclip-toy-tiny-vit-s0-58f485c9"


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"global_batch_size": 8},
        {"precision": "bf16"},
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


def test_a_variant_that_changes_nothing_is_refused(own):
    change(own, variants=[{}, {"label": "the same"}])
    with pytest.raises(ValueError, match="variant 'the same' of amorlip with seed 0 occurs twice"):
        expand("smoke")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datset": "icons"}, "unknown key 'datset'; did you mean 'dataset'"),
        ({"dataset": "icon_tiny"}, "unknown data set 'icon_tiny'; did you mean 'icons_tiny'"),
        ({"model": "tiny-vitt"}, "unknown model 'tiny-vitt'; did you mean 'tiny-vit'"),
        ({"evaluation": "datacomp"}, "unknown evaluation 'datacomp'"),
        ({"methods": {"neuclipp": {}}}, "unknown method 'neuclipp'; did you mean 'neuclip'"),
        (
            {"methods": {"neuclip": {"options": {"num_protypes": 3}}}},
            "unknown key 'num_protypes'; did you mean 'num_prot",
        ),
        ({"methods": {"neuclip": {"options": {"num_prototypes": "many"}}}}, r"num_prototypes: .*valid integer.*'many'"),
        ({"training": {"global_batch_size": 64, "epoch": 2}}, "unknown key 'epoch'; did you mean 'epochs'"),
        ({"training": {"global_batch_size": 64}}, "give either epochs or samples_seen"),
        ({"training": {"global_batch_size": 4096, "samples_seen": 4096}}, "4096 exceeds the 1480 pairs"),
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


def test_broken_yaml_names_the_file(own):
    (own / "suites" / "smoke.yaml").write_text("title: [unclosed")
    with pytest.raises(ValueError, match=r"smoke\.yaml: not valid YAML"):
        expand("smoke")


def test_a_typo_in_a_card_names_the_card(own):
    path = own / "datasets" / "icons_tiny.yaml"
    path.write_text(path.read_text().replace("pairs:", "pears:"))
    with pytest.raises(ValueError, match=r"icons_tiny\.yaml: pears: unknown key 'pears'; did you mean 'pairs'"):
        expand("smoke")


def test_expansions_are_made_once_and_again_when_a_source_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = []
    honest = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *args, **kw: calls.append(args) or honest(*args, **kw))
    first = expansion.load(["smoke"])
    assert expansion.load(["smoke"]) == first
    assert len(calls) == 1
    monkeypatch.setattr(expansion, "sources_sha256", lambda: "changed")
    assert expansion.load(["smoke"]) == first
    assert len(calls) == 2
    run = first["smoke"].runs[0].spec
    assert parse(RunSpec, (tmp_path / paths.spec(run.run_id)).read_text(), "spec") == run


def test_a_removed_run_gets_its_spec_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_id = expansion.load(["smoke"])["smoke"].runs[0].spec.run_id
    shutil.rmtree(paths.run(run_id))
    expansion.load(["smoke"])
    assert paths.spec(run_id).exists()


def test_canonical_json_refuses_what_is_not_a_number():
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


def test_a_suite_file_needs_nothing_but_its_fields():
    assert set(yaml.safe_load((cards.FOLDER / "suites" / "smoke.yaml").read_text())) <= set(Suite.model_fields)


def test_the_command_line_lists_explains_and_compares(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*args):
        return subprocess.run(
            [sys.executable, "-m", "experiments", *args], capture_output=True, text=True, check=False, env=None
        )

    assert run("expand", "smoke").returncode == 0
    first, second = sorted(p.name for p in (tmp_path / "results" / "runs").iterdir())[:2]
    assert "smoke" in run("list", "smoke").stdout
    assert "method.config" in run("explain", first).stdout
    assert "method.name" in run("diff", first, second).stdout
    unknown = run("explain", "nothing")
    assert unknown.returncode == 1
    assert "no run 'nothing'" in unknown.stderr
