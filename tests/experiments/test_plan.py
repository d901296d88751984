"""What is left of a suite, how long it takes by what is recorded or published, and which data are missing."""

import functools
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from support import toy

from engine import files, paths
from engine.jobs.cluster import Cluster
from engine.schema.base import parse
from engine.schema.record import Attempt, Provenance, Record
from engine.schema.run import Execution, GradientErrorSpec, ModelSpec
from engine.schema.suite import ExpandedSuite, SuiteRun
from engine.training import checkpoint
from engine.training.loop import train
from engine.training.towers import build_towers, outline
from experiments import hours, needs, plan, workflow
from experiments.__main__ import main
from experiments.design import cards
from experiments.design.suite import expand


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    toy.build(tmp_path)
    for kind in ("evals", "evaluations"):
        shutil.copytree(cards.FOLDER / kind, tmp_path / "cards" / kind)
    monkeypatch.setattr(cards, "FOLDER", tmp_path / "cards")
    card = {"name": "toy", "title": "Toy", "revision": "1", "pairs": toy.NUM_PAIRS, "shards": "data/toy/train"}
    files.write_text(cards.FOLDER / "datasets" / "toy.yaml", yaml.safe_dump(card | {"licence": "", "source": "tests"}))
    return tmp_path


def make_suite(*specs, name="toy"):
    evaluation = toy.build_evaluation(Path.cwd())
    for spec in specs:
        toy.write_spec(Path.cwd(), spec)
    runs = tuple(SuiteRun(variant="", spec=spec) for spec in specs)
    return ExpandedSuite(name=name, title="Toy", runs=runs, evaluation=evaluation)


def some(spec, step_sec, *, method=None, batch=None, device="gpu", processes=1):
    changes = {"method": spec.method.model_copy(update={"name": method or spec.method.name})}
    changes["global_batch_size"] = batch or spec.global_batch_size
    provenance = Provenance.model_construct(world_size=processes, device=device)
    attempt = Attempt.model_construct(provenance=provenance)
    return Record.model_construct(spec=spec.model_copy(update=changes), median_step_sec=step_sec, attempts=(attempt,))


def test_a_recorded_run_is_what_the_rest_is_estimated_from(root):
    first, second = (toy.run_spec("openclip", steps=6, seed=seed) for seed in (0, 1))
    suite = make_suite(first, second)
    before = plan.make([suite])
    assert before.total.states == {"to do": 2}
    assert (before.total.runs_without_estimate, before.total.training_hours, before.basis) == (2, 0.0, ())
    train(first, Execution())
    after = plan.make([suite])
    record = parse(Record, paths.record(first.run_id).read_text(), "record")
    assert after.total.states == {"to do": 1, "done": 1}
    assert after.total.runs_without_estimate == 0
    # Six steps, and the exact normalizers of the whole set: a third of six more.
    assert after.total.training_hours == pytest.approx((6 + 2) * record.median_step_sec / 3600)
    (basis,) = after.basis
    assert basis.startswith(f"recorded: {first.model.name}, openclip, batch 16, on {record.provenance.device} (1 run)")
    assert after.total.evaluations_left == len(first.milestones) + len(second.milestones)
    assert after.total.evaluation_hours is None


def test_wrong_counts_of_evaluation_sets_are_shown(root):
    suite = make_suite(toy.run_spec("openclip", steps=6))
    assert plan.make([suite]).wrong == ()
    sets = {name: card.model_copy(update={"images": 17}) for name, card in suite.evaluation.sets.items()}
    evaluation = suite.evaluation.model_copy(update={"sets": sets})
    found = plan.make([suite.model_copy(update={"evaluation": evaluation})])
    assert [line.partition(": ")[0] for line in found.wrong] == [f"evaluation set {name!r}" for name in sets]
    assert all("has 16 images, its card says 17: edit the card" in line for line in found.wrong)
    console = Console(width=300, record=True)
    plan.show(found, console)
    shown = console.export_text()
    assert all(f"Wrong: {line}" in shown for line in found.wrong)
    assert "All data are there" not in shown


def test_the_disk_is_what_a_run_really_takes(root, monkeypatch):
    spec = toy.run_spec("fastclip", steps=4)
    suite = make_suite(spec)
    planned = plan.make([suite]).total
    largest = []
    honest = checkpoint.save_checkpoint

    def measure(folder, *args):
        honest(folder, *args)
        largest.append(max(file.stat().st_size for file in folder.glob("*.pt")))

    monkeypatch.setattr(checkpoint, "save_checkpoint", measure)
    train(spec, Execution(save_every_min=0))
    weights = sum(file.stat().st_size for file in (paths.run(spec.run_id) / "weights").rglob("*.safetensors"))
    # Beside the weights: batch norm's buffers, file headers.
    assert planned.disk_bytes == pytest.approx(weights, rel=0.02)
    assert planned.checkpoint_bytes == pytest.approx((checkpoint.KEEP + 1) * max(largest), rel=0.05)


