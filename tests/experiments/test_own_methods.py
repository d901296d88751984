"""Methods and suites from files outside the repository, as `docs/add-a-method.md` shows them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine import paths
from engine.method import MethodEnv
from engine.registry import build_method, keep
from engine.schema.run import MethodSpec, RunSpec
from experiments.__main__ import main
from experiments.design import cards, expansion, names
from experiments.design.suite import expand

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "add-a-method.md").read_text(encoding="utf-8")
METHOD, WITH_EXTRA, CHECK, SUITE, RUN, *_ENTERING = re.findall(r"^```\w*\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The page's two files, in a folder beside the one that is worked in."""
    folder = tmp_path / "path" / "to"
    folder.mkdir(parents=True)
    (folder / "dcl.py").write_text(METHOD)
    (folder / "fresh.py").write_text(WITH_EXTRA)
    (folder / "mine.yaml").write_text(SUITE)
    monkeypatch.chdir(tmp_path)
    return folder


def runs(reference: str = "path/to/mine.yaml") -> dict[str, RunSpec]:
    return {run.spec.method.name: run.spec for run in expand(reference).runs}


def edit(file: Path, old: str, new: str) -> None:
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


# What a run is ------------------------------------------------------------------------------------------------------


def test_an_edit_of_the_file_is_another_run_and_leaves_those_of_our_methods(mine):
    before = runs()
    edit(mine / "dcl.py", ".mean() / 2", ".mean()")
    after = runs()

    assert {name for name in before if before[name].run_id != after[name].run_id} == {"dcl"}
    assert before["dcl"].method.config == after["dcl"].method.config
    assert before["dcl"].method.config["temperature"]["init"] == 0.05


def test_where_the_file_lies_is_not_part_of_a_run(mine):
    before = runs()
    shutil.move(mine, mine.with_name("elsewhere"))
    assert runs("path/elsewhere/mine.yaml") == before


BUILD = """
import sys
from pathlib import Path
from engine.method import MethodEnv
from engine.registry import build_method
from engine.schema.base import parse
from engine.schema.run import MethodSpec
env = MethodEnv(embed_dim=4, dataset_size=20, global_batch_size=8, steps_per_epoch=2, num_steps=4)
print(type(build_method(parse(MethodSpec, sys.argv[1], "argument"), env)).version)
"""


def built(spec: MethodSpec) -> subprocess.CompletedProcess[str]:
    """Build a run's method in a new process, as a job does."""
    command = [sys.executable, "-c", BUILD, spec.model_dump_json()]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_run_executes_the_file_as_it_was_when_the_suite_was_expanded(mine):
    edit(mine / "dcl.py", "class DCL(TemperatureMethod):", "class DCL(TemperatureMethod):\n    version = 1")
    first = runs()["dcl"].method
    edit(mine / "dcl.py", "version = 1", "version = 2")
    second = runs()["dcl"].method
    (mine / "dcl.py").unlink()

    assert [built(spec).stdout for spec in (first, second)] == ["1\n", "2\n"]


def test_a_copy_that_was_changed_or_removed_is_refused(mine):
    spec = runs()["dcl"].method
    copy = paths.method(spec.source.sha256)
    edit(copy, ".mean() / 2", ".mean()")
    assert f"{copy} was changed since the run was made" in built(spec).stderr
    copy.unlink()
    assert f"the copy of its file, {copy}, is gone: expand the suite again" in built(spec).stderr


def test_a_method_may_build_on_one_of_ours(mine):
    (mine / "mild.py").write_text(
        "from baselines.fastclip import FastCLIP\n"
        "class Mild(FastCLIP):\n"
        "    def gamma(self, epoch):\n"
        "        return 0.5\n"
    )
    spec = MethodSpec(name="mild", config={"version": "v1"}, source=keep("mild.py:Mild", mine))
    env = MethodEnv(embed_dim=4, dataset_size=20, global_batch_size=8, steps_per_epoch=2, num_steps=4)
    assert build_method(spec, env).gamma(0) == 0.5


