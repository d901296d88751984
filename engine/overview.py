"""List the commands of a program by what one wants to do, for who starts it without any."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping


def overview(program: str, commands: Mapping[str, ArgumentParser], groups: Mapping[str, tuple[str, ...]]) -> str:
    """Return a text of all commands, each with what its parser is described as, in groups.

    Args:
        program: As it is started, ``python -m experiments``.
        commands: Their parsers by name.
        groups: Names of commands, by what they are for.
    """
    width = max(map(len, commands))
    lines = [f"{program} COMMAND; {program} COMMAND --help says more"]
    for purpose, names in groups.items():
        lines += ["", purpose, *(f"  {name:{width}}  {commands[name].description}" for name in names)]
    return "\n".join(lines)
