"""The drawings: wheels that are pinned, what is read of them, and how it is drawn."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from experiments.icons import catalogue, licences, render, sources
from experiments.scenes import drawings

# The wheels: a small one of our own, served from a folder, so that the real pip runs without a network


def toy_wheel(folder: Path, text: str = "cat") -> bytes:
    folder.mkdir(exist_ok=True)
    path = folder / "toy_icons-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toy_icons/cat.svg", text)
        archive.writestr("toy_icons-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy-icons\nVersion: 1.0\n")
        archive.writestr(
            "toy_icons-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("toy_icons-1.0.dist-info/RECORD", "")
    return path.read_bytes()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index with one wheel, which is pinned."""
    folder = tmp_path / "index"
    digest = hashlib.sha256(toy_wheel(folder)).hexdigest()
    requirements = tmp_path / "wheels.txt"
    requirements.write_text(f"# a comment\ntoy-icons==1.0 --hash=sha256:{digest}\n")
    monkeypatch.setattr(sources, "REQUIREMENTS", requirements)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def close_index(index: Path) -> None:
    for path in index.iterdir():
        path.unlink()


def test_a_wheel_is_fetched_once(index: Path, tmp_path: Path) -> None:
    assert sources.open_wheels(tmp_path / "cache")["toy-icons"].read("toy_icons/cat.svg") == b"cat"
    close_index(index)
    assert sources.open_wheels(tmp_path / "cache")["toy-icons"].read("toy_icons/cat.svg") == b"cat"


def test_a_corrupted_wheel_is_fetched_again(index: Path, tmp_path: Path) -> None:
    sources.open_wheels(tmp_path / "cache")
    (cached,) = (tmp_path / "cache").glob("*.whl")
    content = bytearray(cached.read_bytes())
    content[40] ^= 1
    cached.write_bytes(content)
    assert sources.open_wheels(tmp_path / "cache")["toy-icons"].read("toy_icons/cat.svg") == b"cat"


def test_another_wheel_under_the_pinned_name_is_refused(index: Path, tmp_path: Path) -> None:
    toy_wheel(index, "not the pinned picture")
    with pytest.raises(sources.SourceError, match="Expected sha256"):
        sources.open_wheels(tmp_path / "cache")


def test_without_a_network_the_error_says_what_is_wanted_and_what_to_do(index: Path, tmp_path: Path) -> None:
    close_index(index)
    with pytest.raises(sources.SourceError) as error:
        sources.open_wheels(tmp_path / "cache")
    message = str(error.value)
    assert "toy-icons==1.0 --hash=sha256:" in message
    assert "No matching distribution found" in message
    assert f"copy FOLDER's files into {tmp_path / 'cache'}" in message
    assert not list((tmp_path / "cache").iterdir()), "nothing half-fetched stays"


def test_licences_that_no_longer_say_what_we_claim_are_an_error(tmp_path: Path) -> None:
    class Silent(zipfile.ZipFile):
        def read(self, name: str) -> bytes:  # type: ignore[override]
            return b"All rights reserved."

    path = tmp_path / "wheel.zip"
    zipfile.ZipFile(path, "w").close()
    wheels = dict.fromkeys((licence.project for licence in licences.LICENCES), Silent(path))
    with pytest.raises(sources.SourceError, match="no longer says"):
        licences.licence_notes(wheels, 32)


# Drawings and their looks


def svg(shape: str, name: str = "shape") -> catalogue.Icon:
    text = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">{shape}</svg>'
    return catalogue.Icon("toy", "filled", name, "shape", text)


def square(x: int, y: int, side: int) -> catalogue.Icon:
    return svg(f'<path d="M{x} {y}h{side}v{side}h-{side}z"/>')


def test_a_look_ignores_place_and_size_and_is_of_what_is_drawn() -> None:
    one, other = render.look(square(2, 3, 8), {}), render.look(square(12, 8, 16), {})
    assert one is not None
    assert np.array_equal(one, other)
    assert render.look(square(0, 0, 0), {}) is None


def test_turned_drawings_are_turned_by_20_to_40_degrees_and_sketched_ones_bent() -> None:
    for number in range(40):
        bar = svg('<rect x="3" y="15" width="26" height="2"/>', f"bar {number}")
        plain, turned, sketched = (render.stencils(bar, (32,), shift, {})[0] for shift in ("", "turned", "sketched"))
        rows, columns = np.nonzero(turned > 100)
        slope = np.linalg.eigh(np.cov(columns, rows))[1][:, 1]
        assert 18 < abs(np.degrees(np.arctan(slope[1] / slope[0]))) < 42
        assert not np.array_equal(plain, sketched)


def test_look_alikes_are_those_within_the_limit() -> None:
    icons = [square(0, 0, side) for side in (1, 2)]
    looks = {icons[0]: np.full((16, 16), 3, np.uint8), icons[1]: np.full((16, 16), 3, np.uint8)}
    looks[icons[1]][:8] = 5  # root mean square difference: sqrt(2), of 15
    distance = np.sqrt(2) / 15
    assert drawings._resembles(icons[0], icons[1:], distance + 1e-9, looks)
    assert not drawings._resembles(icons[0], icons[1:], distance - 1e-9, looks)
