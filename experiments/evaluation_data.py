"""Fetch what is missing of evaluation sets: `python -m experiments evaluation-data NAME...`.

Nothing else downloads a set. Files come from one commit of a repository on the Hugging Face Hub, or from the address
in the card. Each is compared with the digest that the Hub or the card states before it gets its name, and
``nshards.txt`` comes last, so that a set looks whole only once it is. What came from where is noted beside the set.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]
from pydantic import Field
from rich.console import Console
from rich.table import Column, Table

from engine import eval_cards, eval_data, paths
from engine.evaluation import EvalCard
from engine.spec import Frozen, parse, unknown_name
from experiments import cards, evaluation_layouts

# The HTTP library below huggingface_hub goes by several names; the Hub's own errors are derived from that library's.
_NETWORK_ERRORS: tuple[type[Exception], ...] = (*HfHubHTTPError.__bases__, OSError)
_TEXTS = ("classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt")
_HIDDEN = ".download"
"""Folder in a set's folder where files lie that are not whole yet; no part of the set's digest."""
_CONVERSION_FACTOR = 2
"""A converted set takes at most about this many times the room of its files, while both are there: judged high."""


class FetchError(ValueError):
    """A set cannot be fetched, or what came is not what was asked for."""


class RemoteFile(Frozen):
    """A file to fetch."""

    path: str
    """In the set's folder, or among the originals."""
    url: str | None = None
    """None: in the repository."""
    size: int | None
    """In bytes; None where nobody says."""
    algorithm: Literal["sha256", "git", "md5"]
    """``git`` is the SHA-1 of git's blob: what the Hub states for small files."""
    digest: str = Field(pattern=r"^[0-9a-f]{32,64}$")
    """In hexadecimal: it becomes a part of a file's name."""


class Source(Frozen):
    """Where a set comes from: written beside it."""

    repo: str | None
    revision: str | None
    """The commit that all files are of."""
    files: tuple[RemoteFile, ...]
    """What was fetched."""
    written: dict[str, int] = Field(default_factory=dict)
    """The set's files with their sizes in bytes; empty until the set is whole."""
    sha256: str | None = None
    """Of the folder, as `EvalCard.sha256`."""

    @property
    def pins(self) -> dict[str, str]:
        """The lines of a card that hold the set to this."""
        return {key: value for key in ("hf_revision", "sha256") if (value := getattr(self, key.removeprefix("hf_")))}


class Job(NamedTuple):
    """A set that is not whole, and what it lacks."""

    card: EvalCard
    source: Source
    lacking: tuple[RemoteFile, ...]

    @property
    def to_fetch_bytes(self) -> int:
        """What is still to come, as far as sizes are known."""
        return sum(max(0, (file.size or 0) - _size(_part(self.card, file))) for file in self.lacking)

    @property
    def disk_bytes(self) -> int:
        """The room that is needed."""
        sizes = sum(file.size or 0 for file in self.source.files)
        return self.to_fetch_bytes + (_CONVERSION_FACTOR * sizes if self.card.original else 0)


def source_path(card: EvalCard) -> Path:
    """Where a set's source is noted."""
    folder = Path(card.path)
    return folder.with_name(f"{folder.name}.source.json")


def noted(card: EvalCard) -> Source:
    """Read where a set that was fetched here comes from."""
    return parse(Source, source_path(card).read_text(encoding="utf-8"), str(source_path(card)))


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


def is_whole(card: EvalCard) -> bool:
    """Whether a set is on disk and needs nothing.

    A set that was fetched here is compared with the sizes that were noted; one that came in another way is read.

    Raises:
        FetchError: If it was fetched with another commit or digest than its card asks for now.
    """
    if not source_path(card).exists():
        if _started(card).exists():
            return False
        try:
            eval_data.read(card)
        except (FileNotFoundError, ValueError):
            return False
        return True
    source = noted(card)
    asked = {"hf_revision": card.hf_revision, "sha256": card.sha256}
    for key, value in source.pins.items():
        if asked[key] not in {None, value}:
            raise FetchError(
                f"evaluation set {card.name!r}: {card.path} was fetched with {key} {value}, its card asks for "
                f"{asked[key]}: remove {card.path} and {source_path(card)}, and run this again"
            )
    folder = Path(card.path)
    return all(_size(folder / path) == size for path, size in source.written.items())


