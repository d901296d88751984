"""Entries of the leaderboard: methods of anyone, trained under the rules of one suite, the track.

What an entry must share is read from the track's file, its committed results and, when it enters, its expanded suite.
Nothing of it is written here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from pydantic import BaseModel, Field

from analysis import collect
from analysis import frame as tidy
from engine import files, paths
from engine.schema.base import ID_PATTERN, Frozen, parse, settings
from engine.schema.evaluation import Evaluation
from engine.schema.run import RunSpec
from engine.schema.suite import ExpandedSuite, SuiteRun
from experiments.design import cards, expansion, names
from experiments.design.tuning import Tuned

TRACK = "laptop"
"""The suite whose rules hold."""
OWN = ("method", "seed", "optimizer", "normalizer_error", "gradient_error")
"""Parts of a run that are the entry's own: the method with its options, AdamW's settings, and what is only measured."""
SCORES = ["average", "validation", "eval"]
TEMPERATURE = "temperature/value"


class _Training(BaseModel):
    global_batch_size: int


class _Trials(BaseModel):
    trials: int
    seeds: tuple[int, ...]


class _File(BaseModel):
    """What is read of a suite's file."""

    dataset: str
    data_fraction: float | None = None
    model: str
    seeds: tuple[int, ...]
    training: _Training
    tuning: _Trials
    tuned: str | None = None


class _Part(BaseModel):
    label: str = ""
    tuned: str | None = None


class _TunedBy(_Part):
    variants: tuple[_Part, ...] = (_Part(),)

    def of_main_runs(self) -> set[str]:
        """Name the suites whose chosen settings main runs have."""
        return {tuned for part in self.variants if not part.label and (tuned := part.tuned or self.tuned)}


