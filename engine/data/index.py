"""Index tar shards of image-text pairs, so that training can read any sample by its offset.

One sidecar per shard (offsets, sizes and checksums of its usable pairs), one `index.json` for the set, and
`rejected.csv` with what was left out and why. A pair's data set position is its shard's start plus its row. An index
step that was stopped goes on: a sidecar is made again only if its shard has changed since, or if it is damaged. Links
inside an archive are never followed, and nothing is ever extracted.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import itertools
import json
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from engine import files, paths
from engine.data import order
from engine.data.archive import Damage, Member, read_members
from engine.files import file_sha256
from engine.schema.base import Frozen, canonical_json, fingerprint, parse
from engine.schema.run import CaptionSource, Digest
from engine.stop import end_with_parent

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
COLUMNS = ("image_offset", "image_bytes", "caption_offset", "caption_bytes", "crc32")
"""Columns of a sidecar's rows; `crc32` only where the index step read the pairs (`digest: bytes`)."""

_FORMAT = "3"
"""Raised when a sidecar's content changes its meaning, so that old sidecars are made again."""

_MEMBERS_TO_LOOK_AT = 1000
"""Members of a shard, when captions are looked for."""

_OWN_SHA256 = "sidecar_sha256"
"""Key of a sidecar's digest of its own content."""

Rows = NDArray[np.uint32 | np.uint64]


class Shards(Frozen):
    """One entry per shard, in order of position. Columns, since a hundred thousand objects take long to read."""

    name: tuple[str, ...]
    num_bytes: tuple[int, ...]
    sha256: tuple[str, ...]
    usable: tuple[int, ...]
    """Pairs that can be used."""
    pairs: tuple[int, ...]
    """Usable pairs that belong to the set: all, unless it is a subset."""


class Index(Frozen):
    """The index of a training set."""

    name: str
    revision: str
    folder: str
    captions: CaptionSource
    digest: Digest
    fraction: float
    pairs: int
    rejected: int
    """Lines of `rejected.csv`."""
    sha256: str
    shards: Shards

    @model_validator(mode="after")
    def _adds_up(self) -> Index:
        shards = self.shards
        columns = (shards.name, shards.num_bytes, shards.sha256, shards.usable, shards.pairs)
        if len(set(map(len, columns))) > 1:
            raise ValueError("the columns of 'shards' are not of the same length")
        if sum(shards.pairs) != self.pairs:
            raise ValueError(f"'shards.pairs' sums up to {sum(shards.pairs)}, 'pairs' is {self.pairs}")
        if self.fraction == 1 and shards.pairs != shards.usable:
            raise ValueError("'shards.pairs' is not 'shards.usable', although 'fraction' is 1")
        if self.sha256 != _content_sha256(shards.sha256, self.digest, self.fraction):
            raise ValueError("'sha256' is not that of 'shards.sha256', 'digest' and 'fraction'")
        return self

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """Pairs in each shard, in order of position."""
        return self.shards.pairs

    @functools.cached_property
    def starts(self) -> NDArray[np.int64]:
        """First position of each shard, and one past the last position: shape (shards + 1,)."""
        return _starts(self.shards.pairs)

    @functools.cached_property
    def _usable_starts(self) -> NDArray[np.int64]:
        return _starts(self.shards.usable)

    def read_rows(self, index_path: Path, shard: int) -> Rows:
        """Return the rows of a shard's pairs, shape (pairs, 5), or (pairs, 4) without checksums; see `COLUMNS`.

        Args:
            index_path: Where this index was read from.
            shard: Number of the shard.

        Raises:
            ValueError: If the sidecar is missing, damaged, or of another version of the shard, or not what the index
                says.
        """
        name = self.shards.name[shard]
        path = _sidecar(_sidecar_folder(index_path, self.folder, self.captions, self.digest), name)
        try:
            facts, rows = _read_sidecar(path)
        except ValueError as error:
            raise ValueError(f"data set {self.name!r}: {error}: {_again(index_path)}") from None
        if facts.get("sha256") != self.shards.sha256[shard]:
            raise ValueError(f"data set {self.name!r}: shard {name} was indexed anew, or never: {_again(index_path)}")
        usable = len(rows)
        if self.fraction < 1:
            rows = rows[_chosen(int(self._usable_starts[shard]), usable, self.fraction)]
        found, said = (usable, len(rows)), (self.shards.usable[shard], self.shards.pairs[shard])
        if found != said:
            raise ValueError(
                f"{index_path}: shard {name} has {found[0]} usable pairs, {found[1]} of them in the set; 'shards' says "
                f"{said[0]} and {said[1]}. The file was changed: {_again(index_path)}"
            )
        return rows


