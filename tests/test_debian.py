from __future__ import annotations

import fcntl
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support import debian

PACKAGES = {"no-such-tool": "nothing", "neither-this": "nothing", "sh": "dash"}


def test_nothing_is_installed_by_a_user_who_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    with pytest.raises(debian.MissingPackageError, match=r"no-such-tool, neither-this .* `apt-get install nothing`"):
        debian.install(PACKAGES)


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_a_tool_that_cannot_be_had_skips_the_test_but_fails_it_in_continuous_integration(
    monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="apt-get install nothing"):
        debian.require(PACKAGES)


def test_tools_that_are_there_need_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian.subprocess, "run", lambda *_, **__: pytest.fail("a package was installed"))
    debian.install({"sh": "dash"})


def test_a_tool_that_another_worker_installs_meanwhile_is_not_installed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put(name: str) -> None:
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)

    put("apt-get")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "getuid", lambda: 0)
    monkeypatch.setattr(debian, "SEARCH_PATH", str(tmp_path))
    monkeypatch.setattr(debian, "LOCK", tmp_path / "lock")
    with ThreadPoolExecutor(1) as worker, debian.LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        installing = worker.submit(debian.install, {"no-such-tool": "nothing"})
        time.sleep(0.2)
        put("no-such-tool")
        fcntl.flock(lock, fcntl.LOCK_UN)
        installing.result(60)
    with pytest.raises(debian.MissingPackageError, match="`apt-get install nothing` failed"):
        debian.install({"another": "nothing"})
