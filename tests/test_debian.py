from __future__ import annotations

import os

import debian
import pytest

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
