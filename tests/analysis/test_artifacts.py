from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from analysis import artifacts, style


def test_they_are_found_without_heavy_imports() -> None:
    code = (
        "import sys; from analysis import artifacts; print(artifacts.tables(), artifacts.figures('quickstart'));"
        "sys.exit(bool({'numpy', 'pandas', 'matplotlib', 'torch', 'pydantic'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "main_results" in result.stdout
    assert "results_by_method" in result.stdout


@pytest.mark.parametrize(
    ("form", "name"),
    [("table", name) for name in artifacts.tables()] + [("figure", name) for name in artifacts.figures()],
)
def test_each_builds_and_says_what_from(form: artifacts.Form, name: str) -> None:
    module = importlib.import_module(f"analysis.{form}s.{name}")
    assert callable(module.build)
    assert artifacts.literal(form, name, "KINDS", ()) == getattr(module, "KINDS", ())


def test_a_new_file_is_a_new_table_for_its_suites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "HERE", tmp_path)
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "new.py").write_text('SUITES = ("ablation_*", "cc3m")\n')
    (tmp_path / "tables" / "__init__.py").touch()
    assert artifacts.tables() == ("new",)
    assert artifacts.tables("ablation_objective") == artifacts.tables("cc3m") == ("new",)
    assert artifacts.tables("cc12m") == ()


def test_suites_that_must_be_computed_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "HERE", tmp_path)
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "new.py").write_text("SUITES = tuple(names())\n")
    with pytest.raises(ValueError, match=r"SUITES = tuple\(names\(\)\): allowed is a literal tuple"):
        artifacts.tables("cc3m")


def test_an_unknown_method_always_looks_the_same() -> None:
    look = style.method("fastclp")
    assert look == style.MethodStyle("fastclp", look.color, look.marker, look.dashes)
    assert (look.color, look.marker) == ("#3B7A57", "d")
    assert look.marker not in {known.marker for known in style.KNOWN.values()}


def test_ours_comes_last_and_new_methods_after_known_baselines() -> None:
    assert style.ordered(["neuclip", "zeta", "siglip", "alpha", "openclip"]) == [
        "openclip",
        "siglip",
        "alpha",
        "zeta",
        "neuclip",
    ]
