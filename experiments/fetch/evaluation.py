"""Fetch what is missing of evaluation sets: `python -m experiments evaluation-data NAME...`.

Nothing else downloads a set. Files come from one commit of a repository on the Hugging Face Hub, or from the address
in the card, into a hidden folder. They move to their places once all have the digests that the Hub or the card states,
``nshards.txt`` last, so that a set looks whole only once it is. Where it came from is noted beside the set.
"""

from __future__ import annotations

import glob
import hashlib
import re
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
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
from pydantic import ConfigDict
from rich.console import Console
from rich.table import Column, Table

from engine import files
from engine.evaluation import card_files, reading
from engine.evaluation.digest import folder_digest
from engine.schema.base import Frozen, parse, unknown_name
from engine.schema.evaluation import EvalCard
from experiments.design import cards
from experiments.fetch import download, layouts

# The HTTP library below huggingface_hub goes by several names; the Hub's own errors are derived from that library's.
_NETWORK_ERRORS: tuple[type[Exception], ...] = (*HfHubHTTPError.__bases__, *download.ERRORS)
_TEXTS = ("classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt")
_HIDDEN = ".download"
"""Folder in a set's folder for what is not whole yet; no part of the set's digest."""
_CONVERSION_FACTOR = 2
"""Room that a converted set takes at most, as a multiple of its files: a high estimate."""


class FetchError(ValueError):
    """A set cannot be fetched, or what came is not what was asked for."""


class UnreachableError(FetchError):
    """Where a set would come from cannot be asked: there is no connection, or none is wanted."""


class Source(Frozen):
    """The origin of a set: noted beside it when its fetch begins."""

    repo: str | None = None
    revision: str | None = None
    """The commit that all files are of."""
    url: str | None = None
    """Of a set that comes from no repository."""
    sha256: str | None = None
    """Of the folder, as `EvalCard.sha256`; None until the set is whole."""

    model_config = ConfigDict(extra="ignore")  # notes of earlier versions say more

    @property
    def pins(self) -> dict[str, str]:
        """The lines of a card that hold the set to this."""
        return {key: value for key in ("hf_revision", "sha256") if (value := getattr(self, key.removeprefix("hf_")))}

    def __str__(self) -> str:
        return self.url or f"{self.repo}@{self.revision}"


class Fetch(NamedTuple):
    """A set that is not whole, and what it lacks."""

    card: EvalCard
    source: Source
    sizes: dict[str, int]
    """Of all its files at the source, in bytes."""

    @property
    def staged(self) -> Path:
        """Folder of the files that have come, until all have."""
        return Path(self.card.path) / _HIDDEN / "files"

    @property
    def absent(self) -> list[str]:
        """The files that are not in their places: those of a set that is converted have none."""
        return [name for name in self.sizes if self.card.original or not (Path(self.card.path) / name).exists()]

    @property
    def to_fetch_bytes(self) -> int:
        """Size of what is still to come."""
        return sum(self.sizes[name] for name in self.absent if not (self.staged / name).exists())

    @property
    def disk_bytes(self) -> int:
        """The room that is needed."""
        return self.to_fetch_bytes + (_CONVERSION_FACTOR * sum(self.sizes.values()) if self.card.original else 0)


def source_path(card: EvalCard) -> Path:
    """Return where a set's source is noted."""
    folder = Path(card.path)
    return folder.with_name(f"{folder.name}.source.json")


def read_source(card: EvalCard) -> Source | None:
    """Return where a set that was fetched here comes from, or one whose fetch was stopped."""
    path = source_path(card)
    return parse(Source, files.read_text(path), str(path)) if path.exists() else None


def resolve(names: Sequence[str]) -> list[EvalCard]:
    """Return the cards of sets, each once, by their names or those of evaluations, or by their files.

    Raises:
        ValueError: If a name is unknown.
    """
    found: dict[str, EvalCard] = {}
    for name in names:
        if name in cards.names("evaluations") or name.endswith(card_files.SUFFIX):
            found |= cards.evaluation(name).sets
        elif name in cards.names("evals"):
            found[name] = cards.eval_set(name)
        else:
            known = {*cards.names("evaluations"), *cards.names("evals")}
            raise ValueError(unknown_name("evaluation or evaluation set", name, known))
    return list(found.values())


def lack(card: EvalCard) -> str | None:
    """Return what is wrong with a set on disk; None if it is whole.

    Raises:
        FetchError: If it was fetched with another commit or digest than its card asks for now.
    """
    source = read_source(card)
    if source is not None and source.sha256 is None:
        return "its fetch was stopped"
    for key, value in source.pins.items() if source else ():
        asked = getattr(card, key)
        if asked not in {None, value}:
            raise FetchError(
                f"evaluation set {card.name!r}: {card.path} was fetched with {key} {value}, its card asks for {asked}: "
                f"remove {card.path} and {source_path(card)}, and run this again"
            )
    if not card_files.is_there(card):
        return f"it has no {card.split}/nshards.txt"
    sha256 = source.sha256 if source else card.sha256
    if sha256 not in {None, folder_digest(Path(card.path))}:
        return f"its digest is not {sha256}"
    return next(iter(reading.problems([card])), None)


