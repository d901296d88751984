"""Pictures of any kind and damage: the pixels that Pillow alone decodes, or one reason why not.

In training a picture that cannot be decoded is replaced and counted, in an evaluation it is an error that names it.
"""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from support import evalsets, toy
from support.fuzzing import Refused, clear, damaged, judge, share
from torchvision.transforms import v2

from engine.data.index import build_index
from engine.data.loader import PairDataset, Request
from engine.data.pictures import MAX_PIXELS
from engine.evaluation import reading
from engine.evaluation.pictures import ImageBatches
from engine.schema.run import AugmentationSpec, CaptionSource

pytestmark = pytest.mark.slow

SIDE = 32
GOOD = toy.picture("red", "top left", 0)


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def noise(mode: str, size: tuple[int, int]) -> Image.Image:
    """A picture of noise, in any of Pillow's modes that files have."""
    width, height = size
    random = np.random.default_rng(width * height)
    if mode == "I;16":
        return Image.fromarray(random.integers(0, 2**16, (height, width)).astype(np.uint16))
    channels = {"1": 1, "L": 1, "P": 3, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    pixels = random.integers(0, 256, (height, width, channels)).astype(np.uint8)
    whole = {1: "L", 2: "LA", 3: "RGB", 4: "CMYK" if mode == "CMYK" else "RGBA"}[channels]
    return Image.frombytes(whole, size, pixels.tobytes()).convert(mode)


def header(width: int, height: int, depth: int = 8, colour: int = 2, data: bytes = b"") -> bytes:
    """A PNG of any size, with few data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def bomb_of_text() -> bytes:
    """A PNG with a comment that becomes 200 MB."""
    data = b"Comment\x00\x00" + zlib.compress(bytes(200 * 2**20), 9)
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))
    return GOOD[:33] + chunk + GOOD[33:]


SIZES = [(1, 1), (1, 300), (33, 32), (700, 5)]
KINDS = {
    "PNG": ("1", "L", "P", "LA", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("L", "P", "RGB"),
    "BMP": ("1", "L", "P", "RGB"),
}
TURNED = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
FRAMES = [noise("RGB", (40, 36 + n)).resize((40, 36)) for n in range(3)]
PICTURES = {
    f"{form} {mode} {width} x {height}": saved(noise(mode, (width, height)), form)
    for form, modes in KINDS.items()
    for mode in modes
    for width, height in SIZES
} | {
    **{
        f"animated {form}": saved(FRAMES[0], form, save_all=True, append_images=FRAMES[1:])
        for form in ("GIF", "WEBP", "PNG")
    },
    "progressive JPEG": saved(noise("RGB", (60, 50)), "JPEG", progressive=True),
    "turned JPEG": saved(noise("RGB", (60, 50)), "JPEG", exif=TURNED),
    "transparent GIF": saved(noise("P", (30, 30)), "GIF", transparency=3),
    "PNG with transparent colours": saved(noise("P", (30, 30)), "PNG", transparency=bytes(range(200))),
}
BOMBS = {
    "400 megapixels": header(20_000, 20_000),
    "a line of 20,000 pixels": header(20_000, 1, data=bytes(1 + 3 * 20_000)),
    "a line of 5 million pixels": header(5_000_000, 1, 1, 0, bytes(1 + 5_000_000 // 8)),
    "as many as allowed, cut off": header(MAX_PIXELS, 1),
    "no pixels": header(0, 0),
    "2^31 wide": header(2**31 - 1, 2**31 - 1),
    "a comment of 200 MB": bomb_of_text(),
    "a GIF of 65535 x 65535": b"GIF89a\xff\xff\xff\xff\x80\0\0"
    + bytes(6)
    + b",\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;",
}


def decoded(data: bytes) -> Image.Image:
    """What Pillow decodes by itself: the first frame, in RGB; of 16 bits a channel, the upper eight."""
    image = Image.open(io.BytesIO(data))
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


TRANSFORM = v2.Compose([v2.Resize(SIDE, interpolation=v2.InterpolationMode.BICUBIC), v2.CenterCrop(SIDE)])


def trained_on(pictures: list[bytes]) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """What training sees of pictures, and what it says of those that it replaced; the last one is good."""
    members = {}
    for number, data in enumerate([*pictures, GOOD]):
        members |= {f"{number}.png": data or b"x", f"{number}.txt": b"a caption"}
    toy.write_tar(Path("train/0.tar"), members)
    path = Path("index/toy/index.json")
    index = build_index("toy", "1", Path("train"), CaptionSource(), path, pairs=len(pictures) + 1)
    augmentation = AugmentationSpec(kind="none")
    dataset = PairDataset(
        index, path, image_size=SIDE, tokenizer=evalsets.tokenizer, seed=0, cache_bytes=0, augmentation=augmentation
    )
    batch = dataset[Request(0, np.arange(len(pictures)))]
    return batch.image_BCHW.permute(0, 2, 3, 1).numpy(), batch.replaced


def check(pictures: list[bytes]) -> list[bool]:
    """Compare what training sees of pictures with what they are; returns which of them it takes."""
    found = judge(lambda: trained_on(pictures))
    assert not isinstance(found, Refused), found
    seen, replaced = found
    reasons = {int(text.partition("sample ")[2].partition(".")[0]): clear(text, ["0.tar"]) for text in replaced}
    assert all("the image cannot be decoded: " in reason for reason in reasons.values())
    for number in set(range(len(pictures))) - set(reasons):
        pixels = np.asarray(TRANSFORM(decoded(pictures[number])))
        np.testing.assert_array_equal(seen[number], pixels)
    return [number not in reasons for number in range(len(pictures))]


def evaluated(data: bytes) -> torch.Tensor:
    """What an evaluation sees of a picture, through open_clip's transform."""
    samples = [{"png": data or b"x", "txt": b"noise"}, {"png": GOOD, "txt": b"noise"}]
    evalsets.write_set(Path("pets"), samples, dataset_type=["retrieval"])
    card = evalsets.card(Path("pets"), task="zeroshot_retrieval", metric="mean_recall@1", images=2)
    batches = ImageBatches(
        reading.read(card), open_clip.image_transform(SIDE, is_train=False), batch_size=2, num_workers=0
    )
    return next(iter(batches))[0]


def test_pictures_of_all_kinds_are_decoded():
    assert all(check(list(PICTURES.values())))


@pytest.mark.parametrize("name", sorted(BOMBS))
def test_a_picture_that_would_take_too_much_is_refused_or_decoded_within_bounds(name):
    check([BOMBS[name]])
    judge(lambda: evaluated(BOMBS[name]), "pets/test/0.tar, key '00000'")


@share(0.05)
@given(data=st.data())
def test_training_replaces_a_damaged_picture_or_sees_what_it_is(data):
    names = data.draw(st.lists(st.sampled_from(sorted(PICTURES)), min_size=1, max_size=4))
    check([data.draw(damaged(PICTURES[name])) for name in names])


@share(0.03)
@given(data=st.data())
def test_an_evaluation_refuses_a_damaged_picture_or_sees_what_it_is(data):
    damage = data.draw(damaged(PICTURES[data.draw(st.sampled_from(sorted(PICTURES)))]))
    found = judge(lambda: evaluated(damage), "pets/test/0.tar, key '00000'")
    if not isinstance(found, Refused):
        torch.testing.assert_close(found, open_clip.image_transform(SIDE, is_train=False)(decoded(damage)))
