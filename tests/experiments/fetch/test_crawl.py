"""Training sets that are fetched by their cards: what is said first, and a crawl of real links on this machine."""

import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from engine import files, paths
from engine.data.index import build_index, read_index
from engine.schema.run import CaptionSource
from engine.versions import ROOT
from experiments.design import cards
from experiments.fetch import crawl, training

NUM_LINKS, NUM_PICTURES = 24, 18


def jpeg(number: int) -> bytes:
    with io.BytesIO() as file:
        Image.new("RGB", (300 + number, 200), (10 * number, 90, 120)).save(file, "JPEG")
        return file.getvalue()


def caption(number: int) -> str:
    return f'picture "{number}", said "twice'


class Web(BaseHTTPRequestHandler):
    """24 links: every 6th is not there, every 12th after the first no picture, the others are."""

    asked: ClassVar[list[str]] = []

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        name = self.path.strip("/")
        if name == "list.tsv":
            return self.answer(200, table(self.server.server_address[1]).encode())
        number = int(name.removesuffix(".jpg"))
        if number % 6 == 0:
            return self.answer(404, b"gone")
        return self.answer(200, b"no picture" if number % 12 == 1 else jpeg(number))

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def table(port: int) -> str:
    return "".join(f"{caption(i)}\thttp://127.0.0.1:{port}/{i}.jpg\n" for i in range(NUM_LINKS))


@pytest.fixture
def web():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    Web.asked = []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """img2dataset, installed as a crawl installs it."""
    folder = tmp_path_factory.mktemp("data")
    try:
        return crawl._img2dataset(folder).parents[1]
    except ValueError:
        if os.environ.get("CI"):
            raise
        pytest.skip("img2dataset could not be installed from the package index, which only CI is sure to reach")


