"""The embedded data set: built whole, twice, and read as its users read it."""

from __future__ import annotations

import csv
import doctest
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
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from PIL import Image
from support import evalsets

from engine.evaluation import card_files, reading
from engine.evaluation.runner import Model, answer_set
from experiments.design import cards as experiments_cards
from experiments.fetch import shards
from experiments.icons import captions, cards, catalogue, licences, render, sets, sources
from experiments.icons.eval_set import EvalSet
from experiments.icons.folder import publish, read_shards

ROOT = Path(__file__).resolve().parents[2]
EVALS = tuple(
    name.removeprefix("icons_tiny_") for name in experiments_cards.names("evals") if name.startswith("icons_tiny_")
)
STYLES = ("unseen_styles", "thin", "bold", "filled", "coloured", "sketched", "turned")
UNSEEN = {"phosphor", "codicons", "elusive"}


def command(out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "experiments.icons", "--out", str(out), "--tiny", *options]


def run_build(out: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | environment
    return subprocess.run(command(out, *options), cwd=ROOT, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, wheels: dict[str, zipfile.ZipFile]) -> Path:
    out = tmp_path_factory.mktemp("data") / "icons_tiny"
    done = run_build(out, "--jobs", "2", PYTHONHASHSEED="1")
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="session")
def manifest(tiny: Path) -> dict:
    return json.loads((tiny / "manifest.json").read_text())


@pytest.fixture(scope="session")
def table(tiny: Path) -> list[dict[str, str]]:
    with (tiny / "pictures.tsv").open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def train_samples(tiny: Path) -> list[shards.Sample]:
    return read_shards(sorted((tiny / "train").iterdir()))


def eval_samples(tiny: Path, kind: str) -> list[shards.Sample]:
    return read_shards(sorted((tiny / f"evals/icons_tiny_{kind}/test").glob("*.tar")))


# The built folder


@pytest.mark.slow
def test_two_builds_are_equal_to_the_byte_whatever_the_jobs_and_the_hash_seed(tiny: Path, tmp_path: Path) -> None:
    done = run_build(tmp_path / "again", "--jobs", "1", PYTHONHASHSEED="2")
    assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "again") == files_of(tiny)
    assert list(tmp_path.iterdir()) == [tmp_path / "again"], "nothing is left beside the folder"


def test_manifest_lists_every_other_file_with_its_digest(tiny: Path, manifest: dict) -> None:
    found = files_of(tiny)
    del found["manifest.json"]
    assert manifest["files"] == {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}


def test_cards_say_what_was_built(tiny: Path, manifest: dict) -> None:
    card = yaml.safe_load((ROOT / "experiments/datasets/icons_tiny.yaml").read_text())
    shard = tiny / "train" / "00000.tar"
    assert list(shard.parent.iterdir()) == [shard], "what the digest below is made of"
    line = f"train/00000.tar {hashlib.sha256(shard.read_bytes()).hexdigest()}\n"
    assert card["revision"] == f"{manifest['recipe']}-{hashlib.sha256(line.encode()).hexdigest()[:12]}"
    assert card["pairs"] == len(train_samples(tiny))
    for kind in EVALS:
        card = card_files.eval_set(ROOT / "experiments", f"icons_tiny_{kind}")
        counts = reading.count(card.model_copy(update={"path": str(tiny / "evals" / card.name)}))
        assert {name: number for name in counts if (number := getattr(card, name))} == {
            name: number for name, number in counts.items() if number
        }
        for sample in eval_samples(tiny, kind):
            with Image.open(io.BytesIO(sample["png"])) as picture:
                picture.load()  # checks the sums
                assert (picture.mode, picture.size) == ("RGB", (render.SIDE_PX, render.SIDE_PX))


