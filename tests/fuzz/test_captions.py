"""Captions, labels and titles of any text, from tars to the model's tokens and to the report."""

import csv
import html.parser
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import synthetic
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from support import evalsets, toy
from support.fuzzing import CONTROLS, HTML, Refused, clear, controls, judge, judge_command, share, texts

from analysis import __main__ as analysis
from analysis.collect import collect
from analysis.frame import write
from engine import index, paths
from engine.data.index import Index, build_index, read_index, rejected_path
from engine.data.loader import Batch, PairDataset, Request
from engine.schema.run import AugmentationSpec, CaptionSource

pytestmark = pytest.mark.slow

PICTURE = toy.picture("red", "top left", 0)
PATH = Path("index/toy/index.json")
TEXT, JSON = CaptionSource(), CaptionSource(member="json", field="caption")
TOKENIZER = open_clip.get_tokenizer("ViT-B-32")


def all_of(built: Index, tokenizer: Any) -> Batch:
    plain = AugmentationSpec(kind="none")
    data = PairDataset(built, PATH, image_size=32, tokenizer=tokenizer, augmentation=plain, seed=0, cache_bytes=0)
    return data[Request(0, np.arange(built.pairs))]


def trained_on(members: list[bytes], captions: CaptionSource) -> tuple[list[int], Batch]:
    """Return which captions training takes, and the batch of them."""
    tar = {}
    for number, data in enumerate(members):
        tar |= {f"{number}.png": PICTURE, f"{number}.{captions.member}": data}
    toy.write_tar(Path("train/0.tar"), tar)
    built = build_index("toy", "1", Path("train"), captions, PATH, pairs=None)
    assert read_index(PATH) == built
    with rejected_path(PATH).open(encoding="utf-8", newline="") as file:
        rejected = {row["key"]: clear(row["reason"]) for row in csv.DictReader(file)}
    taken = [number for number in range(len(members)) if str(number) not in rejected]
    return taken, all_of(built, TOKENIZER)


def said(member: bytes, captions: CaptionSource) -> str | None:
    """The caption that a plain reading finds in a member."""
    text: Any = member.decode("utf-8", "replace")
    if captions.field:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return None
        text = found.get("caption") if isinstance(found, dict) else None
        text = text[0] if isinstance(text, list) and text else text
    return text.encode("utf-8", "replace").decode() if isinstance(text, str) and text.strip() else None


# Halves of characters, which JSON can spell, too.
ANY_TEXT = st.one_of(texts(), st.text(st.characters(codec=None), max_size=12), st.sampled_from(("\ud800", "a\udfffb")))
IN_TEXT = ANY_TEXT.map(lambda text: text.encode("utf-8", "surrogatepass"))
ANY_VALUE = st.one_of(ANY_TEXT, st.none(), st.integers(), st.lists(ANY_TEXT, max_size=1))
IN_JSON = st.one_of(
    ANY_VALUE.map(lambda text: json.dumps({"caption": text, "other": "x"}).encode()),
    st.one_of(st.binary(max_size=40), st.sampled_from((b"[" * 50_000, b'{"caption"', b"\xff", b"null"))),
)


@share(0.05)
@given(
    asked=st.one_of(
        st.tuples(st.just(TEXT), st.lists(IN_TEXT, min_size=1, max_size=6)),
        st.tuples(st.just(JSON), st.lists(IN_JSON, min_size=1, max_size=6)),
    )
)
@example(asked=(TEXT, [text.encode() for text in (*HTML, *CONTROLS)]))
@example(asked=(TEXT, [text.encode() for text in ("<start_of_text>", "a <end_of_text> b", "\x85", "\ufeff")]))
@example(asked=(JSON, [json.dumps({"caption": text}).encode() for text in (*HTML, *CONTROLS)]))
def test_a_caption_of_any_text_gets_its_own_tokens_or_is_left_out(asked):
    captions, members = asked
    members = [*members, b'{"caption": "last"}']
    found = judge(lambda: trained_on(members, captions))
    assert not isinstance(found, Refused), found
    taken, batch = found
    known = {number: text for number, data in enumerate(members) if (text := said(data, captions)) is not None}
    # An empty member is no caption.
    assert taken == list(known)
    assert batch.replaced == ()
    for text, tokens_T in zip(known.values(), batch.tokens_BT, strict=True):
        # One at a time: what stands beside a caption in its batch must not matter.
        assert torch.equal(tokens_T, TOKENIZER([text])[0])


def test_an_error_that_names_a_sample_harms_no_terminal():
    key = "\x1b]0;title\x07\u202e<b>"
    toy.write_tar(Path("train/0.tar"), {f"{key}.png": b"none", f"{key}.txt": b"x"})
    argv = ["--name", "train", "--revision", "1", "--shards", "train", "--pairs", "1", "--out", str(PATH)]
    assert not isinstance(judge_command(index.main, argv), Refused)
    refused = judge(lambda: all_of(read_index(PATH), evalsets.tokenizer), "0.tar")
    assert isinstance(refused, Refused)
    assert re.search(r"0\.tar, sample \\x1b\]0;title\\x07.?<b>\.png", refused.text)


# To the report -------------------------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """The elements that a browser would make of a page, with the names of their attributes; and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "wbr":  # names break where they may, and that is all that they change
            self.elements.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        specs = [synthetic.run_spec(method, seed) for method in ("neuclip", "openclip") for seed in range(2)]
        variants = {"variant": [synthetic.run_spec("neuclip", seed, config={"note": "n"}) for seed in range(2)]}
        synthetic.write_suite(specs, variants=variants)
    return folder


def report(names: dict[str, str]) -> Page:
    """The report with names of one's own for what a suite and its cards call things."""
    path = paths.suite("quickstart")
    content = json.loads(path.read_text())
    content["title"] = names["title"]
    for run in content["runs"]:
        run["variant"] = run["variant"] and names["variant"]
    for key in ("title", "licence", "source"):
        content["evaluation"]["sets"]["digits"][key] = names[key]
    content["evaluation"]["averages"] = {names["average"]: ["digits", "flickr"]}
    other = path.with_name("mine.json")
    other.write_text(json.dumps({**content, "name": "mine"}))
    write(collect(other), paths.collected("mine"))
    assert analysis.main(["report", "mine", "--out", str(paths.report("mine"))]) == 0
    return Page(paths.report("mine").read_text(encoding="utf-8"))


NAMED = ("title", "variant", "licence", "source", "average")
# What a suite's YAML may say: no controls.
SHOWN = texts().filter(lambda text: text.strip() and len(text) < 400 and not controls(text) and text.isprintable())


@share(0.01)
@given(names=st.fixed_dictionaries(dict.fromkeys(NAMED, SHOWN)))
@example(names=dict.fromkeys(NAMED, HTML[0]))
@example(names=dict.fromkeys(NAMED, HTML[1]))
@example(names=dict.fromkeys(NAMED, HTML[2]))
def test_names_of_any_text_add_no_element_to_a_report(results, monkeypatch, names):
    monkeypatch.chdir(results)
    plain = report({name: f"plain {name}" for name in NAMED})
    page = judge(lambda: report(names), *names.values())
    if not isinstance(page, Refused):
        assert page.elements == plain.elements
        assert " ".join(names["title"].split()) in " ".join(page.text.split())
