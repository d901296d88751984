"""Judge what a command makes of any input: a right result, or exactly one clear error.

``FUZZ_EXAMPLES`` is the number of inputs that a whole run over `tests/fuzz` draws, 500 if it is not set: then they are
the same in every run. If it is set they are random; a failure prints a line that repeats it, and hypothesis keeps it
in `.hypothesis`. ``FUZZ_REPORT`` names a file to which each test adds a JSON line with its counts.
"""

import contextlib
import io
import json
import math
import os
import re
import resource
import signal
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class Refused:
    """One clear error."""

    text: str


class NotClearError(AssertionError):
    """Neither a result nor one clear error."""


class StuckError(Exception):
    """It takes too long. No `OSError`, which a command would explain."""


class Judge:
    """Calls what a command line calls, and counts what came of it."""

    def __init__(self) -> None:
        self.inputs = self.refused = self.accepted = 0

    def __call__(self, call: Callable[[], Any], *names: object) -> Any:
        """Return what a call returns, or `Refused`.

        Args:
            call: The call.
            *names: An error has to name one of them: the file, or the place in it.

        Raises:
            NotClearError: If it ends with another exception than commands explain, or with an error that is not clear.
        """
        try:
            with _limited():
                result = call()
        except errors.KNOWN as error:
            self.count(refused=1)
            return Refused(clear(errors.describe(error), names))
        except Exception as error:
            raise NotClearError(f"a traceback: {type(error).__name__}: {error}") from error
        self.count(accepted=1)
        return result

    def command(self, main: Callable[[list[str]], int | None], argv: list[str], *names: object) -> str | Refused:
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
        refuse_controls(out.getvalue())
        refuse_controls(said)
        assert "Traceback" not in said, (argv, said)
        # A check that finds something says so with its status.
        if code == 0 or (code == 1 and not said and out.getvalue()):
            self.count(accepted=1)
            return out.getvalue()
        marks = re.findall(r"^(?:python -m [\w. -]*: )?error: ", said, re.MULTILINE)
        if len(marks) != 1:
            raise NotClearError(f"{argv} ended with {code} and {len(marks)} errors: {said!r}")
        self.count(refused=1)
        return Refused(clear(said.partition(marks[0])[2], names))

    def count(self, *, refused: int = 0, accepted: int = 0) -> None:
        """Count inputs; a call may have several."""
        self.inputs += refused + accepted
        self.refused += refused
        self.accepted += accepted

    def report(self, kind: str, test: str) -> None:
        """Add what was counted to the file that ``FUZZ_REPORT`` names."""
        if path := os.environ.get("FUZZ_REPORT"):
            counts = {"inputs": self.inputs, "refused": self.refused, "accepted": self.accepted}
            with Path(path).open("a") as file:
                file.write(json.dumps({"kind": kind, "test": test, **counts}) + "\n")


def clear(text: str, names: Iterable[object] = ()) -> str:
    """Return an error's text if it is clear: says something, of bounded length, and names what is meant."""
    wrong = []
    if not re.search(r"\w+ \w+", text):
        wrong.append("it says nothing")
    if "Traceback" in text:
        wrong.append("it has a traceback")
    if len(text) > MAX_LETTERS or text.count("\n") > MAX_LINES:
        wrong.append(f"it has {len(text)} letters and {text.count(chr(10)) + 1} lines")
    if found := controls(text):
        wrong.append(f"it has {found}")
    if re.search(r"<[\w.]+ object at 0x|codec can't encode|Input is not JSON compliant|Out of range float", text):
        wrong.append("it speaks of what is inside")
    if (names := [str(name) for name in names]) and not any(name in text for name in names):
        wrong.append(f"it names none of {names}")
    if wrong:
        raise NotClearError(f"not clear ({'; '.join(wrong)}): {text[:2000]!r}")
    return text


def controls(text: str) -> set[str]:
    """Return the characters of a text that a terminal obeys, or that hide or turn other text."""
    turns = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
    return {c for c in text if (unicodedata.category(c) == "Cc" and c not in "\n\t\r") or c in turns}


