import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine import origin, paths
from engine.jobs import scheduler
from engine.jobs.snapshot import take
from engine.origin import ORIGIN, ROOT, code_origin


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A copy of this checkout under git, and a working directory beside it."""
    copy = tmp_path / "checkout"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for package in origin.PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=ignored)
    for name in origin.FILES:
        shutil.copy(ROOT / name, copy)
    commit(copy)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return copy


def commit(folder):
    me = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
    for command in (["init", "-q"], ["add", "."], [*me, "commit", "-q", "--allow-empty", "-m", "."]):
        subprocess.run(["git", *command], cwd=folder, check=True)


def test_a_snapshot_holds_the_packages_and_says_where_they_come_from(checkout):
    copy = take(checkout)
    assert copy.parent == (checkout.parent / "work" / paths.code())
    for name in ("engine/train.py", "engine/models/tiny-vit.json", "experiments/suites/smoke.yaml", "pyproject.toml"):
        assert (copy / name).read_bytes() == (checkout / name).read_bytes()
    assert not list(copy.rglob("__pycache__"))
    assert code_origin(copy) == code_origin(checkout)
    assert len(code_origin(copy).commit) == 40
    assert code_origin(copy).dirty_sha256 is None


def test_the_same_code_is_copied_once_and_every_change_is_another_snapshot(checkout):
    first = take(checkout)
    before = first.stat().st_mtime_ns
    (checkout / "engine" / "__pycache__").mkdir()
    (checkout / "engine" / "__pycache__" / "x.pyc").touch()
    (checkout / ".gitignore").write_text("__pycache__\n")
    (checkout / "notes.txt").write_text("no code that a job runs")
    assert take(checkout) == first
    assert first.stat().st_mtime_ns == before
    with (checkout / "engine" / "train.py").open("a") as file:
        file.write("# edited\n")
    edited = take(checkout)
    assert edited != first
    assert code_origin(edited).dirty_sha256 is not None
    (checkout / "engine" / "new.py").write_text("")
    new = take(checkout)
    assert code_origin(new).dirty_sha256 not in (None, code_origin(edited).dirty_sha256)
    # The same bytes, now committed: the same code, but a record must name the new commit.
    commit(checkout)
    assert code_origin(take(checkout)).commit not in ("unknown", code_origin(first).commit)
    assert not [path for path in paths.code().iterdir() if path.name.startswith(".")]


def test_launchers_that_copy_at_once_end_with_one_whole_snapshot(checkout):
    code = f"from pathlib import Path; from engine.jobs.snapshot import take; print(take(Path({str(checkout)!r})))"
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    found = {process.communicate()[0] for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    (copy,) = found
    assert len(list(paths.code().iterdir())) == 1
    assert code_origin(Path(copy.strip())) == code_origin(checkout)


def test_a_job_runs_the_code_that_was_there_when_it_was_submitted(checkout):
    work = checkout / "engine" / "work.py"
    work.write_text(
        "import pathlib, time\ndef main(argv):\n    while not pathlib.Path('go').exists():\n        time.sleep(0.01)\n"
        "    from engine import later\n    pathlib.Path(argv[0]).write_text(later.__file__ + ' ' + later.VALUE)\n"
    )
    later = checkout / "engine" / "later.py"
    later.write_text("VALUE = 'old'\n")
    command = [sys.executable, "-m", "engine.launch", "--name", "work", "--folder", "jobs", "--output", "out"]
    env = {**os.environ, "PYTHONPATH": str(checkout)}
    launcher = subprocess.Popen([*command, "--", "engine.work", "out"], env=env)
    while not paths.job(Path("jobs")).exists():
        assert launcher.poll() is None
    later.write_text("VALUE = 'new'\n")
    Path("go").touch()
    assert launcher.wait() == 0
    file, value = Path("out").read_text().split()
    assert value == "old"
    assert str(paths.code().absolute()) in file
    assert scheduler.read(Path("jobs")).end == "COMPLETED"


def test_a_snapshot_without_git_says_so(checkout):
    shutil.rmtree(checkout / ".git")
    noted = json.loads((take(checkout) / ORIGIN).read_text())
    assert noted == {"commit": "unknown", "dirty_sha256": "unknown"}
