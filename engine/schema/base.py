"""Shared by all schemas: frozen models, error texts, canonical JSON and digests."""

from __future__ import annotations

import difflib
import hashlib
import json
import reprlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    JsonValue,
    ValidationError,
    model_validator,
)

SCHEMA_VERSION = 1
"""Raised when the meaning of a `RunSpec` field changes, so that old results are never taken for new ones."""

ModelT = TypeVar("ModelT", bound=BaseModel)
T = TypeVar("T")

ID_PATTERN = r"^[a-z0-9][a-z0-9_.-]{0,59}$"
"""Names of methods, data sets and suites. Files are called after several of them, and names of files end at 255."""


MAX_PROBLEMS = 20
"""Lines of an error that lists what is wrong."""

_REPR = reprlib.Repr()
"""Shows a value in an error: a user's may be of any size."""
_REPR.maxstring = _REPR.maxother = 200


class Frozen(BaseModel):
    """An immutable model that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Sealed(Frozen):
    """A frozen model whose file says the digest of the rest of it: one that was changed is refused."""

    content_sha256: str | None = None
    """Digest of all else that the file says, see `sealed`; None before it is written."""

    @model_validator(mode="before")
    @classmethod
    def _is_as_written(cls, said: Any) -> Any:
        # Of what the file says: keys that a later version adds have no part in its digest.
        if isinstance(said, dict) and said.get("content_sha256") is not None:
            content = {key: value for key, value in said.items() if key != "content_sha256"}
            try:
                found = fingerprint(content)
            except ValueError:
                found = "none: it says a number that is not finite"
            if found != said["content_sha256"]:
                raise ValueError(
                    "its content is not what its 'content_sha256' says, it was changed: remove the file, and run the "
                    "command that made it again"
                )
        return said

    def sealed(self) -> Self:
        """Return it with the digest of its content, to be written."""
        content = self.model_dump(mode="json", exclude={"content_sha256"})
        return self.model_copy(update={"content_sha256": fingerprint(content)})


def canonical_json(value: BaseModel | JsonValue) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, ASCII, finite numbers only."""
    data = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def settings(value: BaseModel | JsonValue, prefix: str = "") -> dict[str, str]:
    """Return all that a value says as canonical JSON by dotted name: what `explain` lists and `diff` compares."""
    data = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    if isinstance(data, dict):
        return {k: v for key, item in data.items() for k, v in settings(item, f"{prefix}{key}.").items()}
    return {prefix.removesuffix("."): canonical_json(data)}


def fingerprint(value: BaseModel | JsonValue) -> str:
    """Return the SHA-256 (hex) of the value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Say that `name` is not known, which names are, and which was probably meant."""
    names = sorted(known)
    # What is much longer than all of them was not meant to be one.
    close = difflib.get_close_matches(name, names, n=1) if len(name) < 200 else ()
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"unknown {kind} {_REPR.repr(name)}{hint} Known: {', '.join(names) or 'none'}."


def check_known(kind: str, name: str, known: Iterable[str], where: str = "") -> None:
    """Refuse a name that is not known.

    Raises:
        ValueError: As `unknown_name` says it, behind `where` if that is given.
    """
    if name not in (names := tuple(known)):
        raise ValueError((f"{where}: " if where else "") + unknown_name(kind, name, names))


@contextmanager
def located(where: str, model: type[BaseModel] = BaseModel) -> Iterator[None]:
    """Say of every error in the block where it is.

    Args:
        where: What each line of the message begins with.
        model: What is validated in the block, for the names of its keys.

    Raises:
        ValueError: In place of a `ValueError` or a pydantic error.
    """
    try:
        yield
    except ValidationError as error:
        raise ValueError(explain_validation_error(where, error, model)) from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def gathered(calls: Iterable[Callable[[], T]]) -> list[T]:
    """Return what each call returns, so that a user reads of all that is wrong at once.

    Raises:
        ValueError: With the texts of all `ValueError` that were raised, each once.
    """
    found: list[T] = []
    wrong: dict[str, None] = {}
    for call in calls:
        try:
            found.append(call())
        except ValueError as error:
            wrong[str(error)] = None
    if wrong:
        raise ValueError("\n".join(wrong))
    return found


def explain_validation_error(where: str, error: ValidationError, model: type[BaseModel]) -> str:
    """Turn a pydantic error into one line per problem: the place, what came, what is allowed."""
    lines = []
    for item in error.errors():
        *parents, last = item["loc"] or ("(whole)",)
        if item["type"] == "extra_forbidden":
            owner: Any = model
            for part in parents:
                field = getattr(owner, "model_fields", {}).get(part)
                if field is not None:  # otherwise a place in a list or a mapping of what `owner` already is
                    owner = _model_in(field.annotation)
            fields = getattr(owner, "model_fields", {}).items()
            message = unknown_name("key", str(last), [field.alias or name for name, field in fields])
        elif item["type"] == "missing":
            message = "this key is missing, and it has no default"
        else:
            message = item["msg"].removeprefix("Value error, ")
            message += "" if item["type"] == "value_error" else f" (got {_REPR.repr(item['input'])})"
        place = ".".join(_REPR.repr(part)[1:-1] if isinstance(part, str) else str(part) for part in item["loc"])
        lines.append(f"{where}: {place}: {message}" if place else f"{where}: {message}")
    more = [f"{where}: {len(lines) - MAX_PROBLEMS} more"] if len(lines) > MAX_PROBLEMS else []
    return "\n".join(lines[:MAX_PROBLEMS] + more)


def _model_in(annotation: Any) -> Any:
    """Return the model that a field holds, also one of many, or one or none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)


def validated(model: type[ModelT], said: Any) -> ModelT:
    """Return what a YAML file says as a model. Neither texts nor switches are taken for numbers.

    Raises:
        ValueError: If it is not valid: a pydantic error.
    """
    return model.model_validate_json(json.dumps(said), strict=True)


def parse(model: type[ModelT], text: str, where: str, *, strict: bool = False) -> ModelT:
    """Read a model from JSON.

    Args:
        model: The pydantic model.
        text: JSON text.
        where: What the text is, for the error message: a file, or an option.
        strict: Take neither texts nor switches for numbers, in what people write.

    Raises:
        ValueError: If it is not valid; one line per problem.
    """
    with located(where, model):
        return model.model_validate_json(text, strict=strict)
