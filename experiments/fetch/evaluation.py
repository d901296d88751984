"""Fetch what is missing of evaluation sets: `python -m experiments evaluation-data NAME...`.

Nothing else downloads a set. Files come from one commit of a repository on the Hugging Face Hub, or from the address
in the card, into a hidden folder. They move to their places once all have the digests that the Hub or the card states,
``nshards.txt`` last, so that a set looks whole only once it is. Where it came from is noted beside the set.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import re
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from pydantic import ConfigDict, Field
from rich.console import Console
from rich.table import Column, Table

from engine import files
from engine.evaluation import card_files, reading
from engine.schema.base import Frozen, parse, unknown_name
from engine.schema.evaluation import EvalCard
from experiments import cards
from experiments.fetch import download, layouts

# The HTTP library below huggingface_hub goes by several names; the Hub's own errors are derived from that library's.
_NETWORK_ERRORS: tuple[type[Exception], ...] = (*HfHubHTTPError.__bases__, *download.ERRORS)
_TEXTS = ("classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt")
_HIDDEN = ".download"
"""Folder in a set's folder for what is not whole yet; no part of the set's digest."""
_CONVERSION_FACTOR = 2
"""A converted set takes at most about this many times the room of its files, while both are there: judged high."""


class FetchError(ValueError):
    """A set cannot be fetched, or what came is not what was asked for."""


class Source(Frozen):
    """Where a set comes from: written beside it."""

    repo: str | None = None
    revision: str | None = None
    """The commit that all files are of."""
    url: str | None = None
    """Of a set that comes from no repository."""
    written: dict[str, int] = Field(default_factory=dict)
    """The set's files with their sizes in bytes; empty until the set is whole."""
    sha256: str | None = None
    """Of the folder, as `EvalCard.sha256`."""

    model_config = ConfigDict(extra="ignore")  # notes of earlier versions say more

    @property
    def pins(self) -> dict[str, str]:
        """The lines of a card that hold the set to this."""
        return {key: value for key in ("hf_revision", "sha256") if (value := getattr(self, key.removeprefix("hf_")))}

    def __str__(self) -> str:
        return self.url or f"{self.repo}@{self.revision}"


class Job(NamedTuple):
    """A set that is not whole, and what it lacks."""

    card: EvalCard
    source: Source
    sizes: dict[str, int]
    """Of all its files at the source, in bytes."""
    lacking: tuple[str, ...]

    @property
    def to_fetch_bytes(self) -> int:
        """What is still to come."""
        return sum(self.sizes[path] for path in self.lacking)

    @property
    def disk_bytes(self) -> int:
        """The room that is needed."""
        return self.to_fetch_bytes + (_CONVERSION_FACTOR * sum(self.sizes.values()) if self.card.original else 0)


def source_path(card: EvalCard) -> Path:
    """Return where a set's source is noted."""
    folder = Path(card.path)
    return folder.with_name(f"{folder.name}.source.json")


def read_source(path: Path) -> Source:
    """Read where a set that was fetched here comes from."""
    return parse(Source, path.read_text(encoding="utf-8"), str(path))


def resolve(names: Sequence[str]) -> list[EvalCard]:
    """Return the cards of sets, each once, by their names or those of evaluations.

    Raises:
        ValueError: If a name is unknown.
    """
    found: dict[str, EvalCard] = {}
    known = {*cards.names("evaluations"), *cards.names("evals")}
    for name in names:
        if name not in known:
            raise ValueError(unknown_name("evaluation or evaluation set", name, known))
        if name in cards.names("evaluations"):
            found |= cards.evaluation(name).sets
        else:
            found[name] = cards.eval_set(name)
    return list(found.values())


def lack(card: EvalCard) -> str | None:
    """Say what is wrong with a set on disk; None if it is whole and needs nothing.

    A set that was fetched here is compared with the sizes that were noted; one that came in another way is read.

    Raises:
        FetchError: If it was fetched with another commit or digest than its card asks for now.
    """
    folder = Path(card.path)
    if not source_path(card).exists():
        if _started(card).exists():
            return "its fetch was stopped"
        try:
            reading.read(card)
        except FileNotFoundError:
            return f"it has no {card.split}/nshards.txt"
        except ValueError as error:
            return str(error)
        return None
    source = read_source(source_path(card))
    asked = {"hf_revision": card.hf_revision, "sha256": card.sha256}
    for key, value in source.pins.items():
        if asked[key] not in {None, value}:
            raise FetchError(
                f"evaluation set {card.name!r}: {card.path} was fetched with {key} {value}, its card asks for "
                f"{asked[key]}: remove {card.path} and {source_path(card)}, and run this again"
            )
    changed = [path for path, size in source.written.items() if _size(folder / path) != size]
    return f"{', '.join(changed)} changed since it was fetched" if changed else None


