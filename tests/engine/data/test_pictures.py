"""Pictures that would take more memory than is stated are refused by their headers, before they are decoded."""

import struct
import zlib

import pytest
from support import evalsets, toy

from engine import paths
from engine.data.index import build_index
from engine.data.loader import PairDataset, Request
from engine.data.pictures import MAX_PIXELS, open_picture
from engine.evaluation import reading
from engine.evaluation.runner import Model, answer_set
from engine.schema.run import AugmentationSpec, CaptionSource


def header(width, height):
    """A PNG whose pixels were left out: whoever decodes it says that it is cut off."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


LARGE = header(13_000, 13_000)
TOO_LARGE = r"13000 x 13000 pixels, at most 89,478,485 are decoded"


def test_the_limit_is_the_number_of_pixels():
    assert open_picture(header(6_235, MAX_PIXELS // 6_235)).size == (6_235, MAX_PIXELS / 6_235)
    with pytest.raises(ValueError, match=f"{MAX_PIXELS + 1} x 1 pixels, at most"):
        open_picture(header(MAX_PIXELS + 1, 1))
    with pytest.raises(ValueError, match="more than 89,478,485 pixels"):
        open_picture(header(20_000, 20_000))
    with pytest.raises(ValueError, match="unknown format"):
        open_picture(b"no picture")


def test_an_evaluation_refuses_a_picture_that_is_too_large(tmp_path):
    samples = [{"png": evalsets.picture(n), "txt": b"noise"} for n in range(2)] + [{"png": LARGE, "txt": b"large"}]
    evalsets.write_set(tmp_path / "pets", samples, dataset_type=["retrieval"])
    card = evalsets.card(tmp_path / "pets", task="zeroshot_retrieval", metric="mean_recall@1", images=3)
    model = Model(evalsets.LinearClip(), evalsets.transform, evalsets.tokenizer, "cpu")
    with pytest.raises(ValueError, match=rf"0\.tar, key '00002': the image cannot be decoded \({TOO_LARGE}"):
        answer_set(reading.read(card), model)


def test_training_replaces_a_picture_that_is_too_large_and_says_why(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    members = {"0.png": LARGE, "0.txt": b"large", "1.png": toy.picture("red", "top left", 1), "1.txt": b"red"}
    toy.write_tar(tmp_path / "shards" / "00000.tar", members)
    path, plain = paths.index("mixed"), AugmentationSpec(kind="none")
    index = build_index("mixed", "1", tmp_path / "shards", CaptionSource(), path, pairs=2)
    data = PairDataset(
        index, path, image_size=32, tokenizer=evalsets.tokenizer, augmentation=plain, seed=0, cache_bytes=0
    )
    (why,) = data[Request(0, index.starts[:1])].replaced
    assert why.startswith("shard 00000.tar, sample 0.png: the image cannot be decoded: 13000 x 13000 pixels, at most")
