"""Compares two results folders (of two commits, two clusters) and says what differs beyond the noise of seeds.

Reads the collected frames of both. Numbers of the same suite, setting, method, variant and seed make a pair; the runs'
ids may differ. Where the folders share no seed, means are compared unpaired.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from analysis import frame as tidy
from analysis import stats, style
from analysis.rendering import to_markdown
from analysis.table import Cell, Table, three_digits
from engine import files, paths
from engine.schema.base import parse
from engine.schema.record import Record

CELL = ["suite", "dataset", "model", "global_batch_size", "method", "variant"]
RUN = [*CELL, "seed"]
QUANTITY = ["kind", "name", "metric"]
COSTS = ("median_step_sec", "peak_memory_bytes")
FACTS = ("lock_sha256", "dataset_sha256", "world_size", "threads", "python", "platform")
VERDICTS = {
    "differs": "beyond the noise of seeds",
    "within noise": "no more than seeds differ",
    "too few seeds": f"differs, but fewer than {stats.MIN_PAIRS_TO_TEST} seeds do not show how large noise is",
    "equal": "every pair of seeds, to the last bit",
    "other device": "times and memory of different devices, not compared",
}


class Comparison(NamedTuple):
    """Two results folders side by side, A and B."""

    folders: tuple[str, str]
    differences: pd.DataFrame
    """One row per cell and quantity: `num_pairs` (0: unpaired), `mean_a`, `mean_b`, `difference` (B minus A),
    `half_width` (95 %), `p`, `p_holm` (over the quantities of one kind in a suite), `verdict`."""
    missing: pd.DataFrame
    """Runs that only one side has: the columns of a run, and `missing_in`."""
    outcomes: pd.DataFrame
    """Runs that finished on one side and diverged on the other: the columns of a run, `status_a`, `status_b`."""
    provenance: dict[str, tuple[list[str], list[str]]]
    """Code, data, devices and versions of A and B, where they differ."""


def compare(a: Path, b: Path) -> Comparison:
    """Compare two results folders.

    Raises:
        FileNotFoundError: If one of them has nothing collected.
        ValueError: If they have no number in common.
    """
    frames = (_load(a), _load(b))
    differences = _differences(*frames)
    if differences.empty:
        raise ValueError(f"{a} and {b} have no number in common: compare folders of the same suites")
    statuses = [frame.drop_duplicates(RUN).set_index(RUN)["finished"] for frame in frames]
    runs = pd.concat(statuses, axis=1, keys=["status_a", "status_b"]).reset_index()
    missing = runs[runs["status_a"].isna() | runs["status_b"].isna()]
    both = runs.dropna(subset=["status_a", "status_b"])
    return Comparison(
        (str(a), str(b)),
        differences,
        missing[RUN].assign(missing_in=missing["status_a"].isna().map({True: "A", False: "B"})),
        both[both["status_a"] != both["status_b"]],
        _provenance((a, b), frames),
    )


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Return all of it for programs; NaN is None."""
    frames = {name: getattr(comparison, name) for name in ("differences", "missing", "outcomes")}
    return {
        "a": comparison.folders[0],
        "b": comparison.folders[1],
        **{name: rows.astype(object).where(rows.notna(), None).to_dict("records") for name, rows in frames.items()},
        "provenance": {name: {"a": a, "b": b} for name, (a, b) in comparison.provenance.items()},
    }


