"""Writes tables as LaTeX that fits a page. Widths and heights are estimates, tested with pdflatex."""

from __future__ import annotations

import math
import re
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator

from analysis.table import NO_VALUE, Cell, Row, Table, panels, show

TEXT_PT, COLUMN_PT, HEIGHT_PT = 397.0, 234.0, 640.0
"""Width of the text of ICLR and NeurIPS, of a column of ICML, and height of a page; points, 72.27 per inch."""
LINE_PT, GAP_PT = 11.0, 8.0
"""Distance of lines and of columns at the size `small` of a class of 10 pt."""
FOOTNOTE_SIZE = 8 / 9
"""Width of a letter at the size `footnotesize`, relative to `small`."""
HEAD_LINES = 4
"""Height of the rules and spaces of a tabular, in lines."""


def to_latex(table: Table) -> str:
    """Return floats of booktabs tabulars; the preamble needs only ``\\usepackage{booktabs}``.

    A table that fits a column is a ``table``. Others are a ``table*`` as wide as the text, in smaller letters if they
    do not fit it. Columns that still do not fit follow in panels below; rows that do not fit a page, in further floats.
    """
    whole = _width(table, range(len(table.header)))
    width, environment = (COLUMN_PT, "table") if whole <= COLUMN_PT else (TEXT_PT, "table*")
    size = "small" if whole <= width else "footnotesize"
    # A letter of a caption or a note is less than 5 pt wide.
    lines_of_text = sum(math.ceil(5 * len(text) / width) for text in (f"{table.title} (part 1 of 9).", *table.notes))
    stacked = _panels(table, width / (1 if size == "small" else FOOTNOTE_SIZE)) if table.rows else []
    floats = list(_floats(table, stacked, int(HEIGHT_PT / LINE_PT) - lines_of_text))
    texts = []
    for number, tabulars in enumerate(floats, start=1):
        part = f" (part {number} of {len(floats)})" if len(floats) > 1 else ""
        notes = table.notes if number == len(floats) else ()
        texts += [
            rf"\begin{{{environment}}}[t]",
            r"\centering",
            rf"\caption{{{escape(table.title + part)}.}}\smallskip",
            rf"\{size}\setlength{{\tabcolsep}}{{{GAP_PT / 2:g}pt}}",
            "\n\\par\\medskip\n".join(tabulars),
            *(rf"\par\smallskip{{\footnotesize {escape(note)}\par}}" for note in notes),
            rf"\end{{{environment}}}",
            "",
        ]
    text = "\n".join(texts)
    return text + ("\n" + to_latex(table.reference) if table.reference else "")


def _floats(table: Table, stacked: list[list[int]], max_lines: int) -> Iterator[list[str]]:
    """Yield the tabulars of each float, at least one float: the last has the notes."""
    tabulars: list[str] = []
    num_lines = 0
    for columns in stacked:
        head_lines = HEAD_LINES + max(len(_head(table, i)) for i in columns)
        num_parts = math.ceil(len(table.rows) / max(1, max_lines - head_lines))
        size = math.ceil(len(table.rows) / num_parts)
        for part in range(num_parts):
            rows = table.rows[part * size : (part + 1) * size]
            if tabulars and num_lines + head_lines + len(rows) > max_lines:
                yield tabulars
                tabulars, num_lines = [], 0
            tabulars.append(_tabular(table, columns, rows))
            num_lines += head_lines + len(rows)
    yield tabulars


def _tabular(table: Table, columns: list[int], rows: Iterable[Row]) -> str:
    sides = ["l" if i < table.num_keys else "r" for i in columns]
    heads = [[escape(line) for line in _head(table, i)] for i in columns]
    titles = [
        lines[0] if len(lines) == 1 else rf"\shortstack[{side}]{{" + r" \\ ".join(lines) + "}"
        for side, lines in zip(sides, heads, strict=True)
    ]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{''.join(sides)}}}",
            r"\toprule",
            " & ".join(titles) + r" \\",
            r"\midrule",
            *(" & ".join(_cell(row[i]) for i in columns) + r" \\" for row in rows),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def _panels(table: Table, width: float) -> list[list[int]]:
    """Split the columns into as few panels as fit the width, of about equal width."""
    num_others = len(table.header) - table.num_keys
    for count in range(1, num_others + 1):
        split = list(panels(table, math.ceil(num_others / count)))
        if all(_width(table, columns) <= width for columns in split):
            return split
    return list(panels(table, 1))


