from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import synthetic

from analysis import frame as tidy
from analysis.collect import MAX_CURVE_POINTS, CollectError, collect
from engine import files, paths
from engine.schema.run import RunSpec

END = synthetic.BATCH * synthetic.STEPS


def run_id(method: str, seed: int) -> str:
    return RunSpec.model_validate(synthetic.run_spec(method, seed)).run_id


def change(path: Path, *keys: str | int, to: Any) -> None:
    """Change one value of a JSON file."""
    value = content = json.loads(path.read_text())
    for key in keys[:-1]:
        value = value[key]
    value[keys[-1]] = to
    path.write_text(json.dumps(content))


def value(frame: pd.DataFrame, **where: Any) -> pd.Series:
    """The one row that matches."""
    for column, expected in where.items():
        frame = frame[frame[column] == expected]
    (index,) = frame.index
    return frame.loc[index]


def test_a_main_metric_becomes_one_row(frame: pd.DataFrame) -> None:
    row = value(frame, run_id=run_id("fastclip", 0), kind="eval", name="digits", is_main=True, samples_seen=END)
    assert row["value"] == 0.32
    assert (row["metric"], row["title"], row["chance"], row["num_samples"]) == ("acc1", "Digits", 0.1, 1797)
    assert (row["status"], row["is_final"], row["variant"]) == ("evaluated", True, "")


def test_an_average_is_the_unweighted_mean_of_main_metrics(frame: pd.DataFrame) -> None:
    row = value(frame, run_id=run_id("fastclip", 0), kind="average", name="Average", samples_seen=END)
    assert row["value"] == pytest.approx((0.32 + 0.37) / 2)
    assert row["chance"] == pytest.approx((0.1 + 0.005) / 2)


def test_intermediate_milestones_are_collected_and_not_final(frame: pd.DataFrame) -> None:
    row = value(frame, run_id=run_id("fastclip", 0), kind="eval", name="digits", is_main=True, samples_seen=END // 2)
    assert row["value"] == pytest.approx(0.32 * 0.75)
    assert not row["is_final"]


def test_a_diverged_run_has_its_milestones_and_then_the_word_diverged(frame: pd.DataFrame) -> None:
    rows = frame[(frame["run_id"] == run_id("siglip", 2)) & frame["is_main"]]
    early, final = rows[~rows["is_final"]], rows[rows["is_final"]]
    assert set(early["status"]) == {"evaluated"}
    assert early["value"].notna().all()
    assert set(final["status"]) == {"diverged"}
    assert final["value"].isna().all()
    assert set(final["name"]) == {"digits", "flickr", "Average", "Retrieval"}


# A finished run whose embeddings are not finite has diverged.
@pytest.mark.parametrize("status", ["absent", "diverged"])
def test_a_set_without_a_score_leaves_averages_over_it_undefined(suite: Path, status: str) -> None:
    path = paths.eval_result(run_id("fastclip", 0), END, "digits")
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"status": status, "value": None, "metrics": {}, "num_samples": None}))
    rows = collect(suite)
    rows = rows[(rows["run_id"] == run_id("fastclip", 0)) & rows["is_final"]]
    average = value(rows, kind="average", name="Average")
    assert pd.isna(average["value"])
    assert average["status"] == value(rows, kind="eval", name="digits", is_main=True)["status"] == status
    assert value(rows, kind="average", name="Retrieval")["status"] == "evaluated"


def test_an_average_over_a_set_that_is_not_there_has_no_value_and_the_set_is_named(suite: Path) -> None:
    rows = collect(synthetic.lose_set(suite, "digits", when_missing="no_average"))
    rows = rows[(rows["run_id"] == run_id("fastclip", 0)) & rows["is_final"]]
    for kind, name in (("average", "Average"), ("eval", "digits")):
        row = value(rows, kind=kind, name=name)
        assert pd.isna(row["value"])
        assert row["status"] == "missing"
    assert value(rows, kind="average", name="Retrieval")["status"] == "evaluated"


