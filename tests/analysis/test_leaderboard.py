"""The leaderboard's page, its ranks, and what an entry is checked for."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import synthetic
import yaml

from analysis import entries, leaderboard
from analysis import frame as tidy
from analysis.__main__ import main, parser
from analysis.collect import collect
from analysis.entries import Card, Entry, Track, problems_of_rows, problems_of_suite
from analysis.table import NO_VALUE
from engine import files, paths
from engine.schema.base import fingerprint, parse
from engine.schema.run import RunSpec
from engine.schema.suite import ExpandedSuite
from experiments.design import cards, expansion, names

ROOT = Path(__file__).resolve().parents[2]
AT_LARGE = "OpenCLIP, 8 \N{MULTIPLICATION SIGN} the batch"
RULES = Track("icons", "tiny", 64, (0, 1, 2), 12)
DCL = """
from engine.method import LossOutput, MethodConfig, TemperatureConfig, TemperatureMethod


class DCL(TemperatureMethod):
    class Config(MethodConfig):
        temperature: TemperatureConfig = TemperatureConfig()

    def __init__(self, config, env):
        super().__init__(config, env, config.temperature)

    def loss(self, features, progress):
        log_g_image_B, log_g_text_B = self.batch_log_partitions(features, self.logit_scale, 1024)
        return LossOutput((log_g_image_B + log_g_text_B).mean() / 2, {})
"""


def track_frame(seeds: int = 3, diverged: tuple[tuple[str, int], ...] = ()) -> pd.DataFrame:
    """Five methods, and OpenCLIP at 8 times the batch with ten more points, to which seeds add a little."""
    frame = synthetic.frame_with_curves(seeds, diverged=diverged)
    is_large = frame["global_batch_size"] == 512
    frame.loc[is_large & frame["kind"].eq("average"), "value"] += 0.1 + 0.001 * frame.loc[is_large, "seed"] ** 2
    return frame


@pytest.fixture(scope="session")
def _ours(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("track"))
        return track_frame(diverged=(("siglip", 2),))


@pytest.fixture
def ours(_ours: pd.DataFrame) -> pd.DataFrame:
    """The track's results; SigLIP's last seed diverged."""
    return _ours.copy()


def rows_of(ours: pd.DataFrame, points: float = 0.05) -> pd.DataFrame:
    """What a method would have that is so many points better than NeuCLIP."""
    rows = RULES.main(ours[ours["method"] == "neuclip"]).copy()
    is_score = rows["kind"].isin(entries.SCORES)
    rows["value"] = rows["value"].where(~is_score, rows["value"] + points + 0.001 * rows["seed"] ** 2)
    return rows.assign(method="mine", run_id=rows["run_id"].str.replace("neuclip", "mine"))


def entry_of(ours: pd.DataFrame, points: float = 0.05) -> Entry:
    rows = rows_of(ours, points)
    spec = RunSpec.model_validate(synthetic.run_spec("mine", 0))
    return Entry("dcl", Card(by="Jane Doe", trials=8, rows_sha256=tidy.digest(rows), spec=spec), rows)


def board(page: str) -> dict[str, dict[str, str]]:
    """The rows of the page's first table, by method."""
    lines = [line.strip("| ").split(" | ") for line in page.split("## Rules")[0].splitlines() if line.startswith("|")]
    return {cells[1]: dict(zip(lines[0], cells, strict=True)) for cells in lines[2:]}


def test_the_page_ranks_methods_and_entries_by_the_average_and_no_controls(ours: pd.DataFrame) -> None:
    page = leaderboard.page(ours, [entry_of(ours)], RULES)
    rows = board(page)
    assert list(rows)[:2] == ["dcl", "NeuCLIP"]
    assert list(rows)[-1] == AT_LARGE
    assert rows["dcl"]["Rank"] == "1"
    assert (rows["dcl"]["By"], rows["dcl"]["Trials"]) == ("Jane Doe", "8")
    assert rows["NeuCLIP"]["By"] == "this repository"
    assert (rows[AT_LARGE]["Rank"], rows[AT_LARGE]["By"]) == (NO_VALUE, "control")
    # NeuCLIP is ten points above OpenCLIP, as the large batch is by the mean over seeds plus 0.17 points.
    assert rows["NeuCLIP"]["Average"].startswith("42.5 ± ")
    assert rows["NeuCLIP"]["Gap closed, %"].startswith("98 (")
    assert rows["OpenCLIP"]["Samples to 75 %"] == NO_VALUE
    assert rows["NeuCLIP"]["Samples to 75 %"].startswith("< 0.")
    assert rows["NeuCLIP"]["Step, ms"].startswith("11.0")
    assert float(rows["NeuCLIP"]["Temperature"]) < 0.05
    assert "| Seeds | 0, 1, 2: all of them" in page
    assert "4,096 samples, evaluated at 25, 50, 62.5, 75, 87.5, 100 %" in page
    assert "at most 12 runs" in page