def _width(table: Table, columns: Iterable[int]) -> float:
    """Estimate the width of columns beside each other, in points."""

    def letters(text: str) -> float:
        return sum(2.8 if one in " .,:;ijlft'()-" else 7.2 if one.isupper() or one in "mw%±&" else 4.9 for one in text)

    return sum(
        GAP_PT + max(letters(text) for text in (*_head(table, i), *(show(row[i]) for row in table.rows)))
        for i in columns
    )


def _head(table: Table, column: int) -> list[str]:
    """Break a title into lines that are about as wide as the column's cells."""
    longest = max((len(show(row[column])) for row in table.rows), default=0)
    title = table.header[column]
    return textwrap.wrap(title, max(longest, 10), break_long_words=False, break_on_hyphens=False) or [""]


def _cell(item: str | Cell) -> str:
    if isinstance(item, str):
        return escape(item)
    text = re.sub(r"e([+-])0*(\d+)", r" \\cdot 10^{\1\2}", item.text(r" \pm ")).replace("{+", "{")
    text = {"best": rf"\mathbf{{{text}}}", "second": rf"\underline{{{text}}}"}.get(item.emphasis, text)
    mark = {"": "", "*": "^{*}", "†": r"^{\dagger}"}[item.mark]
    number = f"${text}{mark}$" if text else ""
    return f"{number} {escape(item.remark)}".strip() or "--"


# Greek letters that look like Latin ones have no command.
_GREEK = (
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu", "xi",
    "pi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega",
    "Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Upsilon", "Phi", "Psi", "Omega",
)  # fmt: skip
_SIGNS = {
    unicodedata.lookup(
        f"GREEK {'SMALL' if name.islower() else 'CAPITAL'} LETTER {name.upper().replace('LAMBDA', 'LAMDA')}"
    ): rf"\{name}"
    for name in _GREEK
} | {
    "±": r"\pm",
    "†": r"\dagger",
    "·": r"\cdot",
    "\N{MULTIPLICATION SIGN}": r"\times",
    "\N{MICRO SIGN}": r"\mu",
    "\N{MINUS SIGN}": "-",
    "\N{DEGREE SIGN}": r"^\circ",
    "\N{SUPERSCRIPT TWO}": "^2",
    "\N{RIGHTWARDS ARROW}": r"\rightarrow",
    "\N{INFINITY}": r"\infty",
    "\N{ALMOST EQUAL TO}": r"\approx",
    "\N{LESS-THAN OR EQUAL TO}": r"\leq",
    "\N{GREATER-THAN OR EQUAL TO}": r"\geq",
    "<": "<",
    "|": "|",
    ">": ">",
}
_COMMANDS = (
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {character: f"${command}$" for character, command in _SIGNS.items()}
    | {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        # At the start of a row, LaTeX would read one of these as an argument of the line break before.
        "[": "{[}",
        "*": "{*}",
        NO_VALUE: "--",
        "\N{EM DASH}": "---",
        "\N{HORIZONTAL ELLIPSIS}": r"\dots{}",
        "\N{NO-BREAK SPACE}": "~",
    }
)
_ACCENTS = "\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327"
"""Accents that LaTeX can put on letters of any font."""


def escape(text: str) -> str:
    """Write a text as LaTeX.

    Raises:
        ValueError: If it has a character that LaTeX cannot show.
    """
    text = unicodedata.normalize("NFC", text)
    return "".join(_COMMANDS.get(one) or _plain(one, text) for one in text).replace(r" \%", r"~\%")


def _plain(character: str, text: str) -> str:
    """Return a character that LaTeX prints as it is: ASCII, and letters of Latin-1 and Latin Extended-A."""
    parts = unicodedata.normalize("NFD", character)
    has_accent = parts[0].isascii() and set(parts[1:]) <= set(_ACCENTS) and ord(character) < 0x180
    if character.isprintable() and (has_accent or character in "ßæÆøØłŁœŒ"):
        return character
    name = unicodedata.name(character, "a control character")
    raise ValueError(
        f"LaTeX tables cannot show {character!r} ({name}), which came in {text!r}; allowed are Latin and Greek letters "
        "and common signs: write it otherwise, or add its command to _COMMANDS in analysis/latex.py"
    )
