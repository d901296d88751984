"""Judge what a command makes of any input: a right result, or exactly one clear error.

``FUZZ_EXAMPLES`` is the number of inputs that a whole run over `tests/fuzz` draws, 500 if it is not set: then they are
the same in every run. If it is set they are random; a failure prints a line that repeats it, and hypothesis keeps it
in `.hypothesis`.
"""

import contextlib
import copy
import io
import json
import os
import re
import resource
import signal
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.database import DirectoryBasedExampleDatabase

from engine import errors

ROOT = Path(__file__).resolve().parents[2]
IS_LONG = "FUZZ_EXAMPLES" in os.environ
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "500"))
MAX_LETTERS, MAX_LINES = 4000, 40
"""Of a clear error."""
MAX_SEC = 60
MAX_BYTES = 2 * 2**30
"""What one input may take beyond what the process has: an input of some kilobytes needs no more."""


def share(of_all: float) -> settings:
    """Return hypothesis' settings for a test that takes a share of all inputs."""
    return settings(
        max_examples=max(1, round(of_all * EXAMPLES)),
        derandomize=not IS_LONG,
        database=DirectoryBasedExampleDatabase(ROOT / ".hypothesis" / "examples") if IS_LONG else None,
        print_blob=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


class Refused(NamedTuple):
    """One clear error."""

    text: str


class NotClearError(AssertionError):
    """Neither a result nor one clear error."""


class StuckError(Exception):
    """It takes too long. No `OSError`, which a command would explain."""


def judge(call: Callable[[], Any], *names: object) -> Any:
    """Return what a call returns, or `Refused` with its error, which has to name one of `names`.

    Raises:
        NotClearError: If it ends with another exception than commands explain, or with an error that is not clear.
    """
    try:
        with _limited():
            return call()
    except errors.KNOWN as error:
        return Refused(clear(errors.describe(error), names))
    except Exception as error:
        raise NotClearError(f"a traceback: {type(error).__name__}: {error}") from error


def judge_command(main: Callable[[list[str]], int | None], argv: list[str], *names: object) -> str | Refused:
    """Return what a command line prints, or `Refused` with its error."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _limited():
            code = main(argv) or 0
    except SystemExit as end:
        code = end.code or 0
    except Exception as error:
        raise NotClearError(f"a traceback from {argv}: {type(error).__name__}: {error}") from error
    said = f"{err.getvalue()}\n{code}" if isinstance(code, str) else err.getvalue()
    assert not controls(out.getvalue() + said), (argv, out.getvalue(), said)
    assert "Traceback" not in said, (argv, said)
    # A check that finds something says so with its status.
    if code == 0 or (code == 1 and not said and out.getvalue()):
        return out.getvalue()
    marks = re.findall(r"^(?:python -m [\w. -]*: )?error: ", said, re.MULTILINE)
    if len(marks) != 1:
        raise NotClearError(f"{argv} ended with {code} and {len(marks)} errors: {said!r}")
    return Refused(clear(said.partition(marks[0])[2], names))


def clear(text: str, names: Iterable[object] = ()) -> str:
    """Return an error's text if it is clear: says something, of bounded length, and names what is meant."""
    names = [str(name) for name in names]
    inside = r"<[\w.]+ object at 0x|codec can't encode|Input is not JSON compliant|Out of range float"
    faults = {
        "it says nothing": not re.search(r"\w+ \w+", text),
        "it has a traceback": "Traceback" in text,
        "it is too long": len(text) > MAX_LETTERS or text.count("\n") > MAX_LINES,
        "a terminal obeys it": controls(text),
        "it speaks of what is inside": re.search(inside, text),
        f"it names none of {names}": names and not any(name in text for name in names),
    }
    wrong = [fault for fault, is_so in faults.items() if is_so]
    if wrong:
        raise NotClearError(f"not clear ({'; '.join(wrong)}): {text[:2000]!r}")
    return text


def controls(text: str) -> set[str]:
    """Return the characters of a text that a terminal obeys, or that hide or turn other text."""
    turns = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
    return {c for c in text if (unicodedata.category(c) == "Cc" and c not in "\n\t\r") or c in turns}


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Stop a block that takes too long; let memory end when it takes too much."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, _stop)
    signal.alarm(MAX_SEC)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MAX_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _stop(number: int, frame: object) -> None:
    raise StuckError(f"it takes more than {MAX_SEC} s")


# Changed inputs -----------------------------------------------------------------------------------------------------

HTML = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</td></table>&lt;", "a & b <i>'\"")
CONTROLS = (
    "\x00", "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\u202eright\u202c", "line\nline", "tab\tcr\r", "\x7f", "\u2066x",
)  # fmt: skip
TEXTS = (
    "", " ", "x", "é", "日本", "\U0001f600", "null", "1e400", "-1", "0x10", "{", "{}", "{0}", "{lr:>99999999999}",
    "{a.b[c]}", "%s", "..", "../..", "/", "~no-such-user/x.yaml", "**", "[", "[/b]", "[red]x", "a" * 300, "b" * 100_000,
    "yes", "1:30", "2024-99-99",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 7, 0.5, -0.0, 1.5, 1e-320, 1e308, -1e308, float("inf"), float("-inf"), float("nan"), 2**31, 2**53 + 1,
    2**63, 2**64, 10**30, 10**400, 1e16,
)  # fmt: skip


def texts() -> st.SearchStrategy[str]:
    """Texts of any kind: also markup, controls, and what looks like something else."""
    return st.one_of(st.sampled_from(TEXTS + HTML + CONTROLS), st.text(max_size=20))


def values() -> st.SearchStrategy[Any]:
    """Values of any kind that YAML and JSON have."""
    plain = st.one_of(st.none(), st.booleans(), st.sampled_from(NUMBERS), st.integers(), st.floats(), texts())
    few = st.one_of(st.lists(plain, max_size=3), st.dictionaries(texts(), plain, max_size=3))
    deep = st.integers(1, 60).map(lambda depth: json.loads("[" * depth + "]" * depth))
    return st.one_of(plain, plain, few, deep)


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every mapping or list in a tree with each of its keys."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield tree, key
        yield from places(tree[key])


@st.composite
def changed(draw: st.DrawFn, tree: Any, *, most: int = 2) -> Any:
    """Draw a tree like another one but for some changes: a key dropped, renamed, doubled, or another value."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, most))):
        known = list(places(tree))
        if not known:
            break
        owner, key = draw(st.sampled_from(known))
        how = draw(st.sampled_from(("value", "value", "value", "drop", "rename", "double", "other", "wrap", "number")))
        if how == "drop":
            del owner[key]
        elif how == "rename" and isinstance(owner, dict):
            owner[draw(st.one_of(texts(), st.just(f"{key}s"), st.just(str(key)[1:])))] = owner.pop(key)
        elif how == "double" and isinstance(owner, list):
            owner.append(copy.deepcopy(owner[key]))
        elif how == "other":
            other, place = draw(st.sampled_from(known))
            owner[key] = copy.deepcopy(other[place])
        elif how == "wrap":
            owner[key] = draw(st.sampled_from(([owner[key]], {"x": owner[key]}, str(owner[key]))))
        elif how == "number" and type(owner[key]) in (int, float):
            owner[key] = draw(st.sampled_from((owner[key] + 1, -owner[key], owner[key] / 3, str(owner[key]), True)))
        else:
            owner[key] = draw(values())
    return tree


OTHER_FILES = (
    b"", b"\x00" * 4096, b"\xff\xfe\x00", b"PAR1" * 200, b"PK\x03\x04", b"PK\x05\x06" + bytes(18), b"\x80\x04K\x01.",
    b"{}", b"[]", b"null", b"[" * 100_000, b"<html>", b"\x89PNG\r\n\x1a\n", b"RIFF\xff\xff\xff\xffWEBP", b"GIF89a",
    b"BM", b"\xff\xd8\xff\xe0", b"ustar\x0000", b"title: x\n", b"1", b"\n", b"\x1f\x8b\x08\x00", b'{"a": ' * 100_000,
)  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Draw bytes like others but for some damage: bits flipped, parts cut out, put in, zeroed, or another file."""
    how = draw(st.sampled_from(("flip",) * 4 + ("cut", "drop", "insert", "zero", "repeat", "other")))
    if how == "other" or not data:
        return draw(st.one_of(st.sampled_from(OTHER_FILES), st.binary(max_size=64)))
    last, near = len(data) - 1, min(64, len(data)) - 1
    place = st.one_of(st.integers(0, last), st.integers(0, near), st.integers(last - near, last))
    begin, end = sorted((draw(place), draw(place)))
    if how == "flip":
        changed = bytearray(data)
        for _ in range(draw(st.integers(1, 3))):
            changed[draw(place)] ^= 1 << draw(st.integers(0, 7))
        return bytes(changed)
    new = {
        "cut": b"", "drop": data[end:], "insert": draw(st.binary(min_size=1, max_size=16)) + data[begin:],
        "zero": bytes(end - begin) + data[end:], "repeat": data[begin:end] + data[begin:],
    }  # fmt: skip
    return data[:begin] + new[how]


# What a plain reading says -------------------------------------------------------------------------------------------


def number(value: Any) -> float:
    """A number that YAML says, or that it says as text, such as 1e-3."""
    assert not isinstance(value, bool), f"{value} is no number"
    return float(value)


def same(found: Any, said: Any) -> None:
    """Compare an option with what the file says, which may leave out defaults and write numbers as texts."""
    if isinstance(said, dict):
        for key, value in said.items():
            same(found[key], value)
    elif isinstance(said, list):
        assert len(found) == len(said)
        for ours, theirs in zip(found, said, strict=True):
            same(ours, theirs)
    elif isinstance(found, bool) or isinstance(said, bool):
        assert isinstance(found, bool), (found, said)
        assert found == said or str(said).lower() in {"0", "1", "yes", "no", "on", "off", "y", "n", "true", "false"}
    elif isinstance(found, int | float) and said is not None:
        assert found == said or found == number(said)
        assert abs(found) < float("inf")
    else:
        assert found == said