def test_no_concept_is_in_two_splits(table: list[dict[str, str]]) -> None:
    concepts: dict[str, set[str]] = {}
    for row in table:
        concepts.setdefault(row["set"].removeprefix("icons_tiny_"), set()).add(row["concept"])
    held_out = (
        "retrieval",
        "unseen_concepts",
        "modifiers",
        "characters",
        "families",
        "unseen_styles_retrieval",
        "tags",
    )
    test = set().union(*(concepts[kind] for kind in held_out))
    assert set(concepts) == {*held_out, *STYLES, "train", "validation"}
    assert concepts["train"].isdisjoint(test | concepts["validation"])
    assert concepts["validation"].isdisjoint(test)


def test_no_caption_is_in_two_splits(tiny: Path) -> None:
    read = {
        kind: {sample["txt"] for sample in eval_samples(tiny, kind)}
        for kind in ("retrieval", "unseen_styles_retrieval", "validation")
    }
    read["train"] = {sample["txt"] for sample in train_samples(tiny)}
    assert not read["train"] & read["validation"]
    for kind in ("retrieval", "unseen_styles_retrieval"):
        assert not read[kind] & (read["train"] | read["validation"])


@pytest.mark.parametrize("kind", STYLES)
def test_styles_are_never_trained_on_but_their_concepts_are(table: list[dict[str, str]], kind: str) -> None:
    train = [row for row in table if row["set"] == "train"]
    unseen = [row for row in table if row["set"] == f"icons_tiny_{kind}"]
    assert {row["source"].split("/")[0] for row in unseen} <= UNSEEN
    assert not {row["source"].split("/")[0] for row in train} & UNSEEN
    assert {row["concept"] for row in unseen} <= {row["concept"] for row in train}


def test_every_set_of_styles_counts_a_drawing_once_and_has_classes_of_the_main_set(
    tiny: Path, table: list[dict[str, str]]
) -> None:
    def classes(kind: str) -> set[str]:
        return set((tiny / f"evals/icons_tiny_{kind}/classnames.txt").read_text().splitlines())

    for kind in STYLES:
        keys = [row["source"] for row in table if row["set"] == f"icons_tiny_{kind}"]
        drawings = [re.sub(r"^phosphor/[a-z]+/(.*?)(-thin|-bold|-fill|-light)?$", r"phosphor/\1", key) for key in keys]
        assert len(drawings) == len(set(drawings)) > 30
        weights = {key.split("/")[1] for key in keys if key.startswith("phosphor/")}
        assert weights == {kind if kind in ("thin", "bold", "filled") else "regular"}
        assert classes(kind) <= classes("unseen_styles")


def test_no_picture_of_a_test_set_looks_like_one_of_training_or_validation(
    table: list[dict[str, str]], wheels: dict[str, zipfile.ZipFile]
) -> None:
    drawn = {row["source"] for row in table}
    icons = [icon for icon in catalogue.read_icons(wheels) if icon.key in drawn]
    rendered = render.render_all(icons, [""] * len(icons), catalogue.read_fonts(wheels), jobs=1)
    look_of = {
        icon.key: np.frombuffer(found[1], np.uint8) for icon, found in zip(icons, rendered, strict=True) if found
    }

    def looks(names: set[str]) -> np.ndarray:
        keys = sorted({row["source"] for row in table if row["set"] in names})
        return np.stack([look_of[key] for key in keys]).astype(float) / (render.LOOK_LEVELS - 1)

    fitted = {"train", "icons_tiny_validation"}
    against = looks(fitted)
    tested = looks({row["set"] for row in table} - fitted)
    nearest = min(np.sqrt(np.mean((against - look) ** 2, axis=1)).min() for look in tested)
    assert 0.10 < nearest < 0.15


def test_families_have_enough_pictures_each_and_carry_the_number_of_their_source(
    tiny: Path, table: list[dict[str, str]]
) -> None:
    sources_of = [row["source"].split("/")[0] for row in table if row["set"] == "icons_tiny_families"]
    samples = eval_samples(tiny, "families")
    numbers = [int(np.load(io.BytesIO(sample["npy"]))[0]) for sample in samples]
    names = sorted(set(sources_of))
    assert numbers == [names.index(source) for source in sources_of]
    assert min(np.bincount(numbers)) >= sets.MIN_PER_FAMILY
    assert len(names) >= 3


