from __future__ import annotations

import matplotlib as mpl
import pytest
import torch

from neuclip import check, check_figure
from neuclip.normalizer import Normalizer
from neuclip.objective import unified


def failed(found):
    return [measure.what for measure in found.measures if not measure.passed]


@pytest.fixture(scope="module")
def convergence():
    return check.check_convergence()


@pytest.fixture(scope="module")
def prediction():
    return check.check_prediction()


@pytest.mark.parametrize("temperature", [0.02, 0.07, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_unified_at_the_optimal_alpha_is_rgcl_to_machine_precision(temperature, seed):
    assert failed(check.check_objective(temperature=temperature, seed=seed)) == []


def test_another_objective_is_not_taken_for_rgcl(monkeypatch):
    def authors(log_gamma_2B, alpha_2B, temperature, *, rho):
        """The exponential part's temperature gradient counted twice: the same value, another gradient."""
        shifted_2B = log_gamma_2B + (log_gamma_2B - log_gamma_2B.detach())
        return unified(shifted_2B, alpha_2B, temperature, rho=rho)

    monkeypatch.setattr(check, "unified", authors)
    wrong = failed(check.check_objective())
    assert "UNIFIED at alpha* - RGCL, relative: temperature gradient" in wrong
    assert "UNIFIED at alpha* - RGCL, relative: value" not in wrong


def test_the_alternation_settles_where_full_batch_optimisation_ends(convergence):
    assert failed(convergence) == []


def test_with_each_batchs_own_normalizers_descent_ends_elsewhere(convergence):
    start, best = (convergence.drawn["RGCL, full batch"][number][1] for number in (0, -1))
    missed = (convergence.drawn["RGCL, batch's own"][-1][1] - best) / (start - best)
    assert missed > convergence.measures[0].bound


def test_an_alternation_that_has_not_had_the_time_is_not_taken_for_settled():
    assert len(failed(check.check_convergence(num_pairs=128, num_steps=40, full_batch_steps=100))) == 2


def test_the_network_predicts_better_than_what_else_could_be_used(prediction):
    assert failed(prediction) == []
    assert list(prediction.drawn)[-1] == "NeuCLIP"


def test_a_network_that_learns_nothing_is_found_out(monkeypatch):
    def fit(self, anchors, **settings):
        _, alpha_2G = self._gradient(self.weights, anchors, settings["slope"])
        return alpha_2G, torch.zeros(())

    monkeypatch.setattr(Normalizer, "fit", fit)
    wrong = failed(check.check_prediction(num_pairs=1024, num_steps=300))
    assert "squared error of the network, share of: untrained prototypes" in wrong


def test_the_command_prints_every_measure_and_draws_the_figure(tmp_path, monkeypatch, capsys, convergence, prediction):
    monkeypatch.setattr(check, "check_convergence", lambda seed: convergence)
    monkeypatch.setattr(check, "check_prediction", lambda seed: prediction)
    before = dict(mpl.rcParams)
    check.main(["--out", str(tmp_path / "new")])
    assert {path.name for path in (tmp_path / "new").iterdir()} == {f"first-checks.{s}" for s in ("pdf", "png", "svg")}
    assert dict(mpl.rcParams) == before
    printed = capsys.readouterr().out
    assert printed.count("pass") == 12
    assert "FAIL" not in printed


def test_the_figure_shows_what_was_measured(convergence, prediction):
    objective = check.check_objective()
    left, middle, right = check_figure.draw(objective, convergence, prediction).axes
    assert left.get_lines()[1].get_ydata().tolist() == objective.drawn["excess"]
    drawn = {line.get_label(): line.get_xydata()[-1].tolist() for line in middle.get_lines()}
    for label, curve in convergence.drawn.items():
        assert drawn[label] == list(curve[-1])
    assert [label.get_text() for label in right.get_yticklabels()] == list(prediction.drawn)
    texts = [text.get_text() for text in right.texts]
    assert f"{float(prediction.drawn['NeuCLIP'].square().mean()):.2f}" in texts


def test_a_failed_check_is_the_exit_status(tmp_path, monkeypatch, capsys, convergence, prediction):
    worse = [measure._replace(value=float("nan")) for measure in convergence.measures]
    monkeypatch.setattr(check, "check_convergence", lambda seed: convergence._replace(measures=worse))
    monkeypatch.setattr(check, "check_prediction", lambda seed: prediction)
    with pytest.raises(SystemExit) as stopped:
        check.main(["--out", str(tmp_path)])
    assert stopped.value.code == 1
    assert "FAIL" in capsys.readouterr().out
