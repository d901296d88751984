"""Files of one's own methods, of any content: the method that they define, or one clear error with file and line.

Only what imports, checks and resolves is judged. What a method computes, and raises while it does, is its own.
"""

import ast
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.fuzzing import CONTROLS, Judge, Refused, changed, clear, damaged, same, share, texts

from engine import registry
from engine.method import Method
from engine.schema.run import MethodSource

pytestmark = pytest.mark.slow

DOCS = Path(__file__).resolve().parents[2] / "docs"
DCL = re.findall(
    r"^```\w*\n(.*?)^```", (DOCS / "add-a-method.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
)[0]
FILE = Path("mine/dcl.py")
LINES = DCL.splitlines(keepends=True)

STATEMENTS = (
    "raise ValueError",
    "raise SystemExit",
    "import sys; sys.exit(3)",
    "exit()",
    "raise KeyError('x')",
    "1 / 0",
    "import nothing",
    "assert False",
    "DCL = 5",
    "class DCL: pass",
    "del DCL",
    "x = (",
    "\x00",
    "\x1b",
    "é = 1",
    "def f(): return f()\nf()",
    "class Config: pass",
    "raise ValueError('\\x1b[2J')",
    "raise ValueError('x' * 10**6)",
    "class E(Exception):\n    def __str__(self): raise self\nraise E",
    "    ",
    "\t",
    "# -*- coding: latin-99 -*-",
    "from engine.method import Method",
    "Config = None",
    "loss = None",
    "print('\\x1b[2J')",
    "yield",
    "return",
    "await x",
)


@st.composite
def edited(draw: st.DrawFn) -> bytes:
    """The file with lines taken out, doubled, moved, or statements put in at any depth."""
    lines = list(LINES)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(lines) - 1)))
        how = draw(st.sampled_from(("drop", "double", "move", "insert", "insert", "indent", "word")))
        if not lines or how == "insert":
            indent = draw(st.sampled_from(("", "    ", "        ")))
            said = draw(st.sampled_from(STATEMENTS)).replace("\n", f"\n{indent}")
            lines.insert(place, f"{indent}{said}\n")
        elif how == "drop":
            del lines[place]
        elif how == "double":
            lines.insert(place, lines[place])
        elif how == "move":
            lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(place))
        elif how == "indent":
            lines[place] = draw(st.sampled_from(("  ", "\t"))) + lines[place]
        else:
            words = re.findall(r"\w+", lines[place])
            if words:
                lines[place] = lines[place].replace(
                    draw(st.sampled_from(words)), draw(st.sampled_from(("x", "5", "None", "Method", "class"))), 1
                )
    return "".join(lines).encode("utf-8", "surrogatepass")


def examined(judge: Judge, content: bytes, name: str = "DCL") -> None:
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_bytes(content)
    found = judge(lambda: registry.keep(f"{FILE}:{name}"), FILE)
    if isinstance(found, Refused):
        return
    assert isinstance(found, MethodSource)
    method = registry.method_class("dcl", found)
    assert issubclass(method, Method)
    # It is the class that the file itself defines.
    assert name in {node.name for node in ast.walk(ast.parse(content)) if isinstance(node, ast.ClassDef)}
    judge(lambda: registry.resolve_config("dcl", {}, found), "dcl")


@share(0.024)
@given(content=edited())
@example(content=f"import sys\nsys.exit(3)\n{DCL}".encode())
@example(content=f"raise ValueError('x' * 10**6)\n{DCL}".encode())
@example(content=f"raise ValueError('\\x1b[2J')\n{DCL}".encode())
@example(content=DCL.replace("TemperatureConfig = ", "Unknown = ").encode())
@example(content=f"from __future__ import annotations\n{DCL}".replace("TemperatureConfig = ", "Unknown = ").encode())
@example(content=DCL.encode("utf-16"))
@example(content=DCL.encode() + b"\x00")
@example(content=b"(" * 5000)
@example(content=b"x = " + b"-" * 100_000 + b"1")
def test_an_edited_file_is_a_method_or_refused(judge, content):
    examined(judge, content)


@share(0.019)
@given(content=damaged(DCL.encode()))
def test_a_damaged_file_is_a_method_or_refused(judge, content):
    examined(judge, content)


@share(0.014)
@given(
    reference=st.one_of(
        texts(), texts().map(lambda text: f"{text}.py:DCL"), texts().map(lambda text: f"mine/dcl.py:{text}")
    )
)
@example(reference="~no-such-user/x.py:DCL")
@example(reference="mine/dcl.py:")
@example(reference="mine:DCL")
@example(reference="mine/dcl.py:Method")
def test_a_reference_of_any_text_is_a_method_or_refused(judge, reference):
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(DCL)
    found = judge(lambda: registry.keep(reference), "class", "mine/dcl.py", reference[:20])
    assert isinstance(found, Refused) or reference == "mine/dcl.py:DCL"


OPTIONS = {
    "neuclip": {
        "num_prototypes": 64,
        "restart_period": "never",
        "num_updates": 2,
        "npn_lr": 0.01,
        "rho": 1.5,
        "eps": 1e-14,
        "architecture": "mlp",
        "temperature": {"init": 0.1, "learnable": False},
    },
    "fastclip": {
        "version": "v3",
        "form": "log",
        "rho": 6.5,
        "eps": 1e-14,
        "gamma_min": 0.2,
        "gamma_decay_epochs": 3,
        "individual_betas": [0.9, 0.99],
        "temperature": {"init": 0.1},
    },
    "amorlip": {"rho": [1.0, -1.0], "temperature": {"init": 0.1}},
    "siglip": {"temperature": {"init": 0.1}},
    "openclip": {"temperature": {"init": 0.1, "minimum": 0.01, "maximum": 1.0, "lr": 0.001}},
}


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_the_options_as_they_are_are_taken(name, judge):
    assert not isinstance(judge(lambda: registry.resolve_config(name, OPTIONS[name])), Refused)


@share(0.024)
@given(name=st.sampled_from(sorted(OPTIONS)), data=st.data())
def test_changed_options_are_what_they_say_or_refused(judge, name, data):
    options = data.draw(changed(OPTIONS[name]))
    found = judge(lambda: registry.resolve_config(name, options), f"method {name!r}")
    if not isinstance(found, Refused):
        same(found.model_dump(mode="json"), options)
        again = registry.resolve_config(name, found.model_dump(mode="json"))
        assert again == found


def test_what_a_file_prints_is_its_own_and_what_it_raises_is_told_safely(judge):
    for text in CONTROLS:
        content = f"raise ValueError({text!r})\n".encode()
        FILE.parent.mkdir(exist_ok=True)
        FILE.write_bytes(content)
        refused = judge(lambda: registry.keep(f"{FILE}:DCL"), FILE)
        assert isinstance(refused, Refused)
        clear(refused.text, ["line 1"])
