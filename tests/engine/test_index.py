import tarfile

import numpy as np
import pytest
import toy

from engine.index import build_index, index_shard, read_index, read_rows
from engine.spec import CaptionSource


def index(tmp_path, **changes):
    settings = {"pairs": None} | changes
    return build_index("toy", "1", tmp_path / "train", CaptionSource(), tmp_path / "index" / "index.json", **settings)


def test_offsets_lead_to_the_members(tmp_path):
    toy.write_shards(tmp_path / "train")
    built = index(tmp_path, pairs=toy.NUM_PAIRS)
    rows = read_rows(tmp_path / "index" / "index.json", built.shards[1])
    data = (tmp_path / "train" / built.shards[1].name).read_bytes()
    image_offset, image_bytes, caption_offset, caption_bytes = rows[3]
    colour, place, number = toy.pairs()[built.shards[0].pairs + 3]
    assert data[image_offset : image_offset + image_bytes] == toy.picture(colour, place, number)
    assert data[caption_offset : caption_offset + caption_bytes].decode() == f"a {colour} square, {place}"


def test_the_index_does_not_depend_on_the_number_of_processes(tmp_path):
    toy.write_shards(tmp_path / "train")
    assert index(tmp_path, jobs=1) == index(tmp_path, jobs=3) == read_index(tmp_path / "index" / "index.json")


def test_unusable_samples_are_left_out_and_named(tmp_path):
    png = toy.picture("red", "top left", 0)
    members = {"a.png": png, "a.txt": b"fine", "b.png": png, "c.txt": b"no image", "d.png": png, "d.txt": b""}
    toy.write_tar(tmp_path / "train" / "0.tar", members)
    built = index(tmp_path)
    assert built.pairs == 1
    assert {(r.key, r.reason) for r in built.rejected} == {
        ("b", "no .txt caption"),
        ("c", "no image"),
        ("d", "no .txt caption"),
    }


def test_keys_may_lie_in_folders_with_dots(tmp_path):
    members = {"./v1.0/a.png": toy.picture("red", "top left", 0), "./v1.0/a.txt": b"fine"}
    toy.write_tar(tmp_path / "train" / "0.tar", members)
    assert index(tmp_path).pairs == 1


def test_the_digest_is_of_the_content(tmp_path):
    toy.write_shards(tmp_path / "train")
    before = index(tmp_path)
    shard = tmp_path / "train" / "00001.tar"
    shard.write_bytes(shard.read_bytes().replace(b"blue square", b"BLUE square", 1))
    assert index(tmp_path).sha256 != before.sha256


def test_a_truncated_shard_keeps_its_whole_samples(tmp_path):
    toy.write_shards(tmp_path / "train")
    shard = tmp_path / "train" / "00000.tar"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    rows, rejected, _ = index_shard(shard, CaptionSource())
    assert 0 < len(rows) < 40
    assert rows[:, :2].sum(axis=1).max() <= shard.stat().st_size
    assert rejected


def test_links_in_an_archive_are_never_followed(tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(toy.picture("red", "top left", 0))
    (tmp_path / "train").mkdir()
    with tarfile.open(tmp_path / "train" / "0.tar", "w") as archive:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        archive.addfile(link)
        toy_caption = tarfile.TarInfo("a.txt")
        archive.addfile(toy_caption)
    assert index(tmp_path).pairs == 0


def test_a_missing_folder_is_one_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no \*.tar shards .* Fetch the data"):
        index(tmp_path)


def test_a_wrong_number_of_pairs_is_refused(tmp_path):
    toy.write_shards(tmp_path / "train")
    with pytest.raises(ValueError, match="holds 96 usable pairs, its card says 100"):
        index(tmp_path, pairs=100)


def test_sidecars_hold_plain_numbers_only(tmp_path):
    toy.write_shards(tmp_path / "train")
    index(tmp_path)
    assert np.load(tmp_path / "index" / "00000.tar.npy", allow_pickle=False).dtype == np.int64