def plan(card: EvalCard, problem: str) -> Job:
    """Ask where a set's files are, and compare those that are here.

    Args:
        card: The set.
        problem: Why it is not whole, as `lack` says.

    Raises:
        FetchError: If that cannot be found out, or if a file that is here differs.
    """
    folder = Path(card.path)
    if card.original and folder.exists() and not _started(card).exists():
        strange = sorted(path.name for path in folder.iterdir() if path.name != _HIDDEN)
        if strange:
            raise FetchError(
                f"evaluation set {card.name!r}: {folder} holds {', '.join(strange[:5])}, and is not what its card says "
                f"({problem}): remove {folder}, and run this again"
            )
    with _explained(card):
        source = _source(card)
        sizes = _sizes(card, source)
        absent = _absent(card, sizes)
        for name in _wrong(card, source, folder, sizes.keys() - absent) if len(absent) < len(sizes) else ():
            raise FetchError(
                f"evaluation set {card.name!r}: {folder / name} ({_size(folder / name):,} bytes) is not the file of "
                f"{source} ({sizes[name]:,} bytes): remove it if it is not wanted, and run this again"
            )
    return Job(card, source, sizes, tuple(name for name in absent if not (_staged(card) / name).exists()))


def fetch(job: Job) -> Source:
    """Fetch what a set lacks, check it, and note where it is from.

    Raises:
        FetchError: If a file cannot be had, or is not what was asked for. Files that came whole are kept and used the
            next time.
    """
    card, folder = job.card, Path(job.card.path)
    staged = _staged(card)
    with _alone(card):
        files.write_text(_started(card), job.source.model_dump_json(indent=1) + "\n")
        _download(job, staged)
        whole = staged
        if card.original:
            whole = staged.with_name("converted")
            shutil.rmtree(whole, ignore_errors=True)
            with files.explain_full_disk(whole):
                layouts.convert(card, staged, whole)
        for path in sorted(files.folder_files(whole), key=lambda path: (path == f"{card.split}/nshards.txt", path)):
            (folder / path).parent.mkdir(exist_ok=True)
            (whole / path).replace(folder / path)
        try:
            data = reading.read(card)
        except ValueError as error:
            raise FetchError(
                f"{error}\nIts files are whole: they are those of {job.source}. Its card is made for other content: "
                f"correct experiments/evals/{card.name}.yaml, or give another hf_revision there, remove {folder} and "
                "run this again"
            ) from None
        written = {path: file.stat().st_size for path, file in files.folder_files(folder).items()}
        source = job.source.model_copy(update={"written": written, "sha256": data.sha256})
        files.write_text(source_path(card), source.model_dump_json(indent=1) + "\n")
        shutil.rmtree(_started(card).parent)
    return source


def pin(card: EvalCard, source: Source) -> None:
    """Write the commit and the digest of a set that was fetched into its card."""
    path = cards.FOLDER / "evals" / f"{card.name}.yaml"
    text = path.read_text(encoding="utf-8")
    for key, value in source.pins.items():
        line = f"{key}: '{value}'\n"  # without quotes, some digests would be numbers
        text, found = re.subn(rf"^{key}:.*\n", line, text, flags=re.MULTILINE)
        if not found:
            text = text.rstrip("\n") + f"\n{line}"
    files.write_text(path, text)


