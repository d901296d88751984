"""Which package may import which, and where the heavy libraries come in."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("analysis", "baselines", "engine", "experiments", "neuclip")
# engine.standalone: the methods' losses for other training code, which it builds by name.
FOR_METHODS = {
    "engine.method",
    "engine.contrastive",
    "engine.distributed",
    "engine.graphs",
    "engine.signatures",
    "engine.standalone",
    "engine.schema.record.Signature",
}
MAY_IMPORT = {
    "engine": {"engine"},
    "neuclip": {"neuclip"} | FOR_METHODS,
    "baselines": FOR_METHODS,
    "analysis": {"analysis", "engine.schema", "engine.paths", "engine.files", "engine.errors", "engine.overview"},
    # What tables and figures there are, for the workflow; which labels tables can show.
    "experiments": {"experiments", "engine", "analysis.artifacts"},
}
ONLY_IN = {
    "submitit": {"engine/jobs/submission.py"},
    "clip_benchmark": {"engine/evaluation/model.py"},
    "open_clip": {
        "engine/training/towers.py",
        "engine/evaluation/loading.py",
        "baselines/openclip.py",
        "baselines/siglip.py",
    },
    "resvg_py": {"experiments/icons/render.py"},
    "huggingface_hub": {"experiments/fetch/evaluation.py"},
    "jinja2": {"analysis/report/page.py"},
}

# Wings of the engine, from the ground up: each may import those before it in its list.
COMMANDS = {"index", "train", "evaluate", "launch"}
GROUND = {"errors", "files", "heartbeat", "imports", "logs", "origin", "overview", "paths", "stop", "versions"}
METHODS = {"method", "contrastive", "distributed", "shares", "graphs", "standalone", "signatures", "registry"}
WINGS = {
    "schema": {"schema"} | GROUND,
    "ground": {"schema"} | GROUND,
    "methods": {"schema"} | GROUND | METHODS,
    "data": {"schema", "data"} | GROUND,
    "training": {"schema", "data", "training"} | GROUND | METHODS,
    "evaluation": {"schema", "data", "training", "evaluation"} | GROUND | METHODS,
    "jobs": {"schema", "jobs"} | GROUND,
    "commands": {"schema", "data", "training", "evaluation", "jobs"} | GROUND | METHODS,
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports from the top"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_it_may(package):
    for path in (ROOT / package).rglob("*.py"):
        for name in imports(path):
            if name.split(".")[0] in PACKAGES:
                allowed = MAY_IMPORT[package]
                assert any(f"{name}.".startswith(f"{prefix}.") for prefix in allowed), f"{path} imports {name}"


def wing_of(path):
    first = path.relative_to(ROOT / "engine").parts[0].removesuffix(".py")
    kinds = {"commands": COMMANDS, "ground": GROUND, "methods": METHODS}
    return next((kind for kind, names in kinds.items() if first in names), first)


@pytest.mark.parametrize("path", sorted((ROOT / "engine").rglob("*.py")), ids=lambda path: path.stem)
def test_a_wing_of_the_engine_imports_only_those_below_it(path):
    if path == ROOT / "engine" / "__init__.py":
        return
    for name in imports(path):
        package, _, rest = name.partition(".")
        if package == "engine":
            assert rest.split(".")[0] in WINGS[wing_of(path)], f"{path} imports {name}"


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_has_one_place(library):
    found = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if any(name.split(".")[0] == library for name in imports(path))
    }
    assert found <= ONLY_IN[library]


def test_no_module_of_the_analysis_depends_on_a_study_by_name():
    """Studies are found by file name: what several share is in a module beside them, or in one of them."""
    for path in (ROOT / "analysis").rglob("*.py"):
        if path.parent.name != "studies":
            assert not any(name.startswith("analysis.studies") for name in imports(path)), path


@pytest.mark.parametrize("module", ["workflow", "__main__"])
def test_the_workflow_and_commands_import_neither_torch_nor_pandas(module):
    code = f"import sys, experiments.{module}; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "open_clip", "clip_benchmark", "pandas", "matplotlib"} & set(modules)
