"""Time to evaluate one model on many sets, relative to clip_benchmark's command line, and the agreement of metrics.

One `python -m engine.evaluate` and one `clip_benchmark eval` for all sets take turns, each in new processes, with the
same weights (random ones of a named model), batches of 64, float32, threads, worker processes and device.
Both processor time (of all processes) and wall time are measured. Sets are named by their cards, if they have
been built, or made up in DataComp's proportions.
"""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from benchmarks import cases, shards
from engine.distributed import choose_device
from engine.schema.evaluation import EvalCard, Evaluation
from engine.training.towers import build_towers, export
from experiments.design import cards
from experiments.fetch.shards import Sample, write_eval_set

BASE = "ours"
STOCK = "clip_benchmark"
PHOTO_PX = 400
RECALL_K = (1, 5, 10)
LEAST_PICTURES = 100 * RECALL_K[-1]
"""Of `datacomp_like`, a hundredth of which is for retrieval: clip_benchmark finds no k nearest among fewer."""
RETRIEVAL_NAMES = ("flickr30k", "flickr8k", "mscoco_captions", "flickr30k-200", "crossmodal3600", "xtd10", "xtd200")
"""Names by which clip_benchmark knows that a set is for retrieval; it has no other sign."""


def run(command: list[str], threads: int, device: str) -> None:
    """Run a command with so many threads.

    Raises:
        RuntimeError: If it fails; with the end of its error output.
    """
    limit = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    # clip_benchmark takes a GPU wherever it sees one.
    seen = {} if device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
    environment = os.environ | limit | seen | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")