@pytest.fixture
def own_cards(tmp_path, monkeypatch):
    """A folder to work in, with no cards but its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cards, "FOLDER", tmp_path / "cards")
    return tmp_path


def write_card(name, **facts):
    card = {"name": name, "title": name, "revision": "1", "pairs": NUM_PICTURES, "shards": f"data/{name}"}
    text = json.dumps(card | {"licence": "ours", "source": "here"} | facts)
    files.write_text(cards.FOLDER / "datasets" / f"{name}.yaml", text)


@pytest.mark.slow
def test_a_card_of_links_becomes_shards_that_are_indexed_and_is_finished_when_it_was_stopped(
    program, web, own_cards, monkeypatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    Path("data").mkdir()
    Path("data", program.name).symlink_to(program)
    command = (
        f"PYTHONPATH={ROOT} python -m experiments.fetch.crawl data/links/web.tsv --columns caption url "
        f"--get {web}/list.tsv --out data/web --jobs 1 -- --image_size=64 --resize_mode=keep_ratio "
        "--number_sample_per_shard=10 --thread_count=4 --timeout=5"
    )
    write_card("web", fetch=command, gigabytes=0.001)
    assert not cards.is_there(cards.dataset("web"))
    assert "`snakemake fetch_web` (about 0 GB) runs: PYTHONPATH" in cards.how_to_get(cards.dataset("web"))
    said = io.StringIO()
    training.run("web", Console(file=said, width=200))
    assert "ours" in said.getvalue()

    assert cards.is_there(cards.dataset("web"))
    assert len(list(Path("data/web").glob("*.tar"))) == 3
    index = build_index("web", "1", Path("data/web"), CaptionSource(), paths.index("web"), pairs=NUM_PICTURES)
    assert (index.pairs, index.rejected) == (NUM_PICTURES, 0)
    read = read_index(paths.index("web"))
    assert read.shard_sizes == (7, 7, 4)

    # As if it had been stopped in the second shard: only that is asked for again.
    Path("data/web/00001_stats.json").unlink()
    Path("data/web/00001.tar").write_bytes(b"half")
    files.write_text(Path("data/web") / cards.UNFINISHED, "")
    with pytest.raises(ValueError, match="not all shards are in data/web"):
        cards.refuse_missing(["web"])
    Web.asked.clear()
    training.run("web", Console(file=io.StringIO()))
    assert {int(path.strip("/").removesuffix(".jpg")) for path in Web.asked} == set(range(10, 20))
    again = build_index("web", "1", Path("data/web"), CaptionSource(), paths.index("web"), pairs=NUM_PICTURES)
    assert again.pairs == NUM_PICTURES
    training.run("web", Console(file=said))
    assert "training set 'web' is there" in said.getvalue()


def links_of(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))])


def test_captions_keep_their_quotes_and_long_lists_are_split(tmp_path, monkeypatch):
    monkeypatch.setattr(crawl, "ROWS_PER_FILE", 5)
    monkeypatch.chdir(tmp_path)
    Path("list.tsv").write_text(table(1))
    crawl._copy(crawl.Links(source="list.tsv", columns=("caption", "url"), limit=7), Path("links"))
    found = links_of(Path("links"))
    assert found["caption"].to_pylist() == [caption(i) for i in range(7)]
    assert found["url"].to_pylist()[6].endswith("/6.jpg")


def write_pool(folder: Path, uids: list[str]) -> None:
    folder.mkdir()
    for part in range(2):
        mine = uids[part::2]
        columns = {"uid": mine, "url": [f"http://x/{uid}" for uid in mine], "text": [uid[:4] for uid in mine]}
        pq.write_table(
            pa.table(columns | {"face_bboxes": [[[0.0, 0.0, 1.0, 1.0]]] * len(mine)}), folder / f"{part}.parquet"
        )


def test_a_list_of_ids_keeps_just_these(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    uids = [generator.bytes(16).hex() for _ in range(1000)]
    # Halves that differ in the second half only, and the largest id there is.
    uids += [uids[0][:16] + "0" * 16, uids[0][:16] + "f" * 16, "f" * 32]
    write_pool(tmp_path / "pool", uids)
    wanted = {*uids[:300], uids[-1], uids[-2]}
    ids = np.array([(int(uid[:16], 16), int(uid[16:], 16)) for uid in wanted], np.dtype("u8,u8"))
    ids.sort()
    np.save("keep.npy", ids)
    links = crawl.Links(source="pool", caption="text", keep="keep.npy", boxes="face_bboxes")
    crawl._copy(links, Path("links"))
    found = links_of(Path("links"))
    assert set(found["uid"].to_pylist()) == wanted
    assert found.column_names == ["url", "caption", "uid", "face_bboxes"]
    assert all(link.endswith(uid) for link, uid in zip(found["url"].to_pylist(), found["uid"].to_pylist(), strict=True))

    np.save("keep.npy", ids[::-1])
    with pytest.raises(ValueError, match="ids are not sorted"):
        crawl._copy(links, Path("links"))
    np.save("keep.npy", np.arange(4))
    with pytest.raises(ValueError, match="allowed is a list of ids"):
        crawl._copy(links, Path("links"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.tsv"], "the list none.tsv is not there: put it there"),
        (["none.tsv", "--get", "ask Google for it"], "not there: ask Google for it"),
        (["none.tsv", "--get", "http://127.0.0.1:1/x"], "http://127.0.0.1:1/x could not be downloaded"),
        (["list.tsv"], "unknown column 'url'"),
        (["list.tsv", "--columns", "url", "captoin"], "unknown column 'caption'; did you mean 'captoin'"),
        (["list.tsv", "--columns", "url", "caption", "--keep", "x.npy"], "the list x.npy is not there"),
        (["list.tsv", "--jbs", "2"], "unrecognized arguments: --jbs 2"),
    ],
)
def test_what_cannot_be_crawled_is_one_clear_error(tmp_path, arguments, message):
    (tmp_path / "list.tsv").write_text(table(1))
    command = [sys.executable, "-m", "experiments.fetch.crawl", *arguments, "--out", "out"]
    environment = {**os.environ, "PYTHONPATH": str(crawl.PINS.parent.parent)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("change", [{"source": "b.tsv"}, {"options": ("--number_sample_per_shard=10",)}])
def test_other_links_or_options_do_not_mix_with_the_pictures_of_the_first(tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    first = crawl.Links(source="a.tsv", columns=("url", "caption"), options=("--number_sample_per_shard=20",))
    files.write_text(Path("out/.crawl/links/links.json"), first.model_dump_json())
    with pytest.raises(ValueError, match="out has pictures of other links or options"):
        crawl.crawl(first.model_copy(update=change), Path("out"), jobs=1)
    shutil.rmtree("out")
    files.write_text(Path("out/0.tar"), "")
    with pytest.raises(ValueError, match="out has shards that come from elsewhere"):
        crawl.crawl(first, Path("out"), jobs=1)


STAND_IN = """#!/bin/sh
for word; do case $word in --output_folder=*) out=${word#*=};; esac; done
for shard in 0 1; do
    test -e $out/${shard}_stats.json && continue
    echo $shard >> tried
    touch $out/$shard.tar
    echo "{\\"count\\": 12, \\"successes\\": $(grep -c $shard online)}" > $out/${shard}_stats.json
done
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """In place of img2dataset: two shards of 12 links; the file `online` names those that get a picture."""
    monkeypatch.chdir(tmp_path)
    program = tmp_path / "img2dataset"
    program.write_text(STAND_IN)
    program.chmod(0o700)
    monkeypatch.setattr(crawl, "_img2dataset", lambda _: program)
    Path("list.tsv").write_text(table(1))
    Path("online").write_text("")
    return crawl.Links(source="list.tsv", columns=("caption", "url"))


def test_links_that_were_tried_offline_are_tried_again(stand_in):
    with pytest.raises(ValueError, match="none of 24 links gave a picture: is this machine online"):
        crawl.crawl(stand_in, Path("out"), jobs=1)
    Path("online").write_text("0\n1\n")
    assert crawl.crawl(stand_in, Path("out"), jobs=1) == crawl.Crawled(links=24, pictures=2)
    assert Path("tried").read_text() == "0\n1\n0\n1\n"


def test_a_shard_without_a_picture_is_tried_twice_before_its_links_are_taken_for_dead(stand_in):
    Path("online").write_text("0")
    with pytest.raises(ValueError, match="1 of 2 shards have no picture at all"):
        crawl.crawl(stand_in, Path("out"), jobs=1)
    assert crawl.crawl(stand_in, Path("out"), jobs=1) == crawl.Crawled(links=24, pictures=1)
    assert Path("tried").read_text() == "0\n1\n1\n"
    assert not Path("out", cards.UNFINISHED).exists()


def test_more_links_than_the_list_has_are_refused(stand_in):
    Path("out").mkdir()
    Path("out/2_stats.json").write_text('{"count": 1, "successes": 1}')
    with pytest.raises(ValueError, match="out has shards of 25 links, the list 24"):
        crawl.crawl(stand_in, Path("out"), jobs=1)


def test_what_follows_two_dashes_goes_to_img2dataset_wherever_the_list_stands(stand_in):
    Path("online").write_text("0\n1\n")
    crawl.main(["--columns", "caption", "url", "--out", "out", "list.tsv", "--", "--image_size=64", "--", "-x"])
    asked = json.loads(Path("out/.crawl/links/links.json").read_text())
    assert asked["options"] == ["--image_size=64", "--", "-x"]


def test_of_two_first_crawls_at_once_one_installs_img2dataset(tmp_path, monkeypatch):
    commands = []

    def install(command, **_):
        time.sleep(0.05)  # the other is here by then
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(crawl.subprocess, "run", install)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(crawl._img2dataset, [tmp_path] * 2)
    assert first == second
    assert len(commands) == 2  # the environment, and what is in it


def test_a_copy_that_was_stopped_is_no_training_set_until_it_has_come_to_its_end(own_cards):
    command = "mkdir -p data/copy; touch data/copy/0.tar; test -e online && touch data/copy/1.tar"
    write_card("copy", fetch=command)
    console = Console(file=io.StringIO())
    with pytest.raises(SystemExit):
        training.run("copy", console)
    message = r"'copy': not all shards are in data/copy.*\nor, if they are all there, remove data/\.copy\.fetching$"
    with pytest.raises(ValueError, match=message):
        cards.refuse_missing(["copy"])
    Path("online").touch()
    training.run("copy", console)
    cards.refuse_missing(["copy"])
    assert sorted(path.name for path in Path("data/copy").iterdir()) == ["0.tar", "1.tar"]


def test_a_copy_does_not_mix_with_a_crawl_that_was_stopped(own_cards):
    write_card("copy", fetch="touch data/copy/1.tar", crawl=f"rm data/copy/{cards.UNFINISHED}")
    for name in ("0.tar", cards.UNFINISHED):
        files.write_text(Path("data/copy", name), "")
    with pytest.raises(ValueError, match=r"has a part of a crawl.*`snakemake crawl_copy`"):
        training.run("copy", Console(file=io.StringIO()))
    with pytest.raises(ValueError, match=rf"remove data/copy/{cards.UNFINISHED}$"):
        cards.refuse_missing(["copy"])
    training.run("copy", Console(file=io.StringIO()), anew=True)
    cards.refuse_missing(["copy"])
    assert not Path("data/copy/1.tar").exists()


def test_a_command_that_makes_no_shards_has_fetched_nothing(own_cards):
    write_card("copy", fetch="true")
    with pytest.raises(ValueError, match=r"no \*\.tar shards are in data/copy, though its command ended well"):
        training.run("copy", Console(file=io.StringIO()))


def test_what_is_there_already_needs_no_room_again(own_cards, monkeypatch):
    write_card("copy", fetch="touch data/copy/1.tar", gigabytes=2e-6)
    files.write_text(Path("data/copy/0.tar"), 1500 * "x")
    files.write_text(cards.fetching(cards.dataset("copy")), "")
    disk = shutil.disk_usage(own_cards)
    monkeypatch.setattr(training.shutil, "disk_usage", lambda _: disk._replace(free=499))
    with pytest.raises(ValueError, match="larger disk"):
        training.run("copy", Console(file=io.StringIO()))
    monkeypatch.setattr(training.shutil, "disk_usage", lambda _: disk._replace(free=501))
    training.run("copy", Console(file=io.StringIO()))
    cards.refuse_missing(["copy"])


def test_too_little_room_is_said_before_anything_is_fetched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = io.StringIO()
    with pytest.raises(ValueError, match=r"'dfn1b' takes about 38,000 GB, 0 GB of it are there, [\d,]+ GB are free"):
        training.run("dfn1b", Console(file=said, width=200))
    assert "Apple's licence" in said.getvalue()
    assert not Path("data").exists()
    with pytest.raises(ValueError, match=r"`python -m experiments\.scenes --out data/scenes` makes it"):
        training.run("scenes", Console(file=said))