def test_a_run_that_diverged_counts_as_guessing_and_is_said(ours: pd.DataFrame) -> None:
    finals = ours[(ours["kind"] == "average") & (ours["name"] == "Average") & ours["is_final"]]
    siglip = finals[finals["method"] == "siglip"].set_index("seed")
    assert np.isnan(siglip.loc[2, "value"])
    expected = 100 * (siglip.loc[0, "value"] + siglip.loc[1, "value"] + siglip["chance"].iloc[0]) / 3
    shown = board(leaderboard.page(ours, [], RULES))["SigLIP"]["Average"]
    assert shown.startswith(f"{expected:.1f} ± ")
    assert shown.endswith("(1 diverged)")


def test_methods_that_do_not_differ_from_the_best_of_a_rank_share_it() -> None:
    rng = np.random.default_rng(0)
    seeds = 0.02 * rng.standard_normal(5)
    noise = [pd.Series(seeds + 0.002 * rng.standard_normal(5)) for _ in range(4)]
    scores = {"low": noise[0] + 0.3, "high": noise[1] + 0.5, "twin": noise[2] + 0.5, "middle": noise[3] + 0.4}
    assert leaderboard.rank(scores) == {"low": 4, "high": 1, "twin": 1, "middle": 3}
    # One lost run makes a method uncertain; that lifts it no higher than the methods next to it.
    lost = scores["low"].where(scores["low"].index != 2, 0.1)
    assert leaderboard.rank({**scores, "lost": lost}) == {"high": 1, "twin": 1, "middle": 3, "low": 4, "lost": 4}
    # Two seeds cannot show a difference.
    assert set(leaderboard.rank({name: values[:2] for name, values in scores.items()}).values()) == {1}
    # All pairs differ by the same amount: seeds add no noise.
    assert leaderboard.rank({"a": pd.Series(seeds), "b": pd.Series(seeds + 0.1)}) == {"a": 2, "b": 1}
    assert leaderboard.rank({"a": pd.Series(seeds), "b": pd.Series(seeds)}) == {"a": 1, "b": 1}


def changed(rows: pd.DataFrame, where: pd.Series, **values: Any) -> pd.DataFrame:
    rows = rows.copy()
    rows.loc[where, list(values)] = list(values.values())
    return rows


BREAKS = {
    "seeds: 2 are missing, allowed is all of 0, 1, 2": lambda r: r[r["seed"] < 2],
    "seeds: 0 have several runs": lambda r: pd.concat([r, r[r["seed"] == 0].assign(run_id="other")]),
    "commit: came abc+1234, allowed is committed code": lambda r: r.assign(commit="abc+1234"),
    "commit: came unknown, allowed": lambda r: r.assign(commit="unknown"),
    "samples seen at milestones: came 1024, 2048, 3072, 3584, 4096, allowed is 1024, 2048, 2560": lambda r: r[
        r["samples_seen"] != 2560
    ],
    "evaluation: digits differ, allowed are the track's": lambda r: r[r["name"] != "digits"],
    "evaluation: flickr differ, allowed are the track's": lambda r: changed(r, r["name"] == "flickr", chance=0.2),
    "evaluation: not every seed has every set at every milestone": lambda r: r[
        (r["seed"] != 1) | (r["name"] != "digits") | (r["samples_seen"] != 2048)
    ],
    "evaluation: digits were not on disk": lambda r: changed(
        r, (r["name"] == "digits") & r["is_main"], status="missing"
    ),
}


@pytest.mark.parametrize("message", BREAKS)
def test_results_against_a_rule_have_one_error(ours: pd.DataFrame, message: str) -> None:
    rows = rows_of(ours)
    assert list(problems_of_rows(rows, ours, RULES)) == []
    (problem,) = problems_of_rows(BREAKS[message](rows), ours, RULES)
    assert problem.startswith(message)