def report(comparison: Comparison) -> str:
    """Write the comparison as Markdown: differences, averages, missing runs, origins."""
    differences = comparison.differences
    counts = Counter(differences["verdict"])
    lines = [f"# A: {comparison.folders[0]}, B: {comparison.folders[1]}", f"{len(differences)} numbers compared:"]
    lines.append("\n".join(f"- {counts[name]} {name}: {what}" for name, what in VERDICTS.items() if counts[name]))
    shown = differences[(differences["verdict"] == "differs") | (differences["kind"] == "average")]
    parts = ["\n\n".join(lines) + "\n", to_markdown(_difference_table(shown), 2)]
    for title, rows in {
        "Runs that only one side has": comparison.missing,
        "Runs that finished on one side and diverged on the other": comparison.outcomes,
    }.items():
        if len(rows):
            body = tuple(tuple(map(str, row)) for row in rows.itertuples(index=False, name=None))
            parts.append(to_markdown(Table(title, tuple(rows.columns), body, num_keys=len(rows.columns)), 2))
    body = tuple((name, ", ".join(a), ", ".join(b)) for name, (a, b) in comparison.provenance.items())
    notes = () if body else ("Both are of the same code, data, devices and versions.",)
    parts.append(to_markdown(Table("Where they come from, if that differs", ("", "A", "B"), body, 3, notes), 2))
    return "\n".join(parts)


def _load(folder: Path) -> pd.DataFrame:
    """Read the final numbers of all suites in a folder, as the workflow or `publish` left it.

    Column `finished` has the status of each run.
    """
    files = sorted((folder / "collected").glob("*.parquet")) or sorted(folder.glob("*.parquet"))
    if not files:
        raise FileNotFoundError(
            f"{folder}: no collected/*.parquet here; give a results folder, and run snakemake there, or a folder of "
            "published frames, such as docs/results"
        )
    frames = []
    for file in files:
        frame = tidy.read(file)
        # From rows of any kind: `publish` keeps only those that a table needs.
        diverged = (frame["status"] == "diverged").groupby(frame["run_id"]).any()
        errors = tidy.with_mean_error(frame[(frame["kind"] == "normalizer") & frame["is_final"]])
        costs = frame[(frame["kind"] == "cost") & frame["name"].isin(COSTS)]
        rows = pd.concat([tidy.final_scores(frame), errors[errors["name"] == "mse"], costs])
        frames.append(rows.assign(finished=rows["run_id"].map(diverged).map({True: "diverged", False: "finished"})))
    return pd.concat(frames, ignore_index=True)