def plan(card: EvalCard) -> Job:
    """Ask where a set's files are, and compare those that are here.

    Raises:
        FetchError: If that cannot be found out, or if a file that is here differs.
    """
    source = _source(card)
    lacking = tuple(file for file in source.files if not _is_here(card, source, file))
    if card.original and Path(card.path).exists() and not _started(card).exists():
        strange = sorted(path.name for path in Path(card.path).iterdir() if path.name != _HIDDEN)
        if strange:
            raise FetchError(
                f"evaluation set {card.name!r}: {card.path} holds {', '.join(strange[:5])}, and is not what its card "
                f"says ({_why_not(card)}): remove {card.path}, and run this again"
            )
    return Job(card, source, lacking)


def fetch(job: Job) -> Source:
    """Fetch what a set lacks, check it, and note where it is from.

    Raises:
        FetchError: If a file cannot be had, or is not what was asked for. What came is kept and used the next time.
    """
    card, folder = job.card, Path(job.card.path)
    hidden = folder / _HIDDEN
    with _alone(card):
        paths.write_text(_started(card), job.source.model_dump_json(indent=1) + "\n")
        for file in job.lacking:
            _download(card, job.source, file)
        if card.original:
            shutil.rmtree(hidden / "new", ignore_errors=True)
            with paths.explain_full_disk(hidden / "new"):
                evaluation_layouts.convert(card, hidden / "originals", hidden / "new")
            for path in _nshards_last(card, _files(hidden / "new")):
                (folder / path).parent.mkdir(exist_ok=True)
                (hidden / "new" / path).replace(folder / path)
        try:
            data = eval_data.read(card)
        except ValueError as error:
            raise FetchError(
                f"{error}\nIts files are whole: they are those of {_origin(job.source)}. Its card is made for other "
                f"content: correct experiments/evals/{card.name}.yaml, or give another hf_revision there, remove "
                f"{folder} and run this again"
            ) from None
        written = {path: (folder / path).stat().st_size for path in _files(folder)}
        source = job.source.model_copy(update={"written": written, "sha256": data.sha256})
        paths.write_text(source_path(card), source.model_dump_json(indent=1) + "\n")
        shutil.rmtree(hidden)
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
    paths.write_text(path, text)


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
    whole = {card.name for card in to_fetch if is_whole(card)}
    unknown = [card for card in to_fetch if card.name not in whole and not eval_cards.can_be_fetched(card)]
    if unknown:
        raise FetchError(eval_cards.missing(unknown))
    jobs = [plan(card) for card in to_fetch if card.name not in whole]
    console.print(_table(chosen, whole, jobs))
    _check_room(jobs)
    if dry_run:
        return
    for number, job in enumerate(jobs, start=1):
        console.print(f"{number}/{len(jobs)} {job.card.name} from {_origin(job.source)}", highlight=False)
        source = fetch(job)
        if not pin_cards and job.card.revision == "unpinned":
            lines = ", ".join(f"{key}: {value}" for key, value in source.pins.items())
            console.print(f"  --pin would write {lines} into experiments/evals/{job.card.name}.yaml", highlight=False)
    for card in to_fetch:
        if pin_cards and source_path(card).exists():
            pin(card, noted(card))
    wrong = eval_data.problems(to_fetch)  # what it counts is remembered: the workflow asks the same
    if wrong:
        raise FetchError("\n".join(wrong))
    console.print(
        "all evaluation sets are there" if to_fetch else "none of these sets is fetched: the workflow makes it"
    )


def _table(chosen: Sequence[EvalCard], whole: set[str], jobs: Sequence[Job]) -> Table:
    found = {job.card.name: job for job in jobs}
    right = [Column(title, justify="right") for title in ("Size", "To fetch")]
    table = Table("Set", "State", *right, "From", Column("Licence", overflow="fold"))
    for card in chosen:
        job = found.get(card.name)
        state = "there" if card.name in whole else "the workflow makes it"
        size = to_fetch = origin = ""
        if job:
            state = "missing" if len(job.lacking) == len(job.source.files) else "in part"
            size = _amount(job.source.files, sum(file.size or 0 for file in job.source.files))
            to_fetch, origin = _amount(job.lacking, job.to_fetch_bytes), _origin(job.source)
        table.add_row(card.name, state, size, to_fetch, origin, card.licence)
    lacking = [file for job in jobs for file in job.lacking]
    table.add_section()
    table.add_row("all", "", "", _amount(lacking, sum(job.to_fetch_bytes for job in jobs)), "", "")
    return table


