"""Data, evaluation sets, a list, a model and a method from outside, as `docs/bring-your-own.md` shows them."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import evalsets, toy

from engine import files, paths
from engine.evaluation import reading
from engine.evaluation.runner import find_evaluation
from engine.schema.base import parse
from engine.schema.evaluation import EvalCard
from engine.schema.record import Record
from experiments import draft
from experiments.__main__ import main
from experiments.design import cards
from experiments.design.suite import expand

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
PAGE = (ROOT / "docs" / "bring-your-own.md").read_text(encoding="utf-8")
LAYOUT, WRITE_CARDS, TRAINING_CARD, SET_CARD, LIST, MODEL, SUITE, RUN, STOCK, ELSEWHERE = BLOCK.findall(PAGE)
METHOD = BLOCK.findall((ROOT / "docs" / "add-a-method.md").read_text(encoding="utf-8"))[0]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The page's folder, with the files that a user writes."""
    folder = tmp_path / "mine"
    toy.write_shards(folder / "squares")
    toy.build_evaluation(tmp_path)
    made = tmp_path / "data" / "toy" / "evals"
    shutil.move(made / "toy_colours", folder / "colours")
    shutil.move(made / "toy_retrieval", folder / "sayings")
    written = {"tests.yaml": LIST, "small.json": MODEL, "study.yaml": SUITE, "dcl.py": METHOD}
    for name, text in written.items():
        (folder / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return folder


def edit(file: Path, old: str, new: str) -> None:
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def write_cards() -> None:
    for line in WRITE_CARDS.splitlines():
        main(shlex.split(line)[3:])


def said(command: str, code: Path) -> str:
    """What one of the page's commands says, run with the code of a checkout."""
    program, *rest = shlex.split(command)
    if program == "snakemake":
        rest = ["-m", program, *rest, "--snakefile", str(code / "Snakefile")]
        rest += ["--workflow-profile", str(code / "profiles" / "default")]
    elif program != "python":
        rest = [str(Path(sys.executable).with_name(program)), *rest]
    environment = {**os.environ, "PYTHONPATH": str(code), "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run([sys.executable, *rest], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, (command, (result.stdout + result.stderr)[-6000:])
    return result.stdout + result.stderr


@pytest.mark.slow
def test_the_page_leads_from_folders_to_a_report_and_to_stock_tools(mine, original):
    for command in (*WRITE_CARDS.splitlines(), *RUN.splitlines()):
        told = said(command, original)
        if " plan " in command:
            assert "All data are there" in told

    for file, shown in (("squares", TRAINING_CARD), ("colours", SET_CARD)):
        written = (mine / f"{file}.yaml").read_text()
        assert written == shown.replace("/home/me/mine", str(mine))
    table = (paths.tables("study") / "main_results.md").read_text()
    assert all(name in table for name in ("dcl", "OpenCLIP"))
    report = paths.report("study").read_text()
    assert "squares" in report
    assert len(report) > 100_000
    records = [parse(Record, files.read_text(path), "") for path in Path("results/runs").glob("*/record.json")]
    # Of the code that ran, nothing was uncommitted: what is one's own is no part of it.
    assert [record.provenance.dirty_sha256 for record in records] == [None, None]
    assert "Nothing to be done" in said(RUN.splitlines()[1], original)

    record = records[0]
    place = {"RUN_ID": record.run_id, "MILESTONE": str(record.spec.samples_seen)}
    ours, theirs = (re.sub("RUN_ID|MILESTONE", lambda found: place[found[0]], line) for line in ELSEWHERE.splitlines())
    said(ours, original)
    said(theirs, original)
    mine_says = json.loads(Path("scores/sayings.json").read_text())["metrics"]
    stock_says = json.loads(Path("sayings.json").read_text())["metrics"]
    assert mine_says == json.loads(paths.eval_result(**_of(record), eval_set="sayings").read_text())["metrics"]
    assert stock_says
    assert all(mine_says[key] == pytest.approx(value, abs=1e-6) for key, value in stock_says.items())
    code = re.sub("RUN_ID|MILESTONE", lambda found: place[found[0]], STOCK) + "print(type(model).__name__, tokenizer)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.startswith("CLIP ")


def _of(record: Record) -> dict[str, object]:
    return {"run_id": record.run_id, "milestone": record.spec.samples_seen}


# Cards by path ------------------------------------------------------------------------------------------------------


def test_a_suite_takes_cards_a_list_and_a_model_from_beside_it(mine):
    write_cards()
    suite = expand("mine/study.yaml")

    spec = suite.runs[0].spec
    assert (spec.dataset.name, spec.dataset.pairs) == ("squares", toy.NUM_PAIRS)
    assert spec.model.is_own
    assert paths.model(spec.model.config_sha256, "small").read_text() == MODEL
    assert cards.dataset("squares").shards == str(mine / "squares")
    assert cards.dataset("squares-0.5").shards == str(mine / "squares")
    assert {name: card.path for name, card in suite.evaluation.sets.items()} == {
        "colours": str(mine / "colours"),
        "sayings": str(mine / "sayings"),
    }
    assert suite.evaluation.averages == {"Average": ("colours", "sayings")}


def test_where_cards_lie_is_no_part_of_a_run_nor_of_an_evaluation(mine, tmp_path):
    write_cards()
    before = expand("mine/study.yaml")
    shutil.move(mine, tmp_path / "elsewhere")
    after = expand("elsewhere/study.yaml")

    assert [run.spec.run_id for run in after.runs] == [run.spec.run_id for run in before.runs]
    assert after.evaluation.key == before.evaluation.key
    assert cards.dataset("squares").shards == str(tmp_path / "elsewhere" / "squares")


def test_a_single_sets_card_is_an_evaluation_and_a_list_may_name_ours(mine):
    write_cards()
    edit(mine / "study.yaml", "evaluation: tests.yaml", "evaluation: colours.yaml")
    assert expand("mine/study.yaml").evaluation.averages == {"Average": ("colours",)}
    (mine / "tests.yaml").write_text("sets: [colours.yaml, cars]\n")
    found = find_evaluation(str(mine / "tests.yaml"))
    assert (found.name, found.averages) == ("tests", {"Average": ("colours", "cars")})


def test_another_model_config_is_another_run(mine):
    write_cards()
    before = expand("mine/study.yaml").runs[0].spec.run_id
    edit(mine / "small.json", '"layers": 1, "width": 32, "head_width"', '"layers": 2, "width": 32, "head_width"')
    assert expand("mine/study.yaml").runs[0].spec.run_id != before


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "study.yaml",
            "squares.yaml",
            "square.yaml",
            r"data set .*: there is no file .*/mine/square\.yaml",
        ),
        ("study.yaml", "squares.yaml", "squares", r"unknown data set 'squares'.*One of your own: path/to/NAME\.yaml"),
        ("study.yaml", "small.json", "smaller.json", r"model .*/smaller\.json: there is no file"),
        ("study.yaml", "small.json", "small", r"unknown model 'small'.*One of your own: path/to/NAME\.json"),
        ("small.json", "vision_cfg", "vision", r"allowed is an open_clip config: a JSON with embed_dim, vision_cfg"),
        ("study.yaml", "small.json", "coca_ViT-B-32", r"model coca_ViT-B-32: it has a decoder \(CoCa\)"),
        ("study.yaml", "small.json", "roberta-ViT-B-32", r"text tower 'roberta-base' is of the Hugging Face Hub"),
        (
            "small.json",
            '"context_length"',
            '"hf_model_name": "a/b", "context_length"',
            r"small\.json: its text tower 'a/b'",
        ),
        (
            "tests.yaml",
            "sets: [colours.yaml",
            "sets: [colors.yaml",
            r"evaluation set .*: there is no file .*/colors\.yaml",
        ),
        ("squares.yaml", "name: squares", "name: circles", r"squares\.yaml calls itself 'circles'"),
        ("squares.yaml", "pairs: 96", "pairs: 96\nbuild: make it", "only cards of this repository have these"),
        ("study.yaml", "batch_size: 16", "batch_size: 97", r"global_batch_size = 97 exceeds the 96 pairs of 'squares'"),
    ],
)
def test_what_is_wrong_is_one_clear_error(mine, file, old, new, message):
    write_cards()
    edit(mine / file, old, new)
    with pytest.raises(ValueError, match=message) as refused:
        expand("mine/study.yaml")
    assert "\n" not in str(refused.value)


