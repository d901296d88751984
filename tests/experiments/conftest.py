"""What tests of the embedded data sets share."""

from __future__ import annotations

import os
import zipfile

import pytest

from experiments.icons import sources


@pytest.fixture(scope="session")
def wheels() -> dict[str, zipfile.ZipFile]:
    """The real wheels, from the user's cache; fetched once."""
    try:
        return sources.open_wheels(sources.default_cache())
    except sources.SourceError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
