"""The compositional data sets: built whole, twice, and read as their users read them."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from support import evalsets

from engine import files
from engine.evaluation import reading
from engine.evaluation.runner import Model, answer_set
from engine.schema.evaluation import EvalCard
from engine.training.towers import tokenizer
from experiments.design import cards as experiments_cards
from experiments.fetch import shards
from experiments.fetch.shards import palette_png
from experiments.icons import catalogue, sources
from experiments.icons.draws import Draws
from experiments.scenes import build, cards, language, scenes
from experiments.scenes.eval_set import EvalSet, Picture
from experiments.scenes.language import COLOURS, CONCEPTS, Scene, Thing

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = ("unseen_drawings", "other_grounds", "sketched", "turned")
SWAPPED = ("swapped_colours", "swapped_concepts", "swapped_places", "validation_swapped")
ZEROSHOT = ("colour", "concept", "place", "count")
LEVELS = (scenes.SIMPLE, scenes.EASY, scenes.HARD)
Table = dict[str, list[tuple[Scene, list[str]]]]
"""The scenes of each set with the icons in them."""
KINDS = tuple(
    name.removeprefix("scenes_tiny_") for name in experiments_cards.names("evals") if name.startswith("scenes_tiny_")
)


def command(out: Path) -> list[str]:
    return [sys.executable, "-m", "experiments.scenes", "--out", str(out), "--level", "tiny"]


def run_build(out: Path, hash_seed: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONHASHSEED": hash_seed}
    return subprocess.run(command(out), cwd=ROOT, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, wheels: dict[str, zipfile.ZipFile]) -> Path:
    out = tmp_path_factory.mktemp("data") / "scenes_tiny"
    done = run_build(out, "1")  # which compares what was built with the cards
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="session")
def table(tiny: Path) -> Table:
    """The scenes of each set with the icons in them."""
    found: Table = {}
    with (tiny / "pictures.tsv").open(newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            layout, *things = row["scene"].split(": ")
            scene = Scene(layout, tuple(Thing(*thing.split()[1:]) for thing in things))
            kind = found.setdefault(row["set"].removeprefix("scenes_tiny_"), [])
            assert row["key"] == f"{len(kind):06d}"
            kind.append((scene, row["sources"].split()))
    return found


def samples_of(tiny: Path, kind: str) -> list[shards.Sample]:
    folder = tiny / "train" if kind == "train" else tiny / f"evals/scenes_tiny_{kind}/test"
    return shards.read_shards(sorted(folder.glob("*.tar")))


def understood(caption: str) -> Scene:
    """Read a caption as a person does; nothing here is the builder's own."""
    words = re.sub(r"^(a picture of|an image of|there (is|are)|here (is|are)) ", "", caption)
    counted = re.fullmatch(r"(two|three|four) (\w+) (\w+)s", words)
    if counted:
        return Scene(counted[1], (Thing(*counted.groups()[1:]),))
    thing = r"an? (\w+) (\w+)"
    single = re.fullmatch(rf"{thing} (?:at the|in the) ((?:top|bottom) (?:left|right))(?: corner)?", words)
    if single:
        return Scene(single[3], (Thing(single[1], single[2]),))
    first, relation, second = re.fullmatch(
        r"(.*?) (above|over|on top of|below|under|beneath|left of|to the left of|right of|to the right of) (.*)", words
    ).groups()

    def things(text: str) -> list[Thing]:
        return [Thing(*re.fullmatch(r"(?:an? )?(\w+) (\w+)", part).groups()) for part in text.split(" and ")]

    upper, lower = things(first), things(second)
    if relation in ("below", "under", "beneath") or "right" in relation:
        upper, lower = lower, upper
    if "left" in relation or "right" in relation:
        return Scene("left of", (*upper, *lower))
    layout = {(1, 1): "above", (2, 1): "two above one", (1, 2): "one above two"}[len(upper), len(lower)]
    return Scene(layout, (*upper, *lower))


