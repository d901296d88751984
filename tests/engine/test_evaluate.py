import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import toy
from PIL import Image

from engine import paths
from engine.evaluate import evaluate, evaluate_set
from engine.spec import Execution
from engine.towers import load_export
from engine.train import train


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A trained toy run and its evaluation, in a folder of their own."""
    root = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        toy.build(root)
        evaluation = toy.build_evaluation(root)
        record = train(toy.run_spec("openclip", steps=60), Execution())
        results = evaluate(record, 960, evaluation, "cpu")
        yield record, evaluation, {result.eval_set: result for result in results}


def members(card, extension):
    with tarfile.open(Path(card.path) / "test" / "0.tar") as archive:
        return [archive.extractfile(m).read() for m in archive if m.name.endswith(extension)]


def embed(record, card, texts):
    """Unit embeddings of a set's images and of texts, computed here from scratch."""
    model, transform, tokenizer = load_export(paths.weights(record.run_id, 960))
    images = [transform(Image.open(io.BytesIO(data)).convert("RGB")) for data in members(card, ".png")]
    with torch.no_grad():
        image = model.encode_image(torch.stack(images)).double()
        text = model.encode_text(tokenizer(texts)).double()
    return (x / x.norm(dim=1, keepdim=True) for x in (image, text))


def test_classification_accuracy_is_that_of_a_slow_computation(done):
    record, evaluation, results = done
    card = evaluation.sets["toy_colours"]
    prompts = [t.format(c=c) for c in toy.COLOURS for t in ("a {c} square", "a square that is {c}")]
    image, text = embed(record, card, prompts)
    classes = torch.nn.functional.normalize(text.view(len(toy.COLOURS), 2, -1).mean(dim=1), dim=1)
    labels = np.array([int(data) for data in members(card, ".cls")])
    predicted = (image @ classes.T).argmax(dim=1).numpy()
    assert results["toy_colours"].metrics["acc1"] == pytest.approx((predicted == labels).mean(), abs=1e-6)
    recalls = [(predicted[labels == label] == label).mean() for label in set(labels)]
    assert results["toy_colours"].metrics["mean_per_class_recall"] == pytest.approx(np.mean(recalls), abs=1e-6)


def test_retrieval_recall_is_that_of_a_slow_computation(done):
    record, evaluation, results = done
    card = evaluation.sets["toy_retrieval"]
    image, text = embed(record, card, [data.decode() for data in members(card, ".txt")])
    scores = (image @ text.T).numpy()
    own = np.arange(len(scores))
    for name, matrix in (("text_retrieval", scores), ("image_retrieval", scores.T)):
        for k in (1, 5, 10):
            hits = [own[i] in np.argsort(-matrix[i])[:k] for i in own]
            assert results["toy_retrieval"].metrics[f"{name}_recall@{k}"] == pytest.approx(np.mean(hits), abs=1e-6)
    both = [np.mean(matrix.argmax(axis=1) == own) for matrix in (scores, scores.T)]
    assert results["toy_retrieval"].value == pytest.approx(np.mean(both), abs=1e-6)


def test_results_name_what_they_were_made_from(done):
    record, evaluation, results = done
    for name, result in results.items():
        assert result.weights_sha256 == record.milestones["960"].sha256
        assert result.card_sha256 == evaluation.sets[name].identity
        assert result.num_samples == evaluation.sets[name].images
        assert result.evaluator["clip_benchmark"]


def test_a_set_that_is_done_is_not_evaluated_again(done):
    record, evaluation, results = done
    path = paths.eval_result(record.run_id, 960, "toy_colours")
    path.write_text(results["toy_colours"].model_copy(update={"value": 0.123}).model_dump_json())
    again = {result.eval_set: result for result in evaluate(record, 960, evaluation, "cpu")}
    assert again["toy_colours"].value == 0.123
    path.unlink()


def test_a_milestone_that_was_never_reached_is_absent(done):
    record, evaluation, _ = done
    for result in evaluate(record, 1920, evaluation, "cpu"):
        assert (result.status, result.value, result.num_samples) == ("absent", None, None)


def test_other_weights_than_the_record_names_are_refused(done):
    record, evaluation, _ = done
    other = record.milestones["960"].model_copy(update={"sha256": "0" * 64})
    with pytest.raises(ValueError, match=r"is not what record\.json names"):
        evaluate(record.model_copy(update={"milestones": {"960": other}}), 960, evaluation, "cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": 17}, "16 images .* its card says 17"),
        ({"classes": 5}, "4 class names, its card says 5"),
        ({"sha256": "0" * 64, "build": "make it"}, "does not hold what its card says: run `make it` again"),
        ({"path": "nowhere", "build": "make it"}, "nowhere is not there; `make it` makes it"),
    ],
)
def test_a_set_that_differs_from_its_card_is_refused(done, change, message):
    record, evaluation, _ = done
    card = evaluation.sets["toy_colours"].model_copy(update=change)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate_set(card, *load_export(paths.weights(record.run_id, 960)), "cpu")