# What can be wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("dcl.py", r"class: 'dcl\.py': allowed is path/to/file\.py:ClassName"),
        ("dcl:DCL", r"allowed is path/to/file\.py:ClassName"),
        ("dlc.py:DCL", r"class: dlc\.py:DCL: there is no file .*/path/to/dlc\.py"),
        ("dcl.py:DLC", r"dcl\.py: unknown method class 'DLC'; did you mean 'DCL'"),
        ("dcl.py:TemperatureConfig", r"Config is no subclass of engine\.method\.Method made here; unknown method"),
    ],
)
def test_a_wrong_reference_says_what_is_allowed(mine, reference, message):
    edit(mine / "mine.yaml", "dcl.py:DCL", reference)
    with pytest.raises(ValueError, match=f"suite 'mine': .*{message}"):
        runs()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("def loss(", "def lost(", r"dcl\.py: DCL does not define 'loss': see engine\.method\.Method"),
        ("TemperatureMethod", "Method", "DCL does not define 'logit_scale'"),
        ("(MethodConfig):", ":", r"DCL\.Config is <class .*DCL\.Config'>: make it a subclass of MethodConfig"),
        ("import LossOutput", "import LossOutputs", r"dcl\.py, line 1: ImportError: cannot import name 'LossOutputs'"),
        ("super().", "super(.", r"dcl\.py, line \d+: SyntaxError"),
        ("chunk_rows: int = 1024", "chunk_rows: int = ROWS", r"dcl\.py, line 7: NameError: name 'ROWS'"),
        (
            "temperature: Temp",
            "heat: Temp",
            r"method 'dcl': temperature: unknown key 'temperature'.* Known: chunk_rows",
        ),
    ],
)
def test_a_wrong_file_says_what_is_wrong_and_where(mine, old, new, message):
    edit(mine / "dcl.py", old, new)
    with pytest.raises(ValueError, match=message):
        runs()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("dcl:\n", "fastclip:\n", "method 'fastclip' has a class, but that name is one of this repository's"),
        ("dcl:\n", "My Method:\n", "name: String should match pattern"),
        ("    class: dcl.py:DCL\n", "", r"unknown method 'dcl'.*needs its file: class: file\.py:ClassName"),
        ("class:", "clas:", r"methods\.dcl\.clas: unknown key 'clas'; did you mean 'class'"),
    ],
)
def test_a_wrong_entry_of_the_suite_is_one_clear_error(mine, old, new, message):
    edit(mine / "mine.yaml", old, new)
    with pytest.raises(ValueError, match=message):
        runs()


# Suites by file -----------------------------------------------------------------------------------------------------


def test_a_suite_that_was_named_by_its_file_is_known_by_its_name_there(mine, capsys):
    with pytest.raises(ValueError, match=r"unknown suite 'mine'.*One of your own: its file, path/to/NAME\.yaml"):
        names.split("mine")
    expansion.write(expansion.load(["path/to/mine.yaml"])["mine"])
    assert names.resolve(["mine"]) == ["path/to/mine.yaml"]
    suites = expansion.load(["mine"])
    assert set(suites) == {"mine"}
    # One of its runs has been started: it is watched without being named.
    paths.jobs(suites["mine"].runs[0].spec.run_id).mkdir(parents=True)
    main(["watch", "--once"])
    assert capsys.readouterr().out.startswith("mine: ")


def test_ablations_apply_to_a_suite_that_is_named_by_its_file(mine):
    suite = expand("ablation_num_updates@path/to/mine.yaml")
    assert suite.name == "ablation_num_updates@mine"
    assert {run.spec.dataset.name for run in suite.runs} == {"scenes_tiny"}
    whats = [what for what in cards.names("ablations") if what not in {"attribution_network", "batch_size_lr"}]
    assert names.resolve(["ablations@path/to/mine.yaml"]) == [f"ablation_{what}@path/to/mine.yaml" for what in whats]
    edit(mine / "mine.yaml", "seeds: [0]", "seeds: [0]\nablations: [updates]")
    assert names.resolve(["path/to/mine.yaml"]) == ["path/to/mine.yaml", "ablation_updates@path/to/mine.yaml"]


def test_our_own_suites_may_be_named_by_their_files_too():
    assert names.resolve([str(cards.FOLDER / "suites" / "smoke.yaml")]) == ["smoke"]


@pytest.mark.parametrize("name", ["smoke", "ablation_mine", "Mine", "m" * 61, "m" * 240])
def test_a_suite_cannot_take_a_name_that_results_would_not_be_told_apart_by(mine, name):
    (mine / "mine.yaml").rename(mine / f"{name}.yaml")
    with pytest.raises(ValueError, match=f"its results would be called '{name}'.*rename the file"):
        names.split(f"path/to/{name}.yaml")


