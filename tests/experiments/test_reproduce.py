"""The numbers in docs/reproduce.md are those of the suites and cards."""

import re
import shutil

import pytest
import yaml

from experiments.design import cards, names
from experiments.design.suite import expand

PAGE = (cards.FOLDER.parent / "docs" / "reproduce.md").read_text(encoding="utf-8")
COUNTS = {name: int(count) for name, count in re.findall(r"^\| `([\w@]+)` \| (\d+) \|", PAGE, re.MULTILINE)}


def test_the_page_has_every_suite_and_every_ablation():
    expected = {*names.suites(), *(names.ABLATION + what for what in cards.names("ablations"))}
    assert {name for name in COUNTS if "@" not in name} == expected


@pytest.mark.parametrize("name", COUNTS)
def test_the_page_says_how_many_runs_a_suite_has(name):
    # `laptop` alone, without the ablations that come along with it.
    suites = [name] if name in names.suites() else names.resolve([name])
    runs = {run.spec.run_id for suite in suites for run in expand(suite).runs}
    assert len(runs) == COUNTS[name]


def test_the_page_says_how_many_pairs_a_card_promises():
    for name, title in (
        ("cc3m", "CC3M"),
        ("cc12m", "CC12M"),
        ("dfn14m", "DFN-14M"),
        ("dfn192m", "DFN-192M"),
        ("dfn1b", "DFN-1B"),
    ):
        assert re.search(rf"^\| {title} \| {cards.dataset(name).pairs:,}[ |(]", PAGE, re.MULTILINE)


@pytest.mark.parametrize("name", ["cc3m", "cc12m"])
def test_the_lines_of_the_page_keep_the_samples_that_the_paper_saw(tmp_path, monkeypatch, name):
    line, decay = re.search(rf"^\| `{name}` \| `(samples_seen: \d+)` \| (\d+) \(was", PAGE, re.MULTILINE).groups()
    card = cards.FOLDER / "datasets" / f"{name}.yaml"
    fetched = re.search(r"pixparse/\w+-wds: ([\d,]+)", card.read_text(encoding="utf-8"))[1].replace(",", "")
    written = {run.spec.samples_seen for run in expand(name).runs}

    copied = shutil.copytree(cards.FOLDER, tmp_path / "cards", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    card, suite = copied / "datasets" / card.name, copied / "suites" / f"{name}.yaml"
    card.write_text(re.sub(r"^pairs: \d+", f"pairs: {fetched}", card.read_text(), flags=re.MULTILINE))
    said = yaml.safe_load(suite.read_text())
    suite.write_text(re.sub(r"^  epochs: \d+", f"  {line}", suite.read_text(), flags=re.MULTILINE))
    monkeypatch.setattr(cards, "FOLDER", copied)
    specs = [run.spec for run in expand(name).runs]
    assert {spec.samples_seen for spec in specs} == written
    assert {spec.dataset.pairs for spec in specs} == {int(fetched)}
    share = said["methods"]["fastclip"]["options"]["gamma_decay_epochs"] / said["training"]["epochs"]
    assert int(decay) == round(share * specs[0].samples_seen / int(fetched))


def test_the_page_gives_the_commands_of_the_cards():
    for name in ("cc3m", "cc12m"):
        assert f"`{cards.dataset(name).fetch}`" in PAGE
    shown = {
        (target, size)
        for size, targets in re.findall(r"\| ([\d,]+) GB \| (`\w+`.*) \|$", PAGE, re.MULTILINE)
        for target in re.findall(r"`(\w+)`", targets)
    }
    known = [cards.dataset(name) for name in cards.names("datasets")]
    assert shown == {(target, f"{card.gigabytes:,.0f}") for card in known for target in card.ways}
