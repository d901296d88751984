"""Rows of pairs that processes share out: what one reads is what any wrote, to the bit, at a share of the memory."""

import itertools
from typing import Any

import pytest
import torch
from support.small import make_method, random_features, train_step
from support.spawn import run_in_processes
from torch import Tensor

from engine import shares
from engine.distributed import Collectives, ProcessGroup
from engine.shares import Shares

NUM_PAIRS, STEPS = 21, 6
"""No multiple of 2 or 4: the last process has rows for no pair."""
METHODS = {f"fastclip {version}": {"version": version} for version in ("v0", "v1", "v2", "v3")} | {
    "neuclip_average": {}
}
"""Options of methods that keep numbers of every pair."""


def batch(step: int) -> Any:
    """Three batches in turn, so that rows are read that were written; in some a pair comes twice, on two processes."""
    features = random_features(step % 3, dataset_size=NUM_PAIRS, dtype=torch.float32)
    if step % 2:
        features.index_B[5] = features.index_B[0]
    return features


def train_both_forms() -> dict[str, Any]:
    """Train with rows shared out and with all of them on every process; return steps, states and sizes of both."""
    ours, results = ProcessGroup(), {}
    for what, are_apart in itertools.product(METHODS, (True, False)):
        settings = {"dataset_size": NUM_PAIRS, "collectives": ours, "shares_pairs": are_apart}
        method = make_method(what.split()[0], **METHODS[what], **settings)
        steps = [train_step(method, step, batch(step)) for step in range(STEPS)]
        rows = {name: method.get_buffer(name) for name in method.pair_buffers}
        whole = {name: (ours.gather(x) if are_apart else x)[:NUM_PAIRS].clone() for name, x in rows.items()}
        results[f"{what} {are_apart}"] = {
            "numbers": [steps, whole, method.logit_scale.detach()],
            "num_rows": sorted({len(x) for x in rows.values()}),
        }
    return results


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def together(request: pytest.FixtureRequest) -> tuple[int, list[dict[str, Any]]]:
    return request.param, run_in_processes(train_both_forms, request.param)


@pytest.mark.parametrize("what", METHODS)
def test_a_method_that_shares_its_rows_out_gives_the_numbers_of_one_that_does_not(
    together: tuple[int, list[dict[str, Any]]], what: str
) -> None:
    world_size, processes = together
    for process in processes:
        apart, whole = process[f"{what} True"], process[f"{what} False"]
        torch.testing.assert_close(apart["numbers"], whole["numbers"], rtol=0, atol=0, equal_nan=True)
        assert (apart["num_rows"], whole["num_rows"]) == ([-(-NUM_PAIRS // world_size)], [NUM_PAIRS])


def mean_by_shares() -> list[Tensor]:
    shares._MAX_GATHERED = 0
    apart = Shares(5, ProcessGroup())
    rows_52 = torch.arange(10.0).reshape(5, 2) / 7
    buffer_N2 = torch.full((apart.rows, 2), torch.nan)
    apart.restore(buffer_N2, [rows_52])
    return [apart.mean(buffer_N2), rows_52.mean()]


def test_the_mean_over_very_many_pairs_is_summed_by_shares_and_leaves_out_rows_of_no_pair() -> None:
    for found, expected in run_in_processes(mean_by_shares, 2):
        torch.testing.assert_close(found, expected)


class OneOf(Collectives):
    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size


def share_out(rows: Tensor, parts: list[Tensor], world_size: int) -> list[Tensor]:
    """Return the buffers that each of some processes fills from those of others."""
    found = []
    for rank in range(world_size):
        own = Shares(len(rows), OneOf(rank, world_size))
        found.append(rows.new_full((own.rows,), -1))
        own.restore(found[-1], parts)
    return found


@pytest.mark.parametrize("num_pairs", [4, 7, 96])
def test_any_number_of_processes_takes_over_the_rows_of_any_other(num_pairs: int) -> None:
    rows = torch.arange(num_pairs)
    for before, after in itertools.product((1, 2, 3, 4), repeat=2):
        taken_over = share_out(rows, share_out(rows, [rows], before), after)
        assert {len(part) for part in taken_over} == {-(-num_pairs // after)}
        assert torch.equal(torch.cat(taken_over)[:num_pairs], rows)
        assert (torch.cat(taken_over)[num_pairs:] == -1).all()
