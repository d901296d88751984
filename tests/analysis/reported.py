"""Results that a report is made of in tests: with a divergence, signs of failure, holes, and names that mean harm."""

from __future__ import annotations

import json

import synthetic

from analysis.__main__ import main
from engine import paths

SUITE = "quickstart"
HARM = "<script>document.title = 'harm'</script>"
HARM_IN_ATTRIBUTE = '"><img src=x onerror="document.title = 1">'
FIGURES = ("results_by_method", "normalizer_error", "paired_differences", "training_curves")
VARIANT = "1 update"


def write_results() -> None:
    """Write a collected suite with all tables and some figures below the working directory."""
    cards = {key: {**card, "licence": f"CC0-1.0 {HARM}"} for key, card in synthetic.CARDS.items()}
    cards["digits"] = {**cards["digits"], "title": f"Digits {HARM_IN_ATTRIBUTE}"}
    main_config = {"num_updates": 10, "network": {"width": 8}}
    specs = [
        synthetic.run_spec(method, seed, config=main_config)
        for method, seeds in {"neuclip": (0, 1, 2), "openclip": (0, 1, 2), "siglip": (1, 2)}.items()
        for seed in seeds
    ]
    variants = {
        VARIANT: [synthetic.run_spec("neuclip", 2, config={**main_config, "num_updates": 1})],
        HARM: [synthetic.run_spec("neuclip", 0, config={**main_config, "note": HARM_IN_ATTRIBUTE})],
    }
    suite = synthetic.write_suite(specs, name=SUITE, cards=cards, variants=variants, diverged=(("siglip", 2),))
    content = json.loads(suite.read_text())
    drawn = ["main_results", "cost", *FIGURES]
    synthetic.write_json(suite, content | {"title": f"A suite {HARM}", "draw": {"only": drawn}})
    sign = {
        "name": "npn_too_small",
        "first_step": 3,
        "last_step": 30,
        "evidence": {"npn/gap_after": 0.7},
        "advice": f"raise num_prototypes {HARM}",
    }
    for record in paths.RESULTS.glob("runs/neuclip*/record.json"):
        record.write_text(json.dumps(json.loads(record.read_text()) | {"signatures": [sign], "num_replaced": 2}))
    make("collect", str(suite), "--out", str(paths.collected(SUITE)))
    make("draw", str(paths.collected(SUITE)), "--out", str(paths.RESULTS))


def make(*command: str) -> None:
    """Run a command of the analysis."""
    assert main(list(command)) == 0


def write_report() -> str:
    """Write the report, and return it."""
    make("report", SUITE, "--out", str(paths.report(SUITE)))
    return paths.report(SUITE).read_text(encoding="utf-8")