def inked(pixels: np.ndarray, colours: list[str]) -> list[np.ndarray]:
    """Which pixels are inked in each colour: at least by two in five, and more than in the others."""
    ground = np.quantile(pixels.reshape(-1, 3), 0.9, axis=0)
    over = pixels - ground
    shares, misses = [], []
    for colour in colours:
        full = COLOURS[colour] - ground
        share = over @ full / (full @ full)
        shares.append(share)
        misses.append(np.linalg.norm(over - share[..., None] * full, axis=2))
    nearest = np.argmin(misses, axis=0)
    return [(nearest == number) & (share > 0.4) for number, share in enumerate(shares)]


def assert_shows(pixels: np.ndarray, scene: Scene) -> None:
    """Check the places, and by them the colours, of what a picture shows."""
    shown = inked(pixels, [thing.colour for thing in scene.things])
    assert min(mask.sum() for mask in shown) > 5, f"something is missing of {scene}"
    at = [np.argwhere(mask).mean(axis=0)[::-1] for mask in shown]  # across, down
    if scene.layout == "left of":
        assert at[1][0] - at[0][0] > 4
    elif scene.layout == "above":
        assert at[1][1] - at[0][1] > 4
    elif scene.layout == "two above one":
        assert min(at[2][1] - at[0][1], at[2][1] - at[1][1], at[1][0] - at[0][0]) > 4
    elif scene.layout == "one above two":
        assert min(at[1][1] - at[0][1], at[2][1] - at[0][1], at[2][0] - at[1][0]) > 4
    elif scene.layout in language.PLACES:
        down, across = scene.layout.split()
        assert (at[0] < 16).tolist() == [across == "left", down == "top"]
    else:
        corners = [shown[0][y : y + 16, x : x + 16].any() for y in (0, 16) for x in (0, 16)]
        assert sum(corners) == {"two": 2, "three": 3, "four": 4}[scene.layout]


def pixels_of(sample: shards.Sample) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(sample["png"])).convert("RGB"))


# The built folder


def test_two_builds_are_equal_to_the_byte_whatever_the_hash_seed(tiny: Path, tmp_path: Path) -> None:
    assert run_build(tmp_path / "again", "2").returncode == 0

    def files_of(folder: Path) -> dict[str, bytes]:
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    found = files_of(tiny)
    assert files_of(tmp_path / "again") == found
    assert list(tmp_path.iterdir()) == [tmp_path / "again"], "nothing is left beside the folder"
    manifest = json.loads(found.pop("manifest.json"))
    assert manifest["files"] == {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}


def test_every_training_caption_says_what_its_scene_is_and_what_its_picture_shows(tiny: Path, table: Table) -> None:
    samples = samples_of(tiny, "train")
    assert len(samples) == len(table["train"]) == 1500
    for sample, (scene, _) in zip(samples, table["train"], strict=True):
        assert sample.keys() == {"png", "txt"}
        assert understood(sample["txt"].decode()) == scene
        assert_shows(pixels_of(sample), scene)
    layouts = Counter(scene.layout for scene, _ in table["train"])
    assert layouts.keys() == {*language.PLACES, *language.COUNTS, *language.PAIRS}
    assert sum(layouts[layout] for layout in language.PAIRS) / 1500 == pytest.approx(0.72, abs=0.05)


@pytest.mark.parametrize("kind", ["retrieval", "new_colours", *VARIANTS, "validation"])
def test_every_retrieval_set_has_different_scenes_and_says_and_shows_them(tiny: Path, table: Table, kind: str) -> None:
    assert len({scene for scene, _ in table[kind]}) == len(table[kind])
    for sample, (scene, _) in zip(samples_of(tiny, kind), table[kind], strict=True):
        assert understood(sample["txt"].decode()) == scene
        assert_shows(pixels_of(sample), scene)


def test_held_out_scenes_are_never_trained_on_nor_validated_on(table: Table) -> None:
    of = {kind: {scene for scene, _ in rows} for kind, rows in table.items()}
    assert set(of) == {"train", *KINDS}
    validation = of["validation"] | of["validation_swapped"]
    tested = set().union(*(of[kind] for kind in set(of) - {"train", "validation", "validation_swapped"}))
    assert not of["train"] & (tested | validation)
    assert not tested & validation
    for kind in VARIANTS:
        assert of[kind] < of["retrieval"]


