"""Files of one's own methods, of any content: the method that they define, or one clear error with file and line.

Only what imports, checks and resolves is judged. What a method computes, and raises while it does, is its own.
"""

import ast
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.fuzzing import CONTROLS, ROOT, Refused, changed, clear, damaged, judge, same, share, texts

from engine import registry
from engine.method import Method

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs" / "add-a-method.md").read_text(encoding="utf-8")
DCL = re.findall(r"^```\w*\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)[0]
FILE = Path("mine/dcl.py")
STATEMENTS = (
    "raise ValueError", "raise SystemExit", "import sys; sys.exit(3)", "exit()", "raise KeyError('x')", "1 / 0",
    "import nothing", "DCL = 5", "class DCL: pass", "del DCL", "x = (", "\x00", "\x1b", "é = 1",
    "def f(): return f()\nf()", "raise ValueError('\\x1b[2J')", "raise ValueError('x' * 10**6)",
    "class E(Exception):\n    def __str__(self): raise self\nraise E", "    ", "\t", "# -*- coding: latin-99 -*-",
    "from engine.method import Method", "Config = None", "print('\\x1b[2J')", "yield", "return", "await x",
)  # fmt: skip


@st.composite
def edited(draw: st.DrawFn) -> bytes:
    """The file with lines taken out, moved, words changed, or statements put in at any depth."""
    lines = DCL.splitlines(keepends=True)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(lines) - 1))
        how = draw(st.sampled_from(("drop", "move", "insert", "insert", "word")))
        if how == "insert":
            indent = draw(st.sampled_from(("", "    ", "        ")))
            said = draw(st.sampled_from(STATEMENTS)).replace("\n", f"\n{indent}")
            lines.insert(place, f"{indent}{said}\n")
        elif how == "drop":
            del lines[place]
        elif how == "move":
            lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(place))
        elif words := re.findall(r"\w+", lines[place]):
            other = draw(st.sampled_from(("x", "5", "None", "Method", "class")))
            lines[place] = lines[place].replace(draw(st.sampled_from(words)), other, 1)
    return "".join(lines).encode("utf-8", "surrogatepass")


def put(content: bytes) -> None:
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_bytes(content)


@share(0.043)
@given(content=st.one_of(edited(), damaged(DCL.encode())))
@example(content=f"import sys\nsys.exit(3)\n{DCL}".encode())
@example(content=f"raise ValueError('x' * 10**6)\n{DCL}".encode())
@example(content=DCL.replace("TemperatureConfig = ", "Unknown = ").encode())
@example(content=f"from __future__ import annotations\n{DCL}".replace("TemperatureConfig = ", "Unknown = ").encode())
@example(content=DCL.encode("utf-16"))
@example(content=DCL.encode() + b"\x00")
@example(content=b"(" * 5000)
@example(content=b"x = " + b"-" * 100_000 + b"1")
def test_a_file_is_a_method_or_refused(content):
    put(content)
    found = judge(lambda: registry.keep(f"{FILE}:DCL"), FILE)
    if isinstance(found, Refused):
        return
    assert issubclass(registry.method_class("dcl", found), Method)
    # It is the class that the file itself defines.
    assert "DCL" in {node.name for node in ast.walk(ast.parse(content)) if isinstance(node, ast.ClassDef)}
    judge(lambda: registry.resolve_config("dcl", {}, found), "dcl")


@pytest.mark.parametrize("text", CONTROLS)
def test_what_a_file_raises_is_told_safely(text):
    put(f"raise ValueError({text!r})\n".encode())
    refused = judge(lambda: registry.keep(f"{FILE}:DCL"), FILE)
    assert isinstance(refused, Refused)
    clear(refused.text, ["line 1"])


@share(0.014)
@given(reference=st.one_of(texts(), texts().map("{}.py:DCL".format), texts().map("mine/dcl.py:{}".format)))
@example(reference="~no-such-user/x.py:DCL")
@example(reference="mine/dcl.py:")
@example(reference="mine:DCL")
@example(reference="mine/dcl.py:Method")
def test_a_reference_of_any_text_is_a_method_or_refused(reference):
    put(DCL.encode())
    found = judge(lambda: registry.keep(reference), "class", "mine/dcl.py", reference[:20])
    assert isinstance(found, Refused) or reference == "mine/dcl.py:DCL"


OPTIONS = {
    "neuclip": {"num_prototypes": 64, "restart_period": "never", "npn_lr": 0.01, "rho": 1.5, "architecture": "mlp"},
    "fastclip": {"version": "v3", "form": "log", "eps": 1e-14, "individual_betas": [0.9, 0.99]},
    "amorlip": {"rho": [1.0, -1.0], "temperature": {"init": 0.1}},
    "siglip": {"temperature": {"init": 0.1}},
    "openclip": {"temperature": {"init": 0.1, "minimum": 0.01, "maximum": 1.0, "lr": 0.001}},
}


@share(0.024)
@given(name=st.sampled_from(sorted(OPTIONS)), data=st.data())
def test_changed_options_are_what_they_say_or_refused(name, data):
    options = data.draw(changed(OPTIONS[name]))
    found = judge(lambda: registry.resolve_config(name, options), f"method {name!r}")
    if not isinstance(found, Refused):
        same(found.model_dump(mode="json"), options)
        assert registry.resolve_config(name, found.model_dump(mode="json")) == found


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_the_options_as_they_are_are_taken(name):
    assert not isinstance(judge(lambda: registry.resolve_config(name, OPTIONS[name])), Refused)