def run(names: Sequence[str], console: Console, *, dry_run: bool = False, pin_cards: bool = False) -> None:
    """Fetch what is missing of evaluations and sets, and say what that is before.

    Args:
        names: Evaluations and sets.
        console: Where it is said.
        dry_run: Stop there.
        pin_cards: Write the commits and digests of what was fetched, now or before, into the cards.

    Raises:
        ValueError: If a name is unknown, a set cannot be had or is wrong, or if there is no room for all of them.
    """
    chosen = resolve(names)
    to_fetch = [card for card in chosen if card.build is None]
    problems = {card.name: problem for card in to_fetch if (problem := lack(card)) is not None}
    unknown = [card for card in to_fetch if card.name in problems and not card_files.can_be_fetched(card)]
    if unknown:
        raise FetchError(card_files.missing(unknown))
    jobs = [plan(card, problems[card.name]) for card in to_fetch if card.name in problems]
    console.print(_table(chosen, jobs))
    _check_room(jobs)
    if dry_run:
        return
    for number, job in enumerate(jobs, start=1):
        console.print(f"{number}/{len(jobs)} {job.card.name} from {job.source}", highlight=False)
        source = fetch(job)
        if not pin_cards and job.card.revision == "unpinned":
            lines = ", ".join(f"{key}: {value}" for key, value in source.pins.items())
            console.print(f"  --pin would write {lines} into experiments/evals/{job.card.name}.yaml", highlight=False)
    for card in to_fetch:
        if pin_cards and source_path(card).exists():
            pin(card, read_source(source_path(card)))
    wrong = reading.problems(to_fetch)  # what it counts is remembered: the workflow asks the same
    if wrong:
        raise FetchError("\n".join(wrong))
    console.print(
        "all evaluation sets are there" if to_fetch else "none of these sets is fetched: the workflow makes it"
    )


def _table(chosen: Sequence[EvalCard], jobs: Sequence[Job]) -> Table:
    found = {job.card.name: job for job in jobs}
    right = [Column(title, justify="right") for title in ("Size", "To fetch")]
    table = Table("Set", "State", *right, "From", Column("Licence", overflow="fold"))
    for card in chosen:
        job = found.get(card.name)
        if job is None:
            table.add_row(card.name, "the workflow makes it" if card.build else "there", "", "", "", card.licence)
        else:
            state = "missing" if len(job.lacking) == len(job.sizes) else "in part"
            amounts = _megabytes(sum(job.sizes.values())), _megabytes(job.to_fetch_bytes)
            table.add_row(card.name, state, *amounts, str(job.source), card.licence)
    table.add_section()
    table.add_row("all", "", "", _megabytes(sum(job.to_fetch_bytes for job in jobs)), "", "")
    return table


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"


def _check_room(jobs: Sequence[Job]) -> None:
    """Refuse to start what cannot end.

    Raises:
        FetchError: Naming what is needed and what is free.
    """
    needed: Counter[int] = Counter()  # by device: folders may be links to several disks
    places: dict[int, Path] = {}
    for job in jobs:
        folder = Path(job.card.path).absolute()
        place = next(path for path in (folder, *folder.parents) if path.exists())
        places[place.stat().st_dev] = place
        needed[place.stat().st_dev] += job.disk_bytes
    for device, place in places.items():
        free = shutil.disk_usage(place).free
        if needed[device] > free:
            raise FetchError(
                f"no room: the missing sets need {needed[device] / 1e9:,.2f} GB below {place}, {free / 1e9:,.2f} GB "
                "are free. Make room, link the folder to a larger disk, or name fewer sets"
            )


def _source(card: EvalCard) -> Source:
    """Return where a set is from. What was begun, or is to be mended, is done with the commit it began with."""
    if card.original and card.original.url:
        return Source(url=card.original.url)
    for path in (_started(card), source_path(card)):
        if path.exists():
            source = read_source(path)
            if card.hf_revision in {None, source.revision}:
                return Source(repo=source.repo, revision=source.revision)
    assert card.hf_repo is not None
    return Source(repo=card.hf_repo, revision=HfApi().dataset_info(card.hf_repo, revision=card.hf_revision).sha)


def _sizes(card: EvalCard, source: Source) -> dict[str, int]:
    """Ask which files a set is made of, and how large each is in bytes."""
    originals = card.original.files if card.original else ()
    if source.repo is None:
        return {name: download.size_bytes(str(source.url)) for name in originals}
    tree = HfApi().list_repo_tree(source.repo, repo_type="dataset", revision=source.revision, recursive=True)
    found = {item.path: item.size for item in tree if isinstance(item, RepoFile)}
    absent = [path for path in originals or [f"{card.split}/nshards.txt"] if path not in found]
    if absent:
        raise FetchError(
            f"evaluation set {card.name!r}: no {', '.join(absent)} in {source.repo} at commit {source.revision}: it is "
            "not in the layout that its card names"
        )
    of_split = re.compile(rf"{re.escape(card.split)}/(nshards\.txt|\d+\.tar)")
    wanted = originals or [path for path in found if path in _TEXTS or of_split.fullmatch(path)]
    return {path: found[path] for path in wanted}