def plan(card: EvalCard, problem: str) -> Fetch:
    """Ask where a set's files are, and compare those that are here.

    Args:
        card: The set.
        problem: Why it is not whole, as `lack` says.

    Raises:
        FetchError: If that cannot be found out, or if a file that is here differs.
    """
    folder, begun = Path(card.path), read_source(card)
    if card.original and folder.exists() and (begun is None or begun.sha256):
        strange = sorted(path.name for path in folder.iterdir() if path.name != _HIDDEN)
        if strange:
            raise FetchError(
                f"evaluation set {card.name!r}: {folder} holds {', '.join(strange[:5])}, and is not what its card says "
                f"({problem}): remove {folder}, and run this again"
            )
    with _explained(card):
        source = _source(card, begun)
        job = Fetch(card, source, _sizes(card, source))
        here = job.sizes.keys() - job.absent
        for name in _wrong(job, folder, here) if here else ():
            raise FetchError(
                f"evaluation set {card.name!r}: {folder / name} ({(folder / name).stat().st_size:,} bytes) is not the "
                f"file of {source} ({job.sizes[name]:,} bytes): remove it if it is not wanted, and run this again"
            )
    return job


def fetch(job: Fetch) -> Source:
    """Fetch what a set lacks, check it, and note where it is from.

    Raises:
        FetchError: If a file cannot be had, or is not what was asked for. Files that came whole are kept and used the
            next time.
    """
    card, folder = job.card, Path(job.card.path)
    hidden = folder / _HIDDEN
    with _alone(card):
        files.write_text(source_path(card), job.source.model_dump_json(indent=1) + "\n")
        _download(job)
        whole = job.staged
        if card.original:
            whole = hidden / "converted"
            shutil.rmtree(whole, ignore_errors=True)
            with files.explain_full_disk(whole):
                layouts.convert(card, job.staged, whole)
        for name in sorted(files.folder_files(whole), key=lambda name: (name == f"{card.split}/nshards.txt", name)):
            (folder / name).parent.mkdir(exist_ok=True)
            (whole / name).replace(folder / name)
        try:
            sha256 = reading.read(card).sha256
        except ValueError as error:
            raise FetchError(
                f"{error}\nIts files are whole: they are those of {job.source}. Its card is made for other content: "
                f"correct {card.place}, or give another hf_revision there, remove {folder} and run this again"
            ) from None
        source = job.source.model_copy(update={"sha256": sha256})
        files.write_text(source_path(card), source.model_dump_json(indent=1) + "\n")
        shutil.rmtree(hidden)
    return source


def pin(card: EvalCard, source: Source) -> None:
    """Write the commit and the digest of a set that was fetched into its card."""
    file = Path(card.file) if card.file else cards.FOLDER / "evals" / f"{card.name}{card_files.SUFFIX}"
    card_files.rewrite(file, source.pins)


def run(names: Sequence[str], console: Console, *, dry_run: bool = False, pin_cards: bool = False) -> None:
    """Say what is missing of evaluations and sets, then fetch it.

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
    missing = [card for card in to_fetch if card.name in problems]
    try:
        jobs = [plan(card, problems[card.name]) for card in missing]
    except UnreachableError as error:
        if not dry_run:
            raise
        console.print(_table(chosen, [], {card.name for card in missing}))
        told = f"no sizes: they are asked for where the files are. {error}"
        console.print(told, highlight=False, markup=False, soft_wrap=True)
        return
    console.print(_table(chosen, jobs))
    _check_room(jobs)
    if dry_run:
        return
    for number, job in enumerate(jobs, start=1):
        console.print(f"{number}/{len(jobs)} {job.card.name} from {job.source}", highlight=False)
        source = fetch(job)
        if not pin_cards and job.card.revision == "unpinned":
            lines = ", ".join(f"{key}: {value}" for key, value in source.pins.items())
            console.print(f"  --pin would write {lines} into {job.card.place}", highlight=False)
    for card in to_fetch if pin_cards else ():
        if found := read_source(card):
            pin(card, found)
    console.print(
        "all evaluation sets are there" if to_fetch else "none of these sets is fetched: the workflow makes it"
    )


def _table(chosen: Sequence[EvalCard], jobs: Sequence[Fetch], unknown: Collection[str] = ()) -> Table:
    """Return the sets as rows; of those that are `unknown` nobody could be asked."""
    found = {job.card.name: job for job in jobs}
    right = [Column(title, justify="right") for title in ("Size", "To fetch")]
    table = Table("Set", "State", *right, "From", Column("Licence", overflow="fold"))
    for card in chosen:
        job = found.get(card.name)
        if card.name in unknown:
            table.add_row(card.name, "missing", "?", "?", card.hf_repo or "", card.licence)
        elif job is None:
            table.add_row(card.name, "the workflow makes it" if card.build else "there", "", "", "", card.licence)
        else:
            state = "missing" if job.to_fetch_bytes == sum(job.sizes.values()) else "in part"
            amounts = _megabytes(sum(job.sizes.values())), _megabytes(job.to_fetch_bytes)
            table.add_row(card.name, state, *amounts, str(job.source), card.licence)
    table.add_section()
    total = "?" if unknown else _megabytes(sum(job.to_fetch_bytes for job in jobs))
    table.add_row("all", "", "", total, "", "")
    return table


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"


def _check_room(jobs: Sequence[Fetch]) -> None:
    """Check that the disks have room.

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