class Rejected(NamedTuple):
    """A sample that was left out, and why; without a key it is about the shard."""

    shard: str
    key: str
    reason: str


class _Indexed(NamedTuple):
    """A shard's part of the index."""

    name: str
    num_bytes: int
    sha256: str
    usable: int
    rejected: list[Rejected]


def read_index(path: Path) -> Index:
    """Load an index written by `build_index`.

    Raises:
        ValueError: If it is not one, or of an earlier version.
    """
    try:
        return parse(Index, files.read_text(path), str(path))
    except ValueError as error:
        raise ValueError(f"{error}\n{_again(path)}") from None


def rejected_path(index_path: Path) -> Path:
    """Return where an index step reports what it left out, and why."""
    return index_path.with_name("rejected.csv")


def caption_texts(data: bytes, captions: CaptionSource) -> list[str]:
    """Return a sample's captions, blank ones left out.

    Args:
        data: Content of the caption member.
        captions: Where captions lie.

    Raises:
        ValueError: If there is none; the message says why.
    """
    text = data.decode("utf-8", errors="replace")
    found: Any = text
    if captions.field is not None:
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError(f"the .{captions.member} is not valid JSON") from None
        found = fields.get(captions.field) if isinstance(fields, dict) else None
    texts = [each for each in (found if isinstance(found, list) else [found]) if isinstance(each, str)]
    # JSON can spell halves of characters, which no tokenizer takes.
    texts = [each.encode("utf-8", errors="replace").decode("utf-8") for each in texts if each.strip()]
    if not texts:
        place = f"no text in field {captions.field!r} of the" if captions.field is not None else "blank"
        raise ValueError(f"{place} .{captions.member} caption")
    return texts


def pair_crc32(image: bytes, caption: bytes) -> int:
    """Return the checksum of a pair: CRC-32 of the image member followed by the caption member."""
    return zlib.crc32(caption, zlib.crc32(image))


