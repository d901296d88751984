import csv
import functools
import json
import operator
import os
import re
import subprocess
import sys
import tarfile
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from support import toy

from engine.data.index import build_index, caption_texts, index_shard, read_index, rejected_path, subset_size
from engine.schema.run import CaptionSource

PNG = toy.picture("red", "top left", 0)


def index(tmp_path, **changes):
    settings = {"pairs": None, "captions": CaptionSource(), "name": "toy"} | changes
    name, captions = settings.pop("name"), settings.pop("captions")
    out = tmp_path / "index" / name / "index.json"
    return build_index(name, "1", tmp_path / "train", captions, out, **settings)


def rows(tmp_path, built, shard):
    return built.read_rows(tmp_path / "index" / built.name / "index.json", shard)


def rejected(tmp_path, name="toy"):
    with rejected_path(tmp_path / "index" / name / "index.json").open(newline="") as file:
        return [(line["shard"], line["key"], line["reason"]) for line in csv.DictReader(file)]


def sidecar_times(tmp_path):
    return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "index" / "_shards").rglob("*.safetensors")}


def test_offsets_lead_to_the_members(tmp_path):
    toy.write_shards(tmp_path / "train")
    built = index(tmp_path, pairs=toy.NUM_PAIRS)
    data = (tmp_path / "train" / built.shards.name[1]).read_bytes()
    image_offset, image_bytes, caption_offset, caption_bytes, crc32 = rows(tmp_path, built, 1)[3].tolist()
    colour, place, number = toy.pairs()[built.shards.pairs[0] + 3]
    assert data[image_offset : image_offset + image_bytes] == toy.picture(colour, place, number)
    assert data[caption_offset : caption_offset + caption_bytes].decode() == f"a {colour} square, {place}"
    assert crc32 == zlib.crc32(toy.picture(colour, place, number) + f"a {colour} square, {place}".encode())


def test_the_index_does_not_depend_on_the_number_of_processes(tmp_path):
    toy.write_shards(tmp_path / "train")
    built = index(tmp_path, jobs=1)
    for sidecar in (tmp_path / "index" / "_shards").rglob("*.safetensors"):
        sidecar.unlink()
    assert built == index(tmp_path, jobs=3) == read_index(tmp_path / "index" / "toy" / "index.json")


def test_unusable_samples_are_left_out_and_named(tmp_path):
    members = {"a.png": PNG, "a.txt": b"fine", "b.png": PNG, "c.txt": b"no image", "d.png": PNG, "d.txt": b""}
    members |= {"e.png": PNG, "e.txt": b" \n", "f.png": b"", "f.txt": b"fine"}
    members |= {"../g.png": PNG, "../g.txt": b"fine", "/h.png": PNG, "/h.txt": b"fine"}
    members |= {
        "./v1.0/i.png": PNG,
        "./v1.0/i.txt": b"dotted folder",
        "j.png": PNG,
        "j.txt": b"fine",
    }
    toy.write_tar(tmp_path / "train" / "0.tar", members)
    with tarfile.open(tmp_path / "train" / "0.tar", "a") as archive:
        archive.addfile(tarfile.TarInfo("j.png"))
    built = index(tmp_path)
    assert (built.pairs, built.rejected) == (2, 8)
    assert sorted(rejected(tmp_path)) == [
        ("0.tar", "../g", "the name leads out of the archive"),
        ("0.tar", "b", "no .txt caption"),
        ("0.tar", "c", "no image"),
        ("0.tar", "d", "empty .txt caption"),
        ("0.tar", "e", "blank .txt caption"),
        ("0.tar", "f", "empty image"),
        ("0.tar", "h", "the name leads out of the archive"),
        ("0.tar", "j", "the key occurs twice"),
    ]
    before, times = rejected(tmp_path), sidecar_times(tmp_path)
    # What was left out is reported again when nothing is read, also when the card promises more.
    with pytest.raises(ValueError, match=r"holds 2 usable pairs, its card says 3(.|\n)*rejected.csv\n  0.tar: b: no"):
        index(tmp_path, pairs=3)
    assert (rejected(tmp_path), sidecar_times(tmp_path)) == (before, times)