def test_an_average_over_the_sets_that_are_there_says_so_in_its_name_and_is_over_the_same_for_all(suite: Path) -> None:
    # One method's runs lacked the set: the others' averages leave it out too.
    rows = collect(synthetic.lose_set(suite, "digits", when_missing="average_of_available", method="fastclip"))
    rows = rows[rows["is_final"]]
    assert set(rows.loc[rows["kind"] == "average", "title"]) == {"Average (1 of 2 sets)", "Retrieval"}
    for method in ("openclip", "fastclip"):
        own = rows[rows["run_id"] == run_id(method, 0)]
        average = value(own, kind="average", name="Average (1 of 2 sets)")
        assert average["value"] == value(own, kind="eval", name="flickr", metric="mean_recall@1")["value"]
        assert average["num_samples"] == 1
        assert average["chance"] == synthetic.CARDS["flickr"]["chance"]


def test_results_from_other_content_of_a_set_are_not_compared(suite: Path) -> None:
    paths_of = sorted(Path().glob("results/evals/*/*/flickr.json"))
    for path, content in zip(paths_of, "ab", strict=False):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"data_sha256": content * 64}))
    with pytest.raises(CollectError, match=r"content of flickr is b.*these numbers do not compare"):
        collect(suite)


def test_normalizer_errors_and_costs_are_rows(frame: pd.DataFrame) -> None:
    one = frame[frame["run_id"] == run_id("openclip", 1)]
    assert value(one, kind="normalizer", name="image_mse", is_final=True)["value"] == pytest.approx(0.66)
    assert value(one, kind="cost", name="clock_sec/encoder")["value"] == 6.0
    assert value(one, kind="cost", name="median_step_sec")["value"] == pytest.approx(0.011)
    assert value(one, kind="cost", name="num_processes")["value"] == 1


def test_errors_of_gradients_are_rows_and_what_a_method_does_not_say_is_a_hole(frame: pd.DataFrame) -> None:
    for method, exact in (("openclip", 0.4), ("siglip", math.nan)):
        one = frame[frame["run_id"] == run_id(method, 1)]
        assert (
            value(one, kind="gradient", name="bias_squared", is_final=True)["value"]
            == {"openclip": 0.25, "siglip": 1.0}[method]
        )
        found = value(one, kind="gradient", name="exact_pull")["value"]
        assert found == pytest.approx(exact, nan_ok=True)


def test_a_device_with_other_threads_is_another_device(suite: Path) -> None:
    change(RECORD, "attempts", 0, "provenance", "threads", to=16)
    devices = collect(suite).drop_duplicates("run_id").set_index("run_id")["device"]
    assert devices[run_id("neuclip", 1)] == "cpu (16 threads)"
    assert set(devices.drop(run_id("neuclip", 1))) == {"cpu"}


def test_times_are_costs_and_not_curves(frame: pd.DataFrame) -> None:
    assert set(frame.loc[frame["name"] == "time/step_sec", "kind"]) == {"cost"}


def test_options_are_rows_and_never_is_an_infinite_period() -> None:
    config = {
        "num_updates": 5, "restart_period": "never", "objective": "unified", "eps": None, "rho": [2.0, -2.0],
        "temperature": {"init": 0.1, "learnable": False},
    }  # fmt: skip
    frame = collect(synthetic.write_suite([synthetic.run_spec("neuclip", 0, config=config)]))
    options = frame[frame["kind"] == "option"].set_index("name")
    numbers = options["value"].dropna().to_dict()
    assert numbers == {"num_updates": 5.0, "restart_period": math.inf, "temperature.init": 0.1}
    texts = options.loc[options["value"].isna(), "title"].to_dict()
    assert texts == {"objective": "unified", "temperature.learnable": "false"}


def test_signs_of_failure_are_rows_with_their_first_and_last_step(suite: Path) -> None:
    sign = {"name": "embedding_collapse", "first_step": 3, "last_step": 30, "evidence": {}, "advice": "-"}
    change(RECORD, "signatures", to=[sign])
    rows = collect(suite)
    rows = rows[rows["kind"] == "signature"]
    assert list(rows["metric"]) == ["first_step", "last_step"]
    assert list(rows["value"]) == [3, 30]
    assert list(rows["samples_seen"]) == [3 * synthetic.BATCH, 30 * synthetic.BATCH]
    assert set(rows["run_id"]) == {run_id("neuclip", 1)}