def test_every_scene_of_new_colours_has_one_thing_in_a_colour_that_its_concept_is_not_trained_in(
    table: Table,
) -> None:
    def has_new(thing: Thing) -> bool:
        return scenes.TINY.unseen_colour(thing.concept) == thing.colour

    for kind, rows in table.items():
        new = {sum(map(has_new, scene.things)) for scene, _ in rows}
        assert new == ({1} if kind == "new_colours" else {0})
    concepts = {thing.concept for scene, _ in table["train"] for thing in scene.things}
    colours = {thing.colour for scene, _ in table["train"] for thing in scene.things}
    assert (concepts, colours) == (set(scenes.TINY.concepts), set(scenes.TINY.colours))


def test_drawings_of_unseen_families_are_in_one_set_only_and_name_the_concept(
    table: Table, wheels: dict[str, zipfile.ZipFile]
) -> None:
    word_of = {icon.key: icon.concept for icon in catalogue.read_icons(wheels, CONCEPTS)}
    for kind, rows in table.items():
        families = {key.split("/")[0] for _, keys in rows for key in keys}
        assert families.isdisjoint(catalogue.UNSEEN_SOURCES) != (kind == "unseen_drawings")
        for scene, keys in rows:
            count = {"two": 2, "three": 3, "four": 4}.get(scene.layout, 1)
            assert [word_of[key] for key in keys] == [thing.concept for thing in scene.things for _ in range(count)]
    unseen = {key.split("/")[0] for _, keys in table["unseen_drawings"] for key in keys}
    assert unseen <= catalogue.UNSEEN_SOURCES


def test_variants_are_other_pictures_of_the_same_scenes(tiny: Path, table: Table) -> None:
    main = {
        scene: pixels_of(s) for s, (scene, _) in zip(samples_of(tiny, "retrieval"), table["retrieval"], strict=True)
    }
    lightest = min(pixels.max(axis=(0, 1)).min() for pixels in main.values())
    for kind in VARIANTS:
        for sample, (scene, _) in zip(samples_of(tiny, kind), table[kind], strict=True):
            pixels = pixels_of(sample)
            assert not np.array_equal(pixels, main[scene])
            assert (pixels.max(axis=(0, 1)).min() < lightest) == (kind == "other_grounds")


def test_wrong_captions_differ_from_the_right_one_in_what_the_set_is_about(tiny: Path, table: Table) -> None:
    for kind in SWAPPED:
        for number, (sample, (scene, _)) in enumerate(zip(samples_of(tiny, kind), table[kind], strict=True)):
            said = [understood(caption) for caption in sample["txt"].decode().split("\n")]
            assert said[0] == scene
            assert len(set(said)) == 4
            about = kind.removeprefix("swapped_")
            if kind == "validation_swapped":
                about = ("colours", "concepts", "places")[number % 3]
            (one, first), (other, second) = scene.things
            if about == "places":
                swapped = ((scene.things[0], scene.things[1]), (scene.things[1], scene.things[0]))
                assert {(s.layout, s.things) for s in said} == set(itertools.product(language.PAIRS, swapped))
                continue
            assert {s.layout for s in said} == {scene.layout}
            kept, changed = (1, 0) if about == "colours" else (0, 1)
            for wrong in said[1:]:
                assert [thing[kept] for thing in wrong.things] == [thing[kept] for thing in scene.things]
            ways = [tuple(thing[changed] for thing in wrong.things) for wrong in said[1:]]
            was = (one, other) if about == "colours" else (first, second)
            assert ways[0] == was[::-1]
            assert [[a == b for a, b in zip(way, was, strict=True)] for way in ways[1:]] == [
                [False, True],
                [True, False],
            ]
            assert len(set(ways[1]) | set(was)) == len(set(ways[2]) | set(was)) == 3


