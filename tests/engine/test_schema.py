"""What files say of themselves: one that was changed since it was written is refused."""

import json
import random
from pathlib import Path

import pytest
from support import toy

from engine import paths
from engine.schema.base import Sealed, parse
from engine.schema.evaluation import EvalResult
from engine.schema.record import Record
from engine.schema.run import Execution
from engine.training.loop import train


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("run"))
        toy.build(Path())
        spec = toy.run_spec("neuclip", steps=2)
        toy.write_spec(Path(), spec)
        train(spec, Execution(log_every_steps=1))
        return paths.record(spec.run_id).read_bytes()


@pytest.fixture(scope="module")
def result():
    metrics = {"acc1": 0.4375, "acc5": 1.0, "mean_per_class_recall": 1 / 3}
    evaluated = EvalResult(
        run_id="run-a", milestone=32, eval_set="squares", status="evaluated", metrics=metrics, main_metric="acc1",
        value=0.4375, num_samples=16, weights_sha256="0" * 64, card_sha256="1" * 64, evaluator={"torch": "2.13"},
    )  # fmt: skip
    return (evaluated.sealed().model_dump_json(indent=1) + "\n").encode()


@pytest.mark.parametrize(("name", "model"), [("record", Record), ("result", EvalResult)])
def test_no_bit_of_a_result_can_change_unseen(request, name, model):
    written: bytes = request.getfixturevalue(name)
    honest, rng, refused = parse(model, written.decode(), name), random.Random(0), 0
    for place in rng.sample(range(len(written)), min(400, len(written))):
        changed = bytearray(written)
        changed[place] ^= 1 << rng.randrange(8)
        try:
            # Space between words may change.
            assert parse(model, changed.decode(), name) == honest
        except ValueError:
            refused += 1
    assert refused > 200


def test_a_result_that_was_edited_says_what_to_do(result):
    edited = result.decode().replace("0.4375", "0.5375")
    with pytest.raises(
        ValueError, match=r"^result: its content is not what its 'content_sha256' says.*remove the file"
    ):
        parse(EvalResult, edited, "result")


def test_an_old_result_has_no_digest_and_is_read(result):
    old = json.loads(result)
    del old["content_sha256"]
    assert parse(EvalResult, json.dumps(old), "old").value == 0.4375


def test_a_digest_holds_when_a_later_version_has_another_key():
    class Now(Sealed):
        value: float

    class Later(Sealed):
        value: float
        unit: str = ""

    assert parse(Later, Now(value=0.1).sealed().model_dump_json(), "file").value == 0.1
