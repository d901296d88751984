"""Damaged or edited files of results, specs, frames and indexes: exactly what was written, or one clear error."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
import synthetic
from hypothesis import example, given
from hypothesis import strategies as st
from support import toy
from support.fuzzing import Refused, changed, damaged, judge, places, share

from analysis import frame as tidy
from analysis.collect import collect
from analysis.frame import digest
from engine import files, paths
from engine.data.index import build_index, read_index
from engine.data.reader import PairReader
from engine.schema.base import parse
from engine.schema.evaluation import EvalResult
from engine.schema.record import Record
from engine.schema.run import CaptionSource, RunSpec
from engine.schema.suite import ExpandedSuite
from engine.training.loop import read_spec

pytestmark = pytest.mark.slow

SUITE, FRAME, INDEX = paths.suite("quickstart"), Path("collected.parquet"), paths.index("toy")
SPEC = RunSpec.model_validate(synthetic.run_spec("neuclip", 0, config={"rho": 1.5, "note": "x"}))
PAIRS = 6


def pairs() -> str:
    """The digest of all pairs that an index has."""
    found = [PairReader(read_index(INDEX), INDEX).read(number) for number in range(2 * PAIRS)]
    return hashlib.sha256(repr(found).encode()).hexdigest()


class Reader(NamedTuple):
    """What reads a file: where it lies, how its content is told, and what an error has to name."""

    pattern: str
    told: Callable[[], object]
    names: tuple[str, ...]
    seal: str = ""
    """Of a JSON file: the field that keeps its digest, which an editor leaves as it is."""

    @property
    def path(self) -> Path:
        return sorted(Path().glob(self.pattern))[0]


def suite(pattern: str, seal: str = "") -> Reader:
    return Reader(pattern, lambda: digest(collect(SUITE)), ("results/", "suite 'quickstart'"), seal)


READERS = {
    "record": suite("results/runs/neuclip*/record.json", "content_sha256"),
    "a record that diverged": suite("results/runs/openclip*s1*/record.json", "content_sha256"),
    "result": suite("results/evals/neuclip*/*/digits.json", "content_sha256"),
    "suite": suite(str(SUITE), "content_sha256"),
    "log": suite("results/runs/neuclip*/metrics.jsonl"),
    "log-normalizers": suite("results/runs/neuclip*/normalizer_error/*.safetensors"),
    "spec": Reader(str(paths.spec(SPEC.run_id)), lambda: read_spec(paths.spec(SPEC.run_id)), ("spec.json",), "none"),
    "frame": Reader(str(FRAME), lambda: digest(tidy.read(FRAME)), (str(FRAME),)),
    "index": Reader(str(INDEX), pairs, ("index.json", "'toy'", ".tar")),
    "sidecar": Reader(f"{paths.sidecars(INDEX, '')}/**/1.tar.safetensors", pairs, ("index.json", "'toy'", ".tar")),
    "a shard that was indexed": Reader("train/1.tar", pairs, ("1.tar",)),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, object]]]:
    """A folder with a file for each reader, and what each reads in it."""
    root = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        specs = [synthetic.run_spec(method, seed) for method in ("neuclip", "openclip") for seed in range(2)]
        suite = synthetic.write_suite(specs, diverged=(("openclip", 1),))
        for path in paths.RESULTS.glob("runs/*/record.json"):
            log = files.file_sha256(path.with_name("metrics.jsonl"))
            record = parse(Record, path.read_text(), str(path)).model_copy(update={"log_sha256": log})
            path.write_text(record.sealed().model_dump_json(indent=1))
        for path in paths.RESULTS.glob("evals/*/*/*.json"):
            path.write_text(parse(EvalResult, path.read_text(), str(path)).sealed().model_dump_json(indent=1))
        suite.write_text(parse(ExpandedSuite, suite.read_text(), str(suite)).sealed().model_dump_json(indent=1))
        tidy.write(collect(suite).head(300), FRAME)
        files.write_text(paths.spec(SPEC.run_id), SPEC.model_dump_json(indent=1))
        pictures = {f"{n:03d}.png": toy.picture("red", "top left", n)[: 400 + 100 * n] for n in range(PAIRS)}
        captions = {f"{n:03d}.txt": f"a square, number {n}".encode() for n in range(PAIRS)}
        for shard in range(2):
            toy.write_tar(Path(f"train/{shard}.tar"), dict(sorted((pictures | captions).items())))
        build_index("toy", "1", Path("train"), CaptionSource(), INDEX, pairs=2 * PAIRS)
        yield root, {kind: reader.told() for kind, reader in READERS.items()}


def judged(written: tuple[Path, dict[str, object]], kind: str, content: bytes) -> Any:
    """Put another content in the place of a file, for as long as it is read."""
    reader, path = READERS[kind], READERS[kind].path
    whole, times = path.read_bytes(), path.stat()
    try:
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        found = judge(reader.told, *reader.names)
    finally:
        path.write_bytes(whole)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    if not isinstance(found, Refused):
        assert found == written[1][kind], "something else, and nobody says so"
    return found


@share(0.25)
@given(kind=st.sampled_from(sorted(READERS)), data=st.data())
def test_a_damaged_file_is_refused_or_says_the_same(written, monkeypatch, kind, data):
    monkeypatch.chdir(written[0])
    whole = READERS[kind].path.read_bytes()
    # What describes a frame's rows lies at its end; the checksums of a parquet file's pages do not cover it.
    kept = whole[:-8000] if kind == "frame" and data.draw(st.booleans()) else b""
    judged(written, kind, kept + data.draw(damaged(whole[len(kept) :])))


@share(0.04)
@given(kind=st.sampled_from([kind for kind, reader in READERS.items() if reader.seal]), data=st.data())
@example(kind="spec", data=None)
def test_an_edited_file_is_refused_or_says_the_same(written, monkeypatch, kind, data):
    monkeypatch.chdir(written[0])
    reader, said = READERS[kind], json.loads(READERS[kind].path.read_text())
    if data is None:
        tree = json.loads(json.dumps(said).replace("1.5", "2.5"))
    else:
        seal = {reader.seal: said.pop(reader.seal)} if reader.seal in said else {}
        tree = {**data.draw(changed(said)), **seal}
    judged(written, kind, json.dumps(tree).encode())


@pytest.mark.parametrize(("kind", "model"), [("record", Record), ("result", EvalResult)])
def test_another_number_in_the_place_of_any_is_refused(written, monkeypatch, kind, model):
    monkeypatch.chdir(written[0])
    said = json.loads(READERS[kind].path.read_text())
    for owner, key in [(owner, key) for owner, key in places(said) if type(owner[key]) in (int, float)]:
        number = owner[key]
        owner[key] = number + 1
        text = json.dumps(said)
        assert isinstance(judge(lambda text=text: parse(model, text, "x.json"), "x.json"), Refused), key
        owner[key] = number


def test_a_digit_of_a_log_is_noticed(written, monkeypatch):
    monkeypatch.chdir(written[0])
    head, label, rest = READERS["log"].path.read_bytes().partition(b'"loss/total": ')
    other = b"7" if rest[:1] != b"7" else b"3"
    assert isinstance(judged(written, "log", head + label + other + rest[1:]), Refused)


TABLES = [
    pd.DataFrame({"a": [1]}),
    pd.DataFrame(),
    pd.DataFrame({column: pd.Series(dtype="object") for column in tidy.COLUMNS}),
    *(pd.DataFrame({column: [value] for column in tidy.COLUMNS}) for value in ("x", "0", 1.5, [1, 2], None)),
]


@pytest.mark.parametrize("number", range(len(TABLES)))
def test_another_table_is_no_frame(number):
    TABLES[number].to_parquet(FRAME)
    assert isinstance(judge(lambda: tidy.read(FRAME), FRAME), Refused)
