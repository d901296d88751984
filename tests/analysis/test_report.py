"""The report, read as a file; `test_report_in_browser.py` opens it."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from reported import FIGURES, HARM, SUITE, VARIANT, make, write_report

from analysis import claims, frame, rendering, staleness
from analysis.__main__ import main
from analysis.report import content, curves
from analysis.report import page as page_module
from analysis.report.page import SCRIPTS
from analysis.table import NO_VALUE, show
from engine import files, paths


class Page(HTMLParser):
    """What a browser would make of the page: its elements, and the text of each with an id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self._skipped = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self._skipped += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._skipped -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._skipped:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def attributes(self, name: str, tag: str = "") -> list[str]:
        return [attrs[name] for element, attrs in self.elements if name in attrs and tag in ("", element)]


@pytest.fixture(autouse=True)
def _copied(reported_results: Path, tmp_path: Path) -> None:
    shutil.copytree(reported_results / paths.RESULTS, tmp_path / paths.RESULTS)


@pytest.fixture
def report(reported_results: Path) -> str:
    """The report of results as they were written; tests that change some write another one."""
    return (reported_results / paths.report(SUITE)).read_text(encoding="utf-8")


@pytest.fixture
def page(report: str) -> Page:
    return Page(report)


def change(pattern: str, edit: Callable[[dict[str, object]], dict[str, object]]) -> Path:
    """Edit the first JSON file that fits below the results."""
    path = min(paths.RESULTS.glob(pattern))
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    return path


def test_same_results_same_bytes_in_any_process_and_zone(report: str) -> None:
    command = [sys.executable, "-m", "analysis", "report", SUITE, "--out", "again.html"]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(command, check=True, env=environment)
    assert Path("again.html").read_text(encoding="utf-8") == report


