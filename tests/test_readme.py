"""Numbers of the README and of the pages of results are found in what is committed."""

from __future__ import annotations

import re

import pytest
from support.checkout import ROOT

PAGES = [ROOT / "docs" / "results" / name for name in ("README.md", "evidence.md")]
README, *CLAIMS = (path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *PAGES))
RESULTS = [path for path in (ROOT / "docs" / "results").rglob("*.md") if path not in PAGES]
OTHERS = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "experiments").rglob("*.yaml"), ROOT / "pyproject.toml"]

NUMBER = re.compile(r"(?<![\w.,-])\d+(?:[.,]\d+)*(?![\w-])")
ITALICS = re.compile(r"(?<![\w\\])_|_(?!\w)")


def numbers(text: str) -> set[str]:
    """Find numbers, such as 63.9, 1,200 and 32, also in italics; not those that are parts of names."""
    return set(NUMBER.findall(ITALICS.sub(" ", text)))


def prose(page: str) -> str:
    """Leave out code, addresses and commits."""
    page = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`]*`|\]\([^)]*\)|https?:\S+|arXiv:\S+|commit \w+", "", page)


SHOWN = numbers(prose(README))
RESULTING = {number for page in CLAIMS for number in numbers(prose(page)) if "." in number}


def test_there_are_measured_numbers_to_look_for():
    assert len([number for number in SHOWN if "." in number]) > 10


@pytest.mark.parametrize("number", sorted(SHOWN))
def test_a_number_of_the_readme_is_committed(number):
    is_measured = "." in number and not re.search(rf"(torch|torch was|Python) {re.escape(number)}", README)
    pages = RESULTS if is_measured else [*RESULTS, *OTHERS]
    assert any(number in numbers(page.read_text(encoding="utf-8")) for page in pages), pages


@pytest.mark.parametrize("number", sorted(RESULTING - {"2.13"}))
def test_a_number_of_the_pages_of_results_is_in_a_table(number):
    assert any(number in numbers(page.read_text(encoding="utf-8")) for page in RESULTS)
