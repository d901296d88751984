from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from analysis import style


def test_they_are_found_without_heavy_imports() -> None:
    code = (
        "import sys; from analysis import artifacts; print(artifacts.tables(), artifacts.figures());"
        "sys.exit(bool({'numpy', 'pandas', 'matplotlib', 'torch'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "main_results" in result.stdout
    assert "results_by_method" in result.stdout


def test_a_new_file_is_a_new_table_or_figure(tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "new.py").write_text("KINDS = ()\n\n\ndef table(frame):\n    return None\n")
    (tmp_path / "studies" / "__init__.py").touch()
    code = f"from analysis import artifacts; artifacts.HERE = type(artifacts.HERE)({str(tmp_path)!r});"
    code += "print(artifacts.tables(), artifacts.figures())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "('new',) ()"


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
