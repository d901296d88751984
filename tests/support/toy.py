"""A toy training set and toy evaluation sets: coloured squares with their names, in the formats of real ones."""

import io
import itertools
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from engine import files, paths
from engine.data.index import build_index
from engine.schema.evaluation import EvalCard, Evaluation
from engine.schema.run import CaptionSource, RunSpec
from support.methods import resolve_config, source

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 70, 220), "yellow": (230, 210, 50)}
PLACES = {"top left": (4, 4), "top right": (4, 18), "bottom left": (18, 4), "bottom right": (18, 18)}
NUM_PAIRS = 96


def picture(colour: str, place: str, number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(200, 256, (32, 32, 3)).astype(np.uint8)
    top, left = PLACES[place]
    pixels[top : top + 10, left : left + 10] = COLOURS[colour]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def pairs() -> list[tuple[str, str, int]]:
    kinds = list(itertools.product(COLOURS, PLACES))
    return [(*kinds[i % len(kinds)], i) for i in range(NUM_PAIRS)]


def write_shards(folder: Path, shard_sizes: tuple[int, ...] = (40, 30, 26)) -> None:
    assert sum(shard_sizes) == NUM_PAIRS
    rest = iter(pairs())
    for shard, size in enumerate(shard_sizes):
        members = {}
        for colour, place, number in itertools.islice(rest, size):
            members[f"{number:06d}.png"] = picture(colour, place, number)
            members[f"{number:06d}.txt"] = f"a {colour} square, {place}".encode()
        write_tar(folder / f"{shard:05d}.tar", members)


def build(root: Path) -> None:
    """Write the toy set below `root` and its index where a run with that working directory looks for it."""
    write_shards(root / "data" / "toy" / "train")
    index(root)


def index(root: Path) -> None:
    """Write the index of the toy set."""
    out = root / paths.index("toy")
    build_index("toy", "1", root / "data" / "toy" / "train", CaptionSource(), out, pairs=NUM_PAIRS)


def build_evaluation(root: Path) -> Evaluation:
    """Write a classification and a retrieval set below `root`; returns them as an evaluation."""
    samples = [(c, p, 1000 + i) for i, (c, p) in enumerate(itertools.product(COLOURS, PLACES))]
    colours = list(COLOURS)
    classification, retrieval = root / "data/toy/evals/toy_colours", root / "data/toy/evals/toy_retrieval"
    members, captions = {}, {}
    for colour, place, number in samples:
        members |= {
            f"{number}.png": picture(colour, place, number),
            f"{number}.cls": str(colours.index(colour)).encode(),
        }
        captions |= {
            f"{number}.png": picture(colour, place, number),
            f"{number}.txt": f"a {colour} square, {place}".encode(),
        }
    write_tar(classification / "test" / "0.tar", members)
    write_tar(retrieval / "test" / "0.tar", captions)
    (classification / "classnames.txt").write_text("\n".join(colours))
    (classification / "zeroshot_classification_templates.txt").write_text("a {c} square\na square that is {c}")
    (retrieval / "dataset_type.txt").write_text("retrieval")
    for folder in (classification, retrieval):
        (folder / "test" / "nshards.txt").write_text("1")
    about = {"licence": "CC0-1.0", "source": "made by the test", "images": len(samples)}
    colours_card = EvalCard(
        name="toy_colours", title="Colours", task="zeroshot_classification", metric="acc1", path=str(classification),
        classes=len(colours), chance=0.25, **about,
    )  # fmt: skip
    retrieval_card = EvalCard(
        name="toy_retrieval", title="Retrieval", task="zeroshot_retrieval", metric="mean_recall@1", path=str(retrieval),
        captions=len(samples), chance=1 / 16, **about,
    )  # fmt: skip
    cards = {card.name: card for card in (colours_card, retrieval_card)}
    return Evaluation(name="toy", sets=cards, averages={"Average": tuple(cards)})


OPTIONS = {
    "neuclip": {"num_prototypes": 24, "restart_period": 4, "num_updates": 2, "rho": 1.0},
    "neuclip_average": {"rho": 1.0},
    "neuclip_batch": {"rho": 1.0},
    "neuclip_exact": {"num_prototypes": 24, "rho": 1.0},
    "neuclip_queue": {"num_prototypes": 24, "rho": 1.0},
    "fastclip": {"rho": 1.0, "gamma_min": 0.5},
    "amorlip": {"rho": [1.0, -1.0]},
}


def run_spec(
    method: str,
    *,
    steps: int = 10,
    batch: int = 16,
    seed: int = 0,
    options: dict[str, object] | None = None,
    **changes: object,
) -> RunSpec:
    """A tiny run on the toy set: six steps are one epoch. `options` change the method's."""
    spec = {
        "method": {
            "name": method,
            "config": resolve_config(method, OPTIONS.get(method, {}) | (options or {})).model_dump(mode="json"),
            "source": source(method),
        },
        "dataset": {"name": "toy", "revision": "1", "pairs": NUM_PAIRS},
        "model": {"name": "tiny-vit"},
        "global_batch_size": batch,
        "samples_seen": steps * batch,
        "milestones": (steps * batch,),
        "optimizer": {"lr": 1e-3, "warmup_steps": 2},
        "augmentation": {"kind": "shift"},
        "normalizer_error": {"at": (steps * batch,), "num_anchors": 32, "control_size": 16},
        "seed": seed,
    }
    return RunSpec.model_validate(spec | changes)


def write_spec(root: Path, spec: RunSpec) -> Path:
    path = root / paths.spec(spec.run_id)
    files.write_text(path, spec.model_dump_json(indent=1))
    return path


def encode_pictures(image_BCHW: Tensor, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings that tell every pair apart, and most so well that g is far below 1e-6 at a temperature of 0.01."""
    projection = torch.randn(image_BCHW[0].numel(), 32, generator=torch.Generator().manual_seed(0))
    flat_BP = image_BCHW.flatten(1) / 255
    image_BD = normalize((flat_BP - flat_BP.mean(dim=1, keepdim=True)) @ projection, dim=1)
    return image_BD, normalize(image_BD + 0.05 * image_BD.roll(1, dims=1), dim=1)
