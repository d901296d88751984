"""Evaluation sets are fetched whole, from one commit, and are what the Hub says; after that no network is needed."""

import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.file_download
import numpy as np
import pytest
import yaml
from rich.console import Console
from support import evalsets
from support.hub import Hub, commit

from engine import files
from engine.evaluation import card_files, reading
from engine.schema.evaluation import EvalCard, Evaluation
from experiments.design import cards
from experiments.fetch import evaluation
from experiments.fetch.evaluation import FetchError

ROOT = Path(__file__).resolve().parents[3]
FIRST, SECOND = commit(1), commit(2)
REPO = "someone/wds_pets_test"


@pytest.fixture
def hub(monkeypatch):
    """The Hub of this process."""
    with Hub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):
            value = getattr(huggingface_hub.constants, name).replace("https://huggingface.co", hub.endpoint)
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        # What came of a chunk that did not end is lost: 10 MB as a rule.
        monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 500)
        monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda _: None)
        yield hub


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A working directory with a copy of the cards, which may be changed."""
    folder = tmp_path / "cards"
    for kind in ("evals", "evaluations"):
        (folder / kind).mkdir(parents=True)
    monkeypatch.setattr(cards, "FOLDER", folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def offer(hub: Hub, home: Path, revision: str = FIRST, *, seed: int = 0, **facts: object) -> EvalCard:
    """Put a set on the Hub, with files that do not belong to it, and its card among the cards."""
    made = home / "made" / revision / "pets"
    card = evalsets.classification(made, seed=seed, shards=3)
    files = contents(made) | {"README.md": b"# Pets\n", "train/0.tar": b"not asked for" * 1000}
    hub.add(REPO, revision, files)
    card = card.model_copy(update={"path": "data/pets", "hf_repo": REPO, **facts})
    write_card(card)
    return card


def write_card(card: EvalCard) -> None:
    given = card.model_dump(mode="json", exclude_defaults=True)
    for kind, name, data in (
        ("evals", card.name, given),
        ("evaluations", "zoo", {"sets": [card.name], "averages": {}}),
    ):
        text = yaml.safe_dump(data, sort_keys=False)
        (cards.FOLDER / kind / f"{name}.yaml").write_text(text)


def run(*names: str, **options: bool) -> str:
    console = Console(width=200, file=io.StringIO())
    evaluation.run(names, console, **options)
    return console.file.getvalue()


def source(card: EvalCard) -> dict:
    return json.loads(evaluation.source_path(card).read_text())


def test_a_set_is_fetched_whole_and_is_the_one_that_was_offered(hub, home):
    card = offer(hub, home)
    said = run("zoo")
    assert contents(Path(card.path)) == contents(home / "made" / FIRST / "pets")
    assert not hub.bytes_of("train/0.tar")
    assert not hub.bytes_of("README.md")
    assert len(reading.read(card).labels) == 40
    noted = source(card)
    assert (noted["repo"], noted["revision"]) == (REPO, FIRST)
    assert noted["sha256"] == files.folder_sha256(Path(card.path))
    assert f"--pin would write hf_revision: {FIRST}" in said


def test_sizes_are_said_first_and_a_dry_run_fetches_nothing(hub, home):
    card = offer(hub, home)
    said = run("pets", dry_run=True)
    size = sum(map(len, contents(home / "made" / FIRST / "pets").values()))
    assert said.count(f"{size / 1e6:,.1f} MB") == 3  # the set's size, what is to come of it, and of all
    assert f"{REPO}@{FIRST}" in said
    assert "CC0-1.0" in said
    assert not Path(card.path).exists()
    assert not hub.served


def test_a_set_that_is_there_is_left_alone_and_the_hub_is_not_asked(hub, home):
    card = offer(hub, home)
    shutil.copytree(home / "made" / FIRST / "pets", card.path)
    before = {path: path.stat().st_mtime_ns for path in Path(card.path).rglob("*")}
    assert "there" in run("zoo")
    evaluation.source_path(card).unlink(missing_ok=True)
    assert not hub.asked
    assert {path: path.stat().st_mtime_ns for path in Path(card.path).rglob("*")} == before

    shutil.rmtree(card.path)
    run("zoo")
    hub.asked.clear()
    run("zoo")
    assert not hub.asked


def test_a_half_set_is_completed_without_what_is_there(hub, home):
    card = offer(hub, home)
    shutil.copytree(home / "made" / FIRST / "pets", card.path)
    (Path(card.path) / "test" / "1.tar").unlink()
    assert "in part" in run("zoo")
    assert [answer.path for answer in hub.served] == ["test/1.tar"]
    assert contents(Path(card.path)) == contents(home / "made" / FIRST / "pets")


def test_a_set_that_lost_a_file_is_mended_from_the_commit_it_is_of(hub, home):
    card = offer(hub, home)
    run("zoo")
    offer(hub, home, SECOND, seed=1)
    (Path(card.path) / "test" / "0.tar").unlink()
    run("zoo")
    assert contents(Path(card.path)) == contents(home / "made" / FIRST / "pets")
    assert source(card)["sha256"] == files.folder_sha256(Path(card.path))


def test_one_commit_is_used_for_all_files_even_if_the_repository_moves_meanwhile(hub, home):
    card = offer(hub, home)
    hub.cut_after["test/1.tar"] = [1000] + [0] * 20
    with pytest.raises(FetchError, match=r"^evaluation set 'pets': it could not be fetched \(RemoteProtocolError: "):
        run("zoo")
    assert not card_files.is_there(card)
    assert source(card)["sha256"] is None  # not whole yet
    offer(hub, home, SECOND, seed=1)
    hub.cut_after.clear()
    run("zoo")
    assert source(card)["revision"] == FIRST
    assert contents(Path(card.path)) == contents(home / "made" / FIRST / "pets")
    # Of the file that broke off for good, what had come is lost.
    for name, lost in (("test/0.tar", 0), ("test/1.tar", 1000)):
        assert hub.bytes_of(name) == lost + (Path(card.path) / name).stat().st_size


def test_a_commit_that_the_card_pins_is_the_one_that_is_fetched(hub, home):
    offer(hub, home)
    offer(hub, home, SECOND, seed=1)
    card = offer(hub, home, hf_revision=FIRST)
    hub.add(REPO, SECOND, hub.commits[REPO].pop(SECOND))
    run("zoo")
    assert source(card)["revision"] == FIRST
    assert contents(Path(card.path)) == contents(home / "made" / FIRST / "pets")

    write_card(card.model_copy(update={"hf_revision": SECOND}))
    with pytest.raises(
        FetchError, match=f"was fetched with hf_revision {FIRST}, its card asks for {SECOND}: remove data/pets"
    ):
        run("zoo")


def test_pinning_writes_commit_and_digest_into_the_card_and_changes_nothing_else(hub, home):
    card = offer(hub, home)
    path = cards.FOLDER / "evals" / "pets.yaml"
    path.write_text("# A comment.\n" + path.read_text() + "hf_revision: null\n")
    before = path.read_text()
    run("zoo", pin_cards=True)
    digest = files.folder_sha256(Path(card.path))
    pinned = cards.eval_set("pets")
    assert (pinned.hf_revision, pinned.sha256) == (FIRST, digest)
    lines = [yaml.safe_dump({key: value}) for key, value in (("hf_revision", FIRST), ("sha256", digest))]
    assert path.read_text() == before.replace("hf_revision: null\n", "".join(lines))
    assert reading.read(pinned).sha256 == digest
    assert "there" in run("zoo")
    path.write_text(before)  # a set that was fetched before can be pinned too
    run("zoo", pin_cards=True)
    assert cards.eval_set("pets") == pinned


def test_a_connection_that_breaks_off_is_taken_up_where_it_was(hub, home):
    card = offer(hub, home)
    hub.cut_after["test/0.tar"] = [3000, 4000]
    run("zoo")
    size = (Path(card.path) / "test/0.tar").stat().st_size
    assert [answer[1:] for answer in hub.served if answer.path == "test/0.tar"] == [
        (0, 3000), (3000, 4000), (7000, size - 7000),
    ]  # fmt: skip
    assert contents(Path(card.path)) == contents(home / "made" / FIRST / "pets")


@pytest.mark.slow
def test_a_fetch_that_is_killed_goes_on_with_the_files_it_has(hub, home):
    card = offer(hub, home)
    hub.stall["test/1.tar"] = threading.Event()
    code = (
        "import sys, pathlib; from experiments import __main__; from experiments.design import cards\n"
        "cards.FOLDER = pathlib.Path(sys.argv[1]); __main__.main(['evaluation-data', 'zoo'])"
    )
    command = [sys.executable, "-c", code, str(cards.FOLDER)]
    staged = Path(card.path) / ".download" / "files"
    whole = sorted(contents(home / "made" / FIRST / "pets").keys() - {"test/1.tar"})
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        deadline = time.monotonic() + 120
        while not (hub.bytes_of("test/1.tar") and all((staged / name).exists() for name in whole)):
            assert process.poll() is None, process.stdout.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with pytest.raises(FetchError, match="another process is fetching it"):
            run("zoo")
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(list(staged.rglob("*.incomplete"))) == 1
    assert not card_files.is_there(card)
    hub.stall["test/1.tar"].set()
    hub.served.clear()
    run("zoo")
    assert contents(Path(card.path)) == contents(home / "made" / FIRST / "pets")
    assert [answer.path for answer in hub.served] == ["test/1.tar"]


@pytest.mark.parametrize("name", ["test/1.tar", "classnames.txt"])
def test_a_file_that_changes_on_the_way_is_thrown_away_and_fetched_anew(hub, home, name):
    card = offer(hub, home)
    hub.corrupt.add(name)
    with pytest.raises(
        FetchError, match=f"what came of {name} from {REPO}@{FIRST} has not the digest that the Hub states"
    ):
        run("zoo")
    assert not (Path(card.path) / name).exists()
    assert not card_files.is_there(card)
    hub.corrupt.clear()
    run("zoo")
    assert contents(Path(card.path)) == contents(home / "made" / FIRST / "pets")


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data[:9] + b"x" + data[10:]])
def test_a_file_that_is_here_and_is_another_is_named_and_not_overwritten(hub, home, change):
    card = offer(hub, home)
    shutil.copytree(home / "made" / FIRST / "pets", card.path)
    (Path(card.path) / "test" / "2.tar").unlink()
    own = Path(card.path) / "test" / "0.tar"
    own.write_bytes(change(own.read_bytes()))
    before = contents(Path(card.path))
    with pytest.raises(FetchError, match=r"data/pets/test/0\.tar \([\d,]+ bytes\) is not the file of .*: remove it"):
        run("zoo")
    assert contents(Path(card.path)) == before
    assert not hub.served


def test_whole_files_with_other_numbers_than_the_card_says_are_named_with_what_to_do(hub, home):
    offer(hub, home, images=41)
    for _ in range(2):
        with pytest.raises(
            FetchError, match=f"data/pets has 40 images, its card says 41(.|\n)*those of {REPO}@{FIRST}"
        ):
            run("zoo")
    offer(hub, home, images=40, classes=8)
    with pytest.raises(FetchError, match="7 class names, its card says 8"):
        run("zoo")


def test_errors_of_the_hub_say_what_to_do(hub, home, monkeypatch):
    card = offer(hub, home)
    write_card(card.model_copy(update={"hf_revision": commit(9)}))
    with pytest.raises(
        FetchError, match=rf"no commit {commit(9)}: correct hf_revision in experiments/evals/pets\.yaml"
    ):
        run("zoo")
    write_card(card.model_copy(update={"hf_repo": "someone/els"}))
    with pytest.raises(FetchError, match="there is no public repository someone/els"):
        run("zoo")
    write_card(card)
    hub.gated.add(REPO)
    with pytest.raises(FetchError, match="asks for its terms to be accepted"):
        run("zoo")
    hub.gated.clear()
    del hub.commits[REPO][FIRST]["test/nshards.txt"]
    with pytest.raises(FetchError, match=r"no test/nshards\.txt in .*: it is not in the layout"):
        run("zoo")
    with pytest.raises(ValueError, match="unknown evaluation or evaluation set 'pet'; did you mean 'pets'"):
        run("pet")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FetchError, match="switched off by HF_HUB_OFFLINE"):
        run("zoo")


def test_a_hub_that_cannot_be_reached_is_one_clear_line(hub, home, monkeypatch):
    offer(hub, home)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FetchError, match=r"^evaluation set 'pets': it could not be fetched \(ConnectError: [^\n]*$"):
        run("zoo")
    # What is missing is known here; only sizes are not.
    said = run("zoo", dry_run=True)
    assert re.search(r"pets +│ missing +│ +\? │", said)
    assert "no sizes: they are asked for where the files are. evaluation set 'pets': it could not be fetched" in said


def test_a_full_disk_is_found_before_anything_is_fetched(hub, home, monkeypatch):
    offer(hub, home)
    usage = shutil.disk_usage(home)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=1000))
    with pytest.raises(FetchError, match=r"no room: the missing sets need .* GB below .*, 0\.00 GB are free"):
        run("zoo")
    assert not hub.served


def test_a_list_of_files_on_several_pages_is_read_to_its_end(hub, home):
    card = offer(hub, home)
    hub.page_size = 2
    run("zoo")
    assert contents(Path(card.path)) == contents(home / "made" / FIRST / "pets")


def test_a_set_nobody_offers_is_named_with_its_source(hub, home):
    card = offer(hub, home, hf_repo=None, fetch="ask them")
    with pytest.raises(FetchError, match="'pets': data/pets is not there; fetch it: ask them"):
        run("zoo")
    write_card(card.model_copy(update={"build": "make pets", "ready": "data/pets/ready"}))
    assert "the workflow makes it" in run("zoo")


def test_a_set_that_is_converted_is_fetched_from_its_address_and_goes_on_where_it_was(hub, home):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 40, 40, 3)).astype(np.uint8)
    np.savez(home / "cells.npz", test_images=pixels, test_labels=np.array([[0], [1], [1], [0], [1], [0]], np.uint8))
    data = (home / "cells.npz").read_bytes()
    hub.files["record/cells.npz"] = data
    digest = hashlib.md5(data).hexdigest()
    url = f"{hub.endpoint}/files/record/cells.npz?download=1"
    card = evalsets.card(
        home / "cells", path="data/cells", images=6, classes=2, class_names=["round", "long"], templates=["a {c} cell"],
        original={"layout": "medmnist", "files": ["cells.npz"], "url": url, "md5": digest},
    )  # fmt: skip
    write_card(card)
    hub.cut_after["record/cells.npz"] = [5000]
    assert f"{len(data) / 1e6:,.1f} MB" in run("zoo")
    assert hub.bytes_of("record/cells.npz") == len(data)
    assert reading.read(card).labels.tolist() == [0, 1, 1, 0, 1, 0]
    assert not (Path(card.path) / ".download").exists()
    noted = source(card)
    assert (noted["repo"], noted["url"]) == (None, url)
    hub.asked.clear()
    run("zoo")
    assert not hub.asked

    # Killed while it was moved into its place: it is made again from what came.
    evaluation.source_path(card).unlink()
    (Path(card.path) / "test" / "nshards.txt").unlink()
    with pytest.raises(FetchError, match=r"data/cells holds classnames\.txt, .*: remove data/cells"):
        run("zoo")

    shutil.rmtree(card.path)
    write_card(card.model_copy(update={"original": card.original.model_copy(update={"md5": "0" * 32})}))
    with pytest.raises(FetchError, match=r"what came of cells\.npz from .* has not the digest that its card states"):
        run("zoo")


def test_missing_sets_are_named_before_anything_runs_unless_they_may_be_missing_or_are_made(hub, home):
    card = offer(hub, home)
    other = card.model_copy(update={"name": "other", "path": "data/other", "build": "make other"})
    evaluation = card_files.evaluation(cards.FOLDER, "zoo")
    evaluation = evaluation.model_copy(update={"sets": {"pets": card, "other": other}})
    cards.refuse_missing([], [evaluation.model_copy(update={"when_missing": "no_average"})])
    with pytest.raises(ValueError, match="'pets': data/pets is not there") as error:
        cards.refuse_missing([], [evaluation, evaluation])
    assert str(error.value).splitlines()[1:] == [
        "`python -m experiments evaluation-data pets` fetches them; `snakemake evaluation_data` all that the suites of "
        "its --config need"
    ]
    run("zoo")
    cards.refuse_missing([], [evaluation])


def test_wrong_counts_of_all_sets_are_named_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sets = {
        "pets": evalsets.classification(Path("pets"), 6).model_copy(update={"images": 7, "classes": 8}),
        "right": evalsets.retrieval(Path("right"), [["a"], ["b"]]),
        "tales": evalsets.retrieval(Path("tales"), [["a"], ["b"]]).model_copy(update={"captions": 5}),
        "made": evalsets.retrieval(Path("made"), [["a"]]).model_copy(update={"images": 2, "build": "make it"}),
        "away": evalsets.card(Path("away"), images=1),
    }
    evaluation = Evaluation(name="zoo", sets=sets, averages={}, when_missing="no_average")
    with pytest.raises(ValueError, match="'pets'") as error:
        cards.refuse_missing([], [evaluation, evaluation])
    assert str(error.value).splitlines() == [
        "evaluation set 'pets': pets has 6 images, 7 class names, its card says 7, 8: edit the card, "
        "experiments/evals/pets.yaml (images: 6, classes: 7), or complete the folder",
        "evaluation set 'tales': tales has 2 captions, its card says 5: edit the card, "
        "experiments/evals/tales.yaml (captions: 2), or complete the folder",
    ]
    cards.refuse_missing([], [evaluation.model_copy(update={"sets": {"right": sets["right"], "away": sets["away"]}})])


EVALUATE = """
import socket, sys
def refuse(*args, **kwargs):
    raise AssertionError("a socket was opened")
socket.socket.connect = socket.getaddrinfo = refuse
from engine.evaluate import main
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_what_was_fetched_is_evaluated_without_any_network(hub, home):
    card = offer(hub, home)
    run("zoo")
    evaluation = card_files.evaluation(cards.FOLDER, "zoo")
    Path("zoo.json").write_text(evaluation.model_dump_json())
    asked = len(hub.asked)
    command = [
        sys.executable,
        "-c",
        EVALUATE,
        "--open-clip",
        f"local-dir:{ROOT / 'tests/no'}",
        "--evaluation",
        "zoo.json",
    ]
    (home / "model").mkdir()
    shutil.copy(ROOT / "engine/models/tiny-vit.json", home / "model/open_clip_config.json")
    command[4] = "tiny-vit"
    command += ["--random-weights", "--out", "out", "--execution", '{"device": "cpu"}']
    alone = ["unshare", "-rn"] if subprocess.run(["unshare", "-rn", "true"], check=False).returncode == 0 else []
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*alone, *command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(Path("out/pets.json").read_text())
    assert (result["status"], result["num_samples"]) == ("evaluated", 40)
    assert result["data_sha256"] == source(card)["sha256"]
    assert len(hub.asked) == asked