def _source(card: EvalCard, begun: Source | None) -> Source:
    """Return where a set is from. A fetch that was begun goes on with its commit, and so does a repair."""
    if card.original and card.original.url:
        return Source(url=card.original.url)
    if begun is not None and card.hf_revision in {None, begun.revision}:
        return Source(repo=begun.repo, revision=begun.revision)
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


def _download(job: Fetch) -> None:
    """Fetch what is not in its place, and compare it with the digests that are stated.

    Raises:
        FetchError: If a file cannot be had, or differs; then it is deleted.
    """
    card, source, staged, wanted = job.card, job.source, job.staged, job.absent
    with _explained(card), files.explain_full_disk(staged, num_bytes=job.to_fetch_bytes):
        if source.repo is None:
            for name in wanted:
                if not (staged / name).exists():
                    download.download(str(source.url), staged / name, job.sizes[name])
        else:
            for path in staged.rglob("*.incomplete"):  # of a process that was killed
                path.unlink()
            # It resumes broken connections, and keeps whole files if it fails.
            snapshot_download(
                source.repo,
                repo_type="dataset",
                revision=source.revision,
                local_dir=staged,
                allow_patterns=[glob.escape(name) for name in wanted],
            )
        lost = [name for name in wanted if not (staged / name).exists()]  # the library only warns
        wrong = lost or _wrong(job, staged, wanted)
    for name in wrong:
        (staged / name).unlink(missing_ok=True)
    if wrong:
        raise FetchError(
            f"evaluation set {card.name!r}: what came of {', '.join(wrong)} from {source} has not the digest that "
            f"{'the Hub' if source.repo else 'its card'} states, and was thrown away: run this again; if it happens "
            "again, the file was changed, or something between here and there changes it"
        )


def _wrong(job: Fetch, folder: Path, wanted: Collection[str]) -> list[str]:
    """Return the files that have another digest than the Hub or the card states."""
    repo, original = job.source.repo, job.card.original
    if repo is None:
        return [name for name in wanted if original is None or _md5(folder / name) != original.md5]
    found = HfApi().verify_repo_checksums(repo, repo_type="dataset", revision=job.source.revision, local_dir=folder)
    return [item["path"] for item in found.mismatches if item["path"] in wanted]


@contextmanager
def _explained(card: EvalCard) -> Iterator[None]:
    """Explain errors of the network, and say what to do."""
    repo, page = card.hf_repo, f"https://huggingface.co/datasets/{card.hf_repo}"
    texts: dict[type[Exception], str] = {
        OfflineModeIsEnabled: "the Hugging Face Hub is switched off by HF_HUB_OFFLINE; unset it to fetch",
        GatedRepoError: f"{repo} asks for its terms to be accepted: do that at {page}, log in with `hf auth login`, "
        "and run this again",
        RepositoryNotFoundError: f"there is no public repository {repo} ({page}); if it is private, log in with "
        "`hf auth login`",
        RevisionNotFoundError: f"{repo} has no commit {card.hf_revision}: correct hf_revision in {card.place}",
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
        answered = isinstance(error, HfHubHTTPError) and not isinstance(error, OfflineModeIsEnabled)
        kind = FetchError if answered else UnreachableError
        raise kind(f"evaluation set {card.name!r}: {texts.get(type(error), other)}") from error


@contextmanager
def _alone(card: EvalCard) -> Iterator[None]:
    """Keep other processes on this machine from fetching the same set."""
    path = Path(card.path) / _HIDDEN / "lock"
    try:
        with files.locked(path, wait=False):
            yield
    except BlockingIOError:
        raise FetchError(f"evaluation set {card.name!r}: another process is fetching it ({path} is locked)") from None


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
