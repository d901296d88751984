"""Parquet files with pictures become shards that training reads."""

import errno
import io
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from engine import files, paths
from engine.data.index import build_index, caption_texts, read_index
from experiments.design import cards
from experiments.fetch import shard_parquet


def picture(number, kind):
    with io.BytesIO() as file:
        Image.new("RGB", (8, 8), (number, 0, 0)).save(file, kind)
        return file.getvalue()


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Seven pictures in two files, as `datasets` writes them: bytes and a name; one and several captions."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "source" / "data"
    folder.mkdir(parents=True)
    rows = [
        {
            "image": {"bytes": picture(i, ("JPEG", "PNG", "WEBP")[i % 3]), "path": f"{i}.jpg"},
            "caption": f"picture {i}",
            "captions": [f"picture {i}", f"the {i}th"],
        }
        for i in range(7)
    ]
    pq.write_table(pa.Table.from_pylist(rows[:4]), folder / "train-00000-of-00002.parquet")
    pq.write_table(pa.Table.from_pylist(rows[4:]), folder / "train-00001-of-00002.parquet")
    return folder.parent


def test_a_damaged_file_is_named(source, monkeypatch):
    file = source / "data" / "train-00001-of-00002.parquet"
    whole = file.read_bytes()
    random = np.random.default_rng(0)
    seen = set()
    for place in (*random.integers(len(whole), size=60), 0, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << random.integers(8)
        file.write_bytes(damaged)
        try:
            shard_parquet.main([str(source), "--caption", "caption", "--out", "shards"])
        except SystemExit as end:
            (line,) = str(end.code).splitlines()
            seen.add(line.partition(" (")[0].removeprefix(f"error: {file} "))
            assert str(file) in line
        shutil.rmtree("shards", ignore_errors=True)
    assert "is damaged, or of another kind than its name says" in seen


@pytest.mark.parametrize("name", ["rocov2", "rsicd"])
def test_pictures_and_captions_come_out_as_the_card_reads_them(source, name):
    card = cards.dataset(name)
    column = card.fetch.partition("--caption ")[2].split()[0]
    shard_parquet.main([str(source), "--caption", column, "--out", card.shards, "--per-shard", "3"])
    assert cards.is_there(card)
    folder = source.parent / card.shards
    build_index(name, card.revision, folder, card.captions, paths.index(name), pairs=7)
    index = read_index(paths.index(name))
    assert (index.pairs, index.rejected, len(index.shard_sizes)) == (7, 0, 3)
    found = []
    for shard, path in enumerate(sorted(folder.iterdir())):
        for image_offset, image_bytes, offset, size, _ in index.read_rows(paths.index(name), shard):
            data = path.read_bytes()
            red, *_ = (
                Image.open(io.BytesIO(data[image_offset : image_offset + image_bytes])).convert("RGB").getpixel((0, 0))
            )
            found.append((red, caption_texts(data[offset : offset + size], card.captions)))
    several = [[f"picture {i}", f"the {i}th"] if name == "rsicd" else [f"picture {i}"] for i in range(7)]
    assert [captions for _, captions in found] == several
    assert [red for red, _ in found] == pytest.approx(list(range(7)), abs=4)  # jpg and webp lose a little


def test_shards_are_the_same_to_the_byte_each_time(source):
    for out in ("one", "two"):
        shard_parquet.main([str(source), "--caption", "caption", "--out", out])
    assert files.folder_sha256(source.parent / "one") == files.folder_sha256(source.parent / "two")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--caption", "caption"], r"no \*\.parquet files in nowhere"),
        (["source", "--caption", "caption_s"], "unknown column 'caption_s'; did you mean 'captions'"),
        (["source", "--caption", "caption", "--image", "caption"], "a picture that is none of jpg"),
    ],
)
def test_what_is_no_such_parquet_is_one_clear_error_and_leaves_nothing(source, arguments, message):
    with pytest.raises(SystemExit, match=message):
        shard_parquet.main([*arguments, "--out", "out"])
    assert not (source.parent / "out").exists()


def test_a_folder_may_be_a_link_to_an_empty_one_on_a_larger_disk(source):
    larger = source.parent / "larger" / "set"
    larger.mkdir(parents=True)
    (source.parent / "out").symlink_to(larger)
    shard_parquet.main(["source", "--caption", "caption", "--out", "out"])
    assert [path.name for path in larger.iterdir()] == ["00000.tar"]
    assert not list(source.parent.glob(".*"))
    assert not list(larger.parent.glob(".*"))
    with pytest.raises(SystemExit, match="larger/set is not empty"):
        shard_parquet.main(["source", "--caption", "caption", "--out", "out"])


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(source, monkeypatch):
    def fill_up(folder, *_):
        folder.mkdir()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shard_parquet, "write_shards", fill_up)
    with pytest.raises(SystemExit, match=r"out could not be written: .*No space left on device"):
        shard_parquet.main(["source", "--caption", "caption", "--out", "out"])
    assert [path.name for path in source.parent.iterdir()] == ["source"]
