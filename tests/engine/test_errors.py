"""An error that a user can mend is one sentence with the file's name; a bug keeps its traceback."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from support import toy

from engine import errors, files, paths
from engine.train import main
from engine.training.reporting import forget_after


def message(function, *args):
    """Run a command line that ends with an error; return what it says."""
    with pytest.raises(SystemExit) as end:
        function(*args)
    text = str(end.value.code)
    assert text.startswith("error: ")
    assert "\n" not in text
    return text.removeprefix("error: ")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("what came, what is allowed"), "what came, what is allowed"),
        (
            OSError(errno.EROFS, "Read-only file system", "results/x"),
            "results/x: Read-only file system: make it writable",
        ),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "lock"), "lock: Is a directory: a file belongs there"),
        (OSError(errno.EIO, "Input/output error", "a.tar"), "a.tar: Input/output error"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device: make room"),
        (FileNotFoundError("data set 'x' has no index"), "data set 'x' has no index"),
        (files.DiskFullError("no room for x"), "no room for x"),
        (ValueError(), "ValueError"),
    ],
)
def test_what_a_user_can_mend_ends_a_command_with_one_sentence(error, said):
    def command():
        with errors.explained():
            raise error

    assert message(command).startswith(said)


@pytest.mark.parametrize("bug", [KeyError("x"), AssertionError("x"), TypeError("x")])
def test_a_bug_keeps_its_traceback(bug):
    with pytest.raises(type(bug)), errors.explained():
        raise bug


def test_text_that_is_not_utf_8_is_named_with_its_line(tmp_path):
    path = tmp_path / "suite.yaml"
    path.write_bytes("title: Größe\nmodel: ".encode() + b"\xff\n")
    with pytest.raises(ValueError, match=r"suite\.yaml, line 2: byte 0xff is not UTF-8: save the file as UTF-8"):
        files.read_text(path)
    files.write_text(path, "title: x\n")  # what is there need not be text to be replaced
    assert files.read_text(path) == "title: x\n"


def test_json_that_is_none_is_named(tmp_path):
    path = tmp_path / "notes.json"
    path.write_text('{"a": ')
    with pytest.raises(ValueError, match=r"notes\.json: not valid JSON: "):
        files.read_json(path)


@pytest.mark.parametrize("line", [b"\xff\xfe", b"nonsense", b"[1]", b"{}"])
def test_a_damaged_line_of_a_log_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b"\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl: the line '.*' is no JSON object with a 'step' .*: remove"):
        forget_after(path, 1)


@pytest.fixture
def spec(tmp_path, monkeypatch):
    toy.build(tmp_path)
    monkeypatch.chdir(tmp_path)
    spec = toy.run_spec("openclip", steps=2)
    toy.write_spec(tmp_path, spec)
    return spec


def test_a_training_in_a_folder_that_cannot_be_written_says_so(spec, make_read_only):
    make_read_only(paths.run(spec.run_id))
    assert message(main, [str(paths.spec(spec.run_id))]).startswith(f"{paths.run(spec.run_id)}/")


def test_a_folder_in_the_place_of_a_lock_is_named(spec):
    lock = paths.run(spec.run_id) / "lock"
    lock.mkdir()
    said = message(main, [str(paths.spec(spec.run_id))])
    assert said == f"{lock}: Is a directory: a file belongs there; move the folder away"


HIDDEN = """
import sys
from importlib import metadata
hidden = {"submitit", "snakemake", "clip_benchmark"}
honest = metadata.version
def version(name):
    if name in hidden:
        raise metadata.PackageNotFoundError(name)
    return honest(name)
metadata.version = version
sys.modules.update(dict.fromkeys(hidden))
from engine.train import main
main(sys.argv[1:])
"""


def test_a_training_needs_no_package_that_it_does_not_import(spec):
    result = subprocess.run(
        [sys.executable, "-c", HIDDEN, paths.spec(spec.run_id)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    packages = files.read_json(paths.record(spec.run_id))["attempts"][0]["provenance"]["packages"]
    assert packages["torch"]
    assert {name for name, found in packages.items() if found is None} == {"submitit", "snakemake", "clip_benchmark"}


def test_the_word_error_comes_once_however_many_commands_pass_a_text_on():
    def command():
        with errors.explained():
            raise ValueError("error: suite 'x': what came")

    assert message(command) == "suite 'x': what came"
    warned = "some/library.py:3: UserWarning: old\n  warn()\nerror: what came\nand more\n"
    assert errors.said(warned) == "what came\nand more"
    assert errors.said("Killed\n") == "Killed"


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="No locks available") as error, files.locked(tmp_path / "lock"):
        pass
    assert errors.describe(error.value).startswith(f"{tmp_path / 'lock'}: No locks available: its file system gives no")


def test_a_disk_without_inodes_says_what_is_short(tmp_path, monkeypatch):
    full = SimpleNamespace(f_files=1000, f_favail=0)
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    short = r"x\.json .*its disk may hold 1,000 files and folders \(inodes\)"
    with pytest.raises(files.DiskFullError, match=short), files.explain_full_disk(tmp_path / "x.json"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
