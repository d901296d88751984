"""Tools that some tests need and pip does not have: installed from Debian packages where this user may."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

# Debian keeps daemons where only root looks for commands.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
LOCK = Path(tempfile.gettempdir()) / "tests-apt-get.lock"


class MissingPackageError(RuntimeError):
    """A tool is not on this machine and cannot be put there."""


def install(packages: Mapping[str, str]) -> None:
    """Install the packages of those tools that are missing.

    Args:
        packages: The Debian package of each tool, by the name of its command.

    Raises:
        MissingPackageError: If something is missing and this user cannot install it.
    """
    missing = [tool for tool in packages if not shutil.which(tool, path=SEARCH_PATH)]
    if not missing:
        return
    names = sorted({packages[tool] for tool in missing})
    command = f"apt-get install {' '.join(names)}"
    if os.getuid() != 0 or not shutil.which("apt-get"):
        raise MissingPackageError(f"{', '.join(missing)} missing here: run `{command}` (on Debian or Ubuntu, as root)")
    with LOCK.open("w") as lock:
        # Of several workers one installs, and the others find that it did: apt-get waits for some of its locks only.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not all(shutil.which(tool, path=SEARCH_PATH) for tool in missing):
            _apt_get_install(names, command)


def _apt_get_install(names: list[str], command: str) -> None:
    options = ["-q", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120"]
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update", "-q"], ["install", *options, *names]):
        result = subprocess.run(["apt-get", *arguments], env=env, capture_output=True, text=True, check=False)
        if result.returncode:
            raise MissingPackageError(f"`{command}` failed:\n{result.stdout[-2000:]}{result.stderr[-2000:]}")


def require(packages: Mapping[str, str]) -> None:
    """Install what is missing, or skip the test; in continuous integration it fails instead."""
    try:
        install(packages)
    except MissingPackageError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))
