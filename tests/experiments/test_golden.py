"""What every suite expands to. A changed run id means that finished runs are not found again: say why in CHANGELOG.md.

Update with ``UPDATE_GOLDEN=1 python -m pytest tests/experiments/test_golden.py``.
"""

import os
from pathlib import Path

import pytest

from experiments.design import cards, names
from experiments.design.suite import expand

GOLDEN = Path(__file__).with_name("golden")
# Ablations where a laptop runs them, and where the paper does; all tunings.
GROUPS = [*cards.names("suites"), "ablations@laptop", "ablations@dfn14m", *names.tunings()]


def summary(group: str) -> str:
    """One line per method and variant: what it trains, the last part of the run id of every seed, and the variant."""
    lines = []
    for name in names.resolve([group]):
        # A suite's bundle of ablations is a group of its own.
        if "@" in name and "@" not in group:
            continue
        suite = expand(name)
        lines += ["", f"{name}: {suite.title}", f"{len(suite.runs)} runs, evaluated on {suite.evaluation.name}"]
        lines += [f"  claims {one}" for one in suite.hypotheses]
        ids: dict[tuple[str, ...], list[str]] = {}
        for run in sorted(suite.runs, key=lambda run: run.spec.seed):
            spec = run.spec
            size = f"{spec.num_steps} steps of {spec.global_batch_size}"
            what = (run.variant, spec.method.name, spec.dataset.name, spec.model.name, size)
            ids.setdefault(what, []).append(spec.run_id.rpartition("-")[2])
        for (variant, *what), seeds in sorted(ids.items()):
            lines.append(f"  {' '.join(what)}: {' '.join(seeds)}  {variant}".rstrip())
    return "\n".join(lines[1:]) + "\n"


@pytest.mark.parametrize("group", GROUPS)
def test_a_suite_expands_to_the_runs_it_always_had(group):
    path = GOLDEN / f"{group}.txt"
    found = summary(group)
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(found)
    assert path.exists(), f"no {path}: run UPDATE_GOLDEN=1 python -m pytest {Path(__file__).name}"
    assert found == path.read_text(), "runs changed: say so in CHANGELOG.md under [Results], then update (see the top)"


def test_no_golden_file_is_left_over():
    assert {path.stem for path in GOLDEN.iterdir()} == set(GROUPS)
