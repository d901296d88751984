"""What takes seconds in expanding a suite, remembered: it imports torch or scipy, or counts through a billion pairs.

A run's id covers every option of its method with its default written out, and defaults stand in the method's own file,
beside code that imports torch. So an answer is kept in one file, for as long as no code changes that it can depend on.
All else is read anew in each expansion: suites, cards, models, files of one's own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import JsonValue

from engine import files, paths, registry
from engine.schema.base import Sealed, fingerprint, parse
from engine.schema.run import MethodSource, RunSpec
from engine.versions import ROOT
from experiments.design import cards, tuning

_SOURCES = ("baselines", "engine", "experiments/design", "neuclip")


def sources_sha256() -> str:
    """Digest of all code in this repository that an answer can depend on."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in _SOURCES for path in (ROOT / folder).rglob("*.py")):
        digest.update(f"{path.relative_to(ROOT)}\0{files.file_sha256(path)}\n".encode())
    return digest.hexdigest()


class _Kept(Sealed):
    """The file of answers."""

    sources_sha256: str
    answers: dict[str, JsonValue]


class Answers:
    """Asks what needs a heavy package, each question once. A `with` block reads answers from a file and keeps new ones.

    Args:
        path: The file; None keeps them in this process alone.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._sources = "" if path is None else sources_sha256()
        self._answers: dict[str, JsonValue] = {}
        self._num_kept = 0

    @classmethod
    def of_folder(cls) -> Answers:
        """Return those that all commands in this folder share."""
        return cls(paths.answers())

    def __enter__(self) -> Self:
        if self._path is not None and self._path.exists():
            try:
                kept = parse(_Kept, files.read_text(self._path), str(self._path))
            except ValueError:
                return self  # of another version, or damaged: asked again
            if kept.sources_sha256 == self._sources:
                self._answers = dict(kept.answers)
                self._num_kept = len(self._answers)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._path is not None and len(self._answers) > self._num_kept:
            kept = _Kept(sources_sha256=self._sources, answers=self._answers)
            files.write_text(self._path, kept.sealed().model_dump_json() + "\n")

    def _ask(self, find: Callable[[], JsonValue], *question: JsonValue) -> Any:
        key = fingerprint(list(question))
        if key not in self._answers:
            self._answers[key] = find()
        return self._answers[key]

    def source(self, reference: str, folder: Path) -> MethodSource:
        """Return the source of a method of one's own, of which a copy is kept, as `registry.keep` does.

        Raises:
            ValueError: If there is no such method.
        """
        name, _, class_name = reference.rpartition(":")
        file = folder / name
        sha256 = files.file_sha256(file) if file.is_file() else ""
        copy = paths.method(sha256)

        def find() -> JsonValue:
            return registry.keep(reference, folder).model_dump(mode="json")

        if not sha256 or not copy.exists() or files.file_sha256(copy) != sha256:
            return MethodSource.model_validate(find())
        return MethodSource.model_validate(self._ask(find, "source", class_name, sha256))

    def config(self, method: str, options: dict[str, JsonValue], source: MethodSource | None) -> dict[str, JsonValue]:
        """Return a method's options with its defaults filled in.

        Raises:
            ValueError: If one is unknown or wrong.
        """

        def find() -> JsonValue:
            return registry.resolve_config(method, options, source).model_dump(mode="json")

        config: dict[str, JsonValue] = self._ask(find, "config", method, options, _said(source))
        return config

    def num_extra_pairs(self, spec: RunSpec, embed_dim: int) -> int:
        """Return the `Method.num_extra_pairs` of a run, from a method without memory."""
        method = spec.method

        def asks() -> JsonValue:
            from engine.method import Method  # here: it imports torch

            return registry.method_class(method.name, method.source).num_extra_pairs is not Method.num_extra_pairs

        def find() -> JsonValue:
            import torch

            from engine.method import MethodEnv

            with torch.device("meta"):
                return registry.build_method(method, MethodEnv.of(spec, embed_dim)).num_extra_pairs

        if not self._ask(asks, "asks for pairs", method.name, _said(method.source)):
            return 0
        sizes: list[JsonValue] = [embed_dim, spec.dataset.pairs, spec.global_batch_size, spec.num_steps, spec.seed]
        return int(self._ask(find, "extra pairs", method.model_dump(mode="json"), sizes))

    def points(self, space: tuning.Space, trials: int) -> list[tuning.Settings]:
        """Return the settings of each trial, see `tuning.points`."""
        # The order of the settings counts: each has its own dimension of the sequence.
        said: list[JsonValue] = [[name, each.model_dump(mode="json")] for name, each in space.items()]
        found: list[tuning.Settings] = self._ask(lambda: tuning.points(space, trials), "points", said, trials)  # type: ignore[arg-type,return-value]
        return found

    def subset(self, card: cards.DatasetCard, fraction: float) -> cards.DatasetCard:
        """Return the card of a part of a training set, see `cards.subset`."""
        pairs = self._ask(lambda: cards.subset_size(card.pairs, fraction), "subset", card.pairs, fraction)
        return cards.subset(card, fraction, int(pairs))


def _said(source: MethodSource | None) -> JsonValue:
    return None if source is None else source.model_dump(mode="json")
