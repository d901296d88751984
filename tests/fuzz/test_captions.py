"""Captions, class names, labels and titles of any text, from tars to the model's tokens and to the report."""

import csv
import html.parser
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import synthetic
import torch
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from support import evalsets, toy
from support.fuzzing import CONTROLS, HTML, Judge, Refused, clear, controls, share, texts

from analysis import __main__ as analysis
from analysis.collect import collect
from analysis.frame import write
from engine import evaluate, index, paths, train
from engine.data.index import build_index, read_index, rejected_path
from engine.data.loader import PairDataset, Request
from engine.schema.run import AugmentationSpec, CaptionSource
from experiments import __main__ as experiments
from experiments.design import expansion
from experiments.design.suite import expand

pytestmark = pytest.mark.slow

PICTURE = toy.picture("red", "top left", 0)
MODEL = "ViT-B-32"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return open_clip.get_tokenizer(MODEL)


def trained_on(
    members: list[bytes], captions: CaptionSource, tokenizer: Any
) -> tuple[list[int], torch.Tensor, list[str]]:
    """Return which captions training takes, their tokens, and why the others are left out."""
    tar = {}
    for number, data in enumerate([*members, b'{"caption": "last"}']):
        tar |= {f"{number}.png": PICTURE, f"{number}.{captions.member}": data}
    toy.write_tar(Path("train/0.tar"), tar)
    path = Path("index/toy/index.json")
    built = build_index("toy", "1", Path("train"), captions, path, pairs=None)
    assert read_index(path) == built
    with rejected_path(path).open(encoding="utf-8", newline="") as file:
        rejected = {row["key"]: row["reason"] for row in csv.DictReader(file)}
    taken = [number for number in range(len(members) + 1) if str(number) not in rejected]
    dataset = PairDataset(
        built,
        path,
        image_size=32,
        tokenizer=tokenizer,
        augmentation=AugmentationSpec(kind="none"),
        seed=0,
        cache_bytes=0,
    )
    batch = dataset[Request(0, np.arange(built.pairs))]
    assert batch.replaced == ()
    return taken, batch.tokens_BT, [clear(reason) for reason in rejected.values()]


def any_text() -> st.SearchStrategy[str]:
    """Also halves of characters, which JSON can spell."""
    return st.one_of(texts(), st.text(st.characters(codec=None), max_size=12), st.sampled_from(("\ud800", "a\udfffb")))


def check(
    judge: Judge, members: list[bytes], captions: CaptionSource, expected: list[str | None], tokenizer: Any
) -> None:
    found = judge(lambda: trained_on(members, captions, tokenizer))
    assert not isinstance(found, Refused), found
    taken, tokens_BT, reasons = found
    judge.count(accepted=len(members) - 1 - len(reasons), refused=len(reasons))
    known = [number for number, text in enumerate(expected) if text is not None]
    assert taken == [*known, len(members)]
    for number, tokens_T in zip(known, tokens_BT, strict=False):
        # One at a time: what stands beside a caption in its batch must not matter.
        assert torch.equal(tokens_T, tokenizer([expected[number]])[0])


@share(0.024)
@given(captions=st.lists(any_text(), min_size=1, max_size=6))
@example(captions=[*HTML, *CONTROLS])
@example(captions=["<start_of_text>", "a <end_of_text> b", "&amp;lt;", "\u2028", "\x85", "\ufeff"])
def test_a_caption_of_any_text_gets_its_own_tokens_or_is_left_out(judge, tokenizer, captions):
    members = [text.encode("utf-8", "surrogatepass") for text in captions]
    said = [data.decode("utf-8", "replace") for data in members]
    # An empty member is no caption.
    check(judge, members, CaptionSource(), [text if text.strip() else None for text in said], tokenizer)


@share(0.019)
@given(
    captions=st.lists(
        st.one_of(any_text(), st.none(), st.integers(), st.lists(any_text(), max_size=1)), min_size=1, max_size=6
    )
)
@example(captions=[*HTML, *CONTROLS])
def test_a_caption_in_json_gets_its_own_tokens_or_is_left_out(judge, tokenizer, captions):
    members = [json.dumps({"caption": text, "other": "x"}).encode() for text in captions]
    said = [text[0] if isinstance(text, list) and text else text for text in captions]
    whole = [
        text.encode("utf-8", "replace").decode() if isinstance(text, str) and text.strip() else None for text in said
    ]
    check(judge, members, CaptionSource(member="json", field="caption"), whole, tokenizer)