def test_captions_in_json_are_checked_when_everything_is_read(tmp_path):
    jsons = [b'{"caption": "a cat"}', b'{"caption": ["", "a cat"]}', b"{}", b'{"caption": [null]}', b"[", b"[]"]
    members = {}
    for number, text in enumerate(jsons):
        members |= {f"{number}.png": PNG, f"{number}.json": text}
    toy.write_tar(tmp_path / "train" / "0.tar", members)
    captions = CaptionSource(member="json", field="caption")
    assert index(tmp_path, captions=captions).pairs == 2
    assert caption_texts(b'{"caption": ["a", " ", 3, "half \\ud83d"]}', captions) == ["a", "half ?"]
    assert [(key, reason) for _, key, reason in rejected(tmp_path)] == [
        ("2", "no text in field 'caption' of the .json caption"),
        ("3", "no text in field 'caption' of the .json caption"),
        ("4", "the .json is not valid JSON"),
        ("5", "no text in field 'caption' of the .json caption"),
    ]
    # Headers do not tell.
    assert index(tmp_path, captions=captions, digest="members").pairs == 6


def test_the_digest_is_of_the_content(tmp_path):
    toy.write_shards(tmp_path / "train")
    before, table_before = index(tmp_path), index(tmp_path, digest="members")
    shard = tmp_path / "train" / "00001.tar"
    shard.write_bytes(shard.read_bytes().replace(b"blue square", b"BLUE square", 1))
    assert index(tmp_path).sha256 != before.sha256
    # What lies where has not changed.
    assert index(tmp_path, digest="members").sha256 == table_before.sha256
    shard.write_bytes(shard.read_bytes().replace(b"000041.txt", b"x00041.txt", 1))
    assert index(tmp_path, digest="members").sha256 != table_before.sha256


@pytest.mark.parametrize(
    ("digest", "fraction", "sha256"),
    [("bytes", 1.0, "25e5fa204d6dfaa8"), ("bytes", 0.5, "2c97d733158f625e"), ("members", 1.0, "b5a8b3d32fa76860")],
)
def test_the_digest_stays_what_it_was_since_records_and_checkpoints_hold_it(tmp_path, digest, fraction, sha256):
    long = "n" * 200
    toy.write_tar(
        tmp_path / "train" / "0.tar",
        {"a.png": b"a picture", "a.txt": b"a caption", "b.png": b"another", "b.txt": b"one"},
    )
    toy.write_tar(tmp_path / "train" / "1.tar", {f"{long}.png": b"a picture", f"{long}.txt": b"a caption"})
    assert index(tmp_path, digest=digest, fraction=fraction).sha256.startswith(sha256)


def test_a_damaged_header_costs_one_sample(tmp_path):
    toy.write_shards(tmp_path / "train")
    shard = tmp_path / "train" / "00000.tar"
    image_offset = int(index_shard(shard, CaptionSource())[0][20, 0])
    data = bytearray(shard.read_bytes())
    data[image_offset - 512 : image_offset - 400] = bytes(112)
    shard.write_bytes(data)
    found, left_out, _ = index_shard(shard, CaptionSource())
    assert len(found) == 39
    assert [(each.key, each.reason.split(";")[0]) for each in left_out] == [
        ("", f"damaged header at byte {image_offset - 512}"),
        ("000020", "no image"),
    ]


@pytest.mark.parametrize(("kind", "digest"), [(tarfile.SYMTYPE, "bytes"), (tarfile.FIFOTYPE, "members")])
def test_links_and_devices_in_an_archive_are_never_followed(tmp_path, kind, digest):
    secret = tmp_path / "secret.png"
    secret.write_bytes(PNG)
    toy.write_tar(tmp_path / "train" / "0.tar", {"b.png": PNG, "b.txt": b"fine", "a.txt": b"fine"})
    with tarfile.open(tmp_path / "train" / "0.tar", "a") as archive:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = kind, str(secret)
        archive.addfile(link)
    assert index(tmp_path, digest=digest).pairs == 1
    assert rejected(tmp_path) == [("0.tar", "a", "a link or a device instead of a file")]


