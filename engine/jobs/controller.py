"""Run the processes of a job on this machine, and end all of them when one has failed, as srun does on Slurm.

Submitit's controller waits for every process, though one that waits for a dead one may take half an hour to end. Nor
does it report how a killed process ended.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from submitit.local import local

from engine import files
from engine.jobs.process import Ending, ending_path

_GRACE_SEC = 10
"""Time for the other processes to end by themselves after one has failed."""


class Controller(local.Controller):  # type: ignore[misc]
    """The controller of one job; its process number is the job's."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.pid = str(os.getpid())

    def wait(self, freq: int = 24) -> Sequence[int | None]:
        """Wait until all processes have ended, time is up, or one failed a while ago; return exit codes so far.

        Args:
            freq: Looks per second.
        """
        last_look = time.time()
        end_at = time.monotonic() + self.timeout_s
        warn_at = end_at - self.signal_delay_s
        while True:
            look, codes = time.time(), [task.poll() for task in self.tasks]
            for rank, code in enumerate(codes):
                if code not in (None, 0, local.LOCAL_REQUEUE_RETURN_CODE):
                    self._note(rank, code, last_look)
                    end_at = min(end_at, time.monotonic() + _GRACE_SEC)
            if None not in codes or time.monotonic() >= end_at:
                return codes
            if time.monotonic() >= warn_at:
                self._forward_signal(signal.SIGUSR2)
                warn_at = math.inf
            last_look = look
            time.sleep(1 / freq)

    def _note(self, rank: int, code: int, last_seen: float) -> None:
        """Write an `Ending` for a process that was killed, with a time before those of the processes that noticed."""
        path = ending_path(self.folder, self.pid, rank)
        if not path.exists():
            ending = Ending(at=last_seen, message=_described(code))
            files.write_text(path, ending.model_dump_json() + "\n")


def _described(code: int) -> str:
    """Say how a process ended, by its exit code as `subprocess` has it."""
    if code >= 0:
        return f"it ended with exit code {code} and said nothing"
    name = signal.Signals(-code).name
    return f"killed by {name}" + (", as the system does when memory runs out" if name == "SIGKILL" else "")


if __name__ == "__main__":
    # Submitit starts a job six times by default. What ends its starts here is the count of them, `max_requeues`.
    Controller(Path(sys.argv[1])).run(max_retry=sys.maxsize)