def test_all_cards_that_are_wrong_are_named_together(mine):
    write_cards()
    for name in ("squares", "colours", "sayings"):
        edit(mine / f"{name}.yaml", "licence: not stated\n", "")
    with pytest.raises(ValueError, match="licence") as refused:
        expand("mine/study.yaml")
    named = re.findall(r"(\w+)\.yaml: licence: this key is missing, and it has no default", str(refused.value))
    assert named == ["squares", "colours", "sayings"]


def test_two_data_sets_of_one_name_are_told_apart_in_later_commands_too(mine, tmp_path):
    write_cards()
    expand("mine/study.yaml")
    other = tmp_path / "other" / "squares.yaml"
    files.write_text(other, (mine / "squares.yaml").read_text())
    with pytest.raises(ValueError, match=r"two data sets are called 'squares' in this folder: .*; rename one of them"):
        cards.keep(str(other))
    with pytest.raises(ValueError, match=r"it is called 'scenes'; allowed are names of .* none of this repository"):
        cards.keep(str(mine.joinpath("squares.yaml").rename(mine / "scenes.yaml")))


# The card of a folder -----------------------------------------------------------------------------------------------


def drawn(folder: Path, *samples: dict[str, bytes]) -> Path:
    members = {f"{n:03d}.{ext}": data for n, fields in enumerate(samples) for ext, data in fields.items()}
    toy.write_tar(folder / "0.tar", members)
    return folder


