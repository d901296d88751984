"""Suites of any content: the runs that a plain reading of the YAML asks for, or one clear error.

The oracle reads the file with PyYAML alone, and works out the main runs with arithmetic of its own.
"""

import re
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from support.fuzzing import ROOT, Refused, changed, clear, controls, damaged, judge, number, same, share

from engine import files
from engine.schema.suite import ExpandedSuite
from experiments.design import names
from experiments.design.suite import expand

pytestmark = pytest.mark.slow

BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
DOCS = ROOT / "docs"
PAGE = (DOCS / "bring-your-own.md").read_text(encoding="utf-8")
METHOD = BLOCK.findall((DOCS / "add-a-method.md").read_text(encoding="utf-8"))[0]
_, _, TRAINING_CARD, SET_CARD, LIST, MODEL, *_ = BLOCK.findall(PAGE)
FILES = {
    "squares.yaml": TRAINING_CARD,
    "colours.yaml": SET_CARD,
    "sayings.yaml": SET_CARD.replace("colours", "sayings"),
    "tests.yaml": LIST,
    "small.json": MODEL,
    "dcl.py": METHOD,
}
PAIRS = 96
SUITE: dict[str, Any] = {
    "title": "Squares of my own",
    "dataset": "squares.yaml",
    "model": "small.json",
    "evaluation": "tests.yaml",
    "seeds": [0, 1, 2],
    "training": {
        "global_batch_size": 16,
        "epochs": 2,
        "milestones": [0.5],
        "warmup_fraction": 0.25,
        "optimizer": {"lr": 2.0e-3, "weight_decay": 0.1, "betas": [0.9, 0.98]},
        "augmentation": {"kind": "shift", "max_shift_px": 3, "crop_scale": [0.8, 1.0]},
        "normalizer_error": {"at": [1.0], "num_anchors": 32, "control_size": 16},
    },
    "methods": {
        "openclip": {"options": {"temperature": {"init": 0.1}}},
        "fastclip": {"options": {"rho": 6.5, "gamma_min": 0.5}, "training": {"optimizer": {"lr": 1.0e-3}}},
        "dcl": {"class": "dcl.py:DCL"},
    },
    "variants": [
        {},
        {"label": "lr {optimizer[lr]}", "methods": ["openclip"], "training_times": {"optimizer.lr": 2}},
        {"label": "rho {rho}", "methods": ["fastclip"], "options_times": {"rho": 0.5}, "seeds": [0]},
    ],
    "ablations": ["num_*"],
    "over_training": False,
    "hypotheses": ["dcl > openclip", "dcl@16 > fastclip"],
}
TUNING: dict[str, Any] = {
    "trials": 3,
    "seeds": [100],
    "score": ["held_out.yaml"],
    "space": {"training.optimizer.lr": {"low": 1.0e-4, "high": 1.0e-2, "scale": "log"}},
    "methods": {"fastclip": {"options.rho": {"choices": [1.0, 2.0, 3.0]}}},
}
FILE = "study_confirmation.yaml"
NAME = f"mine/{FILE}"


@pytest.fixture
def mine() -> Path:
    folder = Path("mine")
    held_out = SET_CARD.replace("colours", "held_out")
    for name, text in {**FILES, "held_out.yaml": held_out}.items():
        files.write_text(folder / name, text)
    return folder


def asked(reference: str) -> ExpandedSuite:
    """What commands make of a suite: resolve its name, expand it."""
    (name,) = [name for name in names.resolve([reference]) if "ablation" not in name]
    return expand(name)


def judged(text: str | bytes, reference: str = NAME) -> ExpandedSuite | Refused:
    Path(NAME).write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    found: ExpandedSuite | Refused = judge(lambda: asked(reference), "study", "mine/")
    return found