def test_the_last_line_of_a_step_holds(suite: Path) -> None:
    path = paths.metrics(run_id("openclip", 0))
    with path.open("a") as file:
        file.write(json.dumps({"step": 0, "samples_seen": synthetic.BATCH, "loss/total": 99.0}) + "\n")
    rows = collect(suite)
    rows = rows[(rows["run_id"] == run_id("openclip", 0)) & (rows["name"] == "loss/total")]
    assert len(rows) == synthetic.STEPS
    assert rows["value"].iloc[0] == 99.0


def test_a_long_log_is_averaged_in_bins(suite: Path) -> None:
    steps = 2 * MAX_CURVE_POINTS
    lines = [{"step": i, "samples_seen": i + 1, "loss/total": float(i % 2)} for i in range(steps)]
    paths.metrics(run_id("openclip", 0)).write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = collect(suite)
    rows = rows[(rows["run_id"] == run_id("openclip", 0)) & (rows["name"] == "loss/total")]
    assert set(rows["value"]) == {0.5}
    assert list(rows["samples_seen"]) == list(range(2, steps + 1, 2))


def test_a_broken_line_is_named(suite: Path) -> None:
    path = paths.metrics(run_id("openclip", 0))
    path.write_text(path.read_text() + '{"step": 1')
    with pytest.raises(CollectError, match=r"metrics\.jsonl, line 41"):
        collect(suite)


def test_a_log_that_changed_since_the_record_was_written_is_named(suite: Path) -> None:
    path = paths.metrics(run_id("neuclip", 1))
    change(RECORD, "log_sha256", to=files.file_sha256(path))
    collect(suite)
    path.write_text(path.read_text().replace('"lr": 0.001', '"lr": 0.003'))
    with pytest.raises(CollectError, match=rf"^{path}: its digest is not the one in the record; put the file back"):
        collect(suite)


def test_a_run_that_diverged_before_its_first_line_has_no_curves(suite: Path) -> None:
    paths.metrics(run_id("siglip", 2)).write_text("")
    rows = collect(suite)
    assert not ((rows["run_id"] == run_id("siglip", 2)) & (rows["kind"] == "train")).any()


@pytest.mark.parametrize(
    "missing",
    [
        paths.record(run_id("neuclip", 1)),
        paths.metrics(run_id("neuclip", 1)),
        paths.eval_result(run_id("neuclip", 1), END, "flickr"),
    ],
    ids=lambda path: path.name,
)
def test_a_missing_file_is_named(suite: Path, missing: Path) -> None:
    missing.unlink()
    with pytest.raises(CollectError, match="1 of 90 result files") as error:
        collect(suite)
    assert str(missing) in str(error.value)
    assert "Make them: snakemake --config suites=quickstart" in str(error.value)


RECORD = paths.record(run_id("neuclip", 1))
EVAL = paths.eval_result(run_id("neuclip", 1), END, "flickr")


@pytest.mark.parametrize(
    ("path", "keys", "wrong", "complaint"),
    [
        (RECORD, ["fingerprint"], "0" * 64, "belongs to another run"),
        (RECORD, ["spec", "seed"], 7, "belongs to another run"),
        (RECORD, ["milestones"], {}, "without weights"),
        (RECORD, ["status"], "stopped", "status"),
        (RECORD, ["attempts", 0, "provenance", "dataset_sha256"], "e" * 64, "do not compare"),
        (EVAL, ["weights_sha256"], "f" * 64, "weights_sha256"),
        (EVAL, ["num_samples"], 199, "num_samples is 199, expected 200"),
        (EVAL, ["main_metric"], "acc1", "main_metric"),
        (EVAL, ["card_sha256"], "a" * 64, "card_sha256 is 'a+', expected"),
        (EVAL, ["evaluator", "precision"], "bf16", "precision is 'bf16', expected 'fp32'"),
        (EVAL, ["value"], 40.0, "allowed is"),
        (EVAL, ["run_id"], "another", "run_id"),
    ],
    ids=lambda item: ".".join(map(str, item)) if isinstance(item, list) else None,
)
def test_what_does_not_fit_is_refused(suite: Path, path: Path, keys: list[str], wrong: Any, complaint: str) -> None:
    change(path, *keys, to=wrong)
    with pytest.raises(CollectError, match=complaint) as error:
        collect(suite)
    assert str(path) in str(error.value)


