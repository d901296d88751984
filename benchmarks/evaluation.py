"""Time of evaluating one model on small sets, relative to clip_benchmark's command line, and whether metrics agree.

Three ways, in turn, each in processes of its own that start from nothing:

ours       one `python -m engine.evaluate` for all sets
one call   one `clip_benchmark eval` for all sets
per set    one `clip_benchmark eval` for each set

All have the same weights (random ones of a named model), batches, float32, and no worker processes, which cost
clip_benchmark time on sets this small. CPU: processor time with one thread. Run it where the sets of the cards
have been built. Of one set, shifted copies are made (mirrored, grey, ...), since ImageNet's variants ask for the same
classes by the same prompts.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.table import Table

from benchmarks import cases
from engine import eval_data
from engine.evaluation import EvalCard, Evaluation
from engine.towers import build_towers, export
from experiments import cards

BASE = "ours"
STOCK = ("one call", "per set")
SHIFTS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "mirrored": ImageOps.mirror,
    "flipped": ImageOps.flip,
    "grey": ImageOps.grayscale,
    "inverted": ImageOps.invert,
    "solarized": ImageOps.solarize,
    "posterized": lambda image: ImageOps.posterize(image, 2),
}
RETRIEVAL_NAMES = ("flickr30k", "flickr8k", "mscoco_captions", "flickr30k-200", "crossmodal3600", "xtd10", "xtd200")
"""clip_benchmark knows by these names, and only by names, that a set is for retrieval."""


def run(commands: list[list[str]]) -> tuple[float, float]:
    """Run commands one after the other.

    Returns:
        Processor and wall seconds, of all together.

    Raises:
        RuntimeError: If one fails; with the end of what it said.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    before, begin = os.times(), time.perf_counter()
    for command in commands:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    after = os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return processor, time.perf_counter() - begin


def shifted(card: EvalCard, name: str, folder: Path) -> EvalCard:
    """Write a copy of a set with shifted pictures into `folder`; returns its card."""
    data = eval_data.read(card)
    shutil.copytree(card.path, folder, ignore=lambda *_: ["test"])
    (folder / "test").mkdir()
    (folder / "test" / "nshards.txt").write_text("1\n")
    with tarfile.open(folder / "test" / "0.tar", "w") as archive:
        for number, (at, label) in enumerate(zip(data.locations, data.labels.tolist(), strict=True)):
            file = io.BytesIO(at.shard.read_bytes()[at.offset : at.offset + at.size])
            picture = io.BytesIO()
            SHIFTS[name](Image.open(file).convert("RGB")).save(picture, "PNG")
            for extension, content in (("png", picture.getvalue()), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{number:06d}.{extension}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return card.model_copy(update={"name": f"{card.name}_{name}", "path": str(folder), "sha256": None})


def aliases(sets: list[EvalCard]) -> dict[str, str]:
    """Name the sets so that clip_benchmark finds their tasks: ours to its."""
    names = iter(RETRIEVAL_NAMES)
    return {card.name: next(names) if card.task == "zeroshot_retrieval" else card.name for card in sets}


def commands(sets: list[EvalCard], model: Path, folder: Path) -> dict[str, list[list[str]]]:
    """Return each way's commands; results go to ``<folder>/<way>/<set>.json``."""
    names = aliases(sets)
    for card in sets:
        (folder / "roots").mkdir(exist_ok=True)
        (folder / "roots" / names[card.name]).symlink_to(Path(card.path).resolve())
    evaluation = folder / "evaluation.json"
    evaluation.write_text(Evaluation(name="x", sets={card.name: card for card in sets}, averages={}).model_dump_json())

    def stock(way: str, chosen: list[EvalCard]) -> list[str]:
        (folder / way).mkdir(exist_ok=True)
        return [
            str(Path(sys.executable).with_name("clip_benchmark")), "eval", "--model", f"local-dir:{model}",
            "--dataset", *(f"wds/{names[card.name]}" for card in chosen),
            "--dataset_root", f"{folder}/roots/{{dataset}}",
            "--recall_k", "1", "5", "10", "--no_amp", "--num_workers", "0", "--batch_size", "64",
            "--output", f"{folder}/{way}/{{dataset}}.json",
        ]  # fmt: skip

    ours = [
        sys.executable, "-m", "engine.evaluate", "--open-clip", f"local-dir:{model}", "--evaluation", str(evaluation),
        "--out", f"{folder}/{BASE}",
    ]  # fmt: skip
    return {
        BASE: [ours],
        "one call": [stock("one call", sets)],
        "per set": [stock("per set", [card]) for card in sets],
    }


def largest_difference(sets: list[EvalCard], ways: list[str], folder: Path) -> tuple[float, int]:
    """Compare every metric of clip_benchmark's ways with ours.

    Returns:
        The largest absolute difference, and how many numbers were compared.
    """
    differences = []
    for card in sets:
        ours = json.loads((folder / BASE / f"{card.name}.json").read_text())["metrics"]
        for way in ways:
            stock = json.loads((folder / way / f"{aliases(sets)[card.name]}.json").read_text())["metrics"]
            differences += [abs(ours[name] - value) for name, value in stock.items() if not math.isnan(value)]
    return max(differences), len(differences)


def main(argv: list[str] | None = None) -> None:
    """Measure, print a table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", required=True, metavar="NAME", help="cards of evaluation sets")
    parser.add_argument("--shift", metavar="NAME", help="card of the set to make shifted copies of")
    parser.add_argument("--ways", nargs="+", choices=STOCK, default=STOCK, help="of clip_benchmark, beside ours")
    parser.add_argument("--model", default="tiny-resnet", help="open_clip model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what was measured, and where")
    args = parser.parse_args(argv)
    sets = [cards.eval_set(name) for name in args.sets]
    seconds: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export(
            build_towers(args.model, seed=0),
            args.model,
            folder / "model",
            logit_scale=torch.tensor(20.0),
            logit_bias=None,
        )
        if args.shift:
            shift = cards.eval_set(args.shift)
            sets += [shifted(shift, how, folder / "shifts" / how) for how in SHIFTS]
        ways = commands(sets, folder / "model", folder)
        for _ in range(args.rounds):
            for path in (folder / BASE).glob("*.json"):
                path.unlink()
            for way in (BASE, *args.ways):
                seconds.setdefault(way, []).append(run(ways[way]))
        difference, compared = largest_difference(sets, args.ways, folder)
    rows: list[dict[str, Any]] = []
    table = Table("", "processor s", "wall s", f"processor, / {BASE}", title=f"{len(sets)} sets, {args.model}")
    for way, times in seconds.items():
        processor, wall = (list(part) for part in zip(*times, strict=True))
        ratio = cases.ratio(processor, [time for time, _ in seconds[BASE]])
        rows.append({"way": way, "processor_sec": processor, "wall_sec": wall, "to_ours": ratio})
        medians = (f"{statistics.median(part):.1f}" for part in (processor, wall))
        table.add_row(way, *medians, cases.show_ratio(ratio))
    console = Console()
    console.print(table)
    console.print(f"largest difference of {compared} metrics: {difference:.1e}")
    rows.append({"largest_difference": difference, "compared": compared})
    cases.write_json(args.json, args, torch.device("cpu"), rows)


if __name__ == "__main__":
    main()