PNG = toy.picture("red", "top left", 0)


@pytest.mark.parametrize(
    ("fields", "captions", "example"),
    [
        ({"txt": b"a lamp", "json": b'{"url": "x", "caption": "no"}'}, {"member": "txt"}, "a lamp"),
        ({"json": b'{"url": "x", "caption": "a lamp"}'}, {"member": "json", "field": "caption"}, "a lamp"),
        ({"json": b'{"n": 3, "says": ["a lamp", "light"]}'}, {"member": "json", "field": "says"}, "a lamp"),
    ],
)
def test_captions_are_found(tmp_path, monkeypatch, fields, captions, example):
    monkeypatch.chdir(tmp_path)
    drawn(tmp_path / "Own Lamps", *[{"png": PNG, **fields}] * 3, {"png": PNG})
    told = draft.write(Path("Own Lamps"))
    card = cards.read_yaml(Path("own_lamps.yaml"), cards.DatasetCard)
    assert (card.pairs, card.captions.model_dump(exclude_none=True)) == (3, captions)
    assert repr(example) in told[1]
    assert f"left out, 1 times: no .{captions['member']} caption" in told


def test_captions_that_could_be_several_are_asked_for(tmp_path):
    folder = drawn(tmp_path / "lamps", *[{"png": PNG, "json": b'{"title": "a lamp", "maker": "me"}'}] * 2)
    with pytest.raises(ValueError, match=r"which are the captions.*json:title, json:maker.*--captions"):
        draft.write(folder, tmp_path / "lamps.yaml")
    draft.write(folder, tmp_path / "lamps.yaml", captions="json:title")
    assert cards.read_yaml(tmp_path / "lamps.yaml", cards.DatasetCard).captions.field == "title"


def test_tasks_and_chance_are_worked_out(tmp_path):
    def chance(card: EvalCard, **options: str) -> tuple[str, float]:
        out = tmp_path / f"of_{Path(card.path).name}{len(list(tmp_path.glob('*.yaml')))}.yaml"
        draft.write(Path(card.path), out, **options)
        written = cards.eval_set(str(out))
        assert reading.read(written).counts["images"] == card.images
        return written.task, written.chance

    kinds = evalsets.classification(tmp_path / "kinds")
    assert chance(kinds) == ("zeroshot_classification", pytest.approx(1 / 7, abs=1e-6))
    lines = [[f"a {n}", f"an {n}"] for n in range(6)]
    both = evalsets.retrieval(tmp_path / "both", lines, captions=12)
    assert chance(both) == ("zeroshot_retrieval", pytest.approx(1 / 6, abs=1e-6))
    assert chance(both, task="image_caption_selection") == ("image_caption_selection", 0.5)
    keys = [f"{n:05d}" for n in range(10)]
    cues = evalsets.association(
        tmp_path / "cues", [{"cue": "x", "candidates": keys, "associations": keys[:3]}], num_images=10
    )
    expected = evalsets.jaccard_of_guesses(10, 3)[0]
    assert chance(cues) == ("association", pytest.approx(expected, abs=1e-6))


def test_a_card_is_not_written_over_and_a_folder_that_is_neither_is_named(mine):
    write_cards()
    with pytest.raises(ValueError, match=r"squares\.yaml is there already: remove it"):
        draft.write(mine / "squares", mine / "squares.yaml")
    with pytest.raises(ValueError, match=r"mine has neither \*\.tar nor test/nshards\.txt: allowed is a training set"):
        draft.write(mine)
    with pytest.raises(ValueError, match="nowhere is no folder: name the one that holds the data"):
        draft.write(mine / "nowhere")
    with pytest.raises(ValueError, match="it is called 'scenes'; allowed are names"):
        draft.write(mine / "squares", mine / "scenes.yaml")


def test_plan_names_wrong_counts_and_what_to_edit(mine, capsys):
    write_cards()
    edit(mine / "squares.yaml", "pairs: 96", "pairs: 90")
    edit(mine / "colours.yaml", "images: 16", "images: 17")
    main(["plan", "mine/study.yaml"])
    told = capsys.readouterr().out
    assert f"has 96 usable pairs, its card says 90: edit the card, {mine}/squares.yaml (pairs: 96)" in told
    assert f"has 16 images, its card says 17: edit the card, {mine}/colours.yaml (images: 16)" in told
    assert "All data are there" not in told
