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