@pytest.mark.parametrize("kind", ZEROSHOT)
def test_labels_are_what_the_scene_answers_and_prompts_are_captions(tiny: Path, table: Table, kind: str) -> None:
    folder = tiny / f"evals/scenes_tiny_{kind}"
    classes = (folder / "classnames.txt").read_text().splitlines()
    templates = (folder / "zeroshot_classification_templates.txt").read_text().splitlines()
    answers = Counter()
    for sample, (scene, _) in zip(samples_of(tiny, kind), table[kind], strict=True):
        assert_shows(pixels_of(sample), scene)
        name = classes[int(sample["cls"])]
        prompted = {understood(template.format(c=name)) for template in templates}
        (thing,) = scene.things
        told = {
            "colour": {prompt.things[0].colour for prompt in prompted} == {thing.colour},
            "concept": {prompt.things[0].concept for prompt in prompted} == {thing.concept},
            "place": {prompt.layout for prompt in prompted} == {scene.layout},
            "count": {prompt.layout for prompt in prompted} == {scene.layout},
        }
        assert told[kind]
        answers[name] += 1
    assert max(answers.values()) - min(answers.values()) <= 1
    assert answers.keys() == set(classes)


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_every_wording_fits_the_tiny_models_and_means_one_scene(level: scenes.Level) -> None:
    tokenize = tokenizer("tiny-resnet")
    first, *_ = tokenize([""])[0].tolist()
    (last,) = tokenize([""])[0, 1:2].tolist()
    things = tuple(itertools.starmap(Thing, zip(("orange", "grey", "black"), level.concepts, strict=False)))
    for layout in itertools.chain(*scenes.KINDS):
        count = 3 if layout in language.TRIPLES else 2 if layout in language.PAIRS else 1
        scene = Scene(layout, things[:count])
        some = language.wordings(layout, free_order=level.free_order)
        assert len(some) > 1
        for wording in some:
            assert understood(wording.of(scene)) == scene
            # All words were read: the end mark stands behind the last.
            tokens = tokenize([wording.of(scene)])[0].tolist()
            assert tokens[0] == first
            assert last in tokens[: len(wording.of(scene).split()) + 2]
    for word in (*level.concepts, *level.colours):
        assert tokenize([word])[0, 2].item() == last, f"{word} is one token"


def test_only_the_harder_level_names_the_later_thing_first() -> None:
    def orders(level: scenes.Level) -> set[bool]:
        some = language.wordings("above", free_order=level.free_order)
        scene = Scene("above", (Thing("red", "star"), Thing("blue", "moon")))
        return {wording.of(scene).index("red") < wording.of(scene).index("blue") for wording in some}

    assert orders(scenes.EASY) == {True}
    assert orders(scenes.HARD) == {True, False}


def test_the_levels_share_no_more_than_they_say() -> None:
    assert scenes.EASY.concepts == CONCEPTS[:24] == scenes.HARD.concepts[:24]
    assert scenes.SIMPLE.concepts == CONCEPTS[:16]
    assert len(set(CONCEPTS)) == len(CONCEPTS) == 48
    for level in (scenes.EASY, scenes.HARD):
        assert level.pairs >= 100_000
        assert level.retrieval >= 4000
    for level in LEVELS:
        evaluation = experiments_cards.evaluation(level.name)
        assert set(evaluation.sets) == {f"{level.name}_{kind}" for kind in KINDS}
        averaged = set().union(*evaluation.averages.values())
        assert set(evaluation.averages["Average"]) == averaged
        assert set(evaluation.sets) - averaged == {
            f"{level.name}_{kind}" for kind in ("validation", "validation_swapped")
        }


