"""Runs a command on a pseudo-terminal, as a person would see it."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def run_on_terminal(
    command: list[str],
    *,
    columns: int = 80,
    rows: int = 24,
    press: tuple[str, bytes] | None = None,
    timeout_sec: float = 60.0,
) -> tuple[int, str]:
    """Run a command; returns its exit code (minus the signal that killed it) and all that it wrote to the terminal.

    Args:
        command: Path of a program, and its arguments.
        columns: Width of the terminal.
        rows: Its height.
        press: A text to wait for, and what is typed when it was shown.
        timeout_sec: The command is killed after so long.
    """
    process, terminal = pty.fork()
    if process == 0:
        for name in ("COLUMNS", "LINES"):
            os.environ.pop(name, None)
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        os.execve(command[0], command, {**os.environ, "TERM": "xterm-256color"})
    shown, deadline = b"", time.monotonic() + timeout_sec
    while True:
        if time.monotonic() > deadline:
            os.kill(process, signal.SIGKILL)
        if not select.select([terminal], [], [], 0.1)[0]:
            continue
        try:
            shown += os.read(terminal, 65536)
        except OSError:  # How Linux says that the other end is closed.
            break
        if press is not None and press[0].encode() in shown:
            os.write(terminal, press[1])
            press = None
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), shown.decode()


def lines_of(shown: str) -> list[str]:
    """Every line that the terminal showed at some moment, without colours."""
    return [line for line in re.split(r"[\r\n]+", _CONTROL.sub("", shown)) if line.strip()]
