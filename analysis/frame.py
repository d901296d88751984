"""The tidy frame: its columns, its file, and selections that tables and figures share.

One row is one number of one run. `analysis.collect` fills the frame, tables and figures only read it.
Averages and sets keep the suite's order, which is the order to show.
"""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa

from analysis import style
from engine import files
from engine.schema.suite import DEFAULTS

COLUMNS = {
    "suite": "str",
    "run_id": "str",
    "method": "str",
    "variant": "str",  # what differs from the main run beyond the three columns of a setting; empty for the main run
    "dataset": "str",
    "dataset_pairs": "int64",
    "model": "str",
    "global_batch_size": "int64",
    "seed": "int64",
    "commit": "str",  # of all attempts of the run, if they differ
    "device": "str",  # likewise, with the number of processes if there are several
    # eval | average | validation (mean of the sets that no average has) | sampling (interval over a set's samples) |
    # train | normalizer | log_normalizer (of one anchor each) | gradient | cost | option (of the method: a number in
    # `value`, or a text in `title`) | setting (of a trial: its place in its range) | hypothesis (the run's sign in the
    # difference of a hypothesis, 1 or -1) | signature
    "kind": "str",
    "samples_seen": "int64",
    "is_final": "bool",  # at the end of training, not at an earlier milestone or step
    "name": "str",  # evaluation set, average, or logged value
    "title": "str",  # `name` as readers know it
    "metric": "str",
    "value": "float64",  # metrics are fractions in [0, 1]
    "chance": "float64",  # what guessing scores, where the card says
    "num_samples": "Int64",  # images of a set; sets of an average
    "is_main": "bool",  # the one metric of its set that enters averages
    # Scores: evaluated | absent | diverged | missing (the set); all else: the run's, finished | diverged.
    "status": "str",
}
_DAMAGE = (pa.ArrowException, ValueError, KeyError, TypeError)
"""Errors of pandas and pyarrow on a damaged file, whose description of columns is JSON."""
SETTING = ["dataset", "model", "global_batch_size"]
VALIDATION = "Validation"
"""Name of the mean over the sets that no average has: settings are chosen by them, and targets set."""


class Setting(NamedTuple):
    """A data set, model and batch size on which methods are compared, with its rows."""

    label: str
    """Names what differs between the frame's settings; empty if there is one."""
    rows: pd.DataFrame


class Score(NamedTuple):
    """An average or an evaluation set, as a column of a table or a panel of a figure."""

    kind: str
    name: str
    title: str
    chance: float


def write(frame: pd.DataFrame, path: Path) -> None:
    """Write the frame as parquet, atomically."""
    with files.atomic_write(path) as temporary:
        frame.to_parquet(temporary, index=False, write_page_checksum=True)


def read(path: Path) -> pd.DataFrame:
    """Read a frame that `write` wrote.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If the file is damaged, or its columns are not those of a tidy frame.
    """
    again = f"collect the suite again: python -m analysis collect SUITE_JSON --out {path}"
    if not path.exists():
        there = ", ".join(each.name for each in sorted(path.parent.glob("*.parquet"))) or "no collected frame"
        raise FileNotFoundError(f"{path}: there is no such file; {path.parent} has {there}. Run snakemake, or {again}")
    data = path.read_bytes()
    try:
        frame = pd.read_parquet(io.BytesIO(data), page_checksum_verification=True)
    except (*_DAMAGE, OSError) as error:
        found = str(error).strip().splitlines()[0]
        raise ValueError(f"{path}: damaged, or no parquet ({found}); {again}") from None
    if list(frame.columns) != list(COLUMNS):
        differing = ", ".join(sorted(set(frame.columns) ^ set(COLUMNS))) or "order"
        raise ValueError(f"{path}: not a tidy frame of this version (columns that differ: {differing}); {again}")
    types = pd.DataFrame(columns=list(COLUMNS)).astype(COLUMNS).dtypes
    if differing := ", ".join(frame.columns[frame.dtypes != types]):
        raise ValueError(f"{path}: not a tidy frame of this version (columns of another type: {differing}); {again}")
    return frame


def digest(frame: pd.DataFrame) -> str:
    """Return the SHA-256 of the rows as text: bytes of a parquet file depend on the version of its writer."""
    return hashlib.sha256(frame.to_csv(index=False, lineterminator="\n").encode()).hexdigest()


def final_scores(frame: pd.DataFrame) -> pd.DataFrame:
    """Select the averages and main metrics of final models.

    A run that diverged scores what guessing does, since it leaves a model that can do no better: left out, a method of
    which one run of five lived would have that run's score. Its status still says that it diverged.
    """
    final = frame[frame["kind"].isin(["average", "eval"]) & frame["is_main"] & frame["is_final"]]
    is_lost = (final["status"] == "diverged") & final["value"].isna()
    return final.assign(value=final["value"].where(~is_lost, final["chance"]))


