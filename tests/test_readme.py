"""Numbers of the README are found in what is committed: measured ones in results, all others in pages or code."""

from __future__ import annotations

import re

import pytest
from support.checkout import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = [*(ROOT / "docs" / "results").rglob("*.md")]
OTHERS = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "experiments").rglob("*.yaml"), ROOT / "pyproject.toml"]

NUMBER = re.compile(r"(?<![\w.,-])\d+(?:[.,]\d+)*(?![\w-])")


def numbers(text: str) -> set[str]:
    """Find numbers, such as 63.9, 1,200 and 32; not those that are parts of names."""
    return set(NUMBER.findall(text))


def prose(page: str) -> str:
    """Leave out code, addresses and commits."""
    page = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`]*`|\]\([^)]*\)|https?:\S+|arXiv:\S+|commit \w+", "", page)


SHOWN = numbers(prose(README))


def test_there_are_measured_numbers_to_look_for():
    assert len([number for number in SHOWN if "." in number]) > 10


@pytest.mark.parametrize("number", sorted(SHOWN))
def test_a_number_of_the_readme_is_committed(number):
    is_measured = "." in number and not re.search(rf"(torch|Python) {re.escape(number)}", README)
    pages = RESULTS if is_measured else [*RESULTS, *OTHERS]
    assert any(number in numbers(page.read_text(encoding="utf-8")) for page in pages), pages
