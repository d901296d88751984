"""Cards of data sets and of evaluation sets, and lists of these: what the YAML plainly says, or one clear error."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from support.fuzzing import Refused, changed, controls, damaged, judge, share

from experiments.design import cards

pytestmark = pytest.mark.slow

COMMON = {"licence": "not stated", "source": "made here"}
TRAINING: dict[str, Any] = {
    "name": "squares", "title": "Squares", "revision": "1", "pairs": 96, "shards": "squares", "digest": "members",
    "captions": {"member": "json", "field": "caption"}, "fraction": 0.5, "gigabytes": 0.1, **COMMON,
}  # fmt: skip
SET: dict[str, Any] = {
    "name": "colours", "title": "Colours", "task": "zeroshot_classification", "metric": "acc_wg", "split": "test",
    "images": 16, "classes": 4, "metadata": ["region"], "group_by": "region", "chance": 0.25, "path": "colours",
    **COMMON,
}  # fmt: skip
LIST: dict[str, Any] = {
    "sets": ["colours.yaml", "sayings.yaml"],
    "averages": {"Average": ["colours.yaml", "sayings.yaml"], "Half": ["sayings.yaml"]},
    "precision": "bf16",
    "when_missing": "no_average",
}
NAMES = {"colours.yaml": "colours", "sayings.yaml": "sayings"}


def dumped(tree: Any) -> bytes:
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")


def read(kind: str, data: bytes) -> Any:
    for name, tree in {"colours": SET, "sayings": {**SET, "name": "sayings"}}.items():
        Path("mine").mkdir(exist_ok=True)
        Path(f"mine/{name}.yaml").write_bytes(dumped(tree))
    Path(f"mine/{kind}.yaml").write_bytes(data)
    if kind == "squares":
        return judge(lambda: cards.dataset(cards.keep("mine/squares.yaml")), "squares")
    return judge(lambda: cards.evaluation(f"mine/{kind}.yaml"), "mine/", "evaluation 'list'")


def agree(card: Any, said: Any) -> None:
    """Compare a card with what its file says, key by key; the places in it are relative to the file."""
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


@share(0.024)
@given(data=st.one_of(changed(TRAINING, most=3).map(dumped), damaged(dumped(TRAINING))))
@example(data=dumped(TRAINING))
@example(data=dumped({**TRAINING, "pairs": True}))
@example(data=dumped({**TRAINING, "licence": "\x1b[2J"}))
@example(data=dumped({**TRAINING, "fraction": 1e-320}))
@example(data=dumped(TRAINING) + b"pairs: 95\n")
def test_a_card_of_a_training_set_is_what_it_says_or_refused(data):
    found = read("squares", data)
    if not isinstance(found, Refused):
        agree(found, yaml.safe_load(data))


@share(0.014)
@given(tree=changed(SET, most=3))
@example(tree=SET)
@example(tree={**SET, "chance": True})
def test_a_card_of_an_evaluation_set_is_what_it_says_or_refused(tree):
    found = read("set", dumped({**tree, "name": "set"}))
    if not isinstance(found, Refused):
        agree(found.sets["set"], {**tree, "name": "set"})
        assert found.averages == {"Average": ("set",)}


@share(0.01)
@given(tree=changed(LIST, most=3))
@example(tree=LIST)
@example(tree={**LIST, "sets": ["colours.yaml", "colours.yaml"]})
@example(tree={**LIST, "sets": ["", "colours.yaml"]})
@example(tree={**LIST, "averages": {"\x1b[2J": ["colours.yaml"]}})
def test_a_list_of_sets_is_what_it_says_or_refused(tree):
    found = read("list", dumped(tree))
    if isinstance(found, Refused):
        return
    assert tuple(found.sets) == tuple(NAMES.get(name, name) for name in tree["sets"])
    said = tree.get("averages") or {"Average": tree["sets"]}
    assert found.averages == {key: tuple(NAMES.get(name, name) for name in of) for key, of in said.items()}
    assert found.precision == tree.get("precision", "fp32")
    assert found.when_missing == tree.get("when_missing", "refuse")
    assert not controls("".join(found.averages))