def index_shard(path: Path, captions: CaptionSource, digest: Digest = "bytes") -> tuple[Rows, list[Rejected], str]:
    """Read one shard's member table, and with `digest` "bytes" its pairs.

    Returns:
        Rows as in `COLUMNS`, (pairs, 5), (pairs, 4) for `digest` "members"; uint32 if the shard is smaller than 4 GiB,
        else uint64; the rejected samples; and the digest (hex).
    """
    samples: dict[str, dict[str, Member]] = {}
    rejected: list[Rejected] = []
    duplicates: set[str] = set()
    shard_bytes = path.stat().st_size
    table = hashlib.sha256(f"{shard_bytes}\n".encode())
    for member in read_members(path):
        if isinstance(member, Damage):
            rejected.append(Rejected(path.name, "", member.reason))
            continue
        line = f"{member.name}\0{member.is_file:d} {member.offset} {member.num_bytes}\n"
        table.update(line.encode("utf-8", "surrogateescape"))
        key, extension = member.key_and_extension
        fields = samples.setdefault(key, {})
        if extension in fields:
            duplicates.add(key)
        fields[extension] = member
    rows: list[tuple[int, ...]] = []
    with path.open("rb", buffering=0) as file:
        for key, fields in samples.items():
            image = next((fields[e] for e in IMAGE_EXTENSIONS if e in fields), None)
            caption = fields.get(captions.member)
            if key in duplicates:
                reason = "the key occurs twice"
            elif any(member.name.startswith("/") or ".." in member.name.split("/") for member in fields.values()):
                reason = "the name leads out of the archive"
            elif image is None:
                reason = "no image"
            elif caption is None:
                reason = f"no .{captions.member} caption"
            elif not (image.is_file and caption.is_file):
                reason = "a link or a device instead of a file"
            elif image.num_bytes == 0:
                reason = "empty image"
            elif caption.num_bytes == 0:
                reason = f"empty .{captions.member} caption"
            else:
                row = (image.offset, image.num_bytes, caption.offset, caption.num_bytes)
                if digest == "members":
                    rows.append(row)
                    continue
                caption_data = os.pread(file.fileno(), caption.num_bytes, caption.offset)
                try:
                    caption_texts(caption_data, captions)
                except ValueError as error:
                    reason = str(error)
                else:
                    image_data = os.pread(file.fileno(), image.num_bytes, image.offset)
                    rows.append((*row, pair_crc32(image_data, caption_data)))
                    continue
            rejected.append(Rejected(path.name, key, reason))
    sha256 = file_sha256(path) if digest == "bytes" else table.hexdigest()
    columns = COLUMNS if digest == "bytes" else COLUMNS[:-1]
    wide = np.array(rows, dtype=np.uint64).reshape(-1, len(columns))
    return wide if shard_bytes >= 2**32 else wide.astype(np.uint32), rejected, sha256


def count_pairs(
    folder: Path, captions: CaptionSource, digest: Digest = "bytes", jobs: int = 1
) -> tuple[int, list[Rejected]]:
    """Return how many pairs of all ``*.tar`` of a folder an index would have, and what it would leave out."""
    shards = sorted(folder.glob("*.tar"))
    count = functools.partial(_count_one, captions=captions, digest=digest)
    with ProcessPoolExecutor(min(jobs, len(shards)), initializer=end_with_parent) as pool:
        counted = list(track(pool.map(count, shards), "pairs", len(shards), disable=not sys.stderr.isatty()))
    return sum(usable for usable, _ in counted), [each for _, rejected in counted for each in rejected]


def _count_one(path: Path, captions: CaptionSource, digest: Digest) -> tuple[int, list[Rejected]]:
    rows, rejected, _ = index_shard(path, captions, digest)
    return len(rows), rejected


def caption_places(shard: Path) -> dict[CaptionSource, str]:
    """Return where texts lie beside the pictures of a shard, with the first of them: in half of the samples or more.

    Only the first samples are looked at.
    """
    samples: dict[str, dict[str, Member]] = {}
    for member in itertools.islice(read_members(shard), _MEMBERS_TO_LOOK_AT):
        if isinstance(member, Member) and member.is_file:
            key, extension = member.key_and_extension
            samples.setdefault(key, {})[extension] = member
    samples = {key: fields for key, fields in samples.items() if fields.keys() & set(IMAGE_EXTENSIONS)}
    found: dict[CaptionSource, list[str]] = {}
    with shard.open("rb", buffering=0) as file:
        for fields in samples.values():
            for name in ("txt", "json"):
                if (text := fields.get(name)) is not None:
                    data = os.pread(file.fileno(), text.num_bytes, text.offset)
                    for captions in _places_in(data, name):
                        with contextlib.suppress(ValueError):
                            found.setdefault(captions, []).append(caption_texts(data, captions)[0])
    return {captions: texts[0] for captions, texts in found.items() if 2 * len(texts) >= len(samples)}


def _places_in(data: bytes, member: str) -> list[CaptionSource]:
    """Return where captions may lie in a member: in the text, or in the fields of a JSON."""
    if member != "json":
        return [CaptionSource(member=member)]
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        return []
    return [CaptionSource(member=member, field=field) for field in fields] if isinstance(fields, dict) else []