def _download(job: Job, folder: Path) -> None:
    """Fetch what is not in its place, and compare it with the digests that are stated.

    Raises:
        FetchError: If a file cannot be had, or differs; then it is deleted.
    """
    card, source, wanted = job.card, job.source, _absent(job.card, job.sizes)
    with _explained(card), files.explain_full_disk(folder, num_bytes=job.to_fetch_bytes):
        if source.repo is None:
            for name in job.lacking:
                download.download(str(source.url), folder / name, job.sizes[name])
        else:
            for path in folder.rglob("*.incomplete"):  # of a process that was killed
                path.unlink()
            # Its connections break off and go on. Whole files stay if it fails.
            snapshot_download(
                source.repo,
                repo_type="dataset",
                revision=source.revision,
                local_dir=folder,
                allow_patterns=[glob.escape(name) for name in wanted],
            )
        lost = [name for name in wanted if not (folder / name).exists()]  # the library only warns
        wrong = lost or _wrong(card, source, folder, wanted)
    for name in wrong:
        (folder / name).unlink(missing_ok=True)
    if wrong:
        raise FetchError(
            f"evaluation set {card.name!r}: what came of {', '.join(wrong)} from {source} has not the digest that "
            f"{'the Hub' if source.repo else 'its card'} states, and was thrown away: run this again; if it happens "
            "again, the file was changed, or something between here and there changes it"
        )


def _wrong(card: EvalCard, source: Source, folder: Path, wanted: Collection[str]) -> list[str]:
    """Return the files that have another digest than the Hub or the card states."""
    if source.repo is None:
        assert card.original is not None
        return [name for name in wanted if _md5(folder / name) != card.original.md5]
    found = HfApi().verify_repo_checksums(source.repo, repo_type="dataset", revision=source.revision, local_dir=folder)
    return [item["path"] for item in found.mismatches if item["path"] in wanted]


@contextmanager
def _explained(card: EvalCard) -> Iterator[None]:
    """Say what to do about what the network's errors mean."""
    repo, page = card.hf_repo, f"https://huggingface.co/datasets/{card.hf_repo}"
    texts: dict[type[Exception], str] = {
        OfflineModeIsEnabled: "the Hugging Face Hub is switched off by HF_HUB_OFFLINE; unset it to fetch",
        GatedRepoError: f"{repo} asks for its terms to be accepted: do that at {page}, log in with `hf auth login`, "
        "and run this again",
        RepositoryNotFoundError: f"there is no public repository {repo} ({page}); if it is private, log in with "
        "`hf auth login`",
        RevisionNotFoundError: f"{repo} has no commit {card.hf_revision}: correct hf_revision in "
        f"experiments/evals/{card.name}.yaml",
    }
    try:
        yield
    except (FetchError, files.DiskFullError):
        raise
    except _NETWORK_ERRORS as error:
        first_line = str(error).strip().partition("\n")[0]
        other = (
            f"it could not be fetched ({type(error).__name__}: {first_line}). Files that came whole are kept: run this "
            "again to go on"
        )
        raise FetchError(f"evaluation set {card.name!r}: {texts.get(type(error), other)}") from error


@contextmanager
def _alone(card: EvalCard) -> Iterator[None]:
    """Keep other processes on this machine from fetching the same set."""
    path = Path(card.path) / _HIDDEN / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FetchError(
                f"evaluation set {card.name!r}: another process is fetching it ({path} is locked)"
            ) from None
        yield


def _started(card: EvalCard) -> Path:
    """Where the source of a fetch is noted that has not ended."""
    return Path(card.path) / _HIDDEN / "source.json"


def _staged(card: EvalCard) -> Path:
    """Where files lie until all have come."""
    return Path(card.path) / _HIDDEN / "files"


def _absent(card: EvalCard, sizes: Iterable[str]) -> list[str]:
    """Return the files that are not in their places: those of a set that is converted have none."""
    return [path for path in sizes if card.original or not (Path(card.path) / path).exists()]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
