"""What every suite expands to. A changed run id means that finished runs are not found again: say why in CHANGELOG.md.

Update with ``UPDATE_GOLDEN=1 python -m pytest tests/experiments/test_golden.py``.
"""

import hashlib
import os
from pathlib import Path

from experiments.design import cards, expansion, names

GOLDEN = Path(__file__).with_name("golden.txt")
WHOLE = "smoke"
"""The suite whose runs are all in the file; of others it has their number and a digest."""
# Ablations where a laptop runs them, and where the paper does; all tunings.
ASKED = (*cards.names("suites"), *names.ablations(), *names.ablations("dfn14m"), *names.tunings())


def test_suites_expand_to_the_runs_they_always_had(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    suites = expansion.load(ASKED)
    lines = []
    for name, suite in sorted(suites.items()):
        runs = sorted(f"{run.spec.run_id} {run.variant}".rstrip() for run in suite.runs)
        claims = [f"claims {one}" for one in suite.hypotheses]
        digest = hashlib.sha256("\n".join([*runs, *claims, suite.evaluation.key]).encode()).hexdigest()
        lines.append(f"{name}: {len(runs)} runs, {suite.evaluation.key}, {digest[:12]}")
        if name == WHOLE:
            lines += [f"  {run}" for run in runs]
    found = "\n".join(lines) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(found)
    assert found == GOLDEN.read_text(), (
        "runs changed: say so in CHANGELOG.md under [Results], then update (see the top)"
    )
