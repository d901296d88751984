"""A set's digest is taken from memory only while no file of it was touched."""

import os
import time
from pathlib import Path

import pytest

from engine import files, paths
from engine.evaluation import digest
from engine.evaluation.digest import folder_digest


@pytest.fixture
def hashed(tmp_path, monkeypatch):
    """The folders that were hashed, in a working directory of their own; files count as settled at once."""
    monkeypatch.chdir(tmp_path)
    paths.RESULTS.mkdir()
    monkeypatch.setattr(digest, "_SETTLED_NS", -(10**12))
    seen = []
    whole = files.folder_sha256
    monkeypatch.setattr(files, "folder_sha256", lambda folder: seen.append(folder) or whole(folder))
    return seen


def make(folder):
    (folder / "test").mkdir(parents=True)
    for name in ("classnames.txt", "test/nshards.txt", "test/0.tar"):
        (folder / name).write_text(name)
    return folder


def test_a_set_is_hashed_once(hashed):
    folder = make(Path("one"))
    first = folder_digest(folder)
    assert [folder_digest(folder), folder_digest(folder)] == [first, first]
    assert hashed == [folder]
    # Where it is named from, and what downloaders keep, is the same set.
    (folder / ".cache").write_text("times")
    assert folder_digest(folder.resolve()) == first
    assert hashed == [folder]


def same_size_and_time(folder):
    """Another content of equal length, and the time put back: only the inode's own time tells."""
    file = folder / "test" / "0.tar"
    before = file.stat()
    file.write_text("test/1.tar")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        same_size_and_time,
        lambda folder: (folder / "test" / "1.tar").write_text("more"),
        lambda folder: (folder / "classnames.txt").rename(folder / "classes.txt"),
        lambda folder: (folder / "classnames.txt").unlink(),
    ],
    ids=["same size and time", "a file came", "renamed", "a file went"],
)
def test_a_touched_set_is_hashed_again(hashed, change):
    folder = make(Path("set"))
    first = folder_digest(folder)
    time.sleep(0.02)  # a file system's clock may tick in hundredths of a second
    change(folder)
    second = folder_digest(folder)
    assert second != first
    assert second == folder_digest(folder) == files.folder_sha256(folder)


def test_a_set_that_was_touched_just_now_is_not_remembered(hashed, monkeypatch):
    monkeypatch.setattr(digest, "_SETTLED_NS", 2 * 10**9)
    folder = make(Path("set"))
    folder_digest(folder)
    folder_digest(folder)
    assert hashed == [folder, folder]


def test_a_set_that_changes_while_it_is_hashed_is_not_remembered(hashed, monkeypatch):
    folder, whole = make(Path("set")), files.folder_sha256
    more = folder / "test" / "1.tar"
    monkeypatch.setattr(files, "folder_sha256", lambda folder: [whole(folder), more.write_text("more")][0])
    folder_digest(folder)
    assert not paths.digest(folder).exists()


def test_a_damaged_memory_is_written_anew(hashed):
    folder = make(Path("set"))
    first = folder_digest(folder)
    paths.digest(folder).write_text('{"sha256": "')
    assert folder_digest(folder) == first
    assert folder_digest(folder) == first
    assert hashed == [folder, folder]