def _amount(files: Sequence[RemoteFile], num_bytes: int) -> str:
    unknown = any(file.size is None for file in files)
    return f"{num_bytes / 1e6:,.1f} MB" + (" or more" if unknown else "")


def _check_room(jobs: Sequence[Job]) -> None:
    """Refuse to start what cannot end.

    Raises:
        FetchError: Naming what is needed and what is free.
    """
    needed: dict[int, int] = {}
    places: dict[int, Path] = {}
    for job in jobs:
        place = Path(job.card.path).absolute()
        while not place.exists():
            place = place.parent
        device = place.stat().st_dev
        needed[device] = needed.get(device, 0) + job.disk_bytes
        places.setdefault(device, place)
    for device, place in places.items():
        free = shutil.disk_usage(place).free
        if needed[device] > free:
            raise FetchError(
                f"no room: the missing sets need {needed[device] / 1e9:,.2f} GB below {place}, {free / 1e9:,.2f} GB "
                "are free. Make room, link the folder to a larger disk, or name fewer sets"
            )


def _source(card: EvalCard) -> Source:
    """Return where a set's files are. What was begun, or is to be mended, is done with the commit it began with."""
    for path in (_started(card), source_path(card)):
        if path.exists():
            source = parse(Source, path.read_text(encoding="utf-8"), str(path))
            if card.hf_revision in {None, source.revision}:
                return source.model_copy(update={"written": {}, "sha256": None})
    if card.original and card.original.url:
        return _of_address(card, card.original.url)
    with _explained(card):
        return _of_hub(card)


def _of_hub(card: EvalCard) -> Source:
    assert card.hf_repo is not None
    api = HfApi()
    revision = api.dataset_info(card.hf_repo, revision=card.hf_revision).sha
    tree = api.list_repo_tree(card.hf_repo, repo_type="dataset", revision=revision, recursive=True)
    found = {item.path: item for item in tree if isinstance(item, RepoFile)}
    if card.original:
        wanted = [path for path in card.original.files if path in found]
        absent = sorted(set(card.original.files) - found.keys())
    else:
        of_split = re.compile(rf"{re.escape(card.split)}/(nshards\.txt|\d+\.tar)")
        wanted = [path for path in found if path in _TEXTS or of_split.fullmatch(path)]
        absent = [path for path in [f"{card.split}/nshards.txt"] if path not in found]
    if absent:
        raise FetchError(
            f"evaluation set {card.name!r}: no {', '.join(absent)} in {card.hf_repo} at commit {revision}: it is not "
            "in the layout that its card names"
        )
    files = []
    for path in _nshards_last(card, wanted):
        item = found[path]
        large = item.lfs
        algorithm: Literal["sha256", "git"] = "sha256" if large else "git"
        digest = large.sha256 if large else item.blob_id
        files.append(RemoteFile(path=path, size=item.size, algorithm=algorithm, digest=digest))
    return Source(repo=card.hf_repo, revision=revision, files=tuple(files))


def _of_address(card: EvalCard, url: str) -> Source:
    assert card.original is not None
    assert card.original.md5 is not None
    with _explained(card):
        size = get_hf_file_metadata(url, token=False, retry_on_errors=True).size
    (name,) = card.original.files
    file = RemoteFile(path=name, url=url, size=size, algorithm="md5", digest=card.original.md5)
    return Source(repo=None, revision=None, files=(file,))


def _is_here(card: EvalCard, source: Source, file: RemoteFile) -> bool:
    """Whether a file is here and is what was asked for.

    Raises:
        FetchError: If it is another.
    """
    place = _place(card, file)
    if not place.exists():
        return False
    size = place.stat().st_size
    if file.size in {None, size} and _digest(place, file.algorithm) == file.digest:
        return True
    raise FetchError(
        f"evaluation set {card.name!r}: {place} ({size:,} bytes) is not the file of {_url(source, file)} "
        f"({'unknown size' if file.size is None else f'{file.size:,} bytes'}): remove it if it is not wanted, and run "
        "this again"
    )


