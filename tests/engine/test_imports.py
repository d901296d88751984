"""Modules hidden from an import are found again behind it, and functions that come late are the real ones."""

import subprocess
import sys

import pytest

from engine.imports import hidden, late


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """A package with a module of functions, not imported before and not after."""
    package = tmp_path / "heavy_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package / "functions.py").write_text("def double(number, *, plus=0):\n    return 2 * number + plus\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield package
    for name in ("heavy_package", "heavy_package.functions"):
        sys.modules.pop(name, None)


def test_a_hidden_module_is_not_found_in_the_block_and_found_behind_it(modules):
    with pytest.raises(ImportError), hidden("heavy_package"):
        import heavy_package
    with pytest.raises(RuntimeError, match="imported"):
        import heavy_package  # noqa: F401


def test_a_module_that_is_imported_already_is_not_hidden():
    with hidden("json"), late("subprocess"):
        import json
        from subprocess import run
    assert json.loads("1") == 1
    assert run is subprocess.run


def test_a_late_function_is_imported_when_it_is_called(modules):
    with late("heavy_package", "heavy_package.functions"):
        from heavy_package.functions import double
    assert "heavy_package" not in sys.modules
    with pytest.raises(RuntimeError, match="imported"):
        double(3)
    (modules / "__init__.py").write_text("")
    assert double(3, plus=1) == 7
    assert sys.modules["heavy_package.functions"].double(3) == 6


def test_a_name_that_is_not_there_is_an_error_when_it_is_called(modules):
    (modules / "__init__.py").write_text("")
    with late("heavy_package", "heavy_package.functions"):
        from heavy_package.functions import triple
    with pytest.raises(AttributeError, match="triple"):
        triple(3)


EVALUATION = """
import sys
import engine.evaluate
heavy = ("torch._dynamo", "timm", "transformers", "sklearn", "scipy", "pandas")
assert not [name for name in heavy if name in sys.modules]
from torchvision.ops import roi_align
from clip_benchmark.metrics.zeroshot_classification import balanced_accuracy_score
import torch
boxes = [torch.tensor([[0.0, 0.0, 2.0, 2.0]])]
assert torch.equal(roi_align(torch.ones(1, 1, 4, 4), boxes, output_size=1), torch.ones(1, 1, 1, 1))
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)) == 2
assert balanced_accuracy_score([0, 1, 1], [0, 1, 0]) == 0.75
"""


def test_an_evaluation_imports_nothing_heavy_and_what_was_left_out_still_works():
    done = subprocess.run([sys.executable, "-c", EVALUATION], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