def suite_of(method: str, **changes: Any) -> ExpandedSuite:
    specs = [synthetic.run_spec(method, seed, **changes) for seed in range(3)]
    return parse(ExpandedSuite, synthetic.write_suite(specs, name=f"of-{method}").read_text(), "suite")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples_seen": 1280, "milestones": [1280]}, "milestones: came [1280], allowed is [1280,2560]"),
        ({"augmentation": {"kind": "shift"}}, 'augmentation.kind: came "shift", allowed is "random_resized_crop"'),
        ({"precision": "bf16"}, 'precision: came "bf16", allowed is "fp32"'),
        (
            {"dataset": {"name": "icons", "revision": "r2", "pairs": 10000}},
            'dataset.revision: came "r2", allowed is "r1"',
        ),
    ],
)
def test_runs_that_differ_in_what_is_shared_have_an_error_each(changes: dict[str, Any], message: str) -> None:
    ours = suite_of("openclip")
    free = {"optimizer": {"lr": 0.01, "weight_decay": 0.5}, "config": {"rho": 3}, "normalizer_error": None}
    assert list(problems_of_suite(suite_of("mine", **free), ours, "mine", RULES)) == []
    if "samples_seen" in changes:
        changes = changes | {"normalizer_error": None}
    found = list(problems_of_suite(suite_of("mine", **changes), ours, "mine", RULES))
    assert any(problem.startswith(message) for problem in found)


def test_another_evaluation_has_an_error() -> None:
    ours = suite_of("openclip")
    specs = [synthetic.run_spec("mine", seed) for seed in range(3)]
    for cards_, averages, message in (
        (
            {**synthetic.CARDS, "digits": {**synthetic.CARDS["digits"], "images": 5}},
            synthetic.AVERAGES,
            "digits differ",
        ),
        (synthetic.CARDS, {"Average": ["digits"]}, "averages or options differ"),
    ):
        path = synthetic.write_suite(specs, name="other", cards=cards_, averages=averages)
        (problem,) = problems_of_suite(parse(ExpandedSuite, path.read_text(), ""), ours, "mine", RULES)
        assert problem.startswith(f"evaluation: {message}")


def as_committed(frame: pd.DataFrame, path: Path) -> None:
    """Write results as those of the real track: its data, model, batch."""
    rules = entries.track()
    sizes = {64: rules.global_batch_size, 512: 8 * rules.global_batch_size}
    frame = frame.assign(
        dataset=rules.dataset, model=rules.model, global_batch_size=frame["global_batch_size"].map(sizes)
    )
    tidy.write(frame, path)


def test_the_page_is_checked_byte_for_byte_and_needs_its_results(capsys: pytest.CaptureFixture[str]) -> None:
    page, results = paths.leaderboard(), paths.committed(entries.TRACK)
    assert main(["leaderboard"]) == 1
    assert f"{results} is missing" in capsys.readouterr().err
    as_committed(track_frame(seeds=5), results)
    assert main(["leaderboard", "--check"]) == 1
    assert f"{page}: not what the results beside it draw" in capsys.readouterr().err
    assert main(["leaderboard"]) == 0
    assert main(["leaderboard", "--check"]) == 0
    drawn = page.read_bytes()
    page.write_bytes(drawn + b"\n")
    assert main(["leaderboard", "--check"]) == 1
    assert main(["leaderboard"]) == 0
    assert page.read_bytes() == drawn
    results.unlink()
    assert main(["leaderboard", "--check"]) == 1


def test_an_entry_that_was_changed_is_refused(ours: pd.DataFrame) -> None:
    entry = entry_of(ours)
    tidy.write(entry.rows, paths.entry("dcl"))
    with pytest.raises(ValueError, match=r"dcl\.json is missing; enter it again"):
        entries.read("dcl", ours, RULES)
    files.write_text(paths.entry("dcl", ".json"), entry.card.model_dump_json())
    assert entries.read("dcl", ours, RULES).card == entry.card
    with pytest.raises(ValueError, match="dcl: tuning: came 8 runs of a method, allowed are 7"):
        entries.read("dcl", ours, RULES._replace(trials=7))
    with pytest.raises(ValueError, match=r"dcl: main runs: came dataset icons, .*, allowed is dataset scenes, "):
        entries.read("dcl", ours, RULES._replace(dataset="scenes"))
    tidy.write(rows_of(ours, 0.2), paths.entry("dcl"))
    with pytest.raises(ValueError, match="its results are not those that entered"):
        entries.read("dcl", ours, RULES)


def own_suite(folder: Path, **changes: Any) -> Path:
    """A suite of the track's data with a method of one's own, tuned by a file."""
    said = yaml.safe_load((cards.FOLDER / "suites" / f"{entries.TRACK}.yaml").read_text())
    kept = {key: said[key] for key in ("dataset", "data_fraction", "model", "evaluation", "seeds", "training")}
    (folder / "dcl.py").write_text(DCL)
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump({"title": "Mine", **kept, "methods": {"dcl": {"class": "dcl.py:DCL"}}, **changes}))
    return file


def with_results(suite: ExpandedSuite) -> pd.DataFrame:
    """Write results of every run, and collect them."""
    sets = {name: card.model_dump(mode="json") for name, card in suite.evaluation.sets.items()}
    for run in suite.runs:
        synthetic.write_run(run.spec, sets, is_diverged=False)
    return collect(suite)


