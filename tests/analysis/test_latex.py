"""Tables as LaTeX; that they compile and fit the page is asked of a real pdflatex."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import synthetic
from support import debian

from analysis import artifacts, rendering, style
from analysis.collect import collect
from analysis.latex import to_latex
from analysis.table import Cell, Table
from experiments.design import cards

# booktabs is in texlive-latex-recommended.
PACKAGES = {"pdflatex": "texlive-latex-recommended"}
PAGES = {
    "iclr": (r"\documentclass{article}", r"\textwidth=5.5in \textheight=9in"),
    "icml": (r"\documentclass[twocolumn]{article}", r"\textwidth=6.75in \columnsep=0.25in \textheight=9in"),
}
MAX_OVERFULL_PT = 1.0
"""So far past the edge nobody sees it: it is less than a full stop."""


def test_latex_is_escaped_and_its_lines_have_as_many_cells_as_columns() -> None:
    table = Table(
        title="50 % of a_b",
        header=("Key & more", "x_1", "y"),
        rows=(("a_b", Cell(1.25, 0.5, emphasis="best", mark="*"), Cell(None)), ("c", Cell(2e-5, form=".2g"), "d")),
        notes=("p < 0.05 ±",),
    )
    text = to_latex(table)
    assert r"\caption{50~\% of a\_b.}" in text
    assert r"a\_b & $\mathbf{1.2 \pm 0.5}^{*}$ & -- \\" in text
    assert r"c & $2 \cdot 10^{-5}$ & d \\" in text
    assert r"p $<$ 0.05 $\pm$" in text
    assert all(line.count(" & ") == 2 for line in text.splitlines() if line.endswith(r"\\"))
    assert text.count("{") == text.count("}")


def test_a_long_table_goes_on_in_another_float() -> None:
    rows = tuple((f"r{i}", Cell(float(i))) for i in range(100))
    text = to_latex(Table("Long", ("Key", "x"), rows, notes=("A note.",)))
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2
    assert "(part 2 of 2)" in text
    assert text.count("A note.") == 1
    assert [f"r{i} &" in text for i in range(100)] == [True] * 100


def paper_suite() -> pd.DataFrame:
    """The paper's main suite in full width: DataComp's 38 sets and averages, three seeds, all known methods."""
    evaluation = cards.evaluation("datacomp38")
    sets = {name: {**synthetic.CARDS["digits"], "title": card.title} for name, card in evaluation.sets.items()}
    averages = {name: list(members) for name, members in evaluation.averages.items()}
    specs = [synthetic.run_spec(method, seed) for method in style.KNOWN for seed in range(3)]
    return collect(synthetic.write_suite(specs, name="cc3m", cards=sets, averages=averages, diverged=(("siglip", 2),)))


def many_variants() -> pd.DataFrame:
    """An ablation with more variants than a page has lines."""
    variants = {
        f"num_updates={updates}, restart_period={period}": [
            synthetic.run_spec("neuclip", seed, config={"num_updates": updates, "restart_period": period})
            for seed in range(3)
        ]
        for updates in (1, 5, 10, 20, 50, 100, 200)
        for period in (20, 100, 500, 2500, 10000, 50000, "never")
    }
    return collect(synthetic.write_suite(synthetic.main_specs(), name="ablation_acceleration", variants=variants))


def any_labels() -> Table:
    """A table with all that a label may hold, at the beginning of its first cell."""
    known = [chr(code) for code in range(0x20, 0x2300) if is_known(chr(code))]
    return Table(
        "[Free] *text*", ("[Label]", "*x"), tuple((f"{one} = 0.9", Cell(1.0)) for one in known), notes=("[a]",)
    )


def is_known(character: str) -> bool:
    try:
        to_latex(Table("T", (character,), ((character,),)))
    except ValueError:
        return False
    return True


def test_labels_may_hold_greek_accents_and_common_signs() -> None:
    assert all(is_known(one) for one in "abc [*]\\~^<>|&%$#_{}\"'`éöçñÅŠßø±µ°²→∞≈≤≥·†")
    text = to_latex(Table("T", ("Variant",), (("\N{GREEK SMALL LETTER BETA} = 0.9",), ("[off]",), ("*",))))
    assert r"$\beta$ = 0.9 \\" in text
    assert "\n{[}off]" in text
    assert "\n{*}" in text


def test_what_cannot_be_shown_is_one_clear_error() -> None:
    with pytest.raises(ValueError, match=r"cannot show '中' \(CJK UNIFIED .*\), which came in '中 = 1'; allowed are"):
        to_latex(Table("T", ("Variant",), (("中 = 1",),)))


@pytest.mark.slow
def test_every_table_compiles_and_fits_the_page(everything: Path) -> None:
    debian.require(PACKAGES)
    frames = {"everything": collect(everything), "paper": paper_suite(), "ablation": many_variants()}
    tables = [r"\typeout{TABLE any labels}", to_latex(any_labels()), r"\clearpage"]
    for suite, frame in frames.items():
        for name in artifacts.tables():
            if (table := rendering.build_table(frame, name)) is not None:
                tables += [rf"\typeout{{TABLE {suite} {name}}}", to_latex(table), r"\clearpage"]
    for page, (document_class, lengths) in PAGES.items():
        head = [document_class, r"\usepackage{booktabs}", lengths, r"\extrafloats{200}", r"\begin{document}"]
        Path(f"{page}.tex").write_text("\n".join([*head, *tables, r"\end{document}"]), encoding="utf-8")
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", f"{page}.tex"]
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        assert result.returncode == 0, result.stdout[-3000:]
        assert misfits(Path(f"{page}.log")) == []


def misfits(log: Path) -> list[str]:
    """What does not fit, with the table before it."""
    found, table = [], ""
    for line in log.read_text(errors="replace").splitlines():
        table = line if line.startswith("TABLE ") else table
        overfull = re.match(r"Overfull \\[hv]box \(([\d.]+)pt", line)
        if (overfull and float(overfull[1]) > MAX_OVERFULL_PT) or "Float too large" in line:
            found.append(f"{table}: {line}")
    return found


def test_narrow_tables_take_a_column_and_wide_ones_both() -> None:
    narrow = Table("T", ("Method", "x"), (("A", Cell(1.0)),))
    wide = Table("T", ("Method", *(f"Score {i}" for i in range(6))), (("A", *(Cell(1.0, 0.5) for _ in range(6))),))
    assert r"\begin{table}[t]" in to_latex(narrow)
    assert r"\begin{table*}[t]" in to_latex(wide)


def test_long_titles_of_narrow_columns_are_broken_into_lines() -> None:
    table = Table("T", ("Method", "ImageNet & Variants"), (("A", Cell(1.0, 0.5)),))
    assert r"Method & \shortstack[r]{ImageNet \& \\ Variants} \\" in to_latex(table)


def test_columns_that_do_not_fit_beside_each_other_are_stacked() -> None:
    header = ("Method", *(f"s{i}" for i in range(13)))
    text = to_latex(Table("Wide", header, (("A", *(Cell(float(i), 0.5) for i in range(13))),)))
    assert re.findall(r"\\begin\{tabular\}\{(.*)\}", text) == ["lrrrrrrr", "lrrrrrr"]
    assert text.count(r"\begin{table*}") == 1
