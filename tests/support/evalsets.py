"""Evaluation sets made of noise, in the layouts of real ones, and stand-ins for CLIP models: linear, and guessing."""

import io
import itertools
import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from engine.schema.evaluation import EvalCard
from support.toy import write_tar

SIDE_PX = 8
EMBED_DIM = 24


def picture(seed: int, form: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (12, 9)) -> bytes:
    """A picture of noise."""
    channels = {"RGB": 3, "RGBA": 4, "L": 1}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, channels)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(), mode).save(file, form)
    return file.getvalue()


def npy(row: list[float]) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(row))
    return file.getvalue()


def write_set(folder: Path, samples: list[dict[str, bytes]], *, shards: int = 1, **texts: list[str]) -> None:
    """Write samples (members by extension) evenly into shards, and text files by their stems, a list of lines each."""
    for shard in range(shards):
        first, last = (len(samples) * bound // shards for bound in (shard, shard + 1))
        members = {f"{n:05d}.{ext}": data for n in range(first, last) for ext, data in samples[n].items()}
        write_tar(folder / "test" / f"{shard}.tar", members)
    (folder / "test" / "nshards.txt").write_text(f"{shards}\n")
    for stem, lines in texts.items():
        name = f"{stem}.jsonl" if stem == "instances" else f"{stem}.txt"
        (folder / name).write_text("".join(f"{line}\n" for line in lines))


def card(folder: Path, **facts: object) -> EvalCard:
    """The card of a set that was written to `folder`."""
    given = {
        "name": folder.name, "title": folder.name, "task": "zeroshot_classification", "metric": "acc1",
        "path": str(folder), "chance": 0.1, "licence": "CC0-1.0", "source": "made by the test",
    }  # fmt: skip
    return EvalCard.model_validate(given | facts)


CLASSES = ["cat", "dog", "red panda", "bus", "tea", "oak", "violin"]
TEMPLATES = ["a {c}", "a picture of a {c}", "{c}!"]


def classification(folder: Path, count: int = 40, *, shards: int = 2, seed: int = 0, **facts: object) -> EvalCard:
    """A set with random labels; forms of pictures are mixed."""
    classes = facts.pop("class_names", CLASSES)
    templates = facts.pop("templates", TEMPLATES)
    random = np.random.default_rng(seed)
    samples = []
    for n in range(count):
        form, mode = (("PNG", "RGB"), ("WEBP", "RGB"), ("JPEG", "RGB"), ("PNG", "L"))[n % 4]
        label = str(random.integers(len(classes))).encode()
        samples.append({form.lower(): picture(1000 * seed + n, form, mode), "cls": label})
    texts = {"classnames": classes, "zeroshot_classification_templates": templates}
    write_set(folder, samples, shards=shards, **texts)
    return card(folder, images=count, classes=len(classes), **facts)


def retrieval(folder: Path, lines: list[list[str]], *, shards: int = 2, seed: int = 0, **facts: object) -> EvalCard:
    """A set with the captions given, some lines for every image."""
    samples = [{"png": picture(1000 * seed + n), "txt": "\n".join(texts).encode()} for n, texts in enumerate(lines)]
    write_set(folder, samples, shards=shards, dataset_type=["retrieval"])
    return card(folder, task="zeroshot_retrieval", metric="mean_recall@1", images=len(lines), **facts)


def selection(folder: Path, lines: list[list[str]], *, seed: int = 0) -> EvalCard:
    """A set with the captions given, the right one first."""
    made = retrieval(folder, lines, seed=seed, captions=sum(map(len, lines)))
    return made.model_copy(update={"task": "image_caption_selection", "metric": "text_acc"})


def association(folder: Path, instances: list[dict[str, object]], num_images: int, *, seed: int = 0) -> EvalCard:
    """A set with the instances given; images are called 00000, 00001, ..."""
    samples = [{"jpg": picture(1000 * seed + n, "JPEG")} for n in range(num_images)]
    write_set(folder, samples, shards=3, instances=[json.dumps(instance) for instance in instances])
    return card(folder, task="association", metric="jaccard_score_10-12", images=len(instances))


class LinearClip(torch.nn.Module):
    """Linear in the pixels and in the characters of a text. Norms differ widely, so that unit vectors matter."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.image = torch.nn.Parameter(torch.randn(3 * SIDE_PX**2, EMBED_DIM, generator=random))
        self.text = torch.nn.Parameter(torch.randn(128, EMBED_DIM, generator=random))
        self.num_texts = self.num_images = 0

    def encode_image(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        self.num_images += len(image_BCHW)
        flat = image_BCHW.flatten(1) - 0.5
        return flat @ self.image * flat[:, :1].exp() ** 3

    def encode_text(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        self.num_texts += len(tokens_BT)
        place = torch.linspace(1, 2, tokens_BT.shape[1])[:, None]
        return (self.text[tokens_BT] * place * (tokens_BT > 0)[:, :, None]).sum(dim=1)


class Guesser(torch.nn.Module):
    """Knows nothing: a direction of its own for every picture and every text, whatever they show or say."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed

    def _directions(self, items: torch.Tensor) -> torch.Tensor:
        seeds = [zlib.crc32(item.numpy().tobytes(), self.seed) for item in items]
        return torch.stack([torch.randn(256, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    encode_image = encode_text = _directions


def lowest_of_groups(sizes: list[int], chance: float) -> tuple[float, float]:
    """Mean and second moment of the lowest hit rate over groups of independent guesses."""
    shares = sorted({hits / size for size in sizes for hits in range(size + 1)})

    def at_least(share: float) -> float:
        tails = []
        for size in sizes:
            counts = range(math.ceil(share * size - 1e-9), size + 1)
            tails.append(sum(math.comb(size, k) * chance**k * (1 - chance) ** (size - k) for k in counts))
        return math.prod(tails)

    steps = list(itertools.pairwise([0.0, *shares]))
    mean = sum((high - low) * at_least(high) for low, high in steps)
    square = sum((high**2 - low**2) * at_least(high) for low, high in steps)
    return mean, square


def jaccard_of_guesses(candidates: int, associated: int) -> tuple[float, float]:
    """Mean and second moment of the Jaccard index when as many candidates as are associated are chosen at random."""
    n, k = candidates, associated
    ways = [math.comb(k, hits) * math.comb(n - k, k - hits) / math.comb(n, k) for hits in range(k + 1)]
    mean, square = (sum(way * (hits / (2 * k - hits)) ** p for hits, way in enumerate(ways)) for p in (1, 2))
    return mean, square


def f1_of_guesses(size: int, others: int, chance: float) -> tuple[float, float]:
    """Mean and second moment of a class's F1 score: `size` pictures among `others`, each taken for it with `chance`."""
    hits, false = (
        [math.comb(n, k) * chance**k * (1 - chance) ** (n - k) for k in range(n + 1)] for n in (size, others)
    )
    ways = [(a * b, 2 * h / (size + h + o)) for h, a in enumerate(hits) for o, b in enumerate(false)]
    return sum(way * score for way, score in ways), sum(way * score**2 for way, score in ways)


def transform(image: Image.Image) -> torch.Tensor:
    pixels = np.asarray(image.convert("RGB").resize((SIDE_PX, SIDE_PX)), dtype=np.float32)
    return torch.from_numpy(pixels / 255).permute(2, 0, 1)


def tokenizer(texts: list[str]) -> torch.Tensor:
    rows = [list(text.encode("ascii")[:48]) for text in texts]
    return torch.tensor([row + [0] * (48 - len(row)) for row in rows])


def embed(clip: LinearClip, items: list[bytes] | list[str]) -> np.ndarray:
    """Unit embeddings in double precision, one picture or text at a time."""
    rows = []
    for item in items:
        with torch.no_grad():
            if isinstance(item, str):
                row = clip.encode_text(tokenizer([item]))[0]
            else:
                row = clip.encode_image(transform(Image.open(io.BytesIO(item)).convert("RGB"))[None])[0]
        row = row.double().numpy()
        rows.append(row / np.sqrt(np.sum(row * row)))
    return np.array(rows)