def test_tags_belong_to_the_associated_pictures_alone(
    tiny: Path, table: list[dict[str, str]], wheels: dict[str, zipfile.ZipFile]
) -> None:
    icon_of = {icon.key: icon for icon in catalogue.read_icons(wheels)}
    shown = {row["key"]: icon_of[row["source"]] for row in table if row["set"] == "icons_tiny_tags"}
    tasks = [json.loads(line) for line in (tiny / "evals/icons_tiny_tags/instances.jsonl").read_text().splitlines()]
    assert len(tasks) == len({json.dumps(task) for task in tasks}) == 40
    for task in tasks:
        assert len(task["candidates"]) == 10
        assert len(task["associations"]) == 3
        having = {key for key in task["candidates"] if task["cue"] in shown[key].tags}
        assert having == set(task["associations"])
        assert not [key for key in task["candidates"] if task["cue"] in shown[key].words]


def test_retrieval_has_one_picture_per_concept(table: list[dict[str, str]]) -> None:
    for kind in ("retrieval", "validation"):
        concepts = [row["concept"] for row in table if row["set"] == f"icons_tiny_{kind}"]
        assert len(concepts) == len(set(concepts)) == 200


def test_training_pictures_are_rgb_of_32_pixels_with_one_line_of_text(tiny: Path) -> None:
    for sample in train_samples(tiny):
        assert sample.keys() == {"png", "txt"}
        assert sample["txt"].decode().strip() == sample["txt"].decode() != ""
        picture = Image.open(io.BytesIO(sample["png"]))
        assert (picture.mode, picture.size) == ("RGB", (32, 32))
        assert np.ptp(np.asarray(picture)) > 100, "something is drawn"


@pytest.mark.parametrize("kind", [kind for kind in EVALS if kind != "tags"])  # it knows no association tasks
def test_clip_benchmark_reads_the_evaluation_sets(tiny: Path, manifest: dict, kind: str) -> None:
    builder = pytest.importorskip("clip_benchmark.datasets.builder")
    name = f"icons_tiny_{kind}"
    found = manifest["evals"][name]
    data = builder.build_wds_dataset(name, transform=np.asarray, split="test", data_dir=str(tiny / "evals" / name))
    samples = list(data)
    assert len(samples) == found["images"]
    if "classes" in found:
        assert len(data.classes) == found["classes"]
        assert {label for _, label in samples} == set(range(found["classes"]))
        assert data.templates == list(captions.ICON_TEMPLATES)
    else:
        assert all(len(texts) == 1 for _, texts in samples)
        assert data.classes is None


def test_licence_notes_name_every_source_of_a_picture(tiny: Path, table: list[dict[str, str]]) -> None:
    notes = (tiny / "LICENSES.md").read_text()
    titles = {
        "codicons": "Codicons",
        "elusive": "Elusive Icons",
        "fontawesome": "Font Awesome Free",
        "material": "Material Design Icons",
        "octicons": "Octicons",
        "openmoji": "OpenMoji",
        "phosphor": "Phosphor",
        "remix": "Remix Icon",
        "tabler": "Tabler Icons",
    }
    assert {row["source"].split("/")[0] for row in table} == set(titles)
    assert all(f"| {title} |" in notes and f"\n## {title}\n" in notes for title in titles.values())


# What goes wrong


def test_a_killed_build_leaves_no_folder(wheels: dict[str, zipfile.ZipFile], tmp_path: Path) -> None:
    out = tmp_path / "icons_tiny"
    process = subprocess.Popen(command(out, "--jobs", "1"), cwd=ROOT, stdout=subprocess.DEVNULL)
    while not list(tmp_path.iterdir()) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()


def test_a_folder_with_other_things_in_it_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("do not lose me")
    done = run_build(tmp_path)
    assert done.returncode == 1
    assert "thesis.tex, which no build writes" in done.stderr
    assert (tmp_path / "thesis.tex").exists()