def datacomp_like(num_pictures: int, folder: Path) -> list[EvalCard]:
    """Write twelve sets of made-up photographs, in the proportions of DataComp's 38.

    24 % of DataComp's pictures are of ImageNet and its variants, 1 % of retrieval. It has half as many prompts as
    pictures; nine tenths of them are ImageNet's, which its variants repeat.

    Returns:
        Their cards.
    """
    rng = np.random.default_rng(0)
    prompts = num_pictures // 16  # of each of ImageNet's seven, in templates of eight
    plan: list[tuple[str, int, list[str], list[str]]] = []
    for number in range(7):
        classes = [f"{shards.caption(np.random.default_rng(n)).decode()} {n}" for n in range(max(1, prompts // 8))]
        plan.append((f"variant_{number}", int(0.24 * num_pictures / 7), classes, [f"{n}. a {{c}}" for n in range(8)]))
    for number in range(4):
        classes = [f"{shards.caption(rng).decode()} {n}" for n in range(max(1, num_pictures // 160))]
        plan.append((f"other_{number}", int(0.75 * num_pictures / 4), classes, ["a {c}", "a picture of {c}"]))
    plan.append(("pairs", max(1, num_pictures // 100), [], []))
    sets = []
    for name, count, classes, templates in plan:
        texts = {"classnames.txt": classes, "zeroshot_classification_templates.txt": templates}
        if not classes:
            texts = {"dataset_type.txt": ["retrieval"]}

        def sample(row: int, num_classes: int = len(classes)) -> Sample:
            captions = b"\n".join(shards.caption(rng) for _ in range(5))
            text = {"cls": str(row % num_classes).encode()} if num_classes else {"txt": captions}
            return {"jpg": shards.picture(rng, PHOTO_PX), **text}

        path = folder / name
        write_eval_set(path, map(sample, range(count)), count, 4, "test", texts)
        task, metric = ("zeroshot_classification", "acc1") if classes else ("zeroshot_retrieval", "mean_recall@1")
        facts = {"task": task, "metric": metric, "images": count, "chance": 0.0, "licence": "none", "source": "made up"}
        sets.append(EvalCard.model_validate({"name": name, "title": name, "path": str(path), **facts}))
    return sets


def commands(
    sets: list[EvalCard], model: Path, folder: Path, *, threads: int = 1, num_workers: int = 0, device: str = "cpu"
) -> dict[str, list[str]]:
    """Return both ways' commands; results go to ``<folder>/<way>/<set>.json``, the set by its name for that way."""
    for card in sets:
        (folder / "roots").mkdir(exist_ok=True)
        (folder / "roots" / _alias(card, sets)).symlink_to(Path(card.path).resolve())
    evaluation = folder / "evaluation.json"
    evaluation.write_text(Evaluation(name="x", sets={card.name: card for card in sets}, averages={}).model_dump_json())
    (folder / STOCK).mkdir()
    return {
        BASE: [
            sys.executable, "-m", "engine.evaluate", "--open-clip", f"local-dir:{model}",
            "--evaluation", str(evaluation), "--out", f"{folder}/{BASE}",
            "--execution", json.dumps({"device": device, "threads": threads, "num_workers": num_workers}),
        ],
        STOCK: [
            str(Path(sys.executable).with_name("clip_benchmark")), "eval", "--model", f"local-dir:{model}",
            "--dataset", *(f"wds/{_alias(card, sets)}" for card in sets),
            "--dataset_root", f"{folder}/roots/{{dataset}}",
            "--recall_k", *map(str, RECALL_K), "--no_amp", "--num_workers", str(num_workers), "--batch_size", "64",
            "--output", f"{folder}/{STOCK}/{{dataset}}.json",
        ],
    }  # fmt: skip


def _alias(card: EvalCard, sets: list[EvalCard]) -> str:
    """Return the name of a set by which clip_benchmark knows its task."""
    retrieval = [each.name for each in sets if each.task == "zeroshot_retrieval"]
    return RETRIEVAL_NAMES[retrieval.index(card.name)] if card.name in retrieval else card.name


def largest_difference(sets: list[EvalCard], folder: Path) -> tuple[float, int]:
    """Return the largest absolute difference of clip_benchmark's metrics from ours, and how many were compared."""
    differences = []
    for card in sets:
        ours, stock = (
            json.loads((folder / way / f"{name}.json").read_text())["metrics"]
            for way, name in ((BASE, card.name), (STOCK, _alias(card, sets)))
        )
        differences += [abs(ours[name] - value) for name, value in stock.items() if not math.isnan(value)]
    return max(differences), len(differences)


def main(argv: list[str] | None = None) -> None:
    """Measure, print a table, write the file."""
    parser = cases.parser(__doc__, "rounds", "device", rounds=3)
    parser.add_argument("--sets", nargs="+", default=[], metavar="NAME", help="cards of evaluation sets")
    parser.add_argument("--datacomp", type=int, metavar="N", help="N made-up photographs in DataComp's proportions")
    parser.add_argument("--model", default="tiny-resnet", help="open_clip model")
    parser.add_argument("--threads", type=int, default=1, help="of every process of every way")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode, in every way")
    args = parser.parse_args(argv)
    if not (args.sets or args.datacomp):
        parser.error("give --sets or --datacomp")
    if args.datacomp is not None and args.datacomp < LEAST_PICTURES:
        parser.error(f"--datacomp {args.datacomp}: give {LEAST_PICTURES} or more, for recall at {RECALL_K[-1]}")
    device = choose_device(args.device)
    sets = [cards.eval_set(name) for name in args.sets]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        towers, scale = build_towers(args.model, seed=0), torch.tensor(20.0)
        export(towers, args.model, folder / "model", logit_scale=scale, logit_bias=None)
        if args.datacomp:
            sets += datacomp_like(args.datacomp, folder / "datacomp")
        how = {"threads": args.threads, "num_workers": args.workers, "device": device.type}
        ways = commands(sets, folder / "model", folder, **how)

        def ours() -> None:
            # It skips sets that have results.
            shutil.rmtree(folder / BASE, ignore_errors=True)
            run(ways[BASE], args.threads, device.type)

        turns: dict[str, Callable[[], None]] = {
            BASE: ours,
            STOCK: functools.partial(run, ways[STOCK], args.threads, device.type),
        }
        seconds = cases.take_turns(turns, args.rounds, unmeasured=0)
        difference, compared = largest_difference(sets, folder)
    rows: list[dict[str, Any]] = []
    title = f"{len(sets)} sets, {args.model}, {device.type}"
    table = Table("", "processor s", f"/ {BASE}", "wall s", f"/ {BASE}", title=title)
    for way in turns:
        row: dict[str, Any] = {"way": way}
        shown = []
        for kind in cases.Seconds._fields[::-1]:
            times, base = ([getattr(turn, kind) for turn in seconds[of]] for of in (way, BASE))
            row |= {f"{kind}_sec": times, f"{kind}_to_ours": cases.ratio(times, base)}
            shown += [f"{statistics.median(times):.1f}", cases.show_ratio(row[f"{kind}_to_ours"])]
        rows.append(row)
        table.add_row(way, *shown)
    cases.show(table)
    print(f"largest difference of {compared} metrics: {difference:.1e}")
    rows.append({"largest_difference": difference, "compared": compared})
    cases.write_json(args.json, args, device, rows)


if __name__ == "__main__":
    main()