def test_the_nearest_recorded_runs_count():
    spec = expand("cc12m").runs[0].spec
    same = some(spec, 1.0, processes=8)
    others = [
        some(spec, 9.0, method="siglip"),
        some(spec, 9.0, batch=spec.global_batch_size * 2),
        some(spec, 9.0, device="another gpu"),
        some(expand("cc3m").runs[0].spec, 9.0),
    ]
    slower = some(spec, 1.25, processes=8)
    rates = hours.estimate(spec, [same, same, slower, *others]).pairs_per_sec
    assert rates == pytest.approx((spec.global_batch_size / 10, spec.global_batch_size / 8))
    found = hours.estimate(spec, [same, same, *others])
    error = spec.normalizer_error
    steps = (spec.samples_seen + len(error.at) * spec.dataset.pairs / 3) / spec.global_batch_size
    assert found.hours == pytest.approx(8 * steps / 3600)
    assert found.basis == f"recorded: ViT-B-32, {spec.method.name}, batch 2048, on gpu (2 runs)"


def test_another_method_or_batch_of_the_model_counts_by_the_pair():
    spec = expand("dfn192m").runs[0].spec
    half = spec.global_batch_size // 2
    found = hours.estimate(spec, [some(spec, 1.0, method="siglip", batch=half)])
    assert found.hours == pytest.approx(2 * spec.num_steps / 3600)