class Track(NamedTuple):
    """What every entry shares with the suite, beyond what its results say."""

    dataset: str
    model: str
    global_batch_size: int
    seeds: tuple[int, ...]
    trials: int
    """Most runs that may go into the tuning of a method."""

    def main(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Select the main runs of a frame in this setting, with these seeds."""
        is_here = frame["seed"].isin(self.seeds) & (frame["variant"] == "")
        for column in tidy.SETTING:
            is_here &= frame[column] == getattr(self, column)
        return frame[is_here]


class Card(Frozen):
    """What an entry says of itself, beside its results."""

    by: str = Field(min_length=1)
    trials: int
    """Runs of its tuning; 0 if it was not tuned by a suite."""
    rows_sha256: str
    """Digest of its results."""
    spec: RunSpec
    """One of its runs: the others differ in their seeds."""


class Entry(NamedTuple):
    """A method that has entered."""

    name: str
    card: Card
    rows: pd.DataFrame


def track() -> Track:
    """Read what the track's file says."""
    said = cards.read_yaml(cards.FOLDER / "suites" / f"{TRACK}.yaml", _File)
    card = cards.dataset(said.dataset)
    if said.data_fraction is not None:
        card = cards.subset(card, said.data_fraction)
    trials = said.tuning.trials * len(said.tuning.seeds)
    return Track(card.name, said.model, said.training.global_batch_size, said.seeds, trials)


def read(name: str, ours: pd.DataFrame, rules: Track) -> Entry:
    """Read a committed entry, and check it once more.

    Args:
        name: The entry.
        ours: The track's committed results.
        rules: What the track's file says.

    Raises:
        ValueError: If a file is missing or was changed, or if the entry is against a rule.
    """
    path = paths.entry(name, ".json")
    again = f"enter it again: python -m analysis enter PARQUET --name {name} --by WHO"
    if not path.exists():
        raise ValueError(f"{path} is missing; {again}")
    card = parse(Card, files.read_text(path), str(path))
    rows = tidy.read(paths.entry(name))
    if tidy.digest(rows) != card.rows_sha256:
        raise ValueError(f"{paths.entry(name)}: its results are not those that entered; {again}")
    source, kept = card.spec.method.source, paths.entry(name, ".py")
    if source is not None and (not kept.exists() or files.file_sha256(kept) != source.sha256):
        raise ValueError(f"{kept}: missing, or not the file that was trained; {again}")
    here = rules.main(rows)
    of_rows = [_no_rows(rows, rules)] if here.empty else problems_of_rows(here, ours, rules)
    found = [*_of_tuning(card.trials, rules), *of_rows]
    if found:
        raise ValueError("\n".join(f"{name}: {problem}" for problem in found))
    return Entry(name, card, here)


def enter(path: Path, *, name: str, by: str, method: str | None = None) -> list[Path]:
    """Check a method's results against all rules and write its entry.

    Args:
        path: The collected frame of the suite that trained it; the suite's results lie where `engine.paths` says.
        name: What the entry is called.
        by: Who made it.
        method: The method in that suite; None if only one is not the track's.

    Returns:
        The files that were written.

    Raises:
        ValueError: If the entry is against a rule; one line per problem.
    """
    rules, ours, frame = track(), committed(), tidy.read(path)
    if not re.fullmatch(ID_PATTERN, name) or name in set(ours["method"]):
        taken = ", ".join(sorted(ours["method"].unique()))
        raise ValueError(f"name {name!r}: allowed are names of {ID_PATTERN} but {taken}; take another")
    path_of_card = paths.entry(name, ".json")
    if path_of_card.exists() and (other := parse(Card, files.read_text(path_of_card), str(path_of_card)).by) != by:
        raise ValueError(f"name {name!r}: an entry by {other} has it; take another, or say the same with --by")
    method = _method(frame, ours, method)
    asked = names.split(frame["suite"].iloc[0])
    # Expanded anew where a source changed: the runs must be those that the files say now.
    suites = expansion.load([TRACK, asked.reference])
    suite = suites[asked.name]
    if tidy.digest(collect.collect(suite)) != tidy.digest(frame):
        raise ValueError(
            f"{path}: not what the results of {suite.name!r} are now; collect them again: "
            f"snakemake --config suites={asked.reference}"
        )
    rows = rules.main(frame[frame["method"] == method])
    if rows.empty:
        raise ValueError(_no_rows(frame[frame["method"] == method], rules))
    trials, problems = tuning_of(asked, suite.evaluation, rules)
    problems += [*_of_tuning(trials, rules), *problems_of_rows(rows, ours, rules)]
    problems += problems_of_suite(suite, suites[TRACK], method, rules)
    if problems:
        raise ValueError("\n".join(problems))
    return _write(name, by, trials, rows, _runs(suite, method, rules)[0].spec)


def committed() -> pd.DataFrame:
    """Read the track's committed results.

    Raises:
        FileNotFoundError: If they are not there.
    """
    path = paths.committed(TRACK)
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; run this in the repository's folder, once its study is committed")
    return tidy.read(path)


def _write(name: str, by: str, trials: int, rows: pd.DataFrame, spec: RunSpec) -> list[Path]:
    is_end = (rows["kind"] == "cost") & rows["is_final"]
    kept = rows[rows["kind"].isin(SCORES) | is_end | (rows["name"] == TEMPERATURE)].reset_index(drop=True)
    tidy.write(kept, paths.entry(name))
    # Read back: the digest is of what others will read.
    digest = tidy.digest(tidy.read(paths.entry(name)))
    card = Card(by=by, trials=trials, rows_sha256=digest, spec=spec)
    files.write_text(paths.entry(name, ".json"), card.model_dump_json(indent=1) + "\n")
    written = [paths.entry(name), paths.entry(name, ".json")]
    if spec.method.source is not None:
        text = files.read_text(paths.method(spec.method.source.sha256))
        files.write_text(paths.entry(name, ".py"), text)
        written.append(paths.entry(name, ".py"))
    return written


def _method(frame: pd.DataFrame, ours: pd.DataFrame, method: str | None) -> str:
    there = sorted(frame["method"].unique())
    if method is None:
        new = [each for each in there if each not in set(ours["method"])]
        if len(new) != 1:
            raise ValueError(f"methods {', '.join(there)}: say which one enters, --method NAME")
        return str(new[0])
    if method not in there:
        raise ValueError(f"method {method!r}: the frame has {', '.join(there)}; say one of these with --method")
    return method


def _no_rows(rows: pd.DataFrame, rules: Track) -> str:
    def written(values: Mapping[Any, Any]) -> str:
        return ", ".join(f"{key} {value}" for key, value in values.items())

    main = tidy.main_runs(rows)
    came = [written(each) for each in main[tidy.SETTING].drop_duplicates().to_dict("records")]
    seeds = ", ".join(map(str, sorted(main["seed"].unique())))
    allowed = written({key: getattr(rules, key) for key in tidy.SETTING})
    return (
        f"main runs: came {'; '.join(came) or 'none'} with seeds {seeds or 'none'}, allowed is {allowed} with seeds "
        f"{', '.join(map(str, rules.seeds))}; train them"
    )


def problems_of_rows(rows: pd.DataFrame, ours: pd.DataFrame, rules: Track) -> Iterator[str]:
    """Say what is wrong with an entry's results, beside the track's committed ones."""
    seeds = set(rows["seed"])
    lacking = [seed for seed in rules.seeds if seed not in seeds]
    if lacking:
        yield (
            f"seeds: {', '.join(map(str, lacking))} are missing, allowed is all of "
            f"{', '.join(map(str, rules.seeds))}; train them"
        )
    several = [str(seed) for seed, runs in rows.groupby("seed")["run_id"].nunique().items() if runs > 1]
    if several:
        yield f"seeds: {', '.join(several)} have several runs, allowed is one; give all but one a variant's label"
    dirty = sorted({commit for commit in rows["commit"].unique() if re.search(r"\+|unknown", commit)})
    if dirty:
        yield (
            f"commit: came {'; '.join(dirty)}, allowed is committed code; commit it, or keep your files outside of the "
            "checkout, and train again"
        )
    if not several:
        yield from _of_scores(rows, rules.main(ours))


def _of_scores(rows: pd.DataFrame, ours: pd.DataFrame) -> Iterator[str]:
    rows, ours = (each[each["kind"].isin(SCORES) & each["is_main"]] for each in (rows, ours))
    came, allowed = (sorted(each["samples_seen"].unique()) for each in (rows, ours))
    if came != allowed:
        yield f"samples seen at milestones: came {_listed(came)}, allowed is {_listed(allowed)}; train with these"
    about = ["kind", "name", "metric", "chance"]
    sides = [set(each[about].round(9).itertuples(index=False, name=None)) for each in (rows, ours)]
    if sides[0] != sides[1]:
        which = _listed(sorted({one[1] for one in sides[0] ^ sides[1]}))
        yield f"evaluation: {which} differ, allowed are the track's sets and averages; name its `evaluation`"
    elif (holes := rows.groupby("seed").size()).nunique() > 1 or holes.ne(len(came) * len(sides[1])).any():
        yield "evaluation: not every seed has every set at every milestone; run snakemake, and collect again"
    missing = sorted(rows.loc[rows["status"] == "missing", "name"].unique())
    if missing:
        yield f"evaluation: {_listed(missing)} were not on disk, allowed is no missing set; build them, evaluate again"


def _listed(values: list[Any]) -> str:
    return ", ".join(map(str, values)) or "none"


def _runs(suite: ExpandedSuite, method: str | None, rules: Track) -> list[SuiteRun]:
    """Select a suite's main runs in the track's setting, of one method or of all."""
    return [
        run
        for run in suite.runs
        if not run.variant
        and run.spec.seed in rules.seeds
        and method in (None, run.spec.method.name)
        and (run.spec.dataset.name, run.spec.model.name, run.spec.global_batch_size) == rules[:3]
    ]


def problems_of_suite(suite: ExpandedSuite, ours: ExpandedSuite, method: str, rules: Track) -> Iterator[str]:
    """Say where an entry's runs or evaluation differ from the track's."""
    came, allowed = (_shared(runs[0].spec) for runs in (_runs(suite, method, rules), _runs(ours, None, rules)))
    for key in sorted({*came, *allowed}):
        one, other = came.get(key, "nothing"), allowed.get(key, "nothing")
        if one != other:
            yield f"{key}: came {one}, allowed is {other}; say it in the suite, and train again"
    sets, of_track = ({name: card.identity for name, card in each.evaluation.sets.items()} for each in (suite, ours))
    options = [each.evaluation.model_dump(include={"averages", "precision", "when_missing"}) for each in (suite, ours)]
    differing = sorted(name for name in {*sets, *of_track} if sets.get(name) != of_track.get(name))
    if differing or options[0] != options[1]:
        what = _listed(differing) if differing else "averages or options"
        yield f"evaluation: {what} differ from the track's; write `evaluation: {ours.evaluation.name}`, evaluate again"


def _shared(spec: RunSpec) -> dict[str, str]:
    return settings(spec.model_copy(update={"normalizer_error": None}).model_dump(mode="json", exclude=set(OWN)))


def tuning_of(asked: names.Asked, evaluation: Evaluation, rules: Track) -> tuple[int, list[str]]:
    """Return how many runs tuned a suite's main runs, and what is wrong with them."""
    by = cards.read_yaml(asked.file, _TunedBy).of_main_runs()
    found = {path: cards.read_yaml(path, Tuned) for path in sorted(asked.maker(suite).tuned for suite in by)}
    problems = []
    averaged = {name for members in evaluation.averages.values() for name in members}
    for path, tuned in found.items():
        if tested := sorted(averaged & set(tuned.score)):
            problems.append(f"{path}: tuned on {_listed(tested)}, allowed are sets that no average has; tune on these")
        if reused := sorted(set(tuned.seeds) & set(rules.seeds)):
            problems.append(
                f"{path}: tuned with seeds {_listed(reused)}, allowed are others than the suite's; tune with them"
            )
        if re.search(r"\+|unknown", tuned.commit):
            problems.append(f"{path}: commit {tuned.commit}, allowed is committed code; commit it and tune again")
    return sum(tuned.trials * len(tuned.seeds) for tuned in found.values()), problems


def _of_tuning(trials: int, rules: Track) -> Iterator[str]:
    if trials > rules.trials:
        yield f"tuning: came {trials} runs of a method, allowed are {rules.trials}; lower `trials`, and tune again"
