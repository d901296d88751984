"""Draws all tables and figures that a frame has something for."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.progress import track

from analysis import artifacts, frame, rendering
from engine import files, paths
from engine.schema.base import parse
from engine.schema.suite import Draw, ExpandedSuite


def draw(source: Path, results: Path) -> artifacts.Drawn:
    """Draw a frame ``<suite>.parquet`` into ``tables/<suite>`` and ``figures/<suite>``, and write which there are.

    What is current stays as it is; what the frame has nothing for any more, or the suite leaves out, is removed.

    Args:
        source: The frame.
        results: The folder to write to. Where it has the expanded suite, that says what to leave out.
    """
    rows, suite = frame.read(source), source.stem
    wanted = _wanted(results / paths.suite(suite).relative_to(paths.RESULTS))
    forms: list[tuple[artifacts.Form, str]] = [
        *(("table", name) for name in artifacts.tables()),
        *(("figure", name) for name in artifacts.figures()),
    ]
    folders = {
        form: results / path.relative_to(paths.RESULTS)
        for form, path in {"table": paths.tables(suite), "figure": paths.figures(suite)}.items()
    }
    found: dict[artifacts.Form, list[str]] = {"table": [], "figure": []}
    for form, name in track(forms, f"draw {suite}", console=Console(stderr=True), transient=True):
        folder = folders[form]
        if wanted.wants(name) and (
            rendering.is_current(form, rows, name, folder) or rendering.write(form, rows, name, folder)
        ):
            found[form].append(name)
    for form, names in found.items():
        for sidecar in folders[form].glob("*.json"):
            if sidecar.stem not in names:
                _remove(form, folders[form], sidecar.stem)
    drawn = artifacts.Drawn(
        tables=tuple(found["table"]), figures={name: rendering.figure_title(name) for name in found["figure"]}
    )
    place = results / paths.drawn(suite).relative_to(paths.RESULTS)
    files.write_text(place, json.dumps(drawn.model_dump(mode="json"), indent=2) + "\n")
    return drawn


def _wanted(suite: Path) -> Draw:
    return parse(ExpandedSuite, files.read_text(suite), str(suite)).draw if suite.exists() else Draw()


def _remove(form: artifacts.Form, folder: Path, name: str) -> None:
    """Remove the files of a table or figure, its sidecar last."""
    for end in artifacts.TABLE_SUFFIXES if form == "table" else artifacts.FIGURE_SUFFIXES:
        (folder / f"{name}{end}").unlink(missing_ok=True)