@share(0.01)
@given(
    data=st.lists(
        st.one_of(st.binary(max_size=40), st.sampled_from((b"[" * 50_000, b'{"caption"', b"\xff", b"null"))),
        min_size=1,
        max_size=4,
    )
)
def test_json_of_any_bytes_is_left_out_or_has_a_caption(judge, tokenizer, data):
    def plain(member: bytes) -> str | None:
        try:
            said = json.loads(member.decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            return None
        found = said.get("caption") if isinstance(said, dict) else None
        return found if isinstance(found, str) and found.strip() else None

    check(judge, data, CaptionSource(member="json", field="caption"), [plain(member) for member in data], tokenizer)


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
        self.elements.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def harmful(self) -> list[tuple[str, tuple[str, ...]]]:
        """Elements that load or run something, or obey an event."""
        runs = [each for each in self.elements if each[0] in ("script", "iframe", "object", "embed", "link", "base")]
        scripts = [each for each in runs if each[0] == "script"]
        obey = [each for each in self.elements if any(name.startswith("on") or name == "action" for name in each[1])]
        return [each for each in runs if each[0] != "script"] + scripts[2:] + obey


SETS = {key: dict(card) for key, card in synthetic.CARDS.items()}


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
PLAIN = {name: f"plain {name}" for name in NAMED}


def shown() -> st.SearchStrategy[str]:
    """Texts that a suite's YAML may say: no controls."""
    return texts().filter(lambda text: text.strip() and len(text) < 400 and not controls(text) and text.isprintable())


@share(0.01)
@given(names=st.fixed_dictionaries(dict.fromkeys(NAMED, shown())))
@example(names=dict.fromkeys(NAMED, HTML[0]))
@example(names=dict.fromkeys(NAMED, HTML[1]))
@example(names=dict.fromkeys(NAMED, HTML[2]))
def test_names_of_any_text_add_no_element_to_a_report(judge, results, monkeypatch, names):
    monkeypatch.chdir(results)
    plain = report(PLAIN)
    page = judge(lambda: report(names), *names.values())
    if isinstance(page, Refused):
        return
    assert page.elements.count(("script", ())) == plain.elements.count(("script", ())) == 2
    # Names break where they may, and that is all that they change.
    assert [each for each in page.elements if each[0] != "wbr"] == [each for each in plain.elements if each[0] != "wbr"]
    assert " ".join(names["title"].split()) in " ".join(page.text.split())


def written(folder: Path) -> None:
    """A training set, two evaluation sets and a suite, all of whose texts mean harm."""
    said = [*HTML, *CONTROLS, "plain"] * 3
    members: dict[str, bytes] = {}
    for number, text in enumerate(said):
        key = f"{number}\x1b[31m<b>" if number == 3 else f"{number:03d}"
        members |= {f"{key}.png": toy.picture("red", "top left", number), f"{key}.txt": text.encode()}
    members |= {"900.png": b"cut \x1b[31m", "900.txt": b"a picture that is none", "901.txt": b"no picture"}
    toy.write_tar(folder / "train" / "0.tar", members)
    evalsets.classification(
        folder / "kinds", 12, shards=1, class_names=[*HTML, "\x1b[31mred", "nul\x00l", "\u202eturned"]
    )
    evalsets.retrieval(
        folder / "said", [[text.replace("\n", " ").replace("\r", " ")] for text in (*HTML, *CONTROLS)], shards=1
    )


SUITE = {
    "title": f"{HTML[0]} [/b] :warning:",  # markup of what draws tables in a terminal, too
    "dataset": "train.yaml",
    "model": "small.json",
    "evaluation": "both.yaml",
    "seeds": [0],
    "training": {"global_batch_size": 8, "epochs": 1, "augmentation": {"kind": "none"}},
    "methods": {"openclip": {}},
    "variants": [{}, {"label": HTML[1], "options": {"temperature": {"init": 0.1}}}],
}
SMALL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def titled(card: Path, **facts: str) -> None:
    card.write_text(yaml.safe_dump({**yaml.safe_load(card.read_text()), **facts}))


def done(judge: Judge, main: Any, *argv: object) -> str:
    """What a command prints; `judge` refuses controls in it."""
    said = judge.command(main, [str(each) for each in argv])
    assert not isinstance(said, Refused), said
    return said


def test_texts_that_mean_harm_come_through_to_the_report_unharmed_and_harmless(judge):
    written(Path("mine"))
    for name in ("train", "kinds", "said"):
        done(judge, experiments.main, "card", f"mine/{name}", "--out", f"mine/{name}.yaml")
        titled(Path(f"mine/{name}.yaml"), title=f"{name} {HTML[1]}", licence=HTML[0], source=HTML[2])
    Path("mine/both.yaml").write_text(
        yaml.safe_dump({"sets": ["kinds.yaml", "said.yaml"], "averages": {HTML[3]: ["kinds.yaml", "said.yaml"]}})
    )
    Path("mine/small.json").write_text(json.dumps(SMALL))
    Path("mine/study.yaml").write_text(yaml.safe_dump(SUITE))
    assert f"{HTML[0]} [/b] :warning:" in done(judge, experiments.main, "list", "mine/study.yaml")
    done(judge, experiments.main, "plan", "mine/study.yaml")
    suite = expand("mine/study.yaml")
    expansion.write(suite)
    path = paths.index("train")
    card = yaml.safe_load(Path("mine/train.yaml").read_text())
    told = done(
        judge,
        index.main,
        "--name",
        "train",
        "--revision",
        "1",
        "--shards",
        "mine/train",
        "--pairs",
        card["pairs"],
        "--out",
        path,
    )
    assert f"{card['pairs']} pairs" in told
    assert len(suite.runs) == 2
    evaluation = paths.evaluation(suite.evaluation.key)
    for run in suite.runs:
        run_id, end = run.spec.run_id, run.spec.samples_seen
        settings = '{"max_replaced_fraction": 0.5}'
        done(judge, train.main, paths.spec(run_id), "--execution", settings)
        done(judge, evaluate.main, paths.record(run_id), evaluation, "--milestone", end)
        done(judge, experiments.main, "explain", run_id)
    # One sample cannot be decoded: where none may be replaced, the error names it in characters that harm no terminal.
    done(judge, analysis.main, "collect", paths.suite("study"), "--out", paths.collected("study"))
    done(judge, analysis.main, "table", paths.collected("study"), "main_results", "--out", paths.tables("study"))
    done(judge, analysis.main, "report", "study", "--out", paths.report("study"))
    done(judge, analysis.main, "show", "results")
    page = Page(paths.report("study").read_text(encoding="utf-8"))
    assert page.harmful == []
    for text in (HTML[0], HTML[1], HTML[3]):
        assert text in page.text
    rows = list(csv.reader(io.StringIO((paths.tables("study") / "main_results.csv").read_text())))
    assert any(HTML[1] in cell for row in rows for cell in row)


def test_an_error_that_names_a_sample_harms_no_terminal(judge):
    key = "\x1b]0;title\x07\u202e<b>"
    toy.write_tar(Path("train/0.tar"), {f"{key}.png": b"none", f"{key}.txt": b"x"})
    argv = ["--name", "train", "--revision", "1", "--shards", "train", "--pairs", "7", "--out", "index/t/index.json"]
    said = judge.command(index.main, argv, "train.yaml")
    assert isinstance(said, Refused)
    argv[7] = "1"
    assert not isinstance(judge.command(index.main, argv), Refused)
    path = Path("index/t/index.json")
    dataset = PairDataset(
        read_index(path),
        path,
        image_size=8,
        tokenizer=evalsets.tokenizer,
        augmentation=AugmentationSpec(kind="none"),
        seed=0,
        cache_bytes=0,
    )
    refused = judge(lambda: dataset[Request(0, np.array([0]))], "0.tar")
    assert isinstance(refused, Refused)
    assert re.search(r"0\.tar, sample \\x1b\]0;title\\x07.?<b>\.png", refused.text)
