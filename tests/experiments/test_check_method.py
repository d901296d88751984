"""What `check-method` says of a method of one's own: a sentence per cause, and which rule it breaks."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import check_method
from experiments.check_method import CONTRACT, MOST_CAUSES, PAGE, RULES, Failure, told

ROOT = Path(__file__).resolve().parents[2]
DOC = (ROOT / "docs" / "add-a-method.md").read_text(encoding="utf-8")
METHOD = re.findall(r"^```\w*\n(.*?)^```", DOC, re.DOTALL | re.MULTILINE)[0]
FILE = Path("/home/me/dcl.py")
TRACEBACK = "Traceback (most recent call last):\n    assert total.isfinite()\nAssertionError: assert False"


def functions_of_the_contract() -> set[str]:
    found = set()
    for place in CONTRACT:
        file, _, only = place.partition("::")
        tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        found |= {only} if only else {name for name in functions if name.startswith("test_")}
    return found


def test_every_test_of_the_contract_belongs_to_one_rule():
    tests = [test for rule in RULES for test in rule.tests]
    assert len(tests) == len(set(tests))
    assert set(tests) == functions_of_the_contract()


def test_the_page_lists_the_rules_with_their_reasons():
    page = " ".join(DOC.split("### Rules")[1].split("\n## ")[0].split())
    listed = " ".join(f"{number}. **{rule.says}** {rule.why}" for number, rule in enumerate(RULES, start=1))
    assert page == listed
    assert PAGE == "docs/add-a-method.md#rules"


def failures(number: int, *cases: str, text: str = TRACEBACK) -> list[Failure]:
    return [Failure(test, case, text) for test in RULES[number - 1].tests for case in cases]


def test_a_broken_rule_is_told_once_and_those_that_need_it_are_left_for_later():
    found = failures(12, "dcl") + failures(5, "dcl by default", "dcl temperature=1") + failures(6, "dcl")
    first, second, later, _ = told(found, FILE)
    assert first.startswith("1. Random numbers come from `env.generator(purpose, step)` alone. A resumed run")
    assert first.endswith(f"(rule 5 of {PAGE}; broken with: dcl by default and 1 more)")
    assert second.startswith("2. No tensor holds all pairs of a batch.")
    assert later == f"Perhaps for the same reason rule 12 of {PAGE}"


def test_an_error_in_the_file_is_one_cause_however_many_rules_it_breaks():
    text = f"  File \"{FILE}\", line 12, in loss\n    x = y\nNameError: name 'y' is not defined\n"
    copy = text.replace(str(FILE), "/tmp/results/methods/" + "a" * 64 + ".py")
    of_a_process = failures(14, "dcl", text="CalledProcessError: exit status 1")
    lines = told([*failures(2, "dcl", text=text), *failures(12, "dcl", text=copy), *of_a_process], FILE)
    assert lines[0] == "1. dcl.py, line 12, in loss: NameError: name 'y' is not defined. It breaks rules 2, 12"
    assert lines[1:] == [f"Perhaps for the same reason rule 14 of {PAGE}", "--pytest shows all that was tried"]


def test_an_error_in_one_line_is_one_cause_whatever_sizes_it_names():
    text = f'  File "{FILE}", line 12, in loss\n    x + y\nRuntimeError: size 8 must match size 9\n'
    found = [*failures(2, "dcl", text=text), *failures(6, "dcl", text=text.replace("8", "128").replace("9", "129"))]
    elsewhere = failures(11, "dcl", text=text.replace("line 12", "line 13"))
    assert told([*found, *elsewhere], FILE)[:-1] == [
        "1. dcl.py, line 12, in loss: RuntimeError: size 8 must match size 9. It breaks rules 2, 6",
        "2. dcl.py, line 13, in loss: RuntimeError: size 8 must match size 9. It breaks rule 11",
    ]


def test_what_a_check_says_itself_is_told_in_place_of_its_rule():
    said = failures(2, "dcl", text="`loss` returned a Tensor: allowed is LossOutput(total, metrics)")
    lines = told([*said, *failures(4, "dcl"), *failures(6, "dcl"), *failures(11, "dcl")], FILE)
    assert lines[0] == f"1. {said[0].text} (rule 2 of {PAGE}; broken with: dcl)"
    assert lines[1:-1] == [f"Perhaps for the same reason rules 4, 6, 11 of {PAGE}"]


def test_many_causes_are_told_a_few_at_a_time():
    lines = told([failure for number in (1, 4, 5, 6, 7, 11) for failure in failures(number, "dcl")], FILE)
    assert [line[:2] for line in lines[:MOST_CAUSES]] == ["1.", "2.", "3.", "4.", "5."]
    assert lines[MOST_CAUSES] == "1 more: mend these, and run this again"


def edited(folder: Path, *changes: tuple[str, str]) -> Path:
    text = METHOD
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "mine.py").write_text(text)
    return folder / "mine.py"


@pytest.mark.slow
def test_a_method_with_two_faults_is_told_both_in_twenty_lines(tmp_path):
    file = edited(
        tmp_path,
        ("from engine", "import torch\n\nfrom engine"),
        (".mean() / 2", ".mean() / 2 + torch.rand(())"),
        ('"loss/contrastive": total.detach()', '"contrastive": total'),
    )
    command = [sys.executable, "-m", "experiments", "check-method", f"{file}:DCL"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = (result.stdout + result.stderr).splitlines()
    assert result.returncode == 1
    assert len(lines) <= 20
    numbered = [line for line in lines if re.match(r"\d\. ", line)]
    assert len(numbered) == 2
    assert numbered[0].startswith("1. Metrics are detached scalar tensors, named group/name.")
    assert numbered[1].startswith("2. Random numbers come from `env.generator(purpose, step)` alone.")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "came"),
    [
        (("return LossOutput(total, {", "return (total, {"), "a tuple"),
        ((".mean() / 2", " / 2"), "a LossOutput whose total has shape (8,)"),
        (("LossOutput(total,", "LossOutput(0.0,"), "a LossOutput whose total is a float"),
    ],
)
def test_a_loss_of_another_form_is_one_cause_that_says_what_came(tmp_path, monkeypatch, change, came):
    tests = ["the_loss_is_a_finite_scalar_that_every_embedding_has_a_part_in", "no_tensor_holds_all_pairs_of_a_batch"]
    tests += ["metrics_are_detached_scalars_with_a_group_in_their_name"]
    monkeypatch.setattr(check_method, "CONTRACT", [f"contract/test_methods.py::test_{test}" for test in tests])
    keeps_all, lines = check_method.check(f"{edited(tmp_path, change)}:DCL")
    assert not keeps_all
    assert lines[1].startswith(f"1. `loss` returned {came}: allowed is LossOutput(total, metrics) whose total is a sc")
    assert not any(line.startswith("2. ") for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("test", "changes", "says"),
    [
        (
            "what_the_optimiser_is_given_belongs_to_the_method_and_gets_a_gradient",
            [
                (
                    "        self.config = config\n",
                    "        self.config = config\n        self.weight = nn.Parameter(torch.ones(()))\n",
                ),
                (".mean() / 2", ".mean() / 2 * self.weight"),
            ],
            "parameter 'weight' gets a gradient, but param_groups does not return it: nothing trains it",
        ),
        (
            "no_tensor_holds_all_pairs_of_a_batch",
            [(".mean() / 2", ".mean() / 2 + 0 * (features.image_BD @ features.text_BD.T).sum()")],
            "a tensor has shape (128, 128) for a batch of 128 pairs",
        ),
    ],
)
def test_what_breaks_a_rule_is_told_by_name_or_shape(tmp_path, monkeypatch, test, changes, says):
    file = edited(tmp_path, ("from engine", "import torch\nfrom torch import nn\n\nfrom engine"), *changes)
    monkeypatch.setattr(check_method, "CONTRACT", [f"contract/test_methods.py::test_{test}"])
    keeps_all, lines = check_method.check(f"{file}:DCL")
    assert not keeps_all
    assert says in "\n".join(lines)


@pytest.mark.slow
def test_a_temperature_that_is_a_number_is_no_fault(tmp_path, monkeypatch):
    file = edited(
        tmp_path,
        ("temperature: TemperatureConfig = TemperatureConfig()", "temperature: float = 0.07"),
        ("env, config.temperature)", "env, TemperatureConfig(init=config.temperature, learnable=False))"),
    )
    only = "contract/test_methods.py::test_everything_stays_finite_in_float32"
    monkeypatch.setattr(check_method, "CONTRACT", [only])
    keeps_all, lines = check_method.check(f"{file}:DCL")
    assert keeps_all, lines


@pytest.mark.slow
def test_what_the_interface_offers_passes(tmp_path, monkeypatch):
    # Chunks of the default size, and NaN in a buffer and in the estimates for what was not visited.
    file = edited(
        tmp_path,
        ("from engine", "import torch\n\nfrom engine"),
        ("        chunk_rows: int = 1024\n", ""),
        (", self.config.chunk_rows", ""),
        (
            "        self.config = config\n",
            '        self.register_buffer("last_N", torch.full((env.dataset_size,), torch.nan))\n',
        ),
        (
            "        return LossOutput",
            "        own = self.env.collectives.gather(log_g_image_B.detach()).to(self.last_N.dtype)\n"
            "        self.last_N[self.env.collectives.gather(features.index_B)] = own\n"
            "        return LossOutput",
        ),
    )
    file.write_text(
        file.read_text()
        + "\n    @torch.no_grad()\n    def log_normalizers(self, features, progress):\n"
        + "        return self.last_N[features.index_B], torch.full_like(self.last_N[features.index_B], torch.nan)\n"
    )
    which = "finite or no_tensor or order_of_a_batch or normalizers or bit_for"
    options = ["-q", "-p", "no:cacheprovider", "-k", which]
    command = [sys.executable, "-m", "pytest", *options, "tests/contract/test_methods.py"]
    environment = {"CHECK_METHOD": f"{file}:DCL", "PATH": "", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert re.search(r"^\d+ passed", result.stdout.splitlines()[-1]), result.stdout[-3000:]


def test_a_method_that_is_none_is_refused_before_anything_is_run(tmp_path):
    with pytest.raises(ValueError, match=r"class: .*there is no file"):
        check_method.check(str(tmp_path / "none.py:DCL"))
