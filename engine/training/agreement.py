"""Let processes agree on what comes after a step, in one sum that a device has at the end of it.

The sum holds whether loss and gradient are finite on every process, which decides on the device whether parameters
move; the processes' votes; and what is logged. A GPU would have to be waited for to read it, so it is read in the next
step, once that has given the device more to do, and before its batch can change the method. Until then no parameter has
moved by a step that diverged, and a run that is saved first reads what its last step has told: what follows from a
step is the same on all processes and in every attempt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from engine.distributed import Collectives
from engine.stop import STOP_SIGNALS

_MAX_SKIPPED_IN_A_ROW = 20
"""Skipped steps in a row that mean divergence. The first steps may skip some: each halves a loss scale of 2^16."""
_MIN_LOSS_SCALE = 1.0
_NUM_FLAGS = 3


class Votes(NamedTuple):
    """Requests of one process after a step; their sums over processes decide what all of them do."""

    stop: tuple[int, ...] = (0,) * len(STOP_SIGNALS)
    """Processes that got each of `STOP_SIGNALS`."""
    save: int = 0
    """Processes that ask for a checkpoint."""
    num_replaced: int = 0
    """Samples of the step that were replaced."""

    def and_of(self, other: Votes) -> Votes:
        """Return the votes of two steps together."""
        stop = tuple(map(sum, zip(self.stop, other.stop, strict=True)))
        return Votes(stop, self.save + other.save, self.num_replaced + other.num_replaced)


class Told(NamedTuple):
    """The sums over processes of a step, on the CPU."""

    step: int
    index_B: Tensor
    """Positions of this process's pairs."""
    loss: float
    votes: Votes
    divergence: str | None
    """The reason to end the run: the step does not count."""
    rest: Tensor
    """What else was given."""


class _Unread(NamedTuple):
    step: int
    index_B: Tensor
    sums: Tensor
    is_there: torch.cuda.Event | None
    """Once it has happened, `sums` is there; None if it is."""


class Agreement:
    """What processes agree on, step by step.

    Args:
        collectives: The processes.
        device: Their device.

    Attributes:
        reads_late: Read a step in the next one unless somebody needs to know; by default on a GPU.
        num_skipped: Steps that fp16 has skipped.
        num_skipped_in_a_row: Of these, those at the end.
    """

    def __init__(self, collectives: Collectives, device: torch.device) -> None:
        self._collectives, self._device = collectives, device
        self.reads_late = device.type == "cuda"
        self.num_skipped = 0
        self.num_skipped_in_a_row = 0
        self._unread: _Unread | None = None

    @property
    def is_read(self) -> bool:
        """Whether nothing is left to read."""
        return self._unread is None

    def add_up(
        self,
        step: int,
        index_B: Tensor,
        loss: Tensor,
        grad_norm: Tensor,
        votes: Votes,
        logged: Sequence[Tensor],
        own: Sequence[Tensor],
    ) -> Tensor:
        """Add up what processes have to say of a step; returns whether it is bad: a flag on the device, equal on all.

        One collective, and on a GPU one copy to the CPU, for which nobody waits.

        Args:
            step: Its number.
            index_B: Positions of this process's pairs.
            loss: This process's, scalar.
            grad_norm: This process's, scalar.
            votes: This process's.
            logged: Vectors to add up as well.
            own: Scalars of this process, not to be added up, but to be read with the rest.
        """
        flags = torch.stack([loss, ~torch.isfinite(loss), ~torch.isfinite(grad_norm)]).double()
        asked = flags.new_zeros(len(STOP_SIGNALS) + 2)
        if votes != Votes():
            # A copy may wait for a GPU; most steps have no need of one.
            asked.copy_(torch.tensor([*votes.stop, votes.save, votes.num_replaced]))
        sums = self._collectives.all_reduce(torch.cat([flags, asked, *logged]), "sum")
        on_cpu = torch.cat([sums, *(scalar.detach().double().view(1) for scalar in own)]).to("cpu", non_blocking=True)
        is_there = None
        if self._device.type == "cuda":
            is_there = torch.cuda.Event()  # type: ignore[no-untyped-call]
            is_there.record()
        self._unread = _Unread(step, index_B, on_cpu, is_there)
        return sums[1:_NUM_FLAGS].any()

    def read(self, scaler: torch.amp.GradScaler) -> Told | None:
        """Wait for what the last step has told, and read it; None if that was read. Every process does this together.

        Args:
            scaler: The loss scale of fp16.
        """
        if self._unread is None:
            return None
        unread, self._unread = self._unread, None
        if unread.is_there is not None:
            unread.is_there.synchronize()
        flags, asked, rest = unread.sums.tensor_split((_NUM_FLAGS, _NUM_FLAGS + len(STOP_SIGNALS) + 2))
        loss, bad_losses, bad_gradients = flags.tolist()
        *stop, save, num_replaced = map(int, asked.tolist())
        reason: str | None = "the loss or its gradient is not finite"
        if not bad_losses and not (bad_gradients and not scaler.is_enabled()):
            reason = self._count_skipped(scaler, is_skipped=bad_gradients > 0)
        return Told(unread.step, unread.index_B, loss, Votes(tuple(stop), save, num_replaced), reason, rest)

    def _count_skipped(self, scaler: torch.amp.GradScaler, *, is_skipped: bool) -> str | None:
        """Count the steps that fp16 skips; returns the reason if they mean divergence."""
        if not is_skipped:
            self.num_skipped_in_a_row = 0
            return None
        self.num_skipped += 1
        self.num_skipped_in_a_row += 1
        # Read only now: on a GPU, to read it is to wait.
        scale = scaler.get_scale()
        if scale < _MIN_LOSS_SCALE:
            return f"the loss scale of fp16 fell to {scale:g}, below {_MIN_LOSS_SCALE:g}: the gradient is not finite"
        if self.num_skipped_in_a_row >= _MAX_SKIPPED_IN_A_ROW:
            return f"fp16 skipped {self.num_skipped_in_a_row} steps in a row: their gradients are not finite"
        return None
