"""Hold a method of one's own to what every method of this repository is held to, and say what is broken and why.

The tests are those of `tests/`; each belongs to one rule. Several failures often have one cause: an error in the user's
file counts once, and rules that others build on are named first.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from engine import registry
from engine.versions import ROOT

CONTRACT = (
    "contract/test_methods.py",
    "contract/test_methods_in_processes.py",
    "engine/training/test_train.py::test_gradients_reach_both_towers_and_all_that_the_method_hands_over",
    "engine/training/test_train.py::test_accumulation_gives_the_gradient_of_the_whole_batch",
    "engine/training/test_train.py::test_two_processes_train_as_one_does",
    "engine/training/test_trainer.py::test_a_run_that_is_asked_to_stop_saves_its_step_and_goes_on_from_it",
)
"""The tests of what every method promises."""
PAGE = "docs/add-a-method.md#rules"
MOST_CAUSES = 5
"""That are told at once: who mends these sees the others next time."""


class Rule(NamedTuple):
    """A promise of every method."""

    says: str
    why: str
    tests: tuple[str, ...]
    """Names of the test functions that hold a method to it."""
    needs: tuple[int, ...] = ()
    """Numbers, from 1, of rules that it cannot keep while they are broken."""


RULES = (
    Rule(
        "Options are refused by name if unknown, and a resolved `Config` resolves to itself.",
        "A run keeps its options as JSON, and is built from them again.",
        (
            "test_an_unknown_option_is_refused_with_the_known_names",
            "test_resolved_options_resolve_to_themselves",
        ),
    ),
    Rule(
        "`loss` returns a finite float32 scalar in which every embedding has a part.",
        "A pair without a gradient is not trained on.",
        ("test_the_loss_is_a_finite_scalar_that_every_embedding_has_a_part_in",),
    ),
    Rule(
        "What `param_groups` returns belongs to the method and gets a finite gradient in every step.",
        "The optimiser moves nothing else, and moves it in every step.",
        (
            "test_what_the_optimiser_is_given_belongs_to_the_method_and_gets_a_gradient",
            "test_gradients_reach_both_towers_and_all_that_the_method_hands_over",
        ),
        (2,),
    ),
    Rule(
        "Metrics are detached scalar tensors, named group/name.",
        "They are kept and averaged over processes; one with a gradient keeps its graph in memory.",
        ("test_metrics_are_detached_scalars_with_a_group_in_their_name",),
        (2,),
    ),
    Rule(
        "Random numbers come from `env.generator(purpose, step)` alone.",
        "A resumed run, and another process, would draw others.",
        ("test_nothing_depends_on_the_global_random_state_nor_moves_it",),
        (3,),
    ),
    Rule(
        "No tensor holds all pairs of a batch.",
        "B x B numbers of a large batch fit on no GPU; `batch_log_partitions` takes them in chunks.",
        ("test_no_tensor_holds_all_pairs_of_a_batch",),
        (2,),
    ),
    Rule(
        "Nothing becomes infinite or NaN in float32, for any batch and temperature; NaN may stand in a buffer from the "
        "start, and in `log_normalizers`, for what was not visited.",
        "One such number ends a run as diverged.",
        ("test_everything_stays_finite_in_float32",),
        (2, 3),
    ),
    Rule(
        "All state is the instance's own: none is a class's or a module's.",
        "Runs in one process would change each other.",
        ("test_two_instances_share_no_state",),
        (3, 5),
    ),
    Rule(
        "State is parameters, buffers, or extra state of tensors and plain values.",
        "Checkpoints hold these and nothing else: no pickle is opened.",
        ("test_the_state_is_tensors_and_plain_values",),
        (3,),
    ),
    Rule(
        "`log_normalizers` and `anchor_logit_scales` answer for every anchor, without a gradient, and change no state.",
        "They are asked in the middle of a training, which must not notice.",
        (
            "test_asking_for_normalizers_changes_no_state",
            "test_what_is_estimated_is_said_for_every_anchor",
        ),
        (3,),
    ),
    Rule(
        "Pairs beyond the batch get no gradient, are not changed, and are as many as `num_extra_pairs` says.",
        "All processes share them.",
        ("test_pairs_beyond_the_batch_get_no_gradient_and_are_not_changed",),
        (2,),
    ),
    Rule(
        "Training goes on bit for bit from a saved state: what a step depends on is state, or follows from the step.",
        "A run that was killed must end with the same weights.",
        (
            "test_training_goes_on_bit_for_bit_from_a_saved_state",
            "test_so_it_does_under_any_combination_of_options",
            "test_a_run_that_is_asked_to_stop_saves_its_step_and_goes_on_from_it",
        ),
        (3, 5, 8, 9),
    ),
    Rule(
        "The order of a batch orders its gradients and changes nothing else.",
        "Which process has which pair must not matter.",
        ("test_the_order_of_a_batch_only_orders_its_gradients",),
        (3, 5),
    ),
    Rule(
        "Several processes that share a batch do what one does with it, and end in one state.",
        "What is no mean over pairs (a sum, a maximum, a state) is reduced over `env.collectives`.",
        ("test_processes_train_as_one_and_end_in_one_state", "test_two_processes_train_as_one_does"),
        (2, 3, 5, 8, 12, 13),
    ),
    Rule(
        "A batch that is encoded in parts gives the gradient of the whole batch.",
        "How a batch is carried out is no part of a run: `loss` may depend on its arguments and on state alone.",
        ("test_accumulation_gives_the_gradient_of_the_whole_batch",),
        (3, 5),
    ),
)


class Failure(NamedTuple):
    """A test that failed."""

    test: str
    """Name of its function."""
    case: str
    """What it was tried with."""
    text: str
    """The traceback; without one, a sentence of the test that says what came and what is allowed."""


def check(reference: str, *, raw: bool = False) -> tuple[bool, list[str]]:
    """Run all tests on a method in a file of one's own.

    Args:
        reference: ``path/to/file.py:ClassName``.
        raw: Let pytest say everything, on this process's output.

    Returns:
        Whether it keeps all rules, and what to tell, a line each.

    Raises:
        ValueError: If there is no such method, or if its file is wrong.
    """
    registry.examine(reference)
    file = Path(reference.rpartition(":")[0]).expanduser().absolute()
    environment = {**os.environ, "CHECK_METHOD": f"{file}:{reference.rpartition(':')[2]}"}
    tests = [str(ROOT / "tests" / name) for name in CONTRACT]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
        if raw:
            return subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode == 0, []
        command += ["--tb=native", f"--junitxml={report}"]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        cases = ET.parse(report).findall(".//testcase") if report.exists() else []
    failures = list(_failures(cases))
    if not failures and done.returncode:
        raise ValueError(f"pytest could not run: {(done.stderr or done.stdout).strip()[-500:]}")
    if not failures:
        return True, [f"{reference} keeps all {len(RULES)} rules ({len(cases)} checks)"]
    return False, [f"{reference}: {len(failures)} of {len(cases)} checks failed", *told(failures, file)]


def _failures(cases: list[ET.Element]) -> Iterator[Failure]:
    for case in cases:
        for found in (*case.findall("failure"), *case.findall("error")):
            test, _, tried = case.get("name", "").partition("[")
            yield Failure(test, tried.removesuffix("]"), found.text or "")
            break


def told(failures: list[Failure], file: Path) -> list[str]:
    """Return the causes of failures, a line each: errors in the user's file, then rules that are broken without any."""
    number_of = {test: number for number, rule in enumerate(RULES, start=1) for test in rule.tests}
    errors: dict[tuple[str, str], tuple[str, set[int]]] = {}
    broken: dict[int, list[Failure]] = {}
    for failure in failures:
        number = number_of.get(failure.test, 0)
        if error := _error_in(file, failure.text):
            # Of one place the first is told: others often differ from it in a tensor's size alone.
            place, says = error
            errors.setdefault(place, (says, set()))[1].add(number)
        else:
            broken.setdefault(number, []).append(failure)
    causes = [
        f"{file.name}, line {line}, in {function}: {says}"
        + (f". It breaks {_rules(numbers - {0})}" if numbers - {0} else "")
        for (line, function), (says, numbers) in errors.items()
    ]
    in_errors = {number for _, numbers in errors.values() for number in numbers}
    explained = {number for number in broken if number in in_errors or {*broken, *in_errors} & set(_needs(number))}
    first = sorted(broken.keys() - explained)
    for number in first:
        tried = list(dict.fromkeys(each.case or each.text.strip().rpartition("\n")[2] for each in broken[number]))
        with_ = tried[0] + (f" and {len(tried) - 1} more" if len(tried) > 1 else "")
        if number == 0:
            causes.append(f"The checks could not start: {with_}")
            continue
        rule = RULES[number - 1]
        sentences = (each.text.strip() for each in broken[number] if "Traceback" not in each.text)
        says = next(sentences, f"{rule.says} {rule.why}")
        causes.append(f"{says} (rule {number} of {PAGE}; broken with: {with_})")
    lines = [f"{place}. {cause}" for place, cause in enumerate(causes[:MOST_CAUSES], start=1)]
    if len(causes) > MOST_CAUSES:
        lines.append(f"{len(causes) - MOST_CAUSES} more: mend these, and run this again")
    if later := explained - in_errors:
        lines.append(f"Perhaps for the same reason {_rules(later)} of {PAGE}")
    return [*lines, "--pytest shows all that was tried"]


def _needs(number: int) -> Iterator[int]:
    """Yield the rules that one builds on, at any depth."""
    for needed in RULES[number - 1].needs if number else ():
        yield needed
        yield from _needs(needed)


def _rules(numbers: set[int]) -> str:
    return f"rule{'s' if len(numbers) > 1 else ''} {', '.join(map(str, sorted(numbers)))}"


def _error_in(file: Path, text: str) -> tuple[tuple[str, str], str] | None:
    """Return which error a traceback shows in the user's file, or in the copy that runs execute.

    Returns:
        Line and function, and the error; None if the traceback has no line of that file.
    """
    paths = rf"{re.escape(str(file))}|[^\"]*/methods/[0-9a-f]{{64}}\.py"
    frames = re.findall(rf'File "(?:{paths})", line (\d+), in (\w+)', text)
    if not frames:
        return None
    shown = [each.strip() for each in text.splitlines() if re.match(r"\S*(Error|Exception)\b", each)]
    return frames[-1], shown[-1] if shown else "an error"
