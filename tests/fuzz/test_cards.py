"""Cards of data sets and of evaluation sets, and lists of these: what the YAML plainly says, or one clear error."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from support.fuzzing import Judge, Refused, changed, controls, damaged, share

from engine.schema.evaluation import Evaluation
from experiments.design import cards

pytestmark = pytest.mark.slow

TRAINING: dict[str, Any] = {
    "name": "squares",
    "title": "Squares",
    "revision": "1",
    "pairs": 96,
    "captions": {"member": "json", "field": "caption"},
    "shards": "squares",
    "digest": "members",
    "fraction": 0.5,
    "licence": "not stated",
    "source": "made here",
    "gigabytes": 0.1,
}
SET: dict[str, Any] = {
    "name": "colours",
    "title": "Colours",
    "task": "zeroshot_classification",
    "metric": "acc_wg",
    "split": "test",
    "images": 16,
    "classes": 4,
    "metadata": ["region"],
    "group_by": "region",
    "chance": 0.25,
    "path": "colours",
    "licence": "not stated",
    "source": "made here",
}
LIST: dict[str, Any] = {
    "sets": ["colours.yaml", "sayings.yaml"],
    "averages": {"Average": ["colours.yaml", "sayings.yaml"], "Half": ["sayings.yaml"]},
    "precision": "bf16",
    "when_missing": "no_average",
}


def dumped(tree: Any) -> bytes:
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")


@pytest.fixture
def mine(judge: Judge) -> Path:
    folder = Path("mine")
    folder.mkdir()
    (folder / "colours.yaml").write_bytes(dumped(SET))
    (folder / "sayings.yaml").write_bytes(dumped({**SET, "name": "sayings"}))
    return folder


def agree(card: Any, said: Any) -> None:
    """Compare a card with what its file says, key by key; the places in it are relative to the file."""
    assert isinstance(said, dict)
    for key, value in said.items():
        found = getattr(card, key)
        if key in ("shards", "path"):
            assert found == os.path.abspath(Path("mine") / value)
        elif isinstance(value, dict):
            agree(found, value)
        elif isinstance(found, float | int) and not isinstance(found, bool):
            assert not isinstance(value, bool), (key, value)
            assert found == float(value)
        else:
            assert found == (tuple(value) if isinstance(value, list) else value), key
        assert not controls(str(found))


def training(judge: Judge, data: bytes) -> None:
    Path("mine/squares.yaml").write_bytes(data)
    found = judge(lambda: cards.dataset(cards.keep("mine/squares.yaml")), "squares.yaml", "squares")
    if not isinstance(found, Refused):
        agree(found, yaml.safe_load(data))


def evaluated(judge: Judge, file: str) -> Evaluation | Refused:
    found: Evaluation | Refused = judge(lambda: cards.evaluation(f"mine/{file}"), "mine/", "evaluation 'list'")
    return found


@share(0.014)
@given(tree=changed(TRAINING, most=3))
@example(tree=TRAINING)
@example(tree={**TRAINING, "pairs": True})
@example(tree={**TRAINING, "licence": "\x1b[2J"})
@example(tree={**TRAINING, "fraction": 1e-320})
def test_a_changed_card_of_a_training_set_is_what_it_says_or_refused(mine, judge, tree):
    training(judge, dumped(tree))


@share(0.01)
@given(data=damaged(dumped(TRAINING)))
@example(data=dumped(TRAINING) + b"pairs: 95\n")
def test_a_damaged_card_of_a_training_set_is_what_it_says_or_refused(mine, judge, data):
    training(judge, data)


@share(0.014)
@given(tree=changed(SET, most=3))
@example(tree=SET)
@example(tree={**SET, "chance": True})
def test_a_changed_card_of_an_evaluation_set_is_what_it_says_or_refused(mine, judge, tree):
    (mine / "set.yaml").write_bytes(dumped({**tree, "name": "set"} if isinstance(tree, dict) else tree))
    found = evaluated(judge, "set.yaml")
    if not isinstance(found, Refused):
        agree(found.sets["set"], {**tree, "name": "set"})
        assert found.averages == {"Average": ("set",)}


@share(0.01)
@given(tree=changed(LIST, most=3))
@example(tree=LIST)
@example(tree={**LIST, "sets": ["colours.yaml", "colours.yaml"]})
@example(tree={**LIST, "sets": ["", "colours.yaml"]})
@example(tree={**LIST, "averages": {"\x1b[2J": ["colours.yaml"]}})
def test_a_changed_list_of_sets_is_what_it_says_or_refused(mine, judge, tree):
    (mine / "list.yaml").write_bytes(dumped(tree))
    found = evaluated(judge, "list.yaml")
    if isinstance(found, Refused):
        return
    names = {"colours.yaml": "colours", "sayings.yaml": "sayings"}
    asked = tuple(names.get(name, name) for name in tree["sets"])
    assert tuple(found.sets) == asked
    said = tree.get("averages") or {"Average": tree["sets"]}
    assert found.averages == {key: tuple(names.get(name, name) for name in of) for key, of in said.items()}
    assert found.precision == tree.get("precision", "fp32")
    assert found.when_missing == tree.get("when_missing", "refuse")
    assert not controls("".join(found.averages))
