import io
import os
import tarfile

import pytest
from support import toy

from engine.data.archive import Damage, Member, member_name, read_members


def read(path):
    found = list(read_members(path))
    members = [m for m in found if isinstance(m, Member)]
    return members, [m.reason for m in found if isinstance(m, Damage)]


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_of_the_standard_library(tmp_path, tar_format):
    names = ["a.jpg", "folder/b.txt", "n" * 90 + "/" + "m" * 80, "empty"]
    if tar_format != tarfile.USTAR_FORMAT:
        names += ["l" * 300 + ".jpg", "größer/猫.txt"]
    path = tmp_path / "a.tar"
    for_all = {"comment": "as git archive writes it"} if tar_format == tarfile.PAX_FORMAT else None
    with tarfile.open(path, "w", format=tar_format, pax_headers=for_all) as archive:
        archive.addfile(folder := tarfile.TarInfo("folder"))
        folder.type = tarfile.DIRTYPE
        for number, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size = 0 if name == "empty" else 700 * number
            archive.addfile(member, io.BytesIO(b"x" * member.size))
    with tarfile.open(path) as archive:
        expected = [(m.name, m.offset_data, m.size) for m in archive if m.isreg() and m.name != "folder"]
    members, damage = read(path)
    assert [(m.name, m.offset, m.num_bytes) for m in members if m.name != "folder"] == expected
    assert {m.name for m in members} >= set(names)
    assert damage == []


def test_sizes_too_large_for_the_header_come_from_pax_records(tmp_path):
    path = tmp_path / "a.tar"
    member = tarfile.TarInfo("large")
    member.size = 9 * 2**30
    with path.open("wb") as file:
        file.write(member.tobuf(tarfile.PAX_FORMAT))
        file.seek(member.size, os.SEEK_CUR)
        file.write(bytes(1024))
    (found,), damage = read(path)
    assert (found.name, found.num_bytes) == ("large", member.size)
    assert damage == []


def test_reading_goes_on_behind_a_damaged_header(tmp_path):
    path = tmp_path / "a.tar"
    toy.write_tar(path, {f"{number}.txt": b"x" * 600 for number in range(5)})
    data = bytearray(path.read_bytes())
    before, _ = read(path)
    header = before[2].offset - 512
    data[header + 124 : header + 136] = b"\xff" * 12
    path.write_bytes(data)
    members, damage = read(path)
    assert [m.name for m in members] == ["0.txt", "1.txt", "3.txt", "4.txt"]
    assert damage == [f"damaged header at byte {header}; 1536 bytes were skipped"]


@pytest.mark.parametrize("kept", [512 + 100, 2048 + 3, 2048])
def test_an_archive_that_ends_early_says_so(tmp_path, kept):
    path = tmp_path / "a.tar"
    toy.write_tar(path, {f"{number}.txt": b"x" * 600 for number in range(5)})
    path.write_bytes(path.read_bytes()[:kept])
    members, damage = read(path)
    assert all(m.offset + m.num_bytes <= kept for m in members)
    assert len(damage) >= 1


@pytest.mark.parametrize(
    "records", [
        b"0 path=a\n", b"12 size=-600\n", b"9 size=x\n", b"10 size=5\n29 GNU.sparse.realsize=-1536\n",
    ],
)  # fmt: skip
def test_pax_records_with_impossible_numbers_are_damage(tmp_path, records):
    path = tmp_path / "a.tar"
    extension, member = tarfile.TarInfo("pax"), tarfile.TarInfo("a.txt")
    extension.type, extension.size = tarfile.XHDTYPE, len(records)
    path.write_bytes(extension.tobuf() + records.ljust(512, b"\0") + member.tobuf() + bytes(1024))
    members, damage = read(path)
    assert [m.name for m in members] == ["a.txt"]
    assert damage == ["damaged header at byte 0; 1024 bytes were skipped"]


@pytest.mark.parametrize(("kind", "size"), [(tarfile.GNUTYPE_LONGNAME, 2**70), (tarfile.XHDTYPE, -513)])
def test_a_name_of_an_impossible_size_is_damage(tmp_path, kind, size):
    path = tmp_path / "a.tar"
    extension, member = tarfile.TarInfo("long"), tarfile.TarInfo("a.txt")
    extension.type, extension.size = kind, size
    path.write_bytes(extension.tobuf(tarfile.GNU_FORMAT) + member.tobuf() + bytes(1024))
    members, damage = read(path)
    assert [m.name for m in members] == ["a.txt"]
    assert damage == ["damaged header at byte 0; 512 bytes were skipped"]


def test_a_sparse_member_is_no_file(tmp_path):
    path = tmp_path / "a.tar"
    sparse, after = bytearray(tarfile.TarInfo("a.jpg").tobuf(tarfile.GNU_FORMAT)), tarfile.TarInfo("b.jpg")
    sparse[156:157], sparse[483:495] = tarfile.GNUTYPE_SPARSE, b"00000007777\0"  # its size with the holes
    sparse[148:156] = b" " * 8
    sparse[148:156] = f"{sum(sparse):06o}\0 ".encode()
    path.write_bytes(sparse + after.tobuf() + bytes(1024))
    members, damage = read(path)
    assert [(m.name, m.is_file) for m in members] == [("a.jpg", False), ("b.jpg", True)]
    assert damage == []


def test_links_and_devices_are_no_files(tmp_path):
    path = tmp_path / "a.tar"
    kinds = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
    with tarfile.open(path, "w") as archive:
        for number, kind in enumerate(kinds):
            member = tarfile.TarInfo(f"{number}.jpg")
            member.type, member.linkname = kind, "/etc/passwd"
            member.size = 5000 if kind == tarfile.LNKTYPE else 0  # of what it points to
            archive.addfile(member)
        archive.addfile(tarfile.TarInfo("file.jpg"))
    members, damage = read(path)
    assert [m.is_file for m in members] == [False] * len(kinds) + [True]
    assert damage == []


def test_a_member_is_named_by_its_offset(tmp_path):
    path = tmp_path / "a.tar"
    toy.write_tar(path, {"folder/a.jpg": b"x", "folder/a.txt": b"y"})
    with path.open("rb") as file:
        for member in read(path)[0]:
            assert member_name(file.fileno(), member.offset) == member.name
        assert member_name(file.fileno(), 4096) is None


def test_a_hole_of_zeros_is_damage_and_what_follows_is_read(tmp_path):
    path = tmp_path / "a.tar"
    toy.write_tar(path, {f"{number}.txt": b"x" * 100 for number in range(10)})
    data = bytearray(path.read_bytes())
    data[3 * 1024 : 5 * 1024] = bytes(2 * 1024)
    path.write_bytes(data + bytes(5000))
    members, damage = read(path)
    assert [member.name for member in members] == [f"{number}.txt" for number in (0, 1, 2, 5, 6, 7, 8, 9)]
    assert damage == ["a hole of zeros at byte 3072; 2048 bytes were skipped"]