def test_a_build_that_differs_from_its_cards_is_refused(
    tiny: Path, manifest: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = list(cards.cards(manifest))
    before = {path.relative_to(cards.FOLDER): path.read_text() for path in paths}
    monkeypatch.setattr(cards, "FOLDER", tmp_path)
    with pytest.raises(cards.CardError, match=r"datasets/icons_tiny\.yaml is not there"):
        cards.cards(manifest)
    for path, text in before.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    other = manifest | {"files": {"train/00000.tar": "another digest"}}
    with pytest.raises(cards.CardError) as error:
        cards.check(cards.cards(other))
    assert "datasets/icons_tiny.yaml: revision: the card says 1-" in str(error.value)
    assert "The cards were made with resvg-py" in str(error.value)
    assert "--update-cards" in str(error.value)
    cards.write(cards.cards(other))
    cards.check(cards.cards(other))
    cards.write(cards.cards(manifest))
    assert {path: (tmp_path / path).read_text() for path in before} == before


class Blank(NamedTuple):
    """A picture of nothing."""

    png: bytes = shards.png(bytes(render.SIDE_PX**2 * 3), render.SIDE_PX, render.SIDE_PX)


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
        EvalSet([Blank()] * 4, templates=("{c} icon",), **contents).write(tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_set_that_the_reader_refuses_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = cards.cards({
        "name": "icons_tiny", "recipe": "1", "files": {}, "train": {"pairs": 4},
        "evals": {"icons_tiny_thin": {"images": 4, "classes": 2, "sha256": "0" * 64}},
    })  # fmt: skip
    monkeypatch.setattr(cards, "cards", lambda *_: made)
    monkeypatch.setattr(sources, "open_wheels", lambda _: {})

    def fill(new: Path, _: object) -> dict:
        blank = EvalSet([Blank()] * 4, labels=[0, 1, 1, 0], classes=["cat", ""], templates=("{c} icon",))
        blank.write(new / "evals" / "icons_tiny_thin")
        return {}

    with pytest.raises(ValueError, match=r"'icons_tiny_thin': .*classnames\.txt: line 2 is blank"):
        publish(tmp_path / "out", tmp_path, fill, update_cards=True)
    assert not any(tmp_path.iterdir())


# The wheels: a small one of our own, served from a folder, so that the real pip runs without a network


def toy_wheel(folder: Path, text: str = "cat") -> bytes:
    folder.mkdir(exist_ok=True)
    path = folder / "toy_icons-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toy_icons/cat.svg", text)
        archive.writestr("toy_icons-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy-icons\nVersion: 1.0\n")
        archive.writestr(
            "toy_icons-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("toy_icons-1.0.dist-info/RECORD", "")
    return path.read_bytes()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index with one wheel, which is pinned."""
    folder = tmp_path / "index"
    digest = hashlib.sha256(toy_wheel(folder)).hexdigest()
    requirements = tmp_path / "wheels.txt"
    requirements.write_text(f"# a comment\ntoy-icons==1.0 --hash=sha256:{digest}\n")
    monkeypatch.setattr(sources, "REQUIREMENTS", requirements)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def close_index(index: Path) -> None:
    for path in index.iterdir():
        path.unlink()


def test_a_wheel_is_fetched_once(index: Path, tmp_path: Path) -> None:
    assert sources.open_wheels(tmp_path / "cache")["toy-icons"].read("toy_icons/cat.svg") == b"cat"
    close_index(index)
    assert sources.open_wheels(tmp_path / "cache")["toy-icons"].read("toy_icons/cat.svg") == b"cat"


def test_a_corrupted_wheel_is_fetched_again(index: Path, tmp_path: Path) -> None:
    sources.open_wheels(tmp_path / "cache")
    (cached,) = (tmp_path / "cache").glob("*.whl")
    content = bytearray(cached.read_bytes())
    content[40] ^= 1
    cached.write_bytes(content)
    assert sources.open_wheels(tmp_path / "cache")["toy-icons"].read("toy_icons/cat.svg") == b"cat"


def test_another_wheel_under_the_pinned_name_is_refused(index: Path, tmp_path: Path) -> None:
    toy_wheel(index, "not the pinned picture")
    with pytest.raises(sources.SourceError, match="Expected sha256"):
        sources.open_wheels(tmp_path / "cache")


def test_without_a_network_the_error_says_what_is_wanted_and_what_to_do(index: Path, tmp_path: Path) -> None:
    close_index(index)
    with pytest.raises(sources.SourceError) as error:
        sources.open_wheels(tmp_path / "cache")
    message = str(error.value)
    assert "toy-icons==1.0 --hash=sha256:" in message
    assert "No matching distribution found" in message
    assert f"copy FOLDER's files into {tmp_path / 'cache'}" in message
    assert not list((tmp_path / "cache").iterdir()), "nothing half-fetched stays"


def test_licences_that_no_longer_say_what_we_claim_are_an_error(tmp_path: Path) -> None:
    class Silent(zipfile.ZipFile):
        def read(self, name: str) -> bytes:  # type: ignore[override]
            return b"All rights reserved."

    path = tmp_path / "wheel.zip"
    zipfile.ZipFile(path, "w").close()
    wheels = dict.fromkeys((licence.project for licence in licences.LICENCES), Silent(path))
    with pytest.raises(sources.SourceError, match="no longer says"):
        licences.licence_notes(wheels, made="")


# Pictures, looks and captions


def test_a_written_png_holds_the_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    read = Image.open(io.BytesIO(shards.png(pixels.tobytes(), 32, 32)))
    assert read.mode == "RGB"
    assert np.array_equal(np.asarray(read), pixels)


def square(x: int, y: int, side: int, name: str = "square") -> catalogue.Icon:
    shape = f'<path d="M{x} {y}h{side}v{side}h-{side}z"/>'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">{shape}</svg>'
    return catalogue.Icon("toy", "filled", name, (name,), (), svg)


def test_a_look_ignores_place_and_size() -> None:
    one, other = render.render(square(2, 3, 8)), render.render(square(12, 8, 16))
    assert one is not None
    assert other is not None
    assert one[1] == other[1]


def test_an_empty_drawing_is_no_picture() -> None:
    assert render.render(square(0, 0, 0)) is None


@pytest.mark.parametrize("shift", render.SHIFTS)
def test_a_shift_changes_the_picture_but_not_the_look(shift: render.Shift) -> None:
    plain, shifted = render.render(square(4, 2, 9)), render.render(square(4, 2, 9), shift)
    assert plain is not None
    assert shifted is not None
    assert plain[0] != shifted[0]
    assert plain[1] == shifted[1]


def test_coloured_pictures_keep_ink_and_paper_apart() -> None:
    for number in range(40):
        drawn = render.render(square(4, 2, 9, f"square {number}"), "coloured")
        assert drawn is not None
        grey = np.asarray(Image.frombytes("RGB", (32, 32), drawn[0]).convert("L")).astype(int)
        assert abs(grey[16, 16] - grey[0, 0]) > 80
        assert np.ptp(np.frombuffer(drawn[0], np.uint8).reshape(-1, 3), axis=1).max() > 10, "it has colour"


def test_turned_pictures_are_turned_by_20_to_40_degrees() -> None:
    bar = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><rect x="2" y="11" width="20" height="2"/></svg>'
    for number in range(40):
        drawn = render.render(catalogue.Icon("toy", "filled", f"bar {number}", ("bar",), (), bar), "turned")
        assert drawn is not None
        ink = np.abs(np.frombuffer(drawn[0], np.uint8).reshape(32, 32, 3)[..., 0] - float(drawn[0][0]))
        rows, columns = np.nonzero(ink > 100)
        slope = np.linalg.eigh(np.cov(columns, rows))[1][:, 1]
        assert 18 < abs(np.degrees(np.arctan(slope[1] / slope[0]))) < 42


def test_guessing_in_association_tasks_scores_what_the_card_calls_chance() -> None:
    right = np.arange(10) < 3
    scores = [
        np.count_nonzero(right & chosen) / np.count_nonzero(right | chosen)
        for some in itertools.combinations(range(10), 3)
        for chosen in [np.isin(np.arange(10), some)]
    ]
    assert cards.jaccard_by_chance(10, 3) == pytest.approx(np.mean(scores))


def test_guessing_in_the_worst_group_scores_what_the_card_calls_chance() -> None:
    draws = [np.random.default_rng(size).binomial(size, 0.3, 200_000) / size for size in (6, 9, 20)]
    assert cards.worst_group_by_chance([6, 9, 20], 0.3) == pytest.approx(np.min(draws, axis=0).mean(), abs=0.001)


def test_a_model_that_knows_nothing_scores_the_chance_of_every_card_and_of_every_average(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    evaluation = experiments_cards.evaluation("icons_tiny")
    seeds = range(3)
    found: dict[str, list[float]] = {}
    variances: dict[str, float] = {}
    for name, listed in evaluation.sets.items():
        data = reading.read(listed.model_copy(update={"path": str(tiny / "evals" / name)}))
        if listed.metric == "acc_wg":
            sizes = np.bincount(data.column("family")).tolist()
            mean, square = evalsets.lowest_of_groups(sizes, 1 / len(data.classes))
            variances[name] = square - mean**2
        elif listed.metric == "jaccard_score_10-12":
            cues = [(len(cue.candidates), len(cue.associations)) for cue in data.instances]
            moments = np.array([evalsets.jaccard_of_guesses(*cue) for cue in cues])
            variances[name] = float((moments[:, 1] - moments[:, 0] ** 2).sum() / len(cues) ** 2)
        else:  # of retrieval one picture in N either way, each with variance 1 / N**2
            chance = 1 / (len(data.classes) or listed.images)
            variances[name] = chance * (1 - chance) / listed.images
        for seed in seeds:
            model = Model(evalsets.Guesser(seed), evalsets.transform, evalsets.tokenizer, "cpu")
            found.setdefault(name, []).append(answer_set(data, model).metrics[listed.metric])

    values = {name: float(np.mean(some)) for name, some in found.items()}
    apart = {
        name: (values[name] - listed.chance) / np.sqrt(variances[name] / len(seeds))
        for name, listed in evaluation.sets.items()
    }
    for key, average in evaluation.averaged(values, frozenset()).items():
        of = [variances[name] for name in evaluation.averages[key]]
        apart[key] = (average.value - average.chance) / np.sqrt(sum(of) / len(seeds)) * len(of)
    assert max(map(abs, apart.values())) < 4, apart


def test_look_alikes_are_those_within_the_limit() -> None:
    generator = np.random.default_rng(0)
    base = generator.integers(0, render.LOOK_LEVELS, (40, 768))
    noise = generator.integers(-1, 2, (40, 768)) * generator.integers(0, 2, (40, 1))
    looks = np.concatenate([base, np.clip(base + noise, 0, render.LOOK_LEVELS - 1)])[generator.permutation(80)]
    pictures = [
        sets.Picture(square(0, 0, 9, f"p{n}"), b"", look.astype(np.uint8).tobytes()) for n, look in enumerate(looks)
    ]

    def near(one: int, other: int) -> bool:
        difference = (looks[one] - looks[other]) / (render.LOOK_LEVELS - 1)
        return float(np.sqrt(np.mean(difference**2))) <= 0.04

    kept: list[int] = []
    for row in range(80):
        if not any(near(row, earlier) for earlier in kept):
            kept.append(row)
    assert sets.distinct(pictures, 0.04) == [pictures[row] for row in kept]
    expected = [pictures[row] for row in range(30, 80) if not any(near(row, other) for other in range(30))]
    assert sets.unlike(pictures[30:], 0.04, pictures[:30]) == expected
    assert 40 <= len(kept) < 80


def test_word_order_and_number_make_no_other_concept() -> None:
    assert captions.concept_of(("arrows", "left")) == captions.concept_of(("left", "arrow"))
    assert captions.concept_of(("letter", "a")) != captions.concept_of(("letter",))
    assert doctest.testmod(captions).failed == 0