def test_only_shards_that_changed_are_read_again(tmp_path):
    toy.write_shards(tmp_path / "train")
    before, times = index(tmp_path), sidecar_times(tmp_path)
    shard = tmp_path / "train" / "00001.tar"
    shard.write_bytes(shard.read_bytes().replace(b"blue square", b"BLUE square", 1))
    after = index(tmp_path)
    changed = [name for name, at in sidecar_times(tmp_path).items() if at != times[name]]
    assert changed == ["00001.tar.safetensors"]
    assert [a == b for a, b in zip(after.shards.sha256, before.shards.sha256, strict=True)] == [True, False, True]
    # The index from before is not that of these sidecars.
    with pytest.raises(ValueError, match=r"shard 00001.tar was indexed anew, or never: index the data set again"):
        rows(tmp_path, before, 1)


@pytest.mark.parametrize("place", [3, 20, -2, None], ids=["size", "header", "rows", "cut off"])
def test_the_index_step_names_a_damaged_sidecar_and_makes_it_again(tmp_path, capfd, place):
    toy.write_shards(tmp_path / "train")
    built = index(tmp_path)
    sidecar, *others = sorted((tmp_path / "index" / "_shards").rglob("*.safetensors"))
    expected, times = rows(tmp_path, built, 0), sidecar_times(tmp_path)
    data = bytearray(sidecar.read_bytes())
    if place is not None:
        data[place] ^= 1
    sidecar.write_bytes(data if place is not None else data[:100])
    with pytest.raises(ValueError, match=r"data set 'toy': .*is damaged .* index the data set again"):
        rows(tmp_path, built, 0)
    assert index(tmp_path) == built
    assert np.array_equal(rows(tmp_path, built, 0), expected)
    assert f"{sidecar} is damaged" in capfd.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in others}.items() <= times.items()


def test_a_sidecar_of_an_earlier_version_is_made_again(tmp_path, capfd, monkeypatch):
    toy.write_shards(tmp_path / "train")
    monkeypatch.setattr("engine.data.index._FORMAT", "2")
    index(tmp_path)
    monkeypatch.undo()
    built = read_index(tmp_path / "index" / "toy" / "index.json")
    with pytest.raises(ValueError, match=r"shard 00000.tar was indexed anew, or never: index the data set again"):
        rows(tmp_path, built, 0)
    assert index(tmp_path) == built
    assert len(rows(tmp_path, built, 0)) == 40
    assert "damaged" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("pairs",), 95, "'shards.pairs' sums up to 96, 'pairs' is 95"),
        (("shards", "pairs"), [41, 29, 26], "'shards.pairs' is not 'shards.usable', although 'fraction' is 1"),
        (("shards", "usable"), [40, 30], "the columns of 'shards' are not of the same length"),
        (("shards", "sha256", 0), "0" * 64, "'sha256' is not that of 'shards.sha256', 'digest' and 'fraction'"),
        (("fraction",), 0.9, "'sha256' is not that of"),
    ],
)  # fmt: skip
def test_an_index_that_was_edited_is_refused(tmp_path, path, value, message):
    toy.write_shards(tmp_path / "train")
    index(tmp_path)
    file = tmp_path / "index" / "toy" / "index.json"
    edit(file, path, value)
    with pytest.raises(ValueError, match=f"{re.escape(message)}(.|\n)*index the data set again"):
        read_index(file)


def edit(file, path, value):
    """Change one value of an index by hand."""
    content = json.loads(file.read_text())
    *above, last = path
    functools.reduce(operator.getitem, above, content)[last] = value
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("column", ["usable", "pairs"])
def test_an_index_that_says_other_numbers_than_a_sidecar_is_refused(tmp_path, column):
    toy.write_shards(tmp_path / "train")
    built = index(tmp_path, fraction=0.5)
    file = tmp_path / "index" / "toy" / "index.json"
    first, second, third = getattr(built.shards, column)
    edit(file, ("shards", column), [first + 1, second - 1, third])
    with pytest.raises(ValueError, match=r"shard 00000.tar has 40 usable pairs(.|\n)*index the data set again"):
        read_index(file).read_rows(file, 0)


def test_another_place_of_captions_is_another_index(tmp_path):
    members = {"a.png": PNG, "a.txt": b"fine", "a.json": b'{"alt": "finer"}', "b.png": PNG, "b.txt": b"fine"}
    toy.write_tar(tmp_path / "train" / "0.tar", members)
    first = index(tmp_path)
    second = index(tmp_path, name="other", captions=CaptionSource(member="json", field="alt"))
    assert (first.pairs, second.pairs) == (2, 1)
    # Neither has taken the other's sidecars.
    assert len(rows(tmp_path, first, 0)) == 2
    assert len(rows(tmp_path, second, 0)) == 1