@pytest.mark.slow
def test_a_method_of_ones_own_enters_with_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def enter(name: str = "dcl") -> int:
        return main(["enter", "mine.parquet", "--name", name, "--by", "Jane Doe"])

    suites = expansion.load([entries.TRACK, str(own_suite(tmp_path))])
    track, mine = suites[entries.TRACK], suites["mine"]
    expansion.write(mine)
    # The track's results come from a folder of their own.
    folder = tmp_path / "track"
    folder.mkdir()
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        suite = ExpandedSuite.model_validate(
            {**track.model_dump(), "runs": [run for run in track.runs if not run.variant]}
        )
        ours = with_results(suite)
    is_large = (ours["global_batch_size"] == ours["global_batch_size"].max()) & ours["kind"].isin(entries.SCORES)
    ours.loc[is_large, "value"] += 0.1
    tidy.write(ours, paths.committed(entries.TRACK))
    tidy.write(with_results(mine), Path("mine.parquet"))

    assert enter("neuclip") == 1
    assert "name 'neuclip': allowed are names of" in capsys.readouterr().err
    assert enter() == 0
    assert str(paths.leaderboard()) in capsys.readouterr().out
    assert paths.entry("dcl", ".py").read_text() == DCL
    rows = board(paths.leaderboard().read_text())
    assert rows["dcl"]["By"] == "Jane Doe"
    assert rows["dcl"]["Trials"] == "0"
    assert main(["leaderboard", "--check"]) == 0
    assert main(["enter", "mine.parquet", "--name", "dcl", "--by", "John Doe"]) == 1
    assert "an entry by Jane Doe has it" in capsys.readouterr().err
    paths.entry("dcl", ".py").write_text(DCL + "\n")
    assert main(["leaderboard", "--check"]) == 1
    assert "not the file that was trained" in capsys.readouterr().err

    # Results that changed since they were collected.
    record = paths.record(mine.runs[0].spec.run_id)
    record.write_text(json.dumps(json.loads(record.read_text()) | {"median_step_sec": 0.001}))
    assert enter() == 1
    assert "collect them again" in capsys.readouterr().err


def test_the_docs_command_is_one_that_the_command_line_has() -> None:
    page = (ROOT / "docs" / "add-a-method.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^python -m analysis (enter .*)$", page, re.MULTILINE)
    args = parser().parse_args(shlex.split(command))
    assert (args.name, args.by, args.method) == ("dcl", "Jane Doe, example.org/dcl", None)


def test_what_tuned_an_entry_is_read_from_its_suites_file(tmp_path: Path) -> None:
    file = own_suite(tmp_path, tuned="mine")
    chosen = {
        "settings": {}, "trial": 1, "score": 0.5, "seed_scores": [0.5], "defaults_score": None, "diverged": 0,
        "digest": fingerprint({}),
    }  # fmt: skip
    tuned = {
        "suite": "mine", "trials": 6, "seeds": [100, 1], "score": ["scenes_validation", "scenes_colour"],
        "commit": "abc+12", "device": "cpu", "methods": {"dcl": chosen},
    }  # fmt: skip
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "mine.yaml").write_text(yaml.safe_dump(tuned))
    asked, evaluation = names.split(str(file)), cards.evaluation("scenes")
    runs, problems = entries.tuning_of(asked, evaluation, entries.track())
    assert runs == 12
    shown = [problem.split(": ", 1)[1] for problem in problems]
    assert shown[0].startswith("tuned on scenes_colour, allowed are sets that no average has")
    assert shown[1].startswith("tuned with seeds 1, allowed are others")
    assert shown[2].startswith("commit abc+12, allowed is committed code")
    clean = {**tuned, "seeds": [100], "score": ["scenes_validation"], "commit": "abc"}
    (tmp_path / "tuned" / "mine.yaml").write_text(yaml.safe_dump(clean))
    assert entries.tuning_of(asked, evaluation, entries.track()) == (6, [])
    # A variant without a label is the main run, whatever the suite's own key says.
    for variants, runs in (([{"tuned": "mine"}], 6), ([{"label": "tuned", "tuned": "mine"}, {}], 0)):
        asked = names.split(str(own_suite(tmp_path, variants=variants)))
        assert entries.tuning_of(asked, evaluation, entries.track()) == (runs, [])


def test_the_committed_page_is_what_the_committed_results_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    page, results = paths.leaderboard(), paths.committed(entries.TRACK)
    assert page.exists() == results.exists(), (
        f"only one of {page} and {results} is there: python -m analysis leaderboard"
    )
    if results.exists():
        assert page.read_text(encoding="utf-8") == leaderboard.draw()
    else:
        assert not list(paths.entry("*").parent.glob("*"))
