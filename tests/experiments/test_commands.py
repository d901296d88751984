"""The commands of `python -m experiments`."""

import re

import pytest

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