def test_two_suites_of_one_name_are_refused_together(mine):
    (mine.parent / "mine.yaml").write_text(SUITE)
    with pytest.raises(ValueError, match="two suites are called 'mine': path/to/mine"):
        expansion.load(["path/to/mine.yaml", "path/mine.yaml"])


def test_a_suite_whose_name_has_results_of_another_file_is_refused(mine):
    shutil.copytree(mine, mine.with_name("other"))
    first = expansion.load(["path/to/mine.yaml"])["mine"]
    # To look at either is no harm: what is remembered of them is told apart.
    assert expansion.load(["path/other/mine.yaml"])["mine"].file == "path/other/mine.yaml"
    expansion.write(first)
    with pytest.raises(ValueError, match=r"the results called 'mine' here are of path/to/mine\.yaml; rename"):
        expansion.load(["path/other/mine.yaml"])
    assert expansion.load([str(mine / "mine.yaml")])["mine"].runs == first.runs
    # If it has moved: one file to remove, as the error says.
    paths.suite("mine").unlink()
    assert expansion.load(["path/other/mine.yaml"])["mine"].runs == first.runs


def test_a_copy_of_a_methods_file_that_went_is_kept_again(mine):
    first = expansion.load(["path/to/mine.yaml"])
    (copy,) = paths.method("").parent.iterdir()
    for damage in (copy.unlink, lambda: copy.write_text("damaged")):
        damage()
        assert expansion.load(["path/to/mine.yaml"]) == first
        assert copy.read_bytes() == (mine / "dcl.py").read_bytes()


# The page -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_check_holds_a_method_of_ones_own_to_the_contract(mine):
    (mine / "careless.py").write_text("import torch\n" + METHOD.replace(".mean() / 2", ".mean() + torch.rand(())"))
    outcomes = {}
    for name in ("dcl", "careless"):
        options = ["-q", "-p", "no:cacheprovider", "-k", "global_random_state or finite_scalar"]
        command = [sys.executable, "-m", "pytest", *options, "tests/contract/test_methods.py"]
        environment = {"CHECK_METHOD": str(mine / f"{name}.py:DCL"), "PATH": "", "OMP_NUM_THREADS": "1"}
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        outcomes[name] = result.stdout.splitlines()[-1]
    assert re.search(r"^10 passed", outcomes["dcl"])
    assert re.search(r"^5 failed, 5 passed", outcomes["careless"])


@pytest.mark.slow
@pytest.mark.parametrize("which", ["dcl.py:DCL", "fresh.py:Fresh"])
def test_the_pages_methods_pass_its_check(mine, monkeypatch, which):
    monkeypatch.chdir(mine)
    # Options of the tests' own run would change what the command's run prints.
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    command = [sys.executable, *CHECK.replace("dcl.py:DCL", which).split()[1:]]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-3000:]
    assert re.search(r"keeps all 15 rules \(\d{3} checks\)$", result.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_pages_suite_runs_into_the_tables_beside_ours(mine, smoke):
    for built in ("data", "results/index"):
        shutil.copytree(smoke / built, built)
    command = [sys.executable, "-m", *RUN.split(), "--snakefile", str(ROOT / "Snakefile")]
    command += ["--workflow-profile", str(ROOT / "profiles" / "default")]

    def snakemake(*args: str) -> str:
        result = subprocess.run([*command, *args], capture_output=True, text=True, check=False)
        assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]
        return result.stdout + result.stderr

    snakemake()
    table = (paths.tables("mine") / "main_results.md").read_text()
    assert all(name in table for name in ("dcl", "OpenCLIP", "NeuCLIP"))
    assert all(file.stat().st_size > 100 for file in paths.figures("mine").iterdir())
    assert "Nothing to be done" in snakemake()
    edit(mine / "dcl.py", ".mean() / 2", ".mean()")
    assert "train 1" in " ".join(snakemake("-n").split())


def test_a_suite_that_is_no_utf_8_is_named_with_its_line(mine):
    path = mine / "mine.yaml"
    path.write_bytes(path.read_bytes() + b"# \xe9t\xe9\n")
    line = path.read_bytes().count(b"\n")
    with pytest.raises(ValueError, match=rf"mine\.yaml, line {line}: byte 0xe9 is not UTF-8: save the file as UTF-8"):
        expand(str(path))
