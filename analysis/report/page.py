"""Writes a report as one HTML file that needs no network: style, script and figures are inside."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from analysis.report import curves
from analysis.report.content import Report
from analysis.table import Cell, show

SCRIPTS = ("vendor/sortable.min.js", "templates/page.js")


def render(report: Report) -> str:
    """Return the page.

    Names and messages in results may come from anywhere. So all text is escaped, and the page's policy forbids the
    browser to load anything and to run any script but the two inside, which it names by their digests.
    """
    environment = Environment(
        loader=PackageLoader("analysis.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": _cell, "sort_key": _sort_key, "anchor": _anchor}
    environment.filters |= {"breakable": _breakable, "unbroken": _unbroken}
    scripts = [_read(name) for name in SCRIPTS]
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    text = environment.get_template("report.html").render(
        report=report,
        css=Markup(_read("templates/page.css")),
        scripts=[Markup(script) for script in scripts],
        digests=digests,
        curve_width=curves.WIDTH,
        curve_height=curves.HEIGHT,
    )
    return text.rstrip() + "\n"


def _read(name: str) -> str:
    return (resources.files("analysis.report") / name).read_text(encoding="utf-8")


def _cell(item: str | Cell) -> Markup:
    return Markup(show(item, best="<strong>{}</strong>", second="<u>{}</u>", escape=escape))


def _sort_key(item: str | Cell) -> str:
    """Return a cell's sorting key: all digits of a number; a cell without one comes last."""
    if isinstance(item, str):
        return item
    return "" if item.value is None or math.isnan(item.value) else repr(float(item.value)).replace("inf", "Infinity")


def _breakable(name: str) -> Markup:
    """Let a long name break between its parts."""
    return Markup("<wbr>").join(re.split("(?<=[/_.])", name))


def _unbroken(sentence: str) -> str:
    """Keep numbers on one line with their units or signs."""
    return re.sub(" (?=[%=<])|(?<=[=<]) ", "\N{NO-BREAK SPACE}", sentence)


def _anchor(*parts: Any) -> str:
    """Return the id of a place on the page."""
    return "--".join("".join(c if c.isalnum() or c in "-_.@" else "-" for c in str(part)) for part in parts)