def test_an_index_step_that_was_killed_goes_on(tmp_path):
    pair = {"a.png": PNG, "a.txt": b"fine"}
    for number in range(200):
        toy.write_tar(tmp_path / "train" / f"{number:03d}.tar", pair)
    out = tmp_path / "index" / "toy" / "index.json"
    args = ["--name", "toy", "--revision", "1", "--shards", tmp_path / "train", "--out", out, "--jobs", "1"]
    command = [sys.executable, "-m", "engine.index", *map(str, args)]
    root = Path(__file__).resolve().parents[3]
    process = subprocess.Popen(command, cwd=root, start_new_session=True)
    deadline = time.monotonic() + 60
    while len(sidecar_times(tmp_path)) < 20 and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    process.wait()
    while time.monotonic() < deadline:  # its worker notices
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.01)
    else:
        raise AssertionError("the worker of a killed index step still runs")
    done = sidecar_times(tmp_path)
    assert 20 <= len(done) < 200
    assert not out.exists()
    subprocess.run([*command, "--pairs", "200"], cwd=root, check=True, capture_output=True)
    after = sidecar_times(tmp_path)
    assert len(after) == 200
    assert {name: after[name] for name in done} == done
    assert len(read_index(out).shards.name) == 200
    assert not [path for path in (tmp_path / "index").rglob("*") if path.name.startswith(".")]


def test_smaller_subsets_lie_within_larger_ones_and_spread_over_all_shards(tmp_path):
    for shard in range(20):
        keys = [f"{shard:02d}{number:03d}" for number in range(50)]
        members = {f"{key}.{extension}": b"x" for key in keys for extension in ("png", "txt")}
        toy.write_tar(tmp_path / "train" / f"{shard:02d}.tar", members)
    sets = {}
    for fraction in (1.0, 0.5, 0.1):
        built = index(tmp_path, name=f"toy_{fraction}", fraction=fraction)
        sets[fraction] = {(shard, *row) for shard in range(20) for row in rows(tmp_path, built, shard)[:, :2].tolist()}
        assert len(sets[fraction]) == built.pairs == subset_size(1000, fraction)
        assert abs(built.pairs - 1000 * fraction) < 4 * np.sqrt(1000 * fraction * (1 - fraction) + 1)
        assert all(abs(size - 50 * fraction) < 18 for size in built.shard_sizes)
    assert sets[0.1] < sets[0.5] < sets[1.0]
    # All three used the same sidecars.
    assert len(sidecar_times(tmp_path)) == 20


def test_a_subset_may_have_nothing_of_a_shard(tmp_path):
    for shard in range(30):
        toy.write_tar(tmp_path / "train" / f"{shard:02d}.tar", {"a.png": PNG, "a.txt": b"fine"})
    built = index(tmp_path, fraction=0.5)
    assert set(built.shard_sizes) == {0, 1}
    assert [len(rows(tmp_path, built, shard)) for shard in range(30)] == list(built.shard_sizes)
    assert built.sha256 != index(tmp_path).sha256
    with pytest.raises(ValueError, match=f"holds {built.pairs} usable pairs, its card says 30"):
        index(tmp_path, fraction=0.5, pairs=30)


def test_a_shard_of_more_than_four_gib_takes_wider_numbers(tmp_path):
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("z.bin"))
    filler = tarfile.TarInfo("filler.bin")
    filler.size = 5 * 2**30
    image, caption = tarfile.TarInfo("a.png"), tarfile.TarInfo("a.txt")
    image.size = caption.size = 5
    with path.open("wb") as file:
        file.write(filler.tobuf())
        file.seek(filler.size, os.SEEK_CUR)  # a hole: takes no disk
        for member in (image, caption):
            file.write(member.tobuf() + b"12345".ljust(512, b"\0"))
        file.write(bytes(1024))
    found, left_out, _ = index_shard(path, CaptionSource(), "members")
    assert found.dtype == np.uint64
    assert found.tolist() == [[filler.size + 1024, 5, filler.size + 2048, 5]]
    assert [each.key for each in left_out] == ["filler"]