def _download(card: EvalCard, source: Source, file: RemoteFile) -> None:
    part, place, url = _part(card, file), _place(card, file), _url(source, file)
    part.parent.mkdir(parents=True, exist_ok=True)
    if file.size is None or _size(part) > file.size:
        part.unlink(missing_ok=True)
    # A token is for the Hub only.
    headers = build_hf_headers(token=None if source.repo else False) | {"Accept-Encoding": "identity"}
    full_disk = paths.explain_full_disk(place, temporary=part, num_bytes=file.size)
    with _explained(card, file), full_disk, part.open("ab") as out:
        http_get(
            url,
            out,
            resume_size=_size(part),
            headers=headers,
            expected_size=file.size,
            displayed_filename=f"{card.name} {file.path}",
        )
        out.flush()
        os.fsync(out.fileno())
    if _digest(part, file.algorithm) != file.digest:
        part.unlink()
        raise FetchError(
            f"evaluation set {card.name!r}: what came from {url} has not the digest ({file.algorithm} "
            f"{file.digest}) that {'the Hub' if source.repo else 'its card'} states, and was thrown away: run this "
            "again; if it happens again, the file was changed, or something between here and there changes it"
        )
    place.parent.mkdir(parents=True, exist_ok=True)
    part.replace(place)


@contextmanager
def _explained(card: EvalCard, file: RemoteFile | None = None) -> Iterator[None]:
    """Say what to do about what the network's errors mean."""
    what = f"evaluation set {card.name!r}" + (f", {file.path}" if file else "")
    page = f"https://huggingface.co/datasets/{card.hf_repo}"
    try:
        yield
    except (FetchError, paths.DiskFullError):
        raise
    except OfflineModeIsEnabled:
        raise FetchError(f"{what}: the Hugging Face Hub is switched off by HF_HUB_OFFLINE; unset it to fetch") from None
    except GatedRepoError:
        raise FetchError(
            f"{what}: {card.hf_repo} asks for its terms to be accepted: do that at {page}, log in with "
            "`hf auth login`, and run this again"
        ) from None
    except RepositoryNotFoundError:
        raise FetchError(
            f"{what}: there is no public repository {card.hf_repo} ({page}); if it is private, log in with "
            "`hf auth login`"
        ) from None
    except RevisionNotFoundError:
        raise FetchError(
            f"{what}: {card.hf_repo} has no commit {card.hf_revision}: correct hf_revision in "
            f"experiments/evals/{card.name}.yaml"
        ) from None
    except _NETWORK_ERRORS as error:
        lines = str(error).strip().splitlines()
        raise FetchError(
            f"{what}: it could not be fetched ({type(error).__name__}: {lines[0] if lines else ''}). What came so far "
            "is kept: run this again to go on"
        ) from error


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


def _place(card: EvalCard, file: RemoteFile) -> Path:
    folder = Path(card.path)
    return folder / _HIDDEN / "originals" / file.path if card.original else folder / file.path


def _part(card: EvalCard, file: RemoteFile) -> Path:
    return Path(card.path) / _HIDDEN / f"{file.digest}.part"


def _files(folder: Path) -> list[str]:
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if not f"/{name}".count("/."))


def _nshards_last(card: EvalCard, names: Sequence[str]) -> list[str]:
    return sorted(names, key=lambda name: (name == f"{card.split}/nshards.txt", name))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _origin(source: Source) -> str:
    return f"{source.repo}@{source.revision}" if source.repo else _url(source, source.files[0])


def _url(source: Source, file: RemoteFile) -> str:
    if file.url is not None:
        return file.url
    assert source.repo is not None
    return hf_hub_url(source.repo, file.path, repo_type="dataset", revision=source.revision)


def _why_not(card: EvalCard) -> str:
    try:
        eval_data.read(card)
    except FileNotFoundError:
        return f"it has no {card.split}/nshards.txt"
    except ValueError as error:
        return str(error)
    return "it is now"


def _digest(path: Path, algorithm: str) -> str:
    makers: dict[str, Callable[[], hashlib._Hash]] = {"sha256": hashlib.sha256, "md5": hashlib.md5, "git": hashlib.sha1}
    digest = makers[algorithm]()
    if algorithm == "git":
        digest.update(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
