"""Checkpoints: whole or not there, whatever happens while they are written and to them afterwards."""

import contextlib
import errno
import json
import os
import pickle
import re
import resource
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support import killing, toy
from support.killing import Server
from support.spawn import run_in_processes

from engine import files, paths
from engine.distributed import Collectives, ProcessGroup
from engine.files import DiskFullError
from engine.schema.run import Execution
from engine.training.checkpoint import (
    copy_to,
    load_checkpoint,
    load_parts,
    newest_step,
    remove_checkpoints,
    remove_newer,
    save_checkpoint,
)
from engine.training.loop import train
from engine.training.trainer import Trainer

CPU = torch.device("cpu")
MIB = 1 << 20


def data(folder, step):
    return folder / f"step-{step:09d}.pt"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_checkpoint_is_loaded_and_the_last_two_are_kept(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {"step": step, "x": torch.full((3,), float(step))})
    assert newest_step(tmp_path) == 3
    assert load_checkpoint(tmp_path, 3)["step"] == 3
    assert names(tmp_path) == [f"step-00000000{step}.{suffix}" for step in (2, 3) for suffix in ("json", "pt")]


def test_what_is_loaded_lies_in_the_file_until_it_is_copied_and_changes_nothing_there(tmp_path):
    saved = {"x": torch.arange(1000.0), "nested": [{"y": torch.ones(2), "step": 3}], "none": None}
    save_checkpoint(tmp_path, 1, saved)
    content = data(tmp_path, 1).read_bytes()
    state = load_checkpoint(tmp_path, 1)
    assert str(data(tmp_path, 1)) in Path("/proc/self/maps").read_text()
    copied = copy_to(CPU, state)
    state["x"].zero_()
    assert data(tmp_path, 1).read_bytes() == content
    del state
    assert str(data(tmp_path, 1)) not in Path("/proc/self/maps").read_text()
    torch.testing.assert_close(copied, saved, rtol=0, atol=0)


def test_the_manifest_has_the_only_checksum_and_others_files_keep_theirs(tmp_path):
    x = torch.arange(3.0)
    save_checkpoint(tmp_path, 1, {"x": x})
    torch.save({"x": x}, tmp_path / "other.pt")
    ours, others = (
        {part.filename.partition("/")[2]: part.CRC for part in zipfile.ZipFile(path).infolist()}
        for path in (data(tmp_path, 1), tmp_path / "other.pt")
    )
    assert ours["data/0"] == 0
    assert others["data/0"] == zlib.crc32(x.numpy().tobytes())


# Damage -----------------------------------------------------------------------------------------------------------

DAMAGES = {
    "cut": "its content is not what step-000000002.json says",
    "flipped": "its content is not what step-000000002.json says",
    "gone": r"it cannot be read \(No such file or directory\)",
    "manifest cut": "step-000000002.json cannot be read",
    "manifest of another kind": "step-000000002.json cannot be read",
}


def damage(folder, how):
    newest = data(folder, 2)
    content = newest.read_bytes()
    if how == "cut":
        newest.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        newest.write_bytes(content[:700] + bytes([content[700] ^ 1]) + content[701:])
    elif how == "gone":
        newest.unlink()
    elif how == "manifest cut":
        newest.with_suffix(".json").write_text('{"step"')
    else:
        newest.with_suffix(".json").write_text("[2]")


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_with_a_line_in_the_log(tmp_path, capsys, how):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"step": step, "x": torch.arange(1000.0)})
    assert newest_step(tmp_path) == 2
    assert capsys.readouterr().err == ""
    damage(tmp_path, how)
    assert newest_step(tmp_path) == 1
    assert re.fullmatch(rf"{data(tmp_path, 2)} is passed over: {DAMAGES[how]}\n", capsys.readouterr().err)


def test_a_checkpoint_without_its_manifest_does_not_exist_and_makes_room_for_the_next(tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"step": step})
    data(tmp_path, 2).with_suffix(".json").unlink()
    assert newest_step(tmp_path) == 1
    save_checkpoint(tmp_path, 3, {"step": 3})
    assert names(tmp_path) == [f"step-00000000{step}.{suffix}" for step in (1, 3) for suffix in ("json", "pt")]


def test_what_was_passed_over_takes_no_other_checkpoint_s_place(tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"step": step, "x": torch.arange(1000.0)})
    damage(tmp_path, "flipped")
    remove_newer(tmp_path, 1)
    save_checkpoint(tmp_path, 3, {"step": 3})
    assert names(tmp_path) == [f"step-00000000{step}.{suffix}" for step in (1, 3) for suffix in ("json", "pt")]


