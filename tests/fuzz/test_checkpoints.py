"""Damaged checkpoints: exactly the state that was saved, the checkpoint before it, or one clear error."""

import contextlib
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from support import toy
from support.fuzzing import Refused, changed, controls, damaged, judge, places, share, values

from engine import files, paths
from engine.distributed import Collectives
from engine.schema.run import Execution
from engine.training import checkpoint
from engine.training.loop import _batches
from engine.training.trainer import Trainer

pytestmark = pytest.mark.slow

SPEC = toy.run_spec("fastclip", steps=4)
FOLDER = paths.checkpoints(SPEC.run_id)
NAMES = ("step-000000001.json", "step-000000001.pt", "step-000000002.json", "step-000000002.1.pt", "step-000000002.pt")


def fill(number: int) -> dict[str, Any]:
    return {"number": number, "x": torch.arange(50.0) + number, "nested": {"list": [1, 2.5, "text", None]}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Two checkpoints, the second with a part of another process."""
    folder = tmp_path_factory.mktemp("saved")
    for step in (1, 2):
        checkpoint.save_checkpoint(folder, step, fill(step))
    data, part = folder / "step-000000002.pt", folder / "step-000000002.1.pt"
    torch.save({"part": torch.arange(5)}, part)
    checkpoint._write_manifest(folder, 2, files.file_sha256(data), [files.file_sha256(part)])
    return {name: (folder / name).read_bytes() for name in NAMES}


def loaded(folder: Path) -> tuple[int | None, dict[str, Any], list[dict[str, Any]]]:
    """What a run would go on from."""
    step = checkpoint.newest_step(folder)
    if step is None:
        return None, {}, []
    state = checkpoint.load_checkpoint(folder, step, keys=("number", "x", "nested"))
    return step, state, checkpoint.load_parts(folder, step)


def judged(contents: dict[str, bytes]) -> None:
    folder = Path("checkpoints")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        found = judge(lambda: loaded(folder), "checkpoints")
    assert not controls(said.getvalue())
    assert "Traceback" not in said.getvalue()
    if isinstance(found, Refused) or found[0] is None:
        return
    step, state, parts = found
    expected = fill(step)
    assert torch.equal(state.pop("x"), expected.pop("x"))
    assert repr(state) == repr(expected)
    assert [part["part"].tolist() for part in parts] == ([[0, 1, 2, 3, 4]] if step == 2 else [])


@share(0.077)
@given(name=st.sampled_from(NAMES), data=st.data())
@example(name="step-000000002.json", data=None)
def test_a_damaged_or_edited_file_gives_the_state_that_was_saved_or_the_one_before(saved, name, data):
    if data is not None and not (name.endswith(".json") and data.draw(st.booleans())):
        judged({**saved, name: data.draw(damaged(saved[name]))})
        return
    said = json.loads(saved[name])
    seal = said.pop("manifest_sha256")
    tree = {**said, "parts": []} if data is None else data.draw(changed(said))
    judged({**saved, name: json.dumps({**tree, "manifest_sha256": seal}).encode()})


@share(0.01)
@given(names=st.permutations(NAMES), gone=st.integers(0, 4))
def test_files_that_are_gone_or_take_each_other_s_places_give_no_other_state(saved, names, gone):
    judged(dict(zip(names[gone:], map(saved.get, NAMES[gone:]), strict=True)))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Trainer]]:
    """A run with a checkpoint after two steps."""
    root = tmp_path_factory.mktemp("run")
    toy.build(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        trainer = Trainer(SPEC, Execution(), torch.device("cpu"), Collectives())
        batches = _batches(trainer)
        for _ in range(2):
            trainer.step(next(batches), wants_metrics=True)
        trainer.save()
        yield root / FOLDER / "step-000000002.pt", trainer


def put(path: Path, content: bytes) -> None:
    """Put other bytes in the place of a checkpoint, with their digest in the manifest."""
    manifest = path.with_suffix(".json")
    path.write_bytes(content)
    said = json.loads(manifest.read_text()) | {"sha256": files.file_sha256(path)}
    said.pop("manifest_sha256", None)
    manifest.write_text(json.dumps(said))


@share(0.033)
@given(data=st.data())
def test_another_content_is_refused_although_its_digest_fits(run, monkeypatch, data):
    path, trainer = run
    monkeypatch.chdir(path.parents[len(FOLDER.parts)])
    whole = path.read_bytes()
    if data.draw(st.booleans()):
        # What torch pickles lies in the first kilobytes, the archive's directory in the last.
        begin = data.draw(st.sampled_from((0, len(whole) - 6000)))
        changed = whole[:begin] + data.draw(damaged(whole[begin : begin + 6000])) + whole[begin + 6000 :]
    else:
        state = torch.load(path, weights_only=True)
        owner, key = data.draw(st.sampled_from([at for at in places(state) if isinstance(at[0], dict)]))
        tensors = (torch.zeros(2), torch.zeros(0), torch.tensor(1), torch.ones(3, 3, dtype=torch.int64))
        owner[key] = data.draw(st.one_of(values(), st.sampled_from(tensors)))
        file = io.BytesIO()
        torch.save(state, file)
        changed = file.getvalue()
    try:
        put(path, changed)
        judge(trainer.resume, str(FOLDER))
    finally:
        put(path, whole)
