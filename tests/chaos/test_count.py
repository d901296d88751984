"""The table of faults in the documentation is counted, not written."""

from support.checkout import ROOT

from chaos import count


def test_the_page_has_the_table_of_the_report_beside_it() -> None:
    docs = ROOT / "docs"
    lines = (docs / "reliability" / "faults.jsonl").read_text(encoding="utf-8").splitlines()
    assert count.table(lines) in (docs / "reliability.md").read_text(encoding="utf-8")