def _differences(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    columns = [*RUN, *QUANTITY]
    kept = [*columns, "title", "value", "device"]
    both = a[kept].merge(b[kept], on=columns, how="outer", suffixes=("_a", "_b"), sort=False)
    rows = []
    for keys, group in both.groupby([*CELL, *QUANTITY], sort=False):
        # A seed that only one side has would move that side's mean: compare pairs only, where there are any.
        pairs = group.dropna(subset=["value_a", "value_b"])
        group = pairs if len(pairs) else group
        values_a, values_b = group["value_a"].dropna(), group["value_b"].dropna()
        if len(values_a) and len(values_b):
            place = dict(zip([*CELL, *QUANTITY], keys, strict=True))
            title = group["title_a"].dropna().iloc[0] or place["name"]
            rows.append({**place, "title": title, **_compare(group, values_a, values_b, kind=str(place["kind"]))})
    if not rows:
        return pd.DataFrame()
    found = pd.DataFrame(rows)
    found["p_holm"] = found.groupby(["suite", "kind"], sort=False)["p"].transform(stats.holm)
    found.loc[(found["verdict"] == "") & (found["p_holm"] < stats.SIGNIFICANCE), "verdict"] = "differs"
    return found.replace({"verdict": {"": "within noise"}})


def _compare(group: pd.DataFrame, a: pd.Series, b: pd.Series, *, kind: str) -> dict[str, Any]:
    """Compare one quantity; the verdict is empty if the test has to decide."""
    change = (group["value_b"] - group["value_a"]).dropna()
    n, p, verdict = len(change), float("nan"), ""
    rounded = change.round(12)
    if kind == "cost" and not _on_one_device(group, paired=n > 0):
        verdict = "other device"
    elif n and (change == 0).all():
        verdict = "equal"
    elif (n or min(len(a), len(b))) < stats.MIN_PAIRS_TO_TEST:
        verdict = "too few seeds"
    elif n and rounded.nunique() == 1:
        # All pairs differ by the same amount, so seeds add no noise. A difference in the last bits is rounding.
        verdict = "differs" if rounded.any() else "within noise"
    elif not n and max(a.round(12).nunique(), b.round(12).nunique()) == 1:
        verdict = "differs" if round(b.mean() - a.mean(), 12) else "within noise"
    else:
        p = stats.paired_t_test(change) if n else stats.welch_t_test(a, b)
    return {
        "num_pairs": n,
        "mean_a": float(a.mean()),
        "mean_b": float(b.mean()),
        "difference": float(change.mean() if n else b.mean() - a.mean()),
        "half_width": stats.half_width(change),
        "p": p,
        "verdict": verdict,
    }


def _on_one_device(group: pd.DataFrame, *, paired: bool) -> bool:
    """Tell whether times compare: no run moved, and each pair (without pairs: all runs) has one device."""
    devices = pd.concat([group["device_a"], group["device_b"]]).dropna()
    alike = (group["device_a"] == group["device_b"]).all() if paired else devices.nunique() == 1
    return bool(alike) and not devices.str.contains(", ").any()


def _difference_table(rows: pd.DataFrame) -> Table:
    lines = []
    for row in rows.to_dict("records"):
        # Scores are fractions, shown in percent; other numbers keep their unit.
        factor = 100 if row["kind"] in ("average", "eval") else 1
        form = ".2f" if factor > 1 else three_digits(row["mean_a"])
        setting = [style.setting(column, row[column]) for column in ("dataset", "model", "global_batch_size")]
        lines.append(
            (
                row["suite"],
                f"{style.variant(row['method'], row['variant'])} ({', '.join(setting)})",
                row["title"],
                Cell(factor * row["mean_a"], form=form),
                Cell(factor * row["mean_b"], form=form),
                Cell(factor * row["difference"], factor * row["half_width"], form=f"+{form}"),
                Cell(row["num_pairs"], form="d"),
                Cell(row["p_holm"], form=style.p_form(row["p_holm"])),
                row["verdict"],
            )
        )
    return Table(
        title="All averages, and whatever else differs",
        header=("Suite", "Method", "Number", "A", "B", "B minus A", "Pairs", "p (Holm)", ""),
        rows=tuple(lines),
        num_keys=3,
        notes=(
            "Scores in %. Mean ± half-width of the 95 % interval over pairs of seeds; paired t test, or Welch's where "
            "no seed is shared (0 pairs), Holm-corrected over the numbers of one kind in a suite.",
        ),
    )


def _provenance(
    folders: tuple[Path, Path], frames: tuple[pd.DataFrame, pd.DataFrame]
) -> dict[str, tuple[list[str], list[str]]]:
    facts = [_facts(folder, frame) for folder, frame in zip(folders, frames, strict=True)]
    names = dict.fromkeys([*facts[0], *facts[1]])
    sides = {name: (sorted(facts[0].get(name, ())), sorted(facts[1].get(name, ()))) for name in names}
    return {name: (a, b) for name, (a, b) in sides.items() if a != b}


def _facts(folder: Path, frame: pd.DataFrame) -> dict[str, set[str]]:
    """Collect facts from the records; runs without a record in the folder give only what the frame has."""
    facts: dict[str, set[str]] = {name: set(frame[name].unique()) for name in ("commit", "device")}
    for run_id in frame["run_id"].unique():
        path = folder / paths.record(run_id).relative_to(paths.RESULTS)
        if not path.exists():
            facts.setdefault("records that are not there", set()).add(run_id)
            continue
        origin = parse(Record, files.read_text(path), str(path)).provenance
        for name in FACTS:
            key = f"{name} of {frame.loc[frame['run_id'] == run_id, 'dataset'].iloc[0]}" if "dataset" in name else name
            facts.setdefault(key, set()).add(str(getattr(origin, name)))
        for name, version in (origin.packages | origin.libraries).items():
            facts.setdefault(name, set()).add(version or "none")
    return facts
