"""An evaluation set: what it holds, what is counted of it, and how it is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from experiments.fetch.shards import Sample, write_eval_set
from experiments.scenes.language import Scene

NUM_EVAL_SHARDS = 4
"""clip_benchmark's command line reads with four workers, and webdataset refuses more workers than shards."""


class Picture(NamedTuple):
    """A scene as painted."""

    scene: Scene
    png: bytes
    drawings: tuple[str, ...]
    """Keys of the icons in it."""


@dataclass(frozen=True)
class EvalSet:
    """Pictures and what they are tested with: labels into `classes`, or captions."""

    pictures: list[Picture]
    captions: list[list[str]] = field(default_factory=list)
    """Of each picture; of several, the first is the right one."""
    labels: list[int] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    templates: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Number of ``images``, and of ``classes`` or ``captions``."""
        counted = {"images": len(self.pictures), "classes": len(self.classes), "captions": sum(map(len, self.captions))}
        return {what: count for what, count in counted.items() if count}

    @property
    def chance(self) -> float:
        """Score of guessing among the classes, the captions of a picture, or all pictures."""
        return 1 / (len(self.classes) or (len(self.captions[0]) if len(self.captions[0]) > 1 else len(self.pictures)))

    def write(self, folder: Path) -> None:
        """Write the set as `engine.evaluation.reading` reads it."""
        # What the reader passes over in silence.
        assert len(set(self.classes)) == len(self.classes), "no class comes twice"
        assert set(self.labels) == set(range(len(self.classes))), "every class has pictures"
        assert len({right for right, *_ in self.captions}) == len(self.captions), "no two pictures share a caption"
        told = [("cls", str(label)) for label in self.labels] or [("txt", "\n".join(some)) for some in self.captions]
        samples: list[Sample] = [
            {"png": picture.png, extension: text.encode()}
            for picture, (extension, text) in zip(self.pictures, told, strict=True)
        ]
        texts = {"dataset_type.txt": ["retrieval"]}
        if self.classes:
            texts = {"classnames.txt": self.classes, "zeroshot_classification_templates.txt": list(self.templates)}
        write_eval_set(folder, samples, len(samples), NUM_EVAL_SHARDS, "test", texts)
