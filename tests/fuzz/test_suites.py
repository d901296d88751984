"""Suites of any content: the runs that a plain reading of the YAML asks for, or one clear error.

The oracle reads the file with PyYAML alone, and works out the main runs with arithmetic of its own.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from support.fuzzing import Judge, Refused, changed, clear, controls, damaged, number, same, share, values

from engine import files
from engine.schema.suite import ExpandedSuite
from experiments.design import names
from experiments.design.suite import expand

pytestmark = pytest.mark.slow

BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
DOCS = Path(__file__).resolve().parents[2] / "docs"
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
def mine(judge: Judge) -> Path:
    folder = Path("mine")
    held_out = SET_CARD.replace("colours", "held_out")
    for name, text in {**FILES, "held_out.yaml": held_out}.items():
        files.write_text(folder / name, text)
    return folder


def asked(reference: str) -> ExpandedSuite:
    """What commands make of a suite: resolve its name, expand it."""
    (name,) = [name for name in names.resolve([reference]) if "ablation" not in name]
    return expand(name)


def judged(judge: Judge, text: str | bytes, reference: str = NAME) -> ExpandedSuite | Refused:
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    Path(NAME).write_bytes(data)
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
        pairs = spec.dataset.pairs
        if said.get("data_fraction") is None:
            assert pairs == PAIRS
        if training.get("epochs") is not None:
            steps = round(number(training["epochs"]) * (pairs // batch))
        else:
            steps = int(number(training["samples_seen"])) // batch
        assert spec.samples_seen == steps * batch
        shares = [number(share) for share in training.get("milestones", [1])]
        assert all(0 < share <= 1 for share in shares)
        assert spec.milestones == tuple(sorted({max(1, round(share * steps)) * batch for share in (*shares, 1)}))
        optimizer = training.get("optimizer", {})
        for key in ("lr", "weight_decay", "eps", "lr_min"):
            if key in optimizer:
                assert getattr(spec.optimizer, key) == number(optimizer[key])
        if "betas" in optimizer:
            assert spec.optimizer.betas == tuple(map(number, optimizer["betas"]))
            assert all(0 <= beta < 1 for beta in spec.optimizer.betas)
        if training.get("warmup_fraction") is not None:
            assert spec.optimizer.warmup_steps == round(number(training["warmup_fraction"]) * steps)
        augmentation = training.get("augmentation", {})
        low, high = spec.augmentation.crop_scale
        assert 0 < low <= high <= 1
        if "max_shift_px" in augmentation:
            assert spec.augmentation.max_shift_px == number(augmentation["max_shift_px"])
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


def test_the_suite_as_it_is_has_the_runs_that_are_expected(mine, judge):
    suite = judged(judge, dumped(SUITE))
    assert isinstance(suite, ExpandedSuite), suite
    agree(suite, dumped(SUITE))
    assert len(suite.runs) == 3 * 3 + 3 + 1


def but(*place: Any, to: Any) -> dict[str, Any]:
    """The suite with another value at a place."""
    tree: dict[str, Any] = yaml.safe_load(dumped({**SUITE, "tuning": TUNING}))
    owner = tree
    for key in place[:-1]:
        owner = owner[key]
    owner[place[-1]] = to
    return tree


@share(0.067)
@given(tree=changed(SUITE, most=3))
@example(tree=but("seeds", 0, to=True))
@example(tree=but("seeds", to=[2**64]))
@example(tree=but("training", "epochs", to=1e308))
@example(tree=but("training", "milestones", to=[1e308]))
@example(tree=but("training", "milestones", to=[0]))
@example(tree=but("data_fraction", to=1e-320))
@example(tree=but("training", "optimizer", "betas", to=[2, -1]))
@example(tree=but("training", "augmentation", "crop_scale", to=[5, -3]))
@example(tree=but("variants", 1, to={"methods": ["openclip"], "training_times": {"optimizer.lr": 2}}))
@example(tree=but("variants", 1, "label", to="{}"))
@example(tree=but("variants", 1, "label", to="{global_batch_size.real.x}"))
@example(tree=but("variants", 1, "label", to="{global_batch_size:>99999999999}"))
@example(tree=but("variants", 1, "training_times", to={"global_batch_size": 1e308}))
@example(tree=but("variants", 2, "options_times", to={"rho": 1e308}))
@example(tree=but("title", to="\x1b[31mred"))
@example(tree=but("title", to="\u202etitle"))
@example(tree=but("dataset", to="~no-such-user/x.yaml"))
@example(tree=but("methods", "dcl", "class", to="~no-such-user/x.py:DCL"))
@example(tree=but("model", to="b" * 100_000))
@example(tree=but("seeds", to=["x"] * 2000))
def test_a_changed_suite_is_what_it_says_or_refused(mine, judge, tree):
    text = dumped(tree)
    suite = judged(judge, text)
    if not isinstance(suite, Refused):
        agree(suite, text)


@share(0.019)
@given(tuning=changed(TUNING, most=2))
@example(tuning=but("tuning", "trials", to=10**9)["tuning"])
@example(
    tuning=but(
        "tuning", "space", to={"training.optimizer": {"choices": [1, 2]}, "training.optimizer.lr": {"choices": [1, 2]}}
    )["tuning"]
)
@example(tuning=but("tuning", "space", to={"training.optimizer.lr": {"choices": [1, float("nan")]}})["tuning"])
@example(
    tuning=but("tuning", "space", to={"training.optimizer.lr": {"low": 1e-300, "high": 1e300, "scale": "log"}})[
        "tuning"
    ]
)
def test_a_changed_tuning_tries_what_it_says_or_is_refused(mine, judge, tuning):
    suite = judged(judge, dumped({**SUITE, "tuning": tuning}), f"tuning@{NAME}")
    if isinstance(suite, Refused) or not isinstance(tuning, dict):
        return
    trials, space = int(number(tuning["trials"])), tuning.get("space") or {}
    for method in SUITE["methods"]:
        runs = [run for run in suite.runs if run.spec.method.name == method and run.variant.startswith("trial")]
        seeds = {int(number(seed)) for seed in tuning["seeds"]}
        assert {run.spec.seed for run in runs} <= seeds
        assert len({run.variant for run in runs}) <= trials
        of_method = {**space, **((tuning.get("methods") or {}).get(method) or {})}
        for run in runs:
            for name, setting in run.settings.items():
                of = of_method[name]
                if of.get("choices"):
                    assert setting.value in of["choices"]
                else:
                    assert number(of["low"]) <= setting.value <= number(of["high"])


FORMS = {
    "a key twice": (dumped(SUITE) + "seeds: [5]\n", "seeds"),
    "a key of a mapping twice": (dumped(SUITE).replace("epochs: 2", "epochs: 2\n  epochs: 3"), "epochs"),
    "a tab": (dumped(SUITE).replace("  epochs", "\tepochs"), FILE),
    "a circle": (dumped(SUITE) + "ablations: &a [*a]\n", FILE),
    "a circle of mappings": (dumped(SUITE).replace("training:", "training: &t\n  optimizer: *t\nx:"), FILE),
    "a billion laughs": (
        "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
        + dumped(SUITE),
        FILE,
    ),
    "deep": ("x: " + "[" * 5000 + "]" * 5000 + "\n" + dumped(SUITE), FILE),
    "very deep": ("x: " + "{a: " * 200_000, FILE),
    "no date": (dumped(SUITE).replace("Squares of my own", "2024-99-99"), FILE),
    "a date": (dumped(SUITE).replace("Squares of my own", "2024-09-09"), "title"),
    "no truth": (dumped(SUITE) + "x: !!bool x\n", FILE),
    "no number": (dumped(SUITE) + "x: !!int x\n", FILE),
    "an empty number": (dumped(SUITE) + "x: !!int ''\n", FILE),
    "no time": (dumped(SUITE) + "x: !!timestamp x\n", FILE),
    "an object": (dumped(SUITE) + "x: !!python/object/apply:os.system [id]\n", FILE),
    "a number of many digits": (dumped(SUITE).replace("epochs: 2", f"epochs: {'9' * 5000}"), FILE),
    "keys that are lists": (dumped(SUITE) + "? [a, b]\n: 1\n", FILE),
    "keys that are numbers": (dumped(SUITE) + "1: 1\n", FILE),
    "two documents": (dumped(SUITE) + "---\n" + dumped(SUITE), FILE),
    "no document": ("", FILE),
    "a number": ("5", FILE),
    "UTF-16": (dumped(SUITE).encode("utf-16"), FILE),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_that_says_nothing_certain_is_refused(mine, judge, form):
    text, named = FORMS[form]
    suite = judged(judge, text)
    assert isinstance(suite, Refused)
    clear(suite.text, [named])


MEANT = {
    "an anchor": dumped(SUITE).replace("seeds:\n- 0\n- 1\n- 2", "seeds: &seeds [0, 1, 2]"),
    "merged keys": dumped(SUITE).replace("  optimizer:\n", "  optimizer:\n    <<: {lr: 1.0, eps: 1.0e-7}\n", 1),
    "numbers as YAML 1.1 reads them": dumped(SUITE)
    .replace("lr: 0.002", "lr: 2e-3")
    .replace("max_shift_px: 3", "max_shift_px: 0x2"),
    "comments and a mark": "%YAML 1.1\n---\n# said\n" + dumped(SUITE) + "...\n",
    "Windows' ends of lines": dumped(SUITE).replace("\n", "\r\n"),
}


@pytest.mark.parametrize("form", MEANT)
def test_a_form_that_yaml_knows_means_what_it_says(mine, judge, form):
    suite = judged(judge, MEANT[form])
    assert isinstance(suite, ExpandedSuite), suite
    agree(suite, MEANT[form])


@share(0.024)
@given(data=damaged(dumped(SUITE).encode()))
def test_a_damaged_file_is_what_it_says_or_refused(mine, judge, data):
    suite = judged(judge, data)
    if not isinstance(suite, Refused):
        agree(suite, data)


@share(0.014)
@given(name=st.sampled_from([name for name in FILES if name.endswith((".yaml", ".json"))]), data=st.data())
def test_damage_of_what_a_suite_names_is_refused_or_changes_nothing_else(mine, judge, name, data):
    path = mine / name
    whole = path.read_bytes()
    try:
        path.write_bytes(data.draw(damaged(whole)))
        suite = judged(judge, dumped(SUITE))
        if not isinstance(suite, Refused) and name != "squares.yaml":
            agree(suite, dumped(SUITE))
    finally:
        path.write_bytes(whole)


@share(0.01)
@given(embed_dim=values())
def test_a_model_whose_width_is_none_is_refused(mine, judge, embed_dim):
    path = mine / "small.json"
    whole = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(whole) | {"embed_dim": embed_dim}))
        suite = judged(judge, dumped(SUITE))
        if not isinstance(suite, Refused):
            assert type(embed_dim) is int
            assert embed_dim > 0
    finally:
        path.write_text(whole)
