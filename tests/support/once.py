"""Make things that take long once in a test run, whatever the number of its workers."""

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def made_once(
    config: pytest.Config, factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]
) -> Path:
    """Let the first worker that asks for a folder fill it; all others wait until that is done.

    Args:
        config: Says whether this is one worker of several.
        factory: Says where this worker's temporary folders lie: beside those of the other workers.
        name: Name of the folder.
        make: Fills an empty folder.

    Returns:
        The folder. Others read it too: what would change it takes a copy.
    """
    base = factory.getbasetemp()
    folder = (base.parent if hasattr(config, "workerinput") else base) / f"shared-{name}"
    done = folder.with_suffix(".done")
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder
