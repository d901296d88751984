"""What tests of the embedded data sets share."""

from __future__ import annotations

import zipfile

import pytest

from experiments.icons import sources


@pytest.fixture(scope="session")
def wheels() -> dict[str, zipfile.ZipFile]:
    """The real wheels, from the user's cache; fetched once."""
    try:
        return sources.open_wheels(sources.default_cache())
    except sources.SourceError as error:
        pytest.skip(str(error))