@contextlib.contextmanager
def _alone(*folders: Path) -> Iterator[None]:
    """Wait for other index steps of the same shards, whose sidecars are then found; tidy up after killed ones."""
    with files.locked(folders[-1] / "lock"):
        for folder in folders:
            files.remove_temporaries(folder)
        yield


def _index_one(path: Path, captions: CaptionSource, digest: Digest, folder: Path) -> _Indexed:
    """Index a shard, or find that its sidecar is still good."""
    stat = path.stat()
    facts = {
        "format": _FORMAT,
        "bytes": str(stat.st_size),
        "mtime_ns": str(stat.st_mtime_ns),
        "captions": canonical_json(captions),
        "digest": digest,
    }
    sidecar = _sidecar(folder, path.name)
    try:
        known, _ = _read_sidecar(sidecar)
    except ValueError as error:
        sys.stderr.write(f"{error}: making it again\n")
        known = {}
    if not facts.items() <= known.items():
        rows, rejected, sha256 = index_shard(path, captions, digest)
        known = {**facts, "sha256": sha256, "usable": str(len(rows)), "rejected": json.dumps(rejected)}
        with files.atomic_write(sidecar) as temporary:
            save_file({"rows": rows}, temporary, metadata={**known, _OWN_SHA256: _sidecar_sha256(known, rows)})
    rejected = [Rejected(*each) for each in json.loads(known["rejected"])]
    return _Indexed(path.name, stat.st_size, known["sha256"], int(known["usable"]), rejected)


def _read_sidecar(sidecar: Path) -> tuple[dict[str, str], Rows]:
    """Return what a sidecar says of its shard, and its rows; nothing if there is none of this version.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        with safe_open(sidecar, framework="numpy") as file:
            facts, rows = dict(file.metadata() or {}), file.get_tensor("rows")
    except FileNotFoundError:
        return {}, np.empty((0, len(COLUMNS)), np.uint32)
    except SafetensorError as error:
        raise ValueError(f"{sidecar} is damaged ({error})") from None
    if facts.get("format") != _FORMAT:
        return {}, rows
    if facts.pop(_OWN_SHA256, "") != _sidecar_sha256(facts, rows):
        raise ValueError(f"{sidecar} is damaged (its content is not what its digest says)")
    return facts, rows


def _sidecar_sha256(facts: dict[str, str], rows: Rows) -> str:
    """Return the digest of all that a sidecar holds."""
    about = json.dumps([sorted(facts.items()), str(rows.dtype), rows.shape])
    digest = hashlib.sha256(about.encode())
    digest.update(np.ascontiguousarray(rows).data)
    return digest.hexdigest()


def _sidecar(folder: Path, shard: str) -> Path:
    return folder / f"{shard}.safetensors"


def _sidecar_folder(index_path: Path, folder: str, captions: CaptionSource, digest: Digest) -> Path:
    # Sets over the same shards (subsets) share their sidecars.
    key = fingerprint({"folder": folder, "captions": captions.model_dump(mode="json"), "digest": digest})
    return paths.sidecars(index_path, key[:12])


def _content_sha256(digests: Sequence[str], digest: Digest, fraction: float) -> str:
    """Return the digest of a set, from those of its shards."""
    content: Any = list(digests)
    if digest != "bytes" or fraction < 1:
        content = {"shards": content, "digest": digest, "fraction": fraction}
    return fingerprint(content)


def _again(index_path: Path) -> str:
    return f"index the data set again (`snakemake -f {index_path}`)"


def _starts(sizes: tuple[int, ...]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(np.array(sizes, dtype=np.int64))]).astype(np.int64)


def _chosen(start: int, usable: int, fraction: float) -> NDArray[np.bool_]:
    """Tell which of a shard's pairs a subset has: those whose position in the whole set hashes low enough."""
    keys = order.hash_keys(np.arange(start, start + usable), seed=0, epoch=0, purpose=order.SUBSET_KEYS)
    limit = int(fraction * 2**64)
    # Keys below the limit, which is 2^64 at most; below 2^-64 a fraction is none at all.
    return keys <= np.uint64(limit - 1) if limit else np.zeros(usable, dtype=np.bool_)