def test_errors_of_gradients_take_the_time_to_encode_their_population():
    spec = expand("dfn192m").runs[0].spec
    error = GradientErrorSpec(at=(spec.samples_seen // 2, spec.samples_seen), population=spec.samples_seen // 100)
    plain, measured = (hours.estimate(run, []) for run in (spec, spec.model_copy(update={"gradient_error": error})))
    assert measured.hours == pytest.approx((1 + 2 / 3 / 100) * plain.hours)


def test_published_hours_are_named_and_go_with_the_computation_of_the_encoders():
    spec = expand("dfn192m").runs[0].spec
    found = hours.estimate(spec, [])
    assert found.hours == pytest.approx(384 * spec.samples_seen / 1.28e9)
    # From a card of 24 GB to an H100.
    assert found.most_hours == pytest.approx(6 * found.hours)
    assert found.pairs_per_sec[1] == pytest.approx(6 * found.pairs_per_sec[0])
    assert found.basis.startswith("published: ")
    # GFLOP of a pair, forward, in open_clip's profile table.
    table = {"RN50": 18.18, "ViT-B-32": 14.78, "ViT-B-16": 41.09, "ViT-S-32": 5.66}
    assert {name: round(hours.flop_per_pair(ModelSpec(name=name)) / 1e9, 2) for name in table} == table
    small = hours.estimate(spec.model_copy(update={"model": ModelSpec(name="ViT-S-32", config_sha256=None)}), [])
    assert small.hours == pytest.approx(found.hours * 5.66 / 41.09, rel=0.001)
    assert hours.estimate(expand("smoke").runs[0].spec, []) is None


def test_a_part_of_datacomp_s_tasks_takes_the_time_of_its_pictures():
    whole, part = cards.evaluation("datacomp38"), cards.evaluation("datacomp_quick")
    assert hours.evaluation_sec(whole) == pytest.approx(5142)
    assert hours.evaluation_sec(part) == pytest.approx(5142 * images(part) / images(whole))
    assert 0.2 < images(part) / images(whole) < 0.4
    assert math.isnan(hours.evaluation_sec(cards.evaluation("scenes_tiny")))


def test_pairs_beyond_the_batch_are_encoded_and_cost_no_more():
    spec = expand("dfn192m").runs[0].spec
    plain, more = hours.estimate(spec, []), hours.estimate(spec, [], num_extra_pairs=3 * spec.global_batch_size)
    assert more.hours == pytest.approx(2 * plain.hours)


def images(evaluation):
    return sum(card.images for card in evaluation.sets.values())


def test_an_outline_has_the_shapes_of_the_model():
    built, drawn = build_towers("tiny-vit", seed=0), outline("tiny-vit")
    assert {k: v.shape for k, v in drawn.state_dict().items()} == {k: v.shape for k, v in built.state_dict().items()}
    with pytest.raises(ValueError, match="unknown model 'tiny-vitt'; did you mean 'tiny-vit'"):
        outline("tiny-vitt")


def test_the_command_names_missing_data_and_how_to_get_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("experiments.design.expansion.load", lambda asked: {name: expand(name) for name in asked})
    main(["plan", "cc3m", "quickstart", "--json"])
    found = json.loads(capsys.readouterr().out)
    missing = {item["name"]: item for item in found["missing"]}
    assert missing["cc3m"]["how"].startswith("`snakemake fetch_cc3m` (about 89 GB) runs: hf download pixparse/cc3m-wds")
    assert missing["cars"]["kind"] == "evaluation"
    assert missing["cars"]["suites"] == ["cc3m"]
    assert len(missing) == 39  # the workflow builds the quickstart's
    assert [suite["states"] for suite in found["suites"]] == [{"to do": 15}, {"to do": 18}]

    main(["plan", "cc3m", "quickstart"])
    shown = capsys.readouterr().out
    assert "no basis" in shown
    assert "published: ViT-B-16" in shown
    assert "No basis for hours of 18 runs" in shown
    assert re.search(r"38 sets\W+data/datacomp\W+`snakemake evaluation_data --config suites=cc3m`", shown)
    assert "imagenet1k" not in shown

    (tmp_path / "data" / "cc3m").mkdir(parents=True)
    (tmp_path / "data" / "cc3m" / "00000.tar").touch()
    main(["plan", "cc3m", "--json"])
    assert "cc3m" not in {item["name"] for item in json.loads(capsys.readouterr().out)["missing"]}


# What a process needs ---------------------------------------------------------------------------------------------


def test_few_missing_sets_are_shown_by_their_names():
    def lack(*names):
        return [plan.Missing(kind="evaluation", name=n, path=f"data/{n}", how="", suites=("a", n)) for n in names]

    assert [row.name for row in plan._few(lack("x", "y", "z"))] == ["x", "y", "z"]
    (row,) = plan._few(lack("w", "x", "y", "z"))
    assert (row.name, row.path) == ("4 sets", "data")
    assert row.how == "`snakemake evaluation_data --config suites=a,w,x,y,z`"


def test_a_suite_of_ones_own_is_asked_for_by_its_file():
    suite = expand("smoke")
    own = suite.model_copy(update={"name": "ablation_updates@mine", "file": "to/mine.yaml"})
    assert [plan._reference(each) for each in (suite, own)] == ["smoke", "ablation_updates@to/mine.yaml"]


def test_what_a_pair_keeps_is_counted_without_a_gpu():
    # MB in bf16, from an independent count; a GPU's kernels keep a little more or less.
    expected = {"ViT-B-32": 34, "ViT-B-16": 78, "RN50": 69, "ViT-L-14": 243}
    found = {name: needs.activation_bytes(ModelSpec(name=name), "bf16") / 1e6 for name in expected}
    assert found == pytest.approx(expected, rel=0.1)
    assert needs.activation_bytes(ModelSpec(name="RN50"), "fp32") == pytest.approx(2 * found["RN50"] * 1e6, rel=0.1)


def test_what_a_pair_keeps_is_what_a_real_forward_pass_keeps():
    towers = build_towers("tiny-vit", seed=0)
    kept = []
    for num_pairs in (1, 2):
        storages = {}
        keep = functools.partial(_keep, storages)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            pixels = torch.zeros(num_pairs, 3, towers.image_size, towers.image_size, dtype=torch.uint8)
            encoded = towers(pixels, torch.zeros(num_pairs, towers.clip.context_length, dtype=torch.long))
        kept.append(sum(storage.nbytes() for storage in storages.values()))
        del encoded
    assert needs.activation_bytes(ModelSpec(name="tiny-vit"), "fp32") == pytest.approx(kept[1] - kept[0], rel=0.02)


def _keep(storages, tensor):
    storage = tensor.untyped_storage()
    storages[storage.data_ptr()] = storage
    return tensor


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """A function that plans a run whose hours are those that were published, with the values of `--config`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "_to_evaluate", lambda suite: set())

    def make(spec, **config):
        suite = expand("smoke").model_copy(update={"runs": (SuiteRun(variant="", spec=spec),)})
        return plan.make([suite], workflow.place_of(config)[1])

    return make


def test_a_batch_that_no_card_holds_is_warned_of_with_what_would_fit(planned):
    spec = expand("dfn1b").runs[0].spec
    alone = planned(spec)
    (need,) = alone.needs
    # Weights, gradients and two moments, 150 million numbers each; 78 MB a pair.
    assert need.memory_bytes == pytest.approx(16 * 150e6 + 78e6 * spec.global_batch_size, rel=0.1)
    (line,) = (line for line in alone.warnings if "of 80 GB" in line)
    parts = int(re.search(r"(\d+) times as many processes", line)[1])
    cluster = {"cluster": "example", "train": {"nodes": 1, "gpus_per_node": parts}, "execution": {"num_workers": 64}}
    shared = planned(spec, **cluster)
    assert shared.needs[0].pairs == spec.global_batch_size // parts
    assert not any("of 80 GB" in line for line in shared.warnings)


def test_the_largest_speaks_for_runs_that_differ_in_the_method_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "_to_evaluate", lambda suite: set())
    suite = expand("cc3m")
    found = plan.make([suite])
    (need,) = found.needs
    assert need.memory_bytes == max(needs.memory_bytes(run.spec, 1024) for run in suite.runs)
    (line,) = found.warnings
    assert line.startswith(f"{len(suite.runs)} runs: RN50 in fp16 with 1024 pairs a process takes about")


def test_the_longest_run_takes_the_time_of_its_share_where_it_runs(planned):
    spec = expand("dfn1b").runs[0].spec
    whole = hours.estimate(spec, []).hours
    alone = planned(spec)
    # The published hours are those of GPUs.
    assert (alone.place, alone.total.longest_hours) == ("this machine, each run on 1 process without a GPU", None)
    there = planned(spec, cluster="example", train={"nodes": 2, "gpus_per_node": 4})
    assert there.place == "a Slurm cluster, each run on 2 nodes x 4 GPUs"
    assert there.total.training_hours == pytest.approx(whole)
    assert there.total.longest_hours == pytest.approx(whole / 8)


def test_too_few_loader_processes_are_warned_of_where_a_gpu_is_asked_for(planned):
    spec = expand("cc3m").runs[0].spec
    assert not any("waits for" in line for line in planned(spec).warnings)
    one = {"train": {"gpus_per_node": 1}}
    (line,) = (line for line in planned(spec, **one).warnings if "waits for" in line)
    # 0.93 ms a pair, and the pairs per second of the estimate.
    rate = spec.samples_seen / hours.estimate(spec.model_copy(update={"normalizer_error": None}), []).hours / 3600
    enough = math.ceil(0.93e-3 * rate)
    assert f"as many as {enough} loader processes" in line
    more = one | {"execution": {"num_workers": enough}}
    assert not any("waits for" in line for line in planned(spec, **more).warnings)


def test_a_shortage_is_told_of_the_runs_that_have_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "_to_evaluate", lambda suite: set())
    suite = expand("cc3m")
    few = {"method": "siglip", "execution": {"num_workers": 1}}
    place = Cluster.model_validate(
        {"train": {"gpus_per_node": 1}, "execution": {"num_workers": 64}, "overrides": [few]}
    )
    (line,) = (line for line in plan.make([suite], place).warnings if "waits for" in line)
    assert line.startswith("3 runs: RN50")


def test_settings_that_mislead_are_warned_of(root):
    fine = toy.run_spec("neuclip", options={"rho": 2.7})
    assert plan.make([make_suite(fine)]).warnings == ()
    error = {"at": (160,), "num_anchors": 128, "control_size": 96}
    wrong = [toy.run_spec("neuclip", options={"rho": 2.8}, normalizer_error=error, seed=seed) for seed in (0, 1)]
    authors = toy.run_spec("neuclip", options={"rho": 2.8, "temperature_gradient": "authors"})
    fixed = toy.run_spec("neuclip", options={"rho": 2.8, "temperature": {"learnable": False}})
    rho, control, anchors = plan.make([make_suite(*wrong, authors, fixed)]).warnings
    assert rho.startswith(
        "2 runs: neuclip: rho = 2.8 with the consistent gradient, and KL stays below log(G - 1) = 2.71"
    )
    assert control.startswith("2 runs: normalizer_error.control_size = 96, and toy has 96 pairs")
    assert anchors.startswith("2 runs: normalizer_error.num_anchors = 128, and toy has 96 pairs")


def test_more_extra_pairs_than_the_set_has_are_warned_of():
    spec = toy.run_spec("neuclip_exact", options={"num_prototypes": 97})
    assert [line.partition(":")[0] for line in needs.doubts(spec, 97)] == [
        "neuclip_exact encodes 97 extra pairs in every step, and toy has 96"
    ]
    assert list(needs.doubts(spec, 96)) == []


def test_a_batch_that_the_processes_cannot_share_is_warned_of(planned):
    config = {"cluster": "example", "train": {"nodes": 1, "gpus_per_node": 3}}
    (line,) = planned(expand("dfn1b").runs[0].spec, **config).warnings
    assert "cannot be divided among 3 processes" in line
