import io
import math
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import toy
from torch.nn.functional import normalize

from engine import evaluate as command_line
from engine import files, paths
from engine.evaluation import runner
from engine.evaluation.runner import evaluate_run
from engine.evaluation.tasks import Answer
from engine.schema.run import Execution
from engine.training.loop import train
from engine.training.towers import load_export


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A trained toy run and its evaluation, in a folder of their own."""
    root = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        toy.build(root)
        evaluation = toy.build_evaluation(root)
        record = train(toy.run_spec("openclip", steps=60), Execution())
        results = evaluate_run(record, 960, evaluation, "cpu")
        yield record, evaluation, {result.eval_set: result for result in results}


def members(card, extension):
    with tarfile.open(Path(card.path) / "test" / "0.tar") as archive:
        return [archive.extractfile(m).read() for m in archive if m.name.endswith(extension)]


def test_classification_accuracy_is_that_of_a_slow_computation(done):
    record, evaluation, results = done
    card = evaluation.sets["toy_colours"]
    prompts = [t.format(c=c) for c in toy.COLOURS for t in ("a {c} square", "a square that is {c}")]
    model, transform, tokenizer = load_export(paths.weights(record.run_id, 960))
    images = [transform(Image.open(io.BytesIO(data)).convert("RGB")) for data in members(card, ".png")]
    with torch.no_grad():
        image, text = model.encode_image(torch.stack(images)), model.encode_text(tokenizer(prompts))
    image, text = (normalize(side.double(), dim=1) for side in (image, text))
    classes = normalize(text.view(len(toy.COLOURS), 2, -1).mean(dim=1), dim=1)
    labels = np.array([int(data) for data in members(card, ".cls")])
    predicted = (image @ classes.T).argmax(dim=1).numpy()
    assert results["toy_colours"].metrics["acc1"] == pytest.approx((predicted == labels).mean(), abs=1e-6)


def test_results_name_what_they_were_made_from(done):
    record, evaluation, results = done
    for name, result in results.items():
        assert result.weights_sha256 == record.milestones["960"].sha256
        assert result.card_sha256 == evaluation.sets[name].identity
        assert result.num_samples == evaluation.sets[name].images
        assert result.evaluator["clip_benchmark"]
        assert result.data_sha256 == files.folder_sha256(Path(evaluation.sets[name].path))


def test_a_set_that_is_done_is_not_evaluated_again(done):
    record, evaluation, results = done
    path = paths.eval_result(record.run_id, 960, "toy_colours")
    path.write_text(results["toy_colours"].model_copy(update={"value": 0.123}).sealed().model_dump_json())
    mark = paths.evaluated(record.run_id, 960, "another-01234567")
    mark.touch()
    again = {result.eval_set: result for result in evaluate_run(record, 960, evaluation, "cpu")}
    assert again["toy_colours"].value == 0.123
    mark.unlink()
    path.unlink()


@pytest.mark.parametrize("change", [{"precision": "bf16"}, {"sets": {"chance": 0.3}}])
def test_another_precision_or_another_card_is_evaluated_again(done, change):
    record, evaluation, results = done
    if "sets" in change:
        cards = {name: card.model_copy(update=change["sets"]) for name, card in evaluation.sets.items()}
        change = {"sets": cards}
    path = paths.eval_result(record.run_id, 960, "toy_colours")
    files.write_text(path, results["toy_colours"].model_copy(update={"value": 0.123}).sealed().model_dump_json())
    mark = paths.evaluated(record.run_id, 960, evaluation.key)
    mark.touch()
    again = {r.eval_set: r for r in evaluate_run(record, 960, evaluation.model_copy(update=change), "cpu")}
    assert not mark.exists()  # its result is gone
    assert again["toy_colours"].value == pytest.approx(results["toy_colours"].value, abs=0.1)
    assert again["toy_colours"].value != 0.123
    assert again["toy_colours"].evaluator.get("precision") == change.get("precision")
    path.unlink()


def test_a_set_whose_files_changed_is_evaluated_again_unless_its_card_pins_them(done):
    record, evaluation, results = done
    evaluate_run(record, 960, evaluation, "cpu")
    colours = Path(evaluation.sets["toy_colours"].path) / "classnames.txt"
    before = colours.read_text()
    pinned = evaluation.sets["toy_colours"].model_copy(update={"sha256": results["toy_colours"].data_sha256})
    pinned = evaluation.model_copy(update={"sets": {"toy_colours": pinned}, "averages": {}})
    right = evaluate_run(record, 960, pinned, "cpu")
    evaluate_run(record, 960, evaluation, "cpu")
    try:
        colours.write_text("\n".join(reversed(before.splitlines())) + "\n")
        again = {result.eval_set: result for result in evaluate_run(record, 960, evaluation, "cpu")}
        assert again["toy_colours"].data_sha256 != results["toy_colours"].data_sha256
        assert again["toy_colours"].value != results["toy_colours"].value
        assert again["toy_retrieval"] == results["toy_retrieval"]
        with pytest.raises(ValueError, match="does not hold what its card says"):
            evaluate_run(record, 960, pinned, "cpu")
        files.write_text(paths.eval_result(record.run_id, 960, "toy_colours"), right[0].model_dump_json())
        assert evaluate_run(record, 960, pinned, "cpu") == right
    finally:
        colours.write_text(before)
        for name in evaluation.sets:
            paths.eval_result(record.run_id, 960, name).unlink(missing_ok=True)


def test_a_stopped_evaluation_keeps_what_it_has_and_a_later_one_adds_the_rest(done, monkeypatch):
    record, evaluation, results = done
    for name in evaluation.sets:
        paths.eval_result(record.run_id, 960, name).unlink(missing_ok=True)
    answer_set = runner.answer_set

    def stop_at_retrieval(data, model):
        if data.card.task == "zeroshot_retrieval":
            raise KeyboardInterrupt
        return answer_set(data, model)

    monkeypatch.setattr(runner, "answer_set", stop_at_retrieval)
    with pytest.raises(KeyboardInterrupt):
        evaluate_run(record, 960, evaluation, "cpu")
    monkeypatch.undo()
    seen = []
    half = Answer({"mean_recall@1": 0.5}, None)
    monkeypatch.setattr(runner, "answer_set", lambda data, _: seen.append(data) or half)
    again = {result.eval_set: result for result in evaluate_run(record, 960, evaluation, "cpu")}
    assert [data.card.name for data in seen] == ["toy_retrieval"]
    assert again["toy_colours"] == results["toy_colours"]
    paths.eval_result(record.run_id, 960, "toy_retrieval").unlink()


def test_a_milestone_that_was_never_reached_is_absent(done):
    record, evaluation, _ = done
    for result in evaluate_run(record, 1920, evaluation, "cpu"):
        assert (result.status, result.value, result.num_samples) == ("absent", None, None)


def test_a_run_whose_embeddings_are_not_finite_has_diverged_and_a_model_of_others_is_an_error(
    done, monkeypatch, capsys, tmp_path
):
    record, evaluation, _ = done

    def broken(*args):
        clip, *rest = load_export(*args)
        with torch.no_grad():
            clip.text_projection.fill_(math.nan)
        return clip, *rest

    for name in evaluation.sets:
        paths.eval_result(record.run_id, 960, name).unlink(missing_ok=True)
    monkeypatch.setattr(runner, "load_export", broken)
    results = evaluate_run(record, 960, evaluation, "cpu")
    assert {(result.status, result.value) for result in results} == {("diverged", None)}
    said = capsys.readouterr().err
    assert f"{record.run_id} @ 960: evaluation set 'toy_colours': the embeddings of 4 of 4 classes are not fin" in said
    assert "set 'toy_retrieval': the embeddings of 16 of 16 captions are not finite: it counts as diverged" in said
    for name in evaluation.sets:
        paths.eval_result(record.run_id, 960, name).unlink()
    weights = broken(paths.weights(record.run_id, 960))
    monkeypatch.setattr(runner.loading, "load_model", lambda *_, **__: weights)
    with pytest.raises(ValueError, match=r"theirs w\.pt @ 0: evaluation set 'toy_colours': .* 4 of 4 classes"):
        runner.evaluate_published("theirs", "w.pt", evaluation, tmp_path, "cpu")


@pytest.mark.parametrize(
    ("digest", "file"), [("sha256", "open_clip_model.safetensors"), ("config_sha256", "open_clip_config.json")]
)
def test_other_weights_than_the_record_names_are_refused_and_another_config_of_them(done, digest, file):
    record, evaluation, _ = done
    other = record.milestones["960"].model_copy(update={digest: "0" * 64})
    with pytest.raises(ValueError, match=rf"/{file} is not what record\.json names"):
        evaluate_run(record.model_copy(update={"milestones": {"960": other}}), 960, evaluation, "cpu")


def lost(evaluation, **changes):
    """The evaluation with its first set and another one that are not there."""
    nowhere = evaluation.sets["toy_retrieval"].model_copy(update={"path": "nowhere", "build": "make it"})
    elsewhere = nowhere.model_copy(update={"name": "other", "path": "elsewhere", "build": None, "fetch": "ask them"})
    sets = {"toy_colours": evaluation.sets["toy_colours"], "toy_retrieval": nowhere, "other": elsewhere}
    averages = {"All": ("toy_colours", "toy_retrieval", "other"), "Colours": ("toy_colours",)}
    return evaluation.model_copy(update={"sets": sets, "averages": averages, **changes})


def test_all_sets_that_are_not_there_are_named_before_anything_is_evaluated(done, monkeypatch):
    record, evaluation, _ = done
    monkeypatch.setattr(runner, "load_export", None)
    with pytest.raises(FileNotFoundError) as error:
        evaluate_run(record, 960, lost(evaluation), "cpu")
    assert "'toy_retrieval': nowhere is not there; `make it` makes it" in str(error.value)
    assert "'other': elsewhere is not there; fetch it: ask them" in str(error.value)


def test_an_average_lacks_a_value_or_says_over_how_many_sets_it_is(done, capsys):
    record, evaluation, results = done
    values = {}
    for when_missing in ("no_average", "average_of_available"):
        partial = lost(evaluation, when_missing=when_missing)
        found = evaluate_run(record, 960, partial, "cpu")
        assert {r.eval_set: r.status for r in found} == {
            "toy_colours": "evaluated", "toy_retrieval": "missing", "other": "missing",
        }  # fmt: skip
        values[when_missing] = partial.averaged(
            {r.eval_set: r.value for r in found}, frozenset({"toy_retrieval", "other"})
        )
    assert values["no_average"]["All"].value is None
    assert values["no_average"]["All"].name == "All"
    assert values["average_of_available"]["All"].name == "All (1 of 3 sets)"
    assert values["average_of_available"]["All"].value == results["toy_colours"].value
    assert values["average_of_available"]["All"].chance == 0.25
    assert values["average_of_available"]["Colours"].name == "Colours"
    assert "'other': elsewhere is not there" in capsys.readouterr().err
    for name in partial.sets:
        paths.eval_result(record.run_id, 960, name).unlink(missing_ok=True)


def test_the_command_line_evaluates_a_run_and_says_when_it_is_done(done, tmp_path, capsys):
    record, evaluation, results = done
    files = {"record.json": record, "evaluation.json": evaluation}
    for name, content in files.items():
        (tmp_path / name).write_text(content.model_dump_json())
    command = [*(str(tmp_path / name) for name in files), "--milestone", "960", "--execution", '{"device": "cpu"}']
    everything = paths.evaluated(record.run_id, 960, evaluation.key)
    command_line.main([*command, "--sets", "toy_colours"])
    assert not everything.exists()
    assert paths.eval_result(record.run_id, 960, "toy_colours").exists()
    assert "average Average: none (chance 15.62 %; without toy_retrieval)" in capsys.readouterr().err
    command_line.main(command)
    assert everything.exists()
    value = 100 * (results["toy_colours"].value + results["toy_retrieval"].value) / 2
    assert f"average Average: {value:.2f} %" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="unknown evaluation set 'toy_colour'; did you mean 'toy_colours'"):
        command_line.main([*command, "--sets", "toy_colour"])