def subset_size(usable: int, fraction: float) -> int:
    """Return how many pairs a subset of a set with `usable` pairs has, which their number alone decides."""
    step = 1 << 14  # what fits into the cache of a processor
    return sum(int(np.count_nonzero(_chosen(i, min(step, usable - i), fraction))) for i in range(0, usable, step))


def build_index(
    name: str,
    revision: str,
    folder: Path,
    captions: CaptionSource,
    out: Path,
    *,
    pairs: int | None,
    digest: Digest = "bytes",
    fraction: float = 1.0,
    jobs: int = 1,
) -> Index:
    """Index every ``*.tar`` of `folder` and write `out` last; `rejected.csv` beside it says what was left out.

    Args:
        name: Name of the data set.
        revision: The card's revision, carried along so that training can compare.
        folder: Where the shards lie.
        captions: Where captions lie.
        out: Path of the `index.json` to write.
        pairs: Pairs that the card promises; None skips the comparison.
        digest: What to read of the shards.
        fraction: Share of the usable pairs that the set has, in (0, 1]; a smaller subset lies within a larger one.
        jobs: Processes.

    Raises:
        FileNotFoundError: If there are no shards.
        ValueError: If the number of usable pairs is not the promised one.
    """
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        raise FileNotFoundError(
            f"data set {name!r}: no *.tar shards in {folder}. Fetch the data there, or correct 'shards' in its card."
        )
    sidecars = _sidecar_folder(out, str(folder), captions, digest)
    index_one = functools.partial(_index_one, captions=captions, digest=digest, folder=sidecars)
    columns: list[tuple[str, int, str, int]] = []
    examples: list[Rejected] = []
    num_rejected = 0
    with (
        _alone(out.parent, sidecars),
        files.atomic_write(rejected_path(out)) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace") as file,
        ProcessPoolExecutor(min(jobs, len(shards)), initializer=end_with_parent) as pool,
    ):
        report = csv.writer(file, lineterminator="\n")
        report.writerow(Rejected._fields)
        results = pool.map(index_one, shards)
        for shard in track(results, f"index {name}", len(shards), disable=not sys.stderr.isatty()):
            columns.append(shard[:4])
            report.writerows(shard.rejected)
            examples += shard.rejected[: 5 - len(examples)]
            num_rejected += len(shard.rejected)
    names, num_bytes, digests, usable = zip(*columns, strict=True)
    sizes = usable
    if fraction < 1:
        sizes = tuple(int(_chosen(*part, fraction).sum()) for part in zip(_starts(usable), usable, strict=False))
    total = sum(sizes)
    if pairs is not None and total != pairs:
        lines = "".join(f"\n  {r.shard}: {r.key or '(whole)'}: {r.reason}" for r in examples)
        whole = f" (in the card of the whole set to {sum(usable)})" if fraction < 1 else ""
        raise ValueError(
            f"data set {name!r}: {folder} holds {total} usable pairs, its card says {pairs}. Fetch what is missing, "
            f"or set 'pairs' in its card, {name}.yaml, to {total}{whole}. Left out: {num_rejected}, see "
            f"{rejected_path(out)}{lines}"
        )
    index = Index(
        name=name,
        revision=revision,
        folder=str(folder),
        captions=captions,
        digest=digest,
        fraction=fraction,
        pairs=total,
        rejected=num_rejected,
        sha256=_content_sha256(digests, digest, fraction),
        shards=Shards(name=names, num_bytes=num_bytes, sha256=digests, usable=usable, pairs=sizes),
    )
    files.write_text(out, json.dumps(index.model_dump(mode="json"), indent=1) + "\n")
    return index