def agree(suite: ExpandedSuite, text: str | bytes) -> None:
    """Compare the main runs with what the file says."""
    said = yaml.safe_load(text)
    assert suite.title == said["title"]
    assert not controls(suite.title)
    assert suite.name == "study_confirmation"
    main = {(run.spec.method.name, run.spec.seed): run.spec for run in suite.runs if run.variant == ""}
    expected = set()
    plain: dict[str, Any] = {"methods": None, "seeds": None, "label": ""}
    for variant in said.get("variants", [{}]):
        if {**plain, **variant} == plain:
            expected |= {(method, int(number(seed))) for method in said["methods"] for seed in said["seeds"]}
    assert expected <= set(main)
    for method, seed in expected:
        spec, entry = main[method, seed], said["methods"][method] or {}
        training = merged(said["training"], entry.get("training") or {})
        batch = int(number(training["global_batch_size"]))
        assert spec.global_batch_size == batch
        steps = spec.samples_seen // batch
        if said.get("data_fraction") is None:
            assert spec.dataset.pairs == PAIRS
        if training.get("epochs") is not None:
            assert steps == round(number(training["epochs"]) * (spec.dataset.pairs // batch))
        shares = [number(share) for share in training.get("milestones", [1])]
        assert spec.milestones == tuple(sorted({max(1, round(share * steps)) * batch for share in (*shares, 1)}))
        optimizer = training.get("optimizer", {})
        for key in {"lr", "weight_decay", "eps", "lr_min"} & set(optimizer):
            assert getattr(spec.optimizer, key) == number(optimizer[key])
        assert all(0 <= beta < 1 for beta in spec.optimizer.betas)
        if training.get("warmup_fraction") is not None:
            assert spec.optimizer.warmup_steps == round(number(training["warmup_fraction"]) * steps)
        for key, value in (entry.get("options") or {}).items():
            same(spec.method.config[key], value)
        assert spec.model.name == "small"
        assert spec.seed < 2**63  # as the frame's column holds


def merged(base: Any, change: Any) -> Any:
    if isinstance(base, dict) and isinstance(change, dict):
        return base | {key: merged(base.get(key), value) for key, value in change.items()}
    return change


def dumped(tree: Any) -> str:
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


PLAIN = dumped(SUITE)


def but(*place: Any, to: Any) -> str:
    """The suite with another value at a place."""
    tree = yaml.safe_load(dumped({**SUITE, "tuning": TUNING}))
    *above, last = place
    reduce(getitem, above, tree)[last] = to
    return dumped(tree)


@share(0.09)
@given(text=st.one_of(changed(SUITE, most=3).map(dumped), damaged(PLAIN.encode())))
@example(text=PLAIN)
@example(text=but("seeds", 0, to=True))
@example(text=but("training", "epochs", to=1e308))
@example(text=but("training", "milestones", to=[1e308]))
@example(text=but("data_fraction", to=1e-320))
@example(text=but("training", "optimizer", "betas", to=[2, -1]))
@example(text=but("training", "augmentation", "crop_scale", to=[5, -3]))
@example(text=but("variants", 1, to={"methods": ["openclip"], "training_times": {"optimizer.lr": 2}}))
@example(text=but("variants", 1, "label", to="{global_batch_size.real.x}"))
@example(text=but("variants", 1, "label", to="{global_batch_size:>99999999999}"))
@example(text=but("variants", 1, "training_times", to={"global_batch_size": 1e308}))
@example(text=but("title", to="\x1b[31mred"))
@example(text=but("methods", "dcl", "class", to="~no-such-user/x.py:DCL"))
@example(text=but("model", to="b" * 100_000))
@example(text=but("seeds", to=["x"] * 2000))
def test_a_suite_is_what_it_says_or_refused(mine, text):
    suite = judged(text)
    if not isinstance(suite, Refused):
        agree(suite, text)


def space(**axes: Any) -> dict[str, Any]:
    return {**TUNING, "space": {f"training.{name}": axis for name, axis in axes.items()}}


@share(0.019)
@given(tuning=changed(TUNING, most=2))
@example(tuning={**TUNING, "trials": 10**9})
@example(tuning=space(**{"optimizer": {"choices": [1, 2]}, "optimizer.lr": {"choices": [1, 2]}}))
@example(tuning=space(**{"optimizer.lr": {"choices": [1, float("nan")]}}))
@example(tuning=space(**{"optimizer.lr": {"low": 1e-300, "high": 1e300, "scale": "log"}}))
def test_a_tuning_tries_what_it_says_or_is_refused(mine, tuning):
    suite = judged(dumped({**SUITE, "tuning": tuning}), f"tuning@{NAME}")
    if isinstance(suite, Refused):
        return
    for method in SUITE["methods"]:
        runs = [run for run in suite.runs if run.spec.method.name == method and run.variant.startswith("trial")]
        assert {run.spec.seed for run in runs} <= {int(number(seed)) for seed in tuning["seeds"]}
        assert len({run.variant for run in runs}) <= int(number(tuning["trials"]))


LAUGHS = "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
FORMS = {
    "a key twice": (PLAIN + "seeds: [5]\n", "seeds"),
    "a key of a mapping twice": (PLAIN.replace("epochs: 2", "epochs: 2\n  epochs: 3"), "epochs"),
    "a tab": (PLAIN.replace("  epochs", "\tepochs"), FILE),
    "a circle": (PLAIN + "ablations: &a [*a]\n", FILE),
    "a circle of mappings": (PLAIN.replace("training:", "training: &t\n  optimizer: *t\nx:"), FILE),
    "a billion laughs": (f"a: &a [x,x,x,x,x,x,x,x,x]\n{LAUGHS}{PLAIN}", FILE),
    "deep": ("x: " + "[" * 5000 + "]" * 5000 + "\n" + PLAIN, FILE),
    "very deep": ("x: " + "{a: " * 200_000, FILE),
    "a date": (PLAIN.replace("Squares of my own", "2024-09-09"), "title"),
    "an object": (PLAIN + "x: !!python/object/apply:os.system [id]\n", FILE),
    "a number of many digits": (PLAIN.replace("epochs: 2", f"epochs: {'9' * 5000}"), FILE),
    "keys that are lists": (PLAIN + "? [a, b]\n: 1\n", FILE),
    "keys that are numbers": (PLAIN + "1: 1\n", FILE),
    "two documents": (f"{PLAIN}---\n{PLAIN}", FILE),
    "no document": ("", FILE),
    "UTF-16": (PLAIN.encode("utf-16"), FILE),
    **{tag: (f"{PLAIN}x: !!{tag} x\n", FILE) for tag in ("bool", "int", "timestamp")},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_that_says_nothing_certain_is_refused(mine, form):
    text, named = FORMS[form]
    suite = judged(text)
    assert isinstance(suite, Refused)
    clear(suite.text, [named])


MEANT = {
    "an anchor": PLAIN.replace("seeds:\n- 0\n- 1\n- 2", "seeds: &seeds [0, 1, 2]"),
    "merged keys": PLAIN.replace("  optimizer:\n", "  optimizer:\n    <<: {lr: 1.0, eps: 1.0e-7}\n", 1),
    "numbers of YAML 1.1": PLAIN.replace("lr: 0.002", "lr: 2e-3").replace("max_shift_px: 3", "max_shift_px: 0x2"),
    "comments and a mark": f"%YAML 1.1\n---\n# said\n{PLAIN}...\n",
    "Windows' ends of lines": PLAIN.replace("\n", "\r\n"),
}


@pytest.mark.parametrize("form", MEANT)
def test_a_form_that_yaml_knows_means_what_it_says(mine, form):
    suite = judged(MEANT[form])
    assert isinstance(suite, ExpandedSuite), suite
    agree(suite, MEANT[form])


@share(0.014)
@given(name=st.sampled_from([name for name in FILES if name.endswith((".yaml", ".json"))]), data=st.data())
def test_damage_of_what_a_suite_names_is_refused_or_changes_nothing_else(mine, name, data):
    (mine / name).write_bytes(data.draw(damaged(FILES[name].encode())))
    try:
        suite = judged(PLAIN)
    finally:
        (mine / name).write_text(FILES[name])
    if not isinstance(suite, Refused) and name != "squares.yaml":
        agree(suite, PLAIN)
