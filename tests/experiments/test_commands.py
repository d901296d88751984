"""The commands of `python -m experiments`."""

import re

import pytest
from support import toy

from engine import paths
from engine.schema.run import Execution
from engine.training.loop import train
from experiments.__main__ import GROUPS, main


def test_without_a_command_all_are_listed_by_what_they_are_for(capsys):
    main([])
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "python -m experiments COMMAND; python -m experiments COMMAND --help says more"
    assert [line for line in lines if line and not line.startswith(" ")] == list(GROUPS)
    told = dict(match.groups() for line in lines if (match := re.match(r"  (\S+) +(\S.*)", line)))
    assert told["card"] == "write the card of a folder: a training set's shards, or an evaluation set"


def test_every_command_is_in_one_group(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = re.findall(r"^    ([a-z-]+)(?: |$)", capsys.readouterr().out, re.MULTILINE)
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(listed)


def test_explain_says_why_a_run_diverged(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    toy.build(tmp_path)
    spec = toy.run_spec("openclip", optimizer={"lr": 1e30})
    toy.write_spec(tmp_path, spec)
    end = train(spec, Execution()).divergence
    main(["explain", spec.run_id])
    *_, status, why = capsys.readouterr().out.splitlines()
    assert status == f"diverged; folder {paths.run(spec.run_id)}"
    assert why.startswith(f"diverged at step {end.step}: the loss or its gradient is not finite (temperature ")
    assert why.endswith(f"first positions of the batch {', '.join(map(str, end.indices))}")


def test_a_wrong_suite_ends_a_list_with_an_error_and_the_others_are_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, text in (("wrong", "titel: x\n"), ("empty", "")):
        (tmp_path / f"{name}.yaml").write_text(text)
        with pytest.raises(SystemExit) as ended:
            main(["list", f"{name}.yaml"])
        assert ended.value.code not in (0, None), name
    assert "an empty file: write what docs/bring-your-own.md shows" in str(ended.value.code)
    main(["list", "smoke"])
    assert f"No run lies in {tmp_path}/results/runs" in " ".join(capsys.readouterr().out.split())


def test_a_run_id_with_one_wrong_digit_is_answered_with_the_right_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_id = "openclip-toy-tiny-vit-s0-af35bd52"
    paths.run(run_id).mkdir(parents=True)
    with pytest.raises(SystemExit, match=f"no run '{run_id[:-1]}3' below results/runs; did you mean '{run_id}'"):
        main(["explain", f"{run_id[:-1]}3"])
