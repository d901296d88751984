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
from support.fuzzing import Judge, Refused, changed, damaged, refuse_controls, share, values

from engine import files, paths
from engine.distributed import Collectives
from engine.schema.run import Execution
from engine.training import checkpoint
from engine.training.trainer import Trainer

pytestmark = pytest.mark.slow

SPEC = toy.run_spec("fastclip", steps=4)
FOLDER = paths.checkpoints(SPEC.run_id)
NAMES = ("step-000000001.json", "step-000000001.pt", "step-000000002.json", "step-000000002.1.pt", "step-000000002.pt")


def fill(number: int) -> dict[str, Any]:
    return {
        "number": number,
        "x": torch.arange(50.0) + number,
        "nested": {"list": [1, 2.5, "text", None], "y": torch.ones(3, dtype=torch.bfloat16)},
    }


def is_equal(found: Any, expected: Any) -> bool:
    """Compare states: types, names and numbers."""
    if isinstance(expected, torch.Tensor):
        return isinstance(found, torch.Tensor) and found.dtype == expected.dtype and torch.equal(found, expected)
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(is_equal(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(is_equal, found, expected))
    return bool(type(found) is type(expected) and found == expected)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Two checkpoints, the second with a part of another process."""
    folder = tmp_path_factory.mktemp("saved")
    for step in (1, 2):
        checkpoint.save_checkpoint(folder, step, fill(step))
    data, part = folder / "step-000000002.pt", folder / "step-000000002.1.pt"
    torch.save({"part": torch.arange(5)}, part)
    checkpoint._write_manifest(folder, 2, files.file_sha256(data), [files.file_sha256(part)])
    assert sorted(path.name for path in folder.iterdir()) == sorted(NAMES)
    return {name: (folder / name).read_bytes() for name in NAMES}


def loaded(folder: Path) -> tuple[int | None, dict[str, Any], list[dict[str, Any]]]:
    """What a run would go on from."""
    step = checkpoint.newest_step(folder)
    if step is None:
        return None, {}, []
    state = checkpoint.load_checkpoint(folder, step, keys=("number", "x", "nested"))
    return step, state, checkpoint.load_parts(folder, step)


def agree(found: tuple[int | None, dict[str, Any], list[dict[str, Any]]]) -> None:
    step, state, parts = found
    if step is None:
        return
    assert is_equal(state, fill(step))
    assert [part["part"].tolist() for part in parts] == ([[0, 1, 2, 3, 4]] if step == 2 else [])


def judged(judge: Judge, contents: dict[str, bytes]) -> None:
    folder = Path("checkpoints")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        found = judge(lambda: loaded(folder), "checkpoints")
    refuse_controls(said.getvalue())
    assert "Traceback" not in said.getvalue()
    if not isinstance(found, Refused):
        agree(found)


@share(0.058)
@given(name=st.sampled_from(NAMES), data=st.data())
def test_a_damaged_file_gives_the_state_that_was_saved_or_the_one_before(saved, judge, name, data):
    judged(judge, {**saved, name: data.draw(damaged(saved[name]))})


@share(0.019)
@given(name=st.sampled_from([name for name in NAMES if name.endswith(".json")]), data=st.data())
@example(name="step-000000002.json", data=None)
def test_a_changed_manifest_gives_the_state_that_was_saved_or_the_one_before(saved, judge, name, data):
    said = json.loads(saved[name])
    seal = said.pop("manifest_sha256")
    tree = {**said, "parts": []} if data is None else data.draw(changed(said))
    judged(judge, {**saved, name: json.dumps({**tree, "manifest_sha256": seal}).encode()})


@share(0.01)
@given(names=st.permutations(NAMES), gone=st.integers(0, 4))
def test_files_that_are_gone_or_take_each_other_s_places_give_no_other_state(saved, judge, names, gone):
    swapped = (
        {NAMES[0]: saved[names[0]]} if gone == 4 else dict(zip(names[gone:], map(saved.get, NAMES[gone:]), strict=True))
    )
    judged(judge, swapped)


def test_a_checkpoint_under_the_name_of_another_step_is_passed_over(saved, judge):
    both = {
        name.replace("1", "7", 1) if name.startswith("step-000000001") else name: data for name, data in saved.items()
    }
    assert "step-000000007.pt" in both
    judged(judge, both)
    assert checkpoint.newest_step(Path("checkpoints")) == 2


# With a digest that fits --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Trainer]]:
    """A run with a checkpoint after two steps."""
    root = tmp_path_factory.mktemp("run")
    toy.build(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        trainer = Trainer(SPEC, Execution(), torch.device("cpu"), Collectives())
        from engine.training.loop import _batches

        batches = _batches(trainer)
        for _ in range(2):
            trainer.step(next(batches), wants_metrics=True)
        trainer.save()
        yield root, trainer


def plain(state: Any) -> Any:
    """A state as a tree of places: its tensors are leaves."""
    if isinstance(state, dict):
        return {key: plain(value) for key, value in state.items()}
    return [plain(value) for value in state] if isinstance(state, list | tuple) else state


def resumed(trainer: Trainer) -> int:
    trainer.resume()
    return trainer.step_number


def put(root: Path, state: Any) -> None:
    """Put another state in the place of the run's, with its digest in the manifest."""
    data = root / FOLDER / "step-000000002.pt"
    manifest = data.with_suffix(".json")
    data.unlink(missing_ok=True)
    if isinstance(state, bytes):
        data.write_bytes(state)
    else:
        torch.save(state, data)
    said = json.loads(manifest.read_text()) | {"sha256": files.file_sha256(data)}
    said.pop("manifest_sha256", None)
    manifest.write_text(json.dumps(said))


def odd() -> st.SearchStrategy[Any]:
    """Values that a state can have in place of another."""
    tensors = st.sampled_from((torch.zeros(2), torch.zeros(0), torch.tensor(1), torch.ones(3, 3, dtype=torch.int64)))
    return st.one_of(values(), tensors)


@share(0.014)
@given(data=st.data())
def test_a_state_of_another_form_is_refused_although_its_digest_fits(run, judge, monkeypatch, data):
    root, trainer = run
    monkeypatch.chdir(root)
    path = root / FOLDER / "step-000000002.pt"
    whole = path.read_bytes()
    trainer.step_number = 2
    try:
        state = torch.load(path, weights_only=True)
        places = [(key,) for key in state] + [
            (key, inner) for key in state if isinstance(state[key], dict) for inner in state[key]
        ]
        *above, last = data.draw(st.sampled_from(places))
        owner = state
        for key in above:
            owner = owner[key]
        if data.draw(st.booleans()):
            del owner[last]
        else:
            owner[last] = data.draw(odd())
        put(root, state)
        judge(lambda: resumed(trainer), str(FOLDER))
    finally:
        put(root, whole)


@share(0.019)
@given(data=st.data())
def test_a_file_of_any_bytes_is_refused_although_its_digest_fits(run, judge, monkeypatch, data):
    root, trainer = run
    monkeypatch.chdir(root)
    path = root / FOLDER / "step-000000002.pt"
    whole = path.read_bytes()
    # What torch pickles lies in the first kilobytes, the archive's directory in the last.
    head, tail = whole[:6000], whole[-6000:]
    try:
        part = data.draw(st.sampled_from(("head", "tail")))
        damage = damaged(head if part == "head" else tail)
        changed = data.draw(damage)
        put(root, changed + whole[6000:] if part == "head" else whole[:-6000] + changed)
        judge(lambda: resumed(trainer), str(FOLDER))
    finally:
        put(root, whole)
