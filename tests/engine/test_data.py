import numpy as np
import pytest
import torch
import toy

from engine import paths
from engine.data import PairDataset, Request, build_loader
from engine.index import read_index
from engine.spec import AugmentationSpec


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    toy.build(folder)
    return folder


def tokenizer(texts):
    return torch.tensor([[len(text), sum(map(ord, text))] for text in texts])


def dataset(root, *, kind="shift", cache_bytes=0, seed=0, **changes):
    path = root / paths.index("toy")
    augmentation = AugmentationSpec(kind=kind, **changes)
    return PairDataset(
        read_index(path), path, image_size=32, tokenizer=tokenizer, augmentation=augmentation, seed=seed,
        cache_bytes=cache_bytes,
    )  # fmt: skip


def stacked(data, **changes):
    settings = {"seed": 0, "global_batch_size": 16, "steps": range(8)} | changes
    batches = list(build_loader(data, **settings))
    return [torch.stack([getattr(b, name) for b in batches]) for name in ("image_BCHW", "tokens_BT", "index_B")]


@pytest.mark.parametrize("kind", ["none", "shift", "random_resized_crop"])
def test_workers_processes_and_the_cache_do_not_change_a_batch(root, kind):
    expected = stacked(dataset(root, kind=kind))
    with_workers = stacked(dataset(root, kind=kind), num_workers=2)
    with_cache = stacked(dataset(root, kind=kind, cache_bytes=2**30))
    halves = [stacked(dataset(root, kind=kind), rank=rank, world_size=2) for rank in range(2)]
    for number, tensor in enumerate(expected):
        assert torch.equal(tensor, with_workers[number])
        assert torch.equal(tensor, with_cache[number])
        assert torch.equal(tensor, torch.cat([half[number] for half in halves], dim=1))


def test_starting_at_a_step_gives_the_rest_of_the_batches(root):
    for whole, rest in zip(stacked(dataset(root)), stacked(dataset(root), steps=range(5, 8)), strict=True):
        assert torch.equal(whole[5:], rest)


def test_positions_belong_to_their_images_and_captions(root):
    batch = dataset(root, kind="none")[Request(0, np.array([50, 3]))]
    for row, position in enumerate((50, 3)):
        colour, place, _ = toy.pairs()[position]
        assert batch.tokens_BT[row].tolist() == tokenizer([f"a {colour} square, {place}"])[0].tolist()
        top, left = toy.PLACES[place]
        assert batch.image_BCHW[row, :, top, left].tolist() == list(toy.COLOURS[colour])


def test_a_shift_moves_the_picture_and_repeats_the_border(root):
    plain = dataset(root, kind="none")[Request(0, np.arange(16))].image_BCHW
    moved = dataset(root, kind="shift", max_shift_px=2)[Request(0, np.arange(16))].image_BCHW
    padded = torch.nn.functional.pad(plain.float(), (2, 2, 2, 2), mode="replicate").to(torch.uint8)
    windows = [[padded[:, :, y : y + 32, x : x + 32] for x in range(5)] for y in range(5)]
    found = {
        (y, x) for row in range(16) for y in range(5) for x in range(5) if torch.equal(windows[y][x][row], moved[row])
    }
    assert all(
        any(torch.equal(windows[y][x][row], moved[row]) for y in range(5) for x in range(5)) for row in range(16)
    )
    assert len(found) > 3


@pytest.mark.parametrize("kind", ["shift", "random_resized_crop"])
def test_augmentation_changes_with_the_epoch_and_the_seed(root, kind):
    positions = np.arange(32)
    pictures = dataset(root, kind=kind, crop_scale=(0.5, 1.0))
    first, again = (pictures[Request(0, positions)].image_BCHW for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, pictures[Request(1, positions)].image_BCHW)
    assert not torch.equal(first, dataset(root, kind=kind, seed=1)[Request(0, positions)].image_BCHW)


def test_a_batch_that_processes_cannot_share_is_refused(root):
    with pytest.raises(ValueError, match="cannot be divided among 3 processes"):
        build_loader(dataset(root), seed=0, global_batch_size=16, steps=range(1), world_size=3)


def test_a_broken_image_names_its_place(tmp_path):
    toy.build(tmp_path)
    shard = tmp_path / "data" / "toy" / "train" / "00000.tar"
    data = shard.read_bytes()
    shard.write_bytes(data.replace(b"\x89PNG", b"xxxx"))
    with pytest.raises(OSError, match="data set 'toy', position 2: the image cannot be decoded"):
        dataset(tmp_path)[Request(0, np.array([2]))]