def test_a_run_without_a_checkpoint_that_verifies_begins_anew_and_keeps_its_own(tmp_path, monkeypatch):
    toy.build(tmp_path)
    monkeypatch.chdir(tmp_path)
    spec = toy.run_spec("openclip")
    folder = paths.checkpoints(spec.run_id)
    for step in (1000, 2000):
        save_checkpoint(folder, step, {"step": step})
        data(folder, step).unlink()
    trainer = Trainer(spec, Execution(), torch.device("cpu"), Collectives())
    trainer.resume()
    assert trainer.step_number == 0
    save_checkpoint(folder, 10, {"step": 10})
    assert newest_step(folder) == 10


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_and_ends_alike(tmp_path, monkeypatch, capsys):
    toy.build(tmp_path)
    monkeypatch.chdir(tmp_path)
    spec = toy.run_spec("neuclip")
    expected = train(spec, Execution()).milestones
    os.rename(paths.run(spec.run_id), tmp_path / "undamaged")
    folder = paths.checkpoints(spec.run_id)
    kill = killing.Kill("save", 5, 10**9)
    codes = Server().run(tmp_path, toy.write_spec(tmp_path, spec), kill=kill, execution={"save_every_min": 0})
    assert (codes, newest_step(folder)) == ([-9], 5)
    newest = data(folder, 5)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    capsys.readouterr()
    record = train(spec, Execution())
    assert f"{newest} is passed over" in capsys.readouterr().err
    assert [attempt.first_step for attempt in record.attempts] == [0, 4]
    assert record.milestones == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 1}, f"by torch {re.escape(torch.__version__)} with schema 1"),
        ({"torch": "2.9.0+cu128"}, r"by torch 2\.9\.0\+cu128 with schema 2"),
    ],
)
def test_a_checkpoint_of_another_version_is_refused(tmp_path, change, message):
    save_checkpoint(tmp_path, 1, {"step": 1})
    manifest = data(tmp_path, 1).with_suffix(".json")
    write_manifest(manifest, json.loads(manifest.read_text()) | change)
    with pytest.raises(ValueError, match=f"{message}; here are torch .* remove {tmp_path}"):
        load_checkpoint(tmp_path, newest_step(tmp_path))


def write_manifest(path, facts):
    """Write a manifest without a digest of its own, as old ones are."""
    path.write_text(json.dumps({key: value for key, value in facts.items() if key != "manifest_sha256"}))


def replace_data(folder, step, write):
    """Put another file in the place of a checkpoint's, with its digest in the manifest."""
    write(data(folder, step))
    manifest = data(folder, step).with_suffix(".json")
    facts = json.loads(manifest.read_text()) | {"sha256": files.file_sha256(data(folder, step))}
    write_manifest(manifest, facts)


ON_TWO_DISKS = b"PK\x06\x07" + struct.pack("<LQL", 1, 0, 2) + b"PK\x05\x06" + bytes(18)
"""The end of an archive of zip's large form, of which the rest would be on another disk."""


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(pickle.dumps({"towers": {}})), "is no checkpoint, but another kind of file"),
        (lambda path: torch.save({"towers": path}, path), "is no checkpoint, but another kind of file"),
        (lambda path: zipfile.ZipFile(path, "w").close(), "is no checkpoint, but another kind of file"),
        (lambda path: path.write_bytes(ON_TWO_DISKS), "is no checkpoint, but another kind of file"),
        (lambda path: torch.save([1], path), "is no checkpoint, but another kind of file"),
        (lambda path: torch.save({"towers": {}}, path), "is no checkpoint of a run, it lacks averaged, clock,"),
    ],
    ids=["a pickle", "an object", "an archive", "on two disks", "a list", "without its keys"],
)
def test_another_file_in_the_place_of_a_checkpoint_is_named(tmp_path, monkeypatch, write, message):
    toy.build(tmp_path)
    monkeypatch.chdir(tmp_path)
    spec = toy.run_spec("openclip", steps=2)
    folder = paths.checkpoints(spec.run_id)
    save_checkpoint(folder, 1, {"x": 1})
    replace_data(folder, 1, write)
    said = rf"step-000000001\.pt {message}.*: remove {folder} to train the run again from its start$"
    with pytest.raises(ValueError, match=said):
        train(spec, Execution())


