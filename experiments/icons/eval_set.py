"""An evaluation set of an embedded data set: what it holds, what is counted of it, and how it is written."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from experiments.fetch.shards import Sample, write_eval_set

NUM_EVAL_SHARDS = 4
"""clip_benchmark's command line reads with four workers, and webdataset refuses more workers than shards."""


class Drawn(Protocol):
    """Something with a picture."""

    @property
    def png(self) -> bytes:
        """The picture as a PNG file."""


DrawnT = TypeVar("DrawnT", bound=Drawn)


@dataclass(frozen=True)
class EvalSet(Generic[DrawnT]):
    """Pictures and what they are tested with: labels into `classes`, captions, or association tasks."""

    pictures: list[DrawnT]
    captions: list[list[str]] = field(default_factory=list)
    """Of each picture; of several, the first is the right one."""
    labels: list[int] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    templates: tuple[str, ...] = ()
    families: list[int] = field(default_factory=list)
    """The source of each picture, numbered in the order of their names, where families are compared."""
    tasks: list[dict[str, Any]] = field(default_factory=list)
    """Association tasks as `engine.evaluation.reading.Instance` has them."""

    @property
    def counts(self) -> dict[str, Any]:
        """Number of ``images``, and of ``classes``, ``captions`` or ``tasks``.

        ``families``, if they are compared, has the number of images of each. ``choices`` are the captions of each
        picture, if there are several.
        """
        counted: dict[str, Any] = {"images": len(self.pictures)}
        for name in ("classes", "tasks"):
            if getattr(self, name):
                counted[name] = len(getattr(self, name))
        if self.captions:
            counted["captions"] = sum(map(len, self.captions))
            if len(self.captions[0]) > 1:
                counted["choices"] = len(self.captions[0])
        if self.families:
            counted["families"] = [count for _, count in sorted(Counter(self.families).items())]
        return counted

    def write(self, folder: Path) -> None:
        """Write the set as `engine.evaluation.reading` reads it."""
        # What the reader passes over in silence.
        assert len(set(self.classes)) == len(self.classes), "no class comes twice"
        assert set(self.labels) == set(range(len(self.classes))), "every class has pictures"
        assert len({right for right, *_ in self.captions}) == len(self.captions), "no two pictures share a caption"
        samples: list[Sample] = [{"png": picture.png} for picture in self.pictures]
        columns = {
            "cls": [str(label).encode() for label in self.labels],
            "txt": ["\n".join(some).encode() for some in self.captions],
            "npy": [_npy(family) for family in self.families],
        }
        for extension, column in columns.items():
            for sample, content in zip(samples, column, strict=bool(column)):
                sample[extension] = content
        texts: dict[str, Sequence[str]] = {"dataset_type.txt": ["retrieval"]}
        if self.classes:
            texts = {"classnames.txt": self.classes, "zeroshot_classification_templates.txt": self.templates}
        elif self.tasks:
            texts = {"instances.jsonl": [json.dumps(task, ensure_ascii=False) for task in self.tasks]}
        write_eval_set(folder, samples, len(samples), NUM_EVAL_SHARDS, "test", texts)


def _npy(number: int) -> bytes:
    """Return a row of metadata with one column, as .npy."""
    file = io.BytesIO()
    np.save(file, np.array([number], dtype="<i8"), allow_pickle=False)
    return file.getvalue()