def test_an_average_over_an_unknown_set_is_refused(suite: Path) -> None:
    change(suite, "evaluation", "averages", "Average", to=["digits", "imagenet"])
    with pytest.raises(CollectError, match="average 'Average': unknown evaluation set 'imagenet'"):
        collect(suite)


def test_runs_that_no_label_tells_apart_are_refused() -> None:
    specs = [synthetic.run_spec("neuclip", 0, config={"period": period}) for period in (20, 100)]
    with pytest.raises(CollectError, match="variant label of its own"):
        collect(synthetic.write_suite(specs))


def test_other_timings_change_cost_rows_only(suite: Path) -> None:
    before = collect(suite)
    path = paths.record(run_id("neuclip", 0))
    change(path, "median_step_sec", to=1.0)
    change(path, "clock_sec", "method", to=9.0)
    after = collect(suite)
    assert not after.equals(before)
    assert after[after["kind"] != "cost"].equals(before[before["kind"] != "cost"])


def test_the_file_holds_the_frame_and_is_the_same_each_time(frame: pd.DataFrame) -> None:
    for name in ("one", "two"):
        tidy.write(frame, Path(f"{name}.parquet"))
    pd.testing.assert_frame_equal(tidy.read(Path("one.parquet")), frame)
    assert Path("one.parquet").read_bytes() == Path("two.parquet").read_bytes()


def test_another_parquet_file_is_refused() -> None:
    pd.DataFrame({"a": [1]}).to_parquet("other.parquet")
    with pytest.raises(ValueError, match="not a tidy frame"):
        tidy.read(Path("other.parquet"))


def test_variants_are_ordered_by_their_numbers(frame: pd.DataFrame) -> None:
    labels = ["period=never", "period=100", "", "period=20"]
    assert tidy.variants(pd.DataFrame({"variant": labels})) == ["", "period=20", "period=100", "period=never"]


def test_settings_are_told_apart_by_what_differs() -> None:
    specs = [synthetic.run_spec("neuclip", 0, global_batch_size=size) for size in (64, 128)]
    rows = collect(synthetic.write_suite(specs))
    assert [label for label, _ in tidy.settings(rows)] == ["batch 64", "batch 128"]
    assert tidy.describe(rows) == "scenes, tiny, 1 seed"


def test_when_a_line_was_logged_is_no_metric(frame: pd.DataFrame) -> None:
    assert "unix_sec" not in set(frame["name"])


def read_or_said(path: Path) -> str:
    """The digest of a frame's rows, or what is said of a file that is none."""
    try:
        return tidy.digest(tidy.read(path))
    except ValueError as error:
        return str(error)


def test_a_flipped_bit_in_a_frame_is_named_and_never_changes_a_number(frame: pd.DataFrame) -> None:
    path = Path("collected.parquet")
    rows = frame.head(200)
    tidy.write(rows, path)
    whole, digest = path.read_bytes(), tidy.digest(rows)
    random = np.random.default_rng(0)
    found = []
    for bit in random.integers(8 * len(whole), size=300):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(damaged)
        found.append(read_or_said(path))
    named = [said for said in found if said.startswith("collected.parquet: ") and "collect the suite again" in said]
    assert len(named) > 100
    assert set(found) - set(named) == {digest}  # of what nobody reads


def test_a_line_of_a_log_that_is_no_text_is_named(suite: Path) -> None:
    path = sorted(paths.metrics("x").parent.parent.glob("*/metrics.jsonl"))[0]
    path.write_bytes(path.read_bytes() + b"\xff\xfe\n")
    with pytest.raises(CollectError, match=rf"{path}, line \d+: .* is no JSON object"):
        collect(suite)