def test_nothing_in_it_comes_from_elsewhere(page: Page) -> None:
    assert all(value.startswith("data:image/svg+xml,") for value in page.attributes("src", "img") if value)
    assert all(re.match(r"data:image/svg\+xml,\S+$", value) for value in page.attributes("srcset"))
    assert not page.attributes("src", "script")
    assert all(value.startswith("#") for value in page.attributes("href"))
    assert not [tag for tag, _ in page.elements if tag in ("link", "iframe", "object", "base")]
    (policy,) = (attrs["content"] for tag, attrs in page.elements if attrs.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_every_link_leads_to_a_place_on_the_page_and_no_place_is_there_twice(page: Page) -> None:
    assert [name for name, count in Counter(page.attributes("id")).items() if count > 1] == []
    assert {href.removeprefix("#") for href in page.attributes("href")} <= set(page.attributes("id"))
    for attribute in ("aria-labelledby", "aria-describedby", "aria-controls"):
        assert set(page.attributes(attribute)) <= set(page.attributes("id"))


def test_names_and_messages_are_shown_and_never_run(page: Page) -> None:
    assert page.text.count(HARM) >= 5  # title, variant, licence, advice, setting
    assert Counter(tag for tag, _ in page.elements)["script"] == 2
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    assert "x" not in page.attributes("src")


def test_what_others_wrote_is_as_they_published_it_with_its_licence() -> None:
    vendor = Path(page_module.__file__).parent / "vendor"
    told = dict(re.findall(r"^\| `(\S+)` .* \| `([0-9a-f]{64})` \|$", (vendor / "README.md").read_text(), re.MULTILINE))
    scripts = {script.name for script in vendor.glob("*.js")}
    assert scripts == set(told) == {name.removeprefix("vendor/") for name in SCRIPTS if name.startswith("vendor/")}
    for script in scripts:
        assert files.file_sha256(vendor / script) == told[script]
        assert (vendor / f"{script.split('.')[0]}.LICENSE").read_text().startswith("This is free and unencumbered")


def test_what_the_tests_say_is_on_it_word_by_word(page: Page) -> None:
    said = claims.claims(frame.read(paths.collected(SUITE)), ["digits", "flickr"])
    assert "95 % interval" in said[0]
    assert all(" ".join(claim.split()) in page.text for claim in said)


def test_tables_are_those_of_the_files_and_sorted_by_all_digits(report: str, page: Page) -> None:
    text = page.text
    table = rendering.build_table(frame.read(paths.collected(SUITE)), "main_results")
    assert table is not None
    assert table.title in text
    for row in table.rows:
        for cell in row:
            if not isinstance(cell, str) and cell.value is not None and not math.isnan(cell.value):
                assert cell.text() in text
                assert f'data-sort="{float(cell.value)!r}"' in report


def test_figures_have_words_that_say_what_they_show(page: Page) -> None:
    alts = [alt for alt in page.attributes("alt") if alt]
    assert len(alts) == len(FIGURES)
    assert "every method's final score" in alts[0]
    assert all(name in alts[0] for name in ("NeuCLIP", "OpenCLIP", "SigLIP", "Average", "Retrieval"))
    assert "Gradient norm" in alts[-1]


def test_what_was_run_is_told(page: Page) -> None:
    text = page.text
    assert "10: 9 finished, 1 diverged" in text
    assert "A part of it. Licence: Apache-2.0. Source: the makers." in text
    assert "interval is that of one comparison and is not corrected for several" in text
    assert "commit 0123456789ab" in text
    assert "num_updates: 10" in text
    assert "network.width: 8" in text
    assert "2001-09-09 01:46 to 2001-09-09 01:47 (UTC)" in text
    assert "table results/collected/quickstart.parquet main_results --out results/tables/quickstart" in text


def test_a_variant_shows_what_differs_from_the_main_run_of_its_seed(report: str) -> None:
    run = next(part for part in report.split('<details class="run"') if f"NeuCLIP, {VARIANT}, seed 2" in part)
    page = Page("<details" + run)
    settings = [word.strip() for word in page.words if word.strip()]
    start = settings.index("There")
    assert settings[start + 1 :][:3] == ["method.config.num_updates", "1", "10"]
    assert any("-s2-" in href for href in page.attributes("href") if "neuclip" in href)


def test_runs_stand_by_method_main_runs_first_then_by_seed(page: Page) -> None:
    titles = re.findall(r"(\w+)(?:, (1 update|<script>.*?))?, seed (\d) \(scenes, tiny, batch 64\) \w{8}", page.text)
    assert [seed for *_, seed in titles[:5]] == ["0", "1", "2", "1", "2"]
    assert [(name, variant[:8], seed) for name, variant, seed in titles[5:]] == [
        *(("NeuCLIP", "", seed) for seed in "012"),
        ("NeuCLIP", "1 update", "2"),
        ("NeuCLIP", "<script>", "0"),
    ]


def test_divergence_signs_and_replaced_samples_are_told_with_their_run(page: Page) -> None:
    assert "SigLIP, seed 2 (scenes, tiny, batch 64): diverged at step 30: not finite (temperature 0.07)" in page.text
    assert "npn_too_small, steps 3 to 30: raise num_prototypes" in page.text
    assert "2 samples could not be decoded" in page.text
    (suite,) = content.gather([SUITE]).suites
    column = suite.runs.header.index("Replaced samples")
    assert {(row[0], row[column].text()) for row in suite.runs.rows} == {
        ("NeuCLIP", "2"), ("OpenCLIP", "0"), ("SigLIP", "0")
    }  # fmt: skip
    assert "not evaluated at 2,560 samples: it did not reach them, or its embeddings are not finite" in page.text


def test_runs_of_several_devices_say_which_and_one_that_moved_has_no_step_time() -> None:
    def steps() -> dict[str, tuple[str, ...]]:
        make("collect", str(paths.suite(SUITE)), "--out", str(paths.collected(SUITE)))
        (suite,) = content.gather([SUITE]).suites
        columns = [i for i, name in enumerate(suite.runs.header) if name in ("Step, ms", "Device")]
        return {
            run_id: tuple(show(row[i]).replace(NO_VALUE, "") for i in columns)
            for run_id, row in zip(suite.run_ids, suite.runs.rows, strict=True)
        }

    assert {len(cells) for cells in steps().values()} == {1}
    path = min(paths.RESULTS.glob("runs/openclip*-s0-*/record.json"))
    record = json.loads(path.read_text())
    (first,) = record["attempts"]
    second = {**first, "first_step": 3, "provenance": {**first["provenance"], "device": "gpu"}}
    path.write_text(json.dumps({**record, "attempts": [first, second]}))
    told = steps()
    assert told.pop(path.parent.name) == ("", "cpu, gpu")
    assert {device for _, device in told.values()} == {"cpu"}
    assert all(step for step, _ in told.values())


def test_what_is_not_there_is_named_with_what_to_do() -> None:
    record = min(paths.RESULTS.glob("runs/openclip*/record.json"))
    record.unlink()
    (paths.tables(SUITE) / "cost.tex").unlink()
    text = Page(write_report()).text
    again = "make it again: snakemake --config suites=quickstart"
    assert f"results/tables/quickstart/cost: lacks cost.tex; {again}" in text
    assert "OpenCLIP, seed 0 (scenes, tiny, batch 64): no record" in text
    assert "its results do not fit together any more" in text
    assert "1 without a record" in text


def test_what_is_older_than_its_records_is_marked_and_nothing_else(report: str) -> None:
    assert "out of date:" not in report
    change("runs/neuclip*/record.json", lambda record: record | {"median_step_sec": 9.0})
    assert set(staleness.of_suite(SUITE)) == {paths.collected(SUITE), paths.tables(SUITE) / "cost"}
    parts = re.split(r"<h[34]", write_report())
    marked = [part for part in parts if "out of date:" in part]
    of_suite, of_table = marked
    assert "records, or what is collected of them, changed since" in of_suite
    assert "Cost of training" in of_table


def test_suites_share_a_page_whatever_they_are_called_and_a_run_of_both_is_there_once(page: Page) -> None:
    other = paths.suite("runs")  # the name of a section of the page, too
    other.write_text(json.dumps(json.loads(paths.suite(SUITE).read_text()) | {"name": "runs"}))
    make("collect", str(other), "--out", str(paths.collected("runs")))
    make("draw", str(paths.collected("runs")), "--out", str(paths.RESULTS))
    make("report", SUITE, "runs", "--out", "both.html")
    both = Page(Path("both.html").read_text(encoding="utf-8"))
    assert "Report: quickstart and 1 more" in both.text
    assert [name for name, count in Counter(both.attributes("id")).items() if count > 1] == []
    assert {href.removeprefix("#") for href in both.attributes("href")} <= set(both.attributes("id"))
    shown, alone = ([name for name in one.attributes("id") if name.startswith("run--")] for one in (both, page))
    assert shown == alone
    assert "table results/collected/runs.parquet main_results --out results/tables/runs" in both.text


def test_a_suite_that_is_not_collected_is_one_clear_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", SUITE, "cc3m", "--out", "report.html"]) == 1
    assert capsys.readouterr().err == (
        "error: results/collected/cc3m.parquet, results/suites/cc3m.json: not there. Run: snakemake --config "
        "suites=quickstart,cc3m. Collected here: quickstart\n"
    )
    assert not Path("report.html").exists()


def test_curves_keep_gaps_and_say_in_words_what_they_show() -> None:
    curve = curves.draw("loss", [(1, 4.0), (2, 2.0), (3, math.nan), (4, 3.0)])
    assert curve.paths == ("60,1.0 120,55.0", "240,28.0 240,28.0")
    assert curve.summary == "loss: between 2 and 4, 3 at 4 samples, 1 values that are not finite"
    assert curves.draw("loss", [(1, math.inf)]).summary == "loss: no finite value"
    assert curves.draw("lr", [(5, 0.0), (10, 0.0)]).paths == ("120,28.0 240,28.0",)
    long = curves.draw("loss", [(step, step % 7) for step in range(1000)])
    assert len(long.paths[0].split()) <= curves.MAX_POINTS
