"""How many faults there were is counted, not written."""

from support.checkout import ROOT

from chaos import count


def test_the_page_has_the_numbers_of_the_report_beside_it() -> None:
    docs = ROOT / "docs"
    lines = (docs / "reliability" / "faults.jsonl").read_text(encoding="utf-8").splitlines()
    assert count.table(lines).splitlines()[-1].rstrip(".") in (docs / "reliability.md").read_text(encoding="utf-8")
