"""Every test here works in a folder of its own, as the project's paths are relative to the working directory."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import reported
import synthetic

from analysis.collect import collect
from engine import paths


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def suite() -> Path:
    """Five methods with three seeds; SigLIP's last seed diverged at three quarters."""
    return synthetic.write_suite(synthetic.main_specs(), diverged=(("siglip", 2),))


@pytest.fixture(scope="session")
def _collected(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("results"))
        return collect(synthetic.write_suite(synthetic.main_specs(), diverged=(("siglip", 2),)))


@pytest.fixture
def frame(_collected: pd.DataFrame) -> pd.DataFrame:
    """What collecting `suite` gives."""
    return _collected.copy()


@pytest.fixture
def everything() -> Path:
    """A suite of which every table and figure has something to show, but for those of `synthetic.write_trials`."""
    cards = {f"set{i}": {**synthetic.CARDS["digits"], "title": f"Set {i}"} for i in range(13)}
    main = {"num_updates": 10, "restart_period": 500, **synthetic.CORNERS[-1]}
    specs = [
        synthetic.run_spec(method, seed, global_batch_size=size, config=main)
        for method in ("neuclip", "openclip", "siglip")
        for seed in range(2)
        for size in (64, 32)
    ]
    specs.append(synthetic.run_spec("amorlip", 0, config=main))
    end = {"milestones": [synthetic.BATCH * synthetic.STEPS], "normalizer_error": None}
    specs += [synthetic.run_spec("openclip", seed, global_batch_size=256, config=main, **end) for seed in range(2)]
    variants = {
        "1 update": [synthetic.run_spec("neuclip", seed, config={**main, "num_updates": 1}) for seed in range(2)],
        "fixed temperature": [
            synthetic.run_spec(method, 0, global_batch_size=size, config={**main, "fixed": True})
            for method in ("neuclip", "openclip")
            for size in (64, 32)
        ],
        **{
            f"corner {number}": [synthetic.run_spec("neuclip", seed, config={**main, **corner}) for seed in range(2)]
            for number, corner in enumerate(synthetic.CORNERS[:-1])
        },
    }
    suite = synthetic.write_suite(
        specs,
        cards={**cards, "held_out": cards["set0"]},
        averages={"Average": list(cards)},
        variants=variants,
        diverged=(("siglip", 1),),
        hypotheses=(("neuclip@64", "openclip@64"), ("neuclip@64", "openclip@256")),
    )
    synthetic.write_trials()
    sign = {"name": "embedding_collapse", "first_step": 3, "last_step": 30, "evidence": {}, "advice": "-"}
    for record in paths.RESULTS.glob("runs/siglip*/record.json"):
        record.write_text(json.dumps(json.loads(record.read_text()) | {"signatures": [sign]}))
    return suite


@pytest.fixture(scope="session")
def reported_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of `reported` and their report; tests read it, and change copies."""
    folder = tmp_path_factory.mktemp("reported")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        reported.write_results()
        reported.write_report()
    return folder