def refuse_controls(text: str) -> None:
    """Refuse output that a terminal would obey."""
    if found := controls(text):
        raise NotClearError(f"printed {found} in {text[:500]!r}")


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Stop a block that takes too long; let memory end when it takes too much."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)

    def stop(number: int, frame: object) -> None:
        raise StuckError(f"it takes more than {MAX_SEC} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(MAX_SEC)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MAX_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# Changed inputs -----------------------------------------------------------------------------------------------------

HTML = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</td></table>&lt;", "a & b <i>'\"")
CONTROLS = (
    "\x00",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\u202eright\u202c",
    "line\nline",
    "tab\tcr\r",
    "\x7f",
    "\u2066x",
)
TEXTS = (
    "", " ", "x", "é", "日本", "\U0001f600", "null", "1e400", "-1", "0x10", "{", "{}", "{0}", "{lr:>99999999999}",
    "{a.b[c]}", "%s", "..", "../..", "/",
    "~no-such-user/x.yaml", "**", "[", "[/b]", "[red]x", "a" * 300, "b" * 100_000, "yes", "1:30",
    "2024-99-99",
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
    deep = st.integers(1, 60).map(lambda depth: _deep(depth))
    return st.one_of(plain, plain, few, deep)


def _deep(depth: int) -> list[Any]:
    return [_deep(depth - 1)] if depth else []


Place = tuple[Any, ...]


def places(tree: Any, above: Place = ()) -> Iterator[Place]:
    """Yield the place of every value in a tree of mappings and lists, the whole one left out."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*above, key)
        yield from places(value, (*above, key))


def at(tree: Any, place: Place) -> Any:
    """Return the value at a place."""
    for key in place:
        tree = tree[key]
    return tree


@st.composite
def changed(draw: st.DrawFn, tree: Any, *, most: int = 2) -> Any:
    """Draw a tree like another one but for some changes: a key dropped, renamed, doubled, or another value."""
    tree = _copied(tree)
    for _ in range(draw(st.integers(1, most))):
        known = list(places(tree))
        if not known:
            break
        *above, key = draw(st.sampled_from(known))
        owner = at(tree, tuple(above))
        how = draw(st.sampled_from(("value", "value", "value", "drop", "rename", "double", "other", "wrap", "number")))
        if how == "drop":
            del owner[key]
        elif how == "rename" and isinstance(owner, dict):
            owner[draw(st.one_of(texts(), st.just(f"{key}s"), st.just(str(key)[1:])))] = owner.pop(key)
        elif how == "double" and isinstance(owner, list):
            owner.append(_copied(owner[key]))
        elif how == "other":
            owner[key] = _copied(at(tree, draw(st.sampled_from(known))))
        elif how == "wrap":
            owner[key] = draw(st.sampled_from(([owner[key]], {"x": owner[key]}, str(owner[key]))))
        elif how == "number" and type(owner[key]) in (int, float):
            owner[key] = draw(st.sampled_from((owner[key] + 1, -owner[key], owner[key] / 3, str(owner[key]), True)))
        else:
            owner[key] = draw(values())
    return tree


def _copied(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _copied(value) for key, value in tree.items()}
    return [_copied(value) for value in tree] if isinstance(tree, list) else tree


OTHER_FILES = (
    b"", b"\x00", b"\x00" * 4096, b"\xff\xfe\x00", b"PAR1", b"PAR1" * 200, b"PK\x03\x04", b"PK\x05\x06" + bytes(18),
    b"\x80\x04K\x01.", b"%PDF-1.4", b"{}", b"[]", b"null", b"{", b"[" * 100_000, b"<html>", b"\x89PNG\r\n\x1a\n",
    b"RIFF\xff\xff\xff\xffWEBP", b"GIF89a", b"BM", b"\xff\xd8\xff\xe0", b"ustar\x0000", b"title: x\n", b"1", b"\n",
    b"\x1f\x8b\x08\x00", b'{"a": ' * 100_000,
)  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, data: bytes, *, most: int = 3) -> bytes:
    """Draw bytes like others but for some damage: bits flipped, parts cut out, put in, zeroed, or another file."""
    how = draw(st.sampled_from(("flip",) * 4 + ("cut", "drop", "insert", "zero", "swap", "repeat", "other")))
    if how == "other" or not data:
        return draw(st.one_of(st.sampled_from(OTHER_FILES), st.binary(max_size=64)))
    place = st.one_of(
        st.integers(0, len(data) - 1),
        st.integers(0, min(64, len(data)) - 1),
        st.integers(max(0, len(data) - 64), len(data) - 1),
    )
    begin, end = sorted((draw(place), draw(place)))
    if how == "flip":
        changed = bytearray(data)
        for _ in range(draw(st.integers(1, most))):
            changed[draw(place)] ^= 1 << draw(st.integers(0, 7))
        return bytes(changed)
    if how == "cut":
        return data[:begin]
    if how == "drop":
        return data[:begin] + data[end:]
    if how == "insert":
        return data[:begin] + draw(st.binary(min_size=1, max_size=16)) + data[begin:]
    if how == "zero":
        return data[:begin] + bytes(end - begin) + data[end:]
    if how == "swap":
        middle = (begin + end) // 2
        return data[:begin] + data[middle:end] + data[begin:middle] + data[end:]
    return data + data[begin:end]


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
        assert found == said or str(said).lower() in (
            "0",
            "1",
            "yes",
            "no",
            "on",
            "off",
            "y",
            "n",
            "t",
            "f",
            "true",
            "false",
        )
    elif isinstance(found, int | float) and said is not None:
        assert found == said or found == number(said)
        assert math.isfinite(found)
    else:
        assert found == said
