"""Models that a suite names: open_clip's, those of `engine/models/`, and configs of one's own, by their file."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from pathlib import Path
from typing import Any

from engine import files, paths
from engine.evaluation import card_files
from engine.schema.base import unknown_name
from engine.schema.run import ModelSpec
from engine.versions import ROOT

OWN_MODELS = ROOT / "engine" / "models"
SUFFIX = ".json"
MAX_EMBED_DIM = 2**16
_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,59}$"


def model(reference: str) -> ModelSpec:
    """Return a model by its name, or by its config's file, of which a copy is kept.

    Raises:
        ValueError: If there is no such model, or if its config is none.
    """
    file = card_files.own_file(OWN_MODELS, reference, "model", SUFFIX, _PATTERN)
    known = _files()
    if file is None:
        name = Path(reference).stem if reference.endswith(SUFFIX) else reference
        if name not in known:
            raise ValueError(unknown_name("model", name, known) + f" One of your own: path/to/NAME{SUFFIX}")
        _check_towers(name, files.read_json(known[name]))
        is_ours = known[name].parent == OWN_MODELS
        return ModelSpec(name=name, config_sha256=files.file_sha256(known[name]) if is_ours else None)
    config, parts = files.read_json(file), ("embed_dim", "vision_cfg", "text_cfg")
    if not isinstance(config, dict) or not config.keys() >= set(parts):
        raise ValueError(f"model {file}: allowed is an open_clip config: a JSON with {', '.join(parts)}")
    if type(config["embed_dim"]) is not int or not 0 < config["embed_dim"] <= MAX_EMBED_DIM:
        raise ValueError(f"model {file}: embed_dim: allowed is a whole number from 1 to {MAX_EMBED_DIM}")
    _check_towers(file, config)
    if file.stem in known:
        raise ValueError(f"model {file}: open_clip has a model of this name: rename the file")
    content = file.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    copy = paths.model(sha256, file.stem)
    if not copy.exists() or copy.read_bytes() != content:
        with files.atomic_write(copy) as temporary:
            temporary.write_bytes(content)
    return ModelSpec(name=file.stem, config_sha256=sha256, is_own=True)


def _check_towers(asked: object, config: dict[str, Any]) -> None:
    """Refuse a model that is more than an image and a text tower, or whose text tower would have to be fetched.

    Raises:
        ValueError: If it is one.
    """
    if "multimodal_cfg" in config:
        raise ValueError(f"model {asked}: it has a decoder (CoCa); allowed are models of an image and a text tower")
    text = config["text_cfg"]
    name = text.get("hf_model_name") if isinstance(text, dict) else None
    if name and not Path(str(name)).is_dir():
        raise ValueError(
            f"model {asked}: its text tower {name!r} is of the Hugging Face Hub; allowed are towers of open_clip's own "
            "and of a local folder"
        )


def embed_dim(model: ModelSpec) -> int:
    """Return the width of a model's embeddings, from its config."""
    config = paths.model(str(model.config_sha256), model.name) if model.is_own else _files()[model.name]
    return int(files.read_json(config)["embed_dim"])


@functools.cache
def _files() -> dict[str, Path]:
    """Return the config files of known models, looked up without importing open_clip, which takes seconds."""
    package = importlib.util.find_spec("open_clip")
    assert package is not None
    assert package.origin is not None
    folders = (Path(package.origin).parent / "model_configs", OWN_MODELS)
    return {path.stem: path for folder in folders for path in folder.glob("*.json")}
