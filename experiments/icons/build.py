"""Build the embedded data set: pictures, captions, evaluation sets, and a manifest, in one folder.

The folder appears at once and whole: it is made beside its place and moved there after all checks.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from rich.console import Console
from rich.progress import track

from engine.files import file_sha256, folder_sha256
from experiments.fetch.shards import Sample, write_shards
from experiments.icons import cards, catalogue, licences, render, sets, shards, sources
from experiments.icons.sets import LOOK_ALIKE, SAME_DRAWING, EvalSet, Picture, Size

RECIPE = "1"
"""Raised when the same wheels are to give another data set."""

ENTRIES = frozenset({"LICENSES.md", "evals", "manifest.json", "pictures.tsv", "train"})


class OutputError(ValueError):
    """The output folder holds what is not ours to replace."""


def build(out: Path, *, size: Size, cache: Path, jobs: int, update_cards: bool = False) -> dict[str, Any]:
    """Build a data set into `out`, replacing an earlier one.

    Args:
        out: Folder to make.
        size: Which data set.
        cache: Folder of wheels; missing ones are fetched.
        jobs: Processes that draw; the result does not depend on it.
        update_cards: Rewrite the cards with what was built instead of comparing.

    Returns:
        The manifest.

    Raises:
        OutputError: If `out` holds anything that no build writes.
        SourceError: If a wheel cannot be had.
        CardError: If what was built differs from the cards; `out` is left as it was.
    """

    def fill(folder: Path, wheels: Mapping[str, ZipFile]) -> dict[str, Any]:
        train, evals = _draw(wheels, size, jobs)
        _write(folder, train, evals)
        made = licences.MADE.format(side=render.SIDE_PX)
        (folder / "LICENSES.md").write_bytes(licences.licence_notes(wheels, made=made).encode())
        return manifest(folder, RECIPE, size.name, concepts=len({picture.icon.concept for picture in train}))

    return publish(out, cache, fill, cards.ICONS, update_cards=update_cards)


def publish(
    out: Path,
    cache: Path,
    fill: Callable[[Path, Mapping[str, ZipFile]], dict[str, Any]],
    family: cards.Family,
    *,
    update_cards: bool,
) -> dict[str, Any]:
    """Make a folder of any embedded data set: beside its place, and moved there once its cards say what is in it.

    Args:
        out: Folder to make; an earlier one is replaced.
        cache: Folder of wheels; missing ones are fetched.
        fill: Writes the data set made of these wheels into a folder, and returns its manifest.
        family: What its cards say.
        update_cards: Rewrite the cards with what was built instead of comparing.

    Returns:
        The manifest, which is written as well.

    Raises:
        OutputError, SourceError, CardError: As `build`.
    """
    out = out.resolve()  # a link stays: what it points to is replaced
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file: give an empty or a new folder")
    strangers = sorted(path.name for path in out.iterdir() if path.name not in ENTRIES) if out.exists() else []
    if strangers:
        raise OutputError(
            f"{out} holds {', '.join(strangers[:5])}, which no build writes: give an empty or a new folder"
        )
    wheels = sources.open_wheels(cache)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-unfinished-") as beside:
        folder = Path(beside) / "new"
        folder.mkdir()
        found = fill(folder, wheels)
        (folder / "manifest.json").write_bytes((json.dumps(found, indent=1, sort_keys=True) + "\n").encode())

        made = cards.cards(found, family)
        if update_cards:
            cards.write(made, family)
        else:
            cards.check(made)
        if out.exists():
            out.rename(Path(beside) / "old")
        folder.rename(out)
    return found


def _draw(wheels: Mapping[str, ZipFile], size: Size, jobs: int) -> tuple[list[Picture], dict[str, EvalSet]]:
    parts = sets.split(catalogue.read_icons(wheels), size)
    icons, shifts = zip(*parts.drawings(), strict=True)
    rendered = render.render_all(icons, shifts, catalogue.read_fonts(wheels), jobs=jobs)
    console = Console(stderr=True)
    shown = track(rendered, "drawing", len(icons), console=console, disable=not sys.stderr.isatty())
    pictures = {
        (icon.key, shift): Picture(icon, *drawn)
        for icon, shift, drawn in zip(icons, shifts, shown, strict=True)
        if drawn
    }

    def drawn_of(part: Sequence[catalogue.Icon]) -> list[Picture]:
        return [pictures[icon.key, ""] for icon in part if (icon.key, "") in pictures]

    train = sets.distinct(drawn_of(parts.train), SAME_DRAWING)
    validation = sets.unlike(drawn_of(parts.validation), LOOK_ALIKE, train)
    test = sets.unlike(drawn_of(parts.test), LOOK_ALIKE, train + validation)
    styles = sets.unlike(drawn_of(parts.unseen_styles), LOOK_ALIKE, train + validation)
    all_unseen = sets.unlike(drawn_of(parts.all_unseen), LOOK_ALIKE, train + validation)
    evals = {
        **sets.styles(styles, pictures, train, size),
        "unseen_concepts": sets.unseen_concepts(test, size),
        "modifiers": sets.modifiers(test, size),
        "characters": sets.characters(test, size),
        "families": sets.families(test + all_unseen, size),
        "retrieval": sets.retrieval(test, size),
        "unseen_styles_retrieval": sets.retrieval(all_unseen, size),
        "tags": sets.tags(test, train, size),
        "validation": sets.retrieval(validation, size),
    }
    return sets.shuffled(train), {f"{size.name}_{kind}": chosen for kind, chosen in evals.items()}


def _write(folder: Path, train: list[Picture], evals: dict[str, EvalSet]) -> None:
    table = [("set", "key", "source", "concept")]
    captions = [sets.training_caption(picture.icon) for picture in train]
    samples = [_sample(picture, txt=caption) for picture, caption in zip(train, captions, strict=True)]
    write_shards(folder / "train", samples, len(samples), shards.names(len(samples)))
    table += _rows("train", train)
    for name, chosen in evals.items():
        target = folder / "evals" / name
        shards.write_eval_set(
            target, _eval_samples(chosen), classes=chosen.classes, templates=chosen.templates, tasks=chosen.tasks
        )
        table += _rows(name, chosen.pictures)
    (folder / "pictures.tsv").write_bytes("".join("\t".join(row) + "\n" for row in table).encode())


def _eval_samples(chosen: EvalSet) -> list[Sample]:
    samples = [_sample(picture) for picture in chosen.pictures]
    columns = {
        "cls": [str(label).encode() for label in chosen.labels],
        "txt": [caption.encode() for caption in chosen.captions],
        "npy": [shards.npy(family) for family in chosen.families],
    }
    for extension, column in columns.items():
        for sample, content in zip(samples, column, strict=bool(column)):
            sample[extension] = content
    return samples


def _sample(picture: Picture, **texts: str) -> Sample:
    return {"png": shards.png(picture.pixels)} | {extension: text.encode() for extension, text in texts.items()}


def _rows(name: str, pictures: list[Picture]) -> list[tuple[str, str, str, str]]:
    return [(name, f"{number:06d}", p.icon.key, p.icon.concept) for number, p in enumerate(pictures)]


def manifest(folder: Path, recipe: str, name: str, **counts: int) -> dict[str, Any]:
    """Read back what was written, check it, count it, and list it.

    Args:
        folder: A data set, but for its manifest.
        recipe: Raised when the same wheels are to give another data set.
        name: The data set's.
        counts: Further numbers of the training set.

    Raises:
        LayoutError: If an evaluation set is not what its readers expect.
    """
    names = sorted(path.name for path in (folder / "train").iterdir())
    captions = [sample["txt"].decode() for shard in names for sample in shards.read_shards(folder / "train", [shard])]
    digests = {
        path.relative_to(folder).as_posix(): file_sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }
    evals = {}
    for path in sorted((folder / "evals").iterdir()):
        evals[path.name] = {**shards.check_eval_set(path), "sha256": folder_sha256(path)}
    return {
        "recipe": recipe,
        "name": name,
        "wheels": {
            wheel.project: {"version": wheel.version, "sha256": wheel.sha256} for wheel in sources.pinned_wheels()
        },
        "train": {"pairs": len(captions), "captions": len(set(captions)), **counts, "shards": len(names)},
        "evals": evals,
        "files": digests,
    }