def test_files_under_names_that_no_checkpoint_has_are_left_alone(tmp_path, capsys):
    strange = ["step-garbage.json", "step-garbage.pt", "step-1.json"]
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"step": step})
        for name in strange:
            (tmp_path / name).write_text("{}")
    assert newest_step(tmp_path) == 2
    said = capsys.readouterr().err
    assert all(f"{name} is passed over: checkpoints are called" in said for name in strange)
    remove_newer(tmp_path, 1)
    save_checkpoint(tmp_path, 2, {"step": 2})
    save_checkpoint(tmp_path, 3, {"step": 3})
    kept = [f"step-{step:09d}{suffix}" for step in (2, 3) for suffix in (".json", ".pt")]
    assert names(tmp_path) == sorted([*kept, *strange])


def test_no_checkpoint_is_no_error(tmp_path):
    assert newest_step(tmp_path / "nothing") is None
    remove_checkpoints(tmp_path / "nothing")


# Full disks -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder, num_bytes):
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)]
    tried = subprocess.run(mount, capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"only root may mount a small disk: {tried.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def write_checkpoint(path, num_bytes):
    save_checkpoint(path.parent, 2, {"x": torch.zeros(num_bytes // 4)})


def write_weights(path, num_bytes):
    with files.atomic_write(path) as temporary:
        save_file({"x": torch.zeros(num_bytes // 4)}, temporary)


def write_text(path, num_bytes):
    files.write_text(path, "x" * num_bytes)


@pytest.mark.parametrize(
    ("write", "name", "needed"),
    [
        (write_checkpoint, "step-000000002.pt", "about 4,194,304"),
        (write_weights, "weights.safetensors", r"more than [\d,]+"),
        (write_text, "record.json", "about 4,194,304"),
    ],
)
def test_a_full_disk_leaves_what_was_there_and_is_named(tmp_path, write, name, needed):
    with small_disk(tmp_path / "disk", 3 * MIB) as folder:
        save_checkpoint(folder, 1, {"x": torch.ones(1000)})
        before = names(folder)
        message = (
            rf"no room for {folder / name} \(No space left on device\): {needed} bytes are needed, 3,1\d\d,\d\d\d were "
            r"free on its disk\. .* Make room"
        )
        with pytest.raises(DiskFullError, match=message):
            write(folder / name, 4 * MIB)
        assert names(folder) == before
        assert newest_step(folder) == 1


def test_a_limit_on_the_size_of_files_is_named_too(tmp_path):
    code = (
        "import resource, sys; from pathlib import Path; import torch\n"
        "from engine.training.checkpoint import save_checkpoint\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "save_checkpoint(Path(sys.argv[1]), 1, {'x': torch.zeros(1 << 19)})"
    )
    told = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert re.search(r"DiskFullError: no room for .*step-000000001.pt \(File too large\): about 2,097,152", told.stderr)
    assert names(tmp_path) == []


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(OSError, match="Input/output error") as raised, files.atomic_write(tmp_path / "x"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert not isinstance(raised.value, DiskFullError)
    with pytest.raises(RuntimeError, match=r"^not that$"), files.atomic_write(tmp_path / "x"):
        raise RuntimeError("not that")


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_ends_with_one_clear_error_when_the_disk_is_full_and_goes_on_when_it_is_not(tmp_path, world_size):
    server, spec = Server(), toy.run_spec("fastclip", model={"name": "dropout-vit"})
    toy.build(tmp_path)
    path, execution = toy.write_spec(tmp_path, spec), {"save_every_min": 0}
    assert server.run(tmp_path, path, world_size=world_size, execution=execution) == [0] * world_size
    expected = final_weights(tmp_path, spec)
    run = tmp_path / paths.run(spec.run_id)
    os.rename(run, tmp_path / "undisturbed")
    for file in tmp_path.glob("log-*.txt"):
        file.unlink()
    # A checkpoint has 5 MB: two fit, with a third there is no room.
    with small_disk(run, 12 * MIB):
        toy.write_spec(tmp_path, spec)
        codes = server.run(tmp_path, path, world_size=world_size, execution=execution)
        assert codes == [1] * world_size
        log = (tmp_path / "log-0.txt").read_text()
        assert log.count("error: no room for ") == 1
        assert not any("Traceback" in file.read_text() for file in tmp_path.glob("log-*.txt"))
        assert newest_step(run / "checkpoints") == 2
        assert not list(run.rglob(".*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=64M", str(run)], check=True)
        assert server.run(tmp_path, path, world_size=world_size, execution=execution) == [0] * world_size
        assert final_weights(tmp_path, spec) == expected


def test_a_full_disk_is_named_when_there_is_no_room_for_a_line_of_metrics(tmp_path):
    spec = toy.run_spec("openclip", steps=60, model={"name": "dropout-vit"}, normalizer_error=None)
    toy.build(tmp_path)
    run = tmp_path / paths.run(spec.run_id)
    run.parent.mkdir()
    with small_disk(run, 32 << 10):
        codes = Server().run(tmp_path, toy.write_spec(tmp_path, spec), execution={"log_every_steps": 1})
        assert codes == [1]
        log = (tmp_path / "log-0.txt").read_text()
        assert re.search(rf"^error: no room for {paths.metrics(spec.run_id)} \(No space left on device\)", log, re.M)
        assert "Traceback" not in log


def final_weights(root, spec):
    return files.folder_sha256(root / paths.weights(spec.run_id, spec.samples_seen))


def test_equal_text_is_not_written_again(tmp_path):
    path = tmp_path / "a" / "b.json"
    files.write_text(path, "x")
    before = path.stat().st_mtime_ns
    files.write_text(path, "x")
    assert path.stat().st_mtime_ns == before


def test_nothing_half_written_stays_of_a_process_that_was_killed(tmp_path):
    (tmp_path / "weights").mkdir()
    code = (
        "import os, sys; from pathlib import Path; import torch; from safetensors.torch import save_file\n"
        "from engine import files\n"
        "weights = {'x': torch.zeros(1 << 29, dtype=torch.uint8)}\n"
        "with files.atomic_write(Path(sys.argv[1])) as path: path.touch(); print('writing', flush=True);"
        " save_file(weights, path)"
    )
    for name in ("weights/model.safetensors", "record.json"):
        with subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / name)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout.readline() == "writing\n"
            while len(list((tmp_path / name).parent.glob(".*"))) < 2:  # safetensors' own temporary file
                assert process.poll() is None
            process.kill()
    (tmp_path / "kept.json").touch()
    files.remove_temporaries(tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["kept.json", "weights"]


# Parts of several processes -----------------------------------------------------------------------------------------


def save_in_parts(folder: str, steps: list[int]) -> None:
    ours = ProcessGroup()
    own = torch.full((1000,), float(ours.rank))
    for step in steps:
        save_checkpoint(Path(folder), step, {"step": step, "own": own} if ours.rank == 0 else {"own": own + step}, ours)


def test_what_processes_keep_of_their_own_is_saved_verified_and_removed_with_the_rest(tmp_path, capsys):
    data(tmp_path, 1).with_suffix(".3.pt").touch()  # left of a process that was killed
    run_in_processes(save_in_parts, 2, str(tmp_path), [1, 2, 3])
    kept = [f"step-00000000{step}.{suffix}" for step in (2, 3) for suffix in ("1.pt", "json", "pt")]
    assert names(tmp_path) == kept
    assert load_checkpoint(tmp_path, newest_step(tmp_path))["step"] == 3
    (part,) = load_parts(tmp_path, 3)
    assert torch.equal(part["own"], torch.full((1000,), 4.0))
    part_file = data(tmp_path, 3).with_suffix(".1.pt")
    part_file.write_bytes(part_file.read_bytes()[:1500])
    assert newest_step(tmp_path) == 2
    assert f"part {part_file.name}: its content is not what step-000000003.json says" in capsys.readouterr().err
    part_file.unlink()
    assert newest_step(tmp_path) == 2
    remove_newer(tmp_path, 2)
    assert names(tmp_path) == kept[:3]


def test_a_checkpoint_from_before_there_were_parts_is_read(tmp_path):
    save_checkpoint(tmp_path, 1, {"step": 1})
    manifest = data(tmp_path, 1).with_suffix(".json")
    said = json.loads(manifest.read_text())
    assert said.pop("parts") == []
    write_manifest(manifest, said)
    assert (newest_step(tmp_path), load_parts(tmp_path, 1)) == (1, [])


def lack_room(folder: str) -> str:
    ours = ProcessGroup()
    if ours.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB))
    with pytest.raises(DiskFullError) as full:
        save_checkpoint(Path(folder), 2, {"own": torch.zeros(MIB if ours.rank else 1)}, ours)
    return str(full.value)


def test_a_process_without_room_for_its_part_stops_all_and_leaves_the_checkpoint_before(tmp_path):
    save_checkpoint(tmp_path, 1, {"step": 1})
    said = run_in_processes(lack_room, 2, str(tmp_path))
    assert said[0] == "no room for a checkpoint: another process says how much it needs"
    assert f"no room for {data(tmp_path, 2).with_suffix('.1.pt')} (File too large)" in said[1]
    assert newest_step(tmp_path) == 1