def test_clip_benchmark_reads_the_evaluation_sets(tiny: Path) -> None:
    builder = pytest.importorskip("clip_benchmark.datasets.builder")
    for name, found in json.loads((tiny / "manifest.json").read_text())["evals"].items():
        folder = str(tiny / "evals" / name)
        data = builder.build_wds_dataset(name, transform=np.asarray, split="test", data_dir=folder)
        samples = list(data)
        assert len(samples) == found["images"]
        assert all(pixels.shape == (32, 32, 3) for pixels, _ in samples)
        if "classes" in found:
            assert {label for _, label in samples} == set(range(len(data.classes)))
        else:
            assert {len(texts) for _, texts in samples} == {found["captions"] // found["images"]}


def card_of(tiny: Path, kind: str) -> EvalCard:
    card = experiments_cards.eval_set(f"scenes_tiny_{kind}")
    return card.model_copy(update={"path": str(tiny / "evals" / card.name)})


def test_a_model_that_knows_nothing_scores_the_chance_of_every_card_and_of_every_average(tiny: Path) -> None:
    evaluation = experiments_cards.evaluation("scenes_tiny")
    seeds = range(3)
    found: dict[str, list[float]] = {}
    variances: dict[str, float] = {}
    for kind in KINDS:
        card = card_of(tiny, kind)
        data = reading.read(card)
        choices = len(data.classes) or (4 if kind in SWAPPED else card.images)
        assert card.chance == pytest.approx(1 / choices, abs=1e-5)
        # Of retrieval one picture in N either way, each with variance 1 / N**2.
        variances[card.name] = 1 / choices * (1 - 1 / choices) / card.images
        for seed in seeds:
            model = Model(evalsets.Guesser(seed), evalsets.transform, evalsets.tokenizer, "cpu")
            found.setdefault(card.name, []).append(answer_set(data, model).metrics[card.metric])
    values = {name: float(np.mean(some)) for name, some in found.items()}
    apart = {
        name: (values[name] - card.chance) / np.sqrt(variances[name] / len(seeds))
        for name, card in evaluation.sets.items()
    }
    for key, average in evaluation.averaged(values, frozenset()).items():
        of = [variances[name] for name in evaluation.averages[key]]
        apart[key] = (average.value - average.chance) / np.sqrt(sum(of) / len(seeds)) * len(of)
    assert max(map(abs, apart.values())) < 4, apart


def test_licence_notes_name_every_source_of_a_picture(tiny: Path, table: Table) -> None:
    notes = (tiny / "LICENSES.md").read_text()
    titles = {
        "codicons": "Codicons",
        "elusive": "Elusive Icons",
        "fontawesome": "Font Awesome Free",
        "material": "Material Design Icons",
        "octicons": "Octicons",
        "phosphor": "Phosphor",
        "remix": "Remix Icon",
        "tabler": "Tabler Icons",
    }
    used = {key.split("/")[0] for rows in table.values() for _, keys in rows for key in keys}
    assert used == set(titles)
    rows = re.findall(r"^\| (?!source|---)([^|]*) \|", notes, re.MULTILINE)
    assert sorted(rows) == sorted(titles.values())


def test_cards_of_every_level_are_of_what_the_builder_says() -> None:
    for key, level in scenes.LEVELS.items():
        card = yaml.safe_load((ROOT / f"experiments/datasets/{level.name}.yaml").read_text())
        assert card["pairs"] == level.pairs
        option = "" if key == "easy" else f" --level {key}"
        assert card["build"] == f"python -m experiments.scenes --out data/{level.name}{option}"
        assert card["ready"] == f"data/{level.name}/manifest.json"


# What goes wrong


def test_a_killed_build_leaves_no_folder(wheels: dict[str, zipfile.ZipFile], tmp_path: Path) -> None:
    out = tmp_path / "scenes_tiny"
    process = subprocess.Popen(command(out), cwd=ROOT, stdout=subprocess.DEVNULL)
    while not list(tmp_path.iterdir()) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()


def test_a_folder_with_other_things_in_it_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("do not lose me")
    with pytest.raises(build.OutputError, match=r"thesis\.tex, which no build writes"):
        build.build(tmp_path, tmp_path, scenes.TINY, update_cards=False)
    assert (tmp_path / "thesis.tex").exists()


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The manifest of a build that writes one evaluation set, whose cards are those of this repository."""
    found = {"name": "scenes_tiny", "recipe": "1", "files": {}, "train": {"pairs": 4}, "evals": {}}
    monkeypatch.setattr(sources, "open_wheels", lambda _: {})
    monkeypatch.setattr(build, "fill", lambda *_: found)
    monkeypatch.setattr(cards, "FOLDER", tmp_path / "cards")
    for name in ("datasets/scenes_tiny.yaml", "evals/scenes_tiny_colour.yaml"):
        files.write_text(tmp_path / "cards" / name, (ROOT / "experiments" / name).read_text())
    return found


def test_a_build_that_differs_from_its_cards_is_refused_or_changes_them(toy: dict, tmp_path: Path) -> None:
    card = tmp_path / "cards" / "datasets" / "scenes_tiny.yaml"
    before, out = card.read_text(), tmp_path / "out"
    with pytest.raises(cards.CardError) as error:
        build.build(out, tmp_path, scenes.TINY, update_cards=False)
    assert "datasets/scenes_tiny.yaml: pairs: the card says 1500, built was 4" in str(error.value)
    assert "The cards were made with resvg-py" in str(error.value)
    assert not out.exists()
    assert card.read_text() == before
    build.build(out, tmp_path, scenes.TINY, update_cards=True)
    build.build(out, tmp_path, scenes.TINY, update_cards=False)
    assert yaml.safe_load(card.read_text())["pairs"] == 4
    card.unlink()
    with pytest.raises(cards.CardError, match=r"datasets/scenes_tiny\.yaml is not there"):
        build.build(out, tmp_path, scenes.TINY, update_cards=False)


BLANK = Picture(Scene("left of", ()), shards.png(bytes(32 * 32 * 3), 32, 32), ())


@pytest.mark.parametrize(
    ("contents", "fault"),
    [
        ({"labels": [0, 1, 2, 0], "classes": ["cat", "dog"]}, "every class has pictures"),
        ({"labels": [0, 0, 0, 0], "classes": ["cat", "dog"]}, "every class has pictures"),
        ({"labels": [0, 1, 1, 0], "classes": ["cat", "cat"]}, "no class comes twice"),
        ({"captions": [["cat"], ["dog"], ["cat"], ["cow"]]}, "no two pictures share a caption"),
    ],
)
def test_faults_that_the_reader_passes_over_are_found_before_a_set_is_written(
    tmp_path: Path, contents: dict, fault: str
) -> None:
    with pytest.raises(AssertionError, match=fault):
        EvalSet([BLANK] * 4, templates=("{c} icon",), **contents).write(tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_set_that_the_reader_refuses_is_not_published(
    toy: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy["evals"] = {"scenes_tiny_colour": {"images": 4, "classes": 2, "sha256": "0" * 64}}

    def fill(new: Path, *_: object) -> dict:
        blank = EvalSet([BLANK] * 4, labels=[0, 1, 1, 0], classes=["cat", ""], templates=("{c} icon",))
        blank.write(new / "evals" / "scenes_tiny_colour")
        return toy

    monkeypatch.setattr(build, "fill", fill)
    with pytest.raises(ValueError, match=r"'scenes_tiny_colour': .*classnames\.txt: line 2 is blank"):
        build.build(tmp_path / "out", tmp_path, scenes.TINY, update_cards=True)
    assert [path.name for path in tmp_path.iterdir()] == ["cards"]


# Choices and pictures


def test_choices_are_those_of_every_machine() -> None:
    draws = Draws("a key")
    assert [draws.below(1000) for _ in range(5)] == [774, 110, 381, 880, 720]
    assert Draws("another key").below(2**64) != Draws("a key").below(2**64)


def test_choices_are_as_frequent_as_their_weights() -> None:
    draws = Draws("weights")
    counts = Counter(draws.weighted((1, 0, 3)) for _ in range(4000))
    assert counts.keys() == {0, 2}
    assert counts[0] == pytest.approx(1000, abs=4 * np.sqrt(4000 * 1 / 4 * 3 / 4))
    for _ in range(50):
        some = draws.some_of("abcdef", 4)
        assert len(set(some)) == 4
        assert set(some) <= set("abcdef")


def test_a_picture_with_a_palette_holds_the_pixels() -> None:
    random = np.random.default_rng(0)
    palette = random.integers(0, 256, (7, 3), dtype=np.uint8)
    codes = random.integers(0, 7, (5, 9), dtype=np.uint8)
    read = Image.open(io.BytesIO(palette_png(codes.tobytes(), 5, 9, palette.tobytes())))
    assert read.mode == "P"
    assert np.array_equal(np.asarray(read.convert("RGB")), palette[codes])