def without_diverged(scores: pd.DataFrame) -> pd.DataFrame:
    """Take the scores of guessing away again from runs that diverged, where no means of methods are compared."""
    return scores.assign(value=scores["value"].where(scores["status"] != "diverged"))


def scores(frame: pd.DataFrame) -> list[Score]:
    """List the averages, then the sets, in the suite's order."""
    rows = frame[frame["is_main"]].drop_duplicates(["kind", "name"])
    rows = pd.concat([rows[rows["kind"] == "average"], rows[rows["kind"] == "eval"]])
    return [Score(*row) for row in rows[list(Score._fields)].itertuples(index=False, name=None)]


def settings(frame: pd.DataFrame) -> list[Setting]:
    """Split the frame by data set (small ones first), model and batch size."""
    differing = [column for column in SETTING if frame[column].nunique() > 1]
    return [
        Setting(", ".join(style.setting(column, rows[column].iloc[0]) for column in differing), rows)
        for _, rows in frame.groupby(["dataset_pairs", *SETTING])
    ]


def describe(frame: pd.DataFrame) -> str:
    """Say in words what all runs share: data set, model, batch size, and the number of seeds."""
    if frame.empty:
        return "none"
    shared = [style.setting(column, frame[column].iloc[0]) for column in SETTING if frame[column].nunique() == 1]
    counts = frame.groupby([*SETTING, "method", "variant"])["seed"].nunique()
    low, high = counts.min(), counts.max()
    seeds = f"{low} to {high} seeds" if low < high else f"{high} seed{'s' if high > 1 else ''}"
    return ", ".join([*shared, seeds])


def main_runs(frame: pd.DataFrame) -> pd.DataFrame:
    """Leave out the variants of an ablation."""
    return frame[frame["variant"] == ""]


def best_runs(frame: pd.DataFrame) -> pd.DataFrame:
    """Select each method's best variant, or its main run, in every setting: by the mean over seeds on validation sets.

    A variant of which a run diverged is never chosen, as in tuning. Without validation scores, nothing is selected.
    """
    place = [*SETTING, "method"]
    validation = frame[(frame["kind"] == "validation") & frame["is_final"] & frame["is_main"]]
    means = validation.groupby([*place, "variant"])["value"].agg(lambda values: values.mean(skipna=False)).dropna()
    best = means.index[means.groupby(place).rank(ascending=False, method="first") == 1]
    return frame[pd.MultiIndex.from_frame(frame[[*place, "variant"]]).isin(best)]


def methods(frame: pd.DataFrame) -> list[str]:
    """List the methods in the frame, in the order to show."""
    return style.ordered(frame["method"].unique())


def main_method(frame: pd.DataFrame) -> str:
    """Return the method that tests compare with all others: the one that is shown last.

    That is NeuCLIP. In a suite without it, it is a method of the user's own.
    """
    return next(iter(methods(frame)[::-1]), style.OURS)


def curves(frame: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """Split the frame by method and variant, in the order to show."""
    of_method = {method: frame[frame["method"] == method] for method in methods(frame)}
    return {
        (method, variant): rows[rows["variant"] == variant]
        for method, rows in of_method.items()
        for variant in variants(rows)
    }


def variants(frame: pd.DataFrame) -> list[str]:
    """List the variants in the frame: the main run first, then by label, numbers in labels by size."""

    def key(label: str) -> list[tuple[bool, float, str]]:
        return [
            (not part.isdigit(), float(part) if part.isdigit() else 0.0, part) for part in re.findall(r"\d+|\D+", label)
        ]

    return sorted(frame["variant"].unique(), key=key)


def trials(scores: pd.DataFrame) -> pd.Series:
    """Return the mean final score of each trial of a tuned method over seeds, in order; NaN where one has diverged.

    Six digits, as in the file of what was chosen: rounding decides between no trials.
    """
    tried = scores[~scores["variant"].isin(["", DEFAULTS])]
    means = tried.groupby("variant")["value"].agg(lambda values: values.mean(skipna=False))
    return means.reindex(variants(tried)).round(6)


def moved(frame: pd.DataFrame) -> pd.Series:
    """Tell for each row whether its run moved to another device or commit: its times are a mixture."""
    return frame["device"].str.contains(", ") | frame["commit"].str.contains(", ")


def with_mean_error(frame: pd.DataFrame) -> pd.DataFrame:
    """Add rows named ``mse``: the mean of the image and the text side's error of the log-normalizers."""
    sides = frame[frame["name"].isin(["image_mse", "text_mse"])]
    means = sides.groupby(["run_id", "samples_seen"])["value"].mean()
    rows = sides[sides["name"] == "image_mse"].assign(name="mse")
    index = pd.MultiIndex.from_frame(rows[["run_id", "samples_seen"]])
    return pd.concat([frame, rows.assign(value=means.reindex(index).to_numpy())])
