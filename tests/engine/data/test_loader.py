import io
import itertools
import os
import resource

import numpy as np
import pytest
import torch
from PIL import Image
from support import toy
from torchvision.transforms import functional as tv

from engine import paths
from engine.data import loader, order
from engine.data.index import build_index, read_index
from engine.data.loader import PairDataset, Request, build_loader
from engine.schema.run import AugmentationSpec, CaptionSource

NAMES = ("image_BCHW", "tokens_BT", "index_B")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    toy.build(folder)
    return folder


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """The toy set with damaged pictures at 10, 11, 69 and 95 and a blank caption at 30, unnoticed by the index."""
    folder = tmp_path_factory.mktemp("damaged")
    members = {}
    for colour, place, number in toy.pairs():
        picture = toy.picture(colour, place, number)
        members[f"{number:06d}.png"] = picture[:200] if number in (10, 11, 69, 95) else picture
        members[f"{number:06d}.txt"] = b"  " if number == 30 else f"a {colour} square, {place}".encode()
    items = list(members.items())
    for shard, (first, last) in enumerate([(0, 40), (40, 70), (70, 96)]):
        toy.write_tar(folder / "data/toy/train" / f"{shard:05d}.tar", dict(items[2 * first : 2 * last]))
    out = folder / paths.index("toy")
    train = folder / "data/toy/train"
    build_index("toy", "1", train, CaptionSource(), out, pairs=toy.NUM_PAIRS, digest="members")
    return folder


def write(root, members, captions=None):
    """A set of one shard below `root`, with its index."""
    folder = root / "data/toy/train"
    toy.write_tar(folder / "0.tar", members)
    return build_index("toy", "1", folder, captions or CaptionSource(), root / paths.index("toy"), pairs=None)


def tokenizer(texts):
    return torch.tensor([[len(text), sum(map(ord, text))] for text in texts])


def dataset(root, name="toy", *, kind="shift", cache_bytes=0, seed=0, **changes):
    path = root / paths.index(name)
    augmentation = AugmentationSpec(kind=kind, **changes)
    return PairDataset(
        read_index(path), path, image_size=32, tokenizer=tokenizer, augmentation=augmentation, seed=seed,
        cache_bytes=cache_bytes,
    )  # fmt: skip


def stacked(data, **changes):
    settings = {"seed": 0, "global_batch_size": 16, "steps": range(8)} | changes
    batches = list(build_loader(data, **settings))
    return [torch.stack([getattr(b, name) for b in batches]) for name in NAMES], [b.replaced for b in batches]


def equal(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("which", "kind"), [("root", "none"), ("root", "random_resized_crop"), ("damaged", "shift")])
def test_workers_processes_and_the_cache_do_not_change_a_batch(request, which, kind):
    folder = request.getfixturevalue(which)
    expected, replaced = stacked(dataset(folder, kind=kind))
    assert any(replaced) == (which == "damaged")
    assert replaced == stacked(dataset(folder, kind=kind), num_workers=2)[1]
    assert equal(expected, stacked(dataset(folder, kind=kind), num_workers=2)[0])
    for with_cache in (dataset(folder, kind=kind, cache_bytes=2**30),) * 2:
        tensors, again = stacked(with_cache)
        assert equal(expected, tensors)
        assert again == replaced
    halves = [stacked(dataset(folder, kind=kind), rank=rank, world_size=2) for rank in range(2)]
    assert equal(expected, [torch.cat(pair, dim=1) for pair in zip(halves[0][0], halves[1][0], strict=True)])
    assert replaced == [first + second for first, second in zip(halves[0][1], halves[1][1], strict=True)]


def test_starting_at_a_step_gives_the_rest_of_the_batches(damaged):
    # Six steps are an epoch: 4 is in the middle of the first, 9 in the middle of the second.
    whole, replaced = stacked(dataset(damaged), steps=range(13))
    for first, num_workers in ((4, 0), (9, 2)):
        rest, rest_replaced = stacked(dataset(damaged), steps=range(first, 13), num_workers=num_workers)
        assert equal([tensor[first:] for tensor in whole], rest)
        assert replaced[first:] == rest_replaced


def test_a_worker_that_cannot_hand_a_batch_over_ends_the_run(root):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # of a batch in /dev/shm, too
    try:
        with pytest.raises(OSError, match=r"cannot put its batch into /dev/shm .*File too large.*make room there"):
            stacked(dataset(root), num_workers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_positions_belong_to_their_images_and_captions(root):
    batch = dataset(root, kind="none")[Request(0, np.array([50, 3]))]
    for row, position in enumerate((50, 3)):
        colour, place, _ = toy.pairs()[position]
        assert batch.tokens_BT[row].tolist() == tokenizer([f"a {colour} square, {place}"])[0].tolist()
        top, left = toy.PLACES[place]
        assert batch.image_BCHW[row, :, top, left].tolist() == list(toy.COLOURS[colour])


@pytest.mark.parametrize("cache_bytes", [0, 2**30])
def test_the_next_usable_sample_stands_in_for_one_that_cannot_be_decoded(damaged, root, cache_bytes):
    positions = np.array([95, 30, 11, 5, 69, 10, 31])
    content = np.array([0, 31, 12, 5, 70, 12, 31])
    data = dataset(damaged, kind="none", cache_bytes=cache_bytes)
    expected = dataset(root, kind="none")[Request(0, content)]
    for _ in range(2):  # the second time from the cache, if there is one
        batch = data[Request(0, positions)]
        assert batch.index_B.tolist() == positions.tolist()
        assert equal([batch.image_BCHW, batch.tokens_BT], [expected.image_BCHW, expected.tokens_BT])
        places = [(2, 95), (0, 30), (0, 11), (1, 69), (0, 10)]
        said = [f"shard {shard:05d}.tar, sample {position:06d}.png" for shard, position in places]
        assert [text.split(": ")[0] for text in batch.replaced] == said
        assert batch.replaced[1].endswith(": blank .txt caption")
        assert ": the image cannot be decoded: " in batch.replaced[0]


def test_a_set_without_any_usable_sample_is_one_clear_error(tmp_path):
    members = {}
    for number in range(4):
        members |= {f"{number}.png": b"no picture", f"{number}.txt": b"a caption"}
    write(tmp_path, members)
    with pytest.raises(ValueError, match=r"no sample at all .* 0.tar, sample 2.png: .* unknown format"):
        dataset(tmp_path)[Request(0, np.array([2]))]


def test_other_formats_are_not_decoded(tmp_path):
    # Pillow hands this one to Ghostscript.
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n%%EOF\n"
    picture = toy.picture("red", "top left", 0)
    members = {"0.jpg": eps, "0.txt": b"a caption", "1.png": picture, "1.txt": b"a caption"}
    write(tmp_path, members)
    (text,) = dataset(tmp_path)[Request(0, np.array([0]))].replaced
    assert text == "shard 0.tar, sample 0.jpg: the image cannot be decoded: unknown format"


def test_a_shard_that_was_cut_after_indexing_stops_the_run(tmp_path):
    toy.build(tmp_path)
    shard = tmp_path / "data/toy/train/00001.tar"
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(ValueError, match=f"00001.tar has {size - 512} bytes, its index says {size}: fetch it again"):
        dataset(tmp_path)[Request(0, np.array([50]))]


@pytest.mark.parametrize("column", [0, 2], ids=["of a picture", "of a caption"])
def test_a_pair_with_a_bit_that_is_not_the_one_that_was_indexed_stops_the_run(tmp_path, column):
    # What lies between picture and caption, here too much for one read, is not part of the pair.
    members = {"0.png": toy.picture("red", "top left", 0), "0.json": b" " * 2**15, "0.txt": b"a red square"}
    built = write(tmp_path, members)
    tar, index = tmp_path / "data/toy/train/0.tar", tmp_path / paths.index("toy")
    data, times = bytearray(tar.read_bytes()), tar.stat()
    data[built.read_rows(index, 0)[0, column] + 2] ^= 1
    tar.write_bytes(data)
    os.utime(tar, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ValueError, match=f"'toy': shard 0.tar, sample 0.png: .*indexed. Fetch {tar} again.*-f {index}"):
        dataset(tmp_path)[Request(0, np.array([0]))]


def test_one_of_several_captions_is_drawn_anew_each_epoch(tmp_path):
    members = {}
    for number in range(60):
        members[f"{number}.png"] = toy.picture("red", "top left", number)
        members[f"{number}.json"] = b'{"other": 1, "caption": ["a", "bb", "ccc"]}'
    write(tmp_path, members, CaptionSource(member="json", field="caption"))
    data = dataset(tmp_path, kind="none", cache_bytes=2**30)
    first, again, later = (data[Request(epoch, np.arange(60))].tokens_BT for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert all(8 < int((first[:, 0] == length).sum()) < 32 for length in (1, 2, 3))


def test_a_subset_reads_pairs_of_the_whole_set(root):
    path, folder = root / paths.index("toy_half"), root / "data/toy/train"
    half = build_index("toy_half", "1", folder, CaptionSource(), path, pairs=None, fraction=0.5)
    whole = dataset(root, kind="none")[Request(0, np.arange(toy.NUM_PAIRS))].image_BCHW
    found = dataset(root, "toy_half", kind="none")[Request(0, np.arange(half.pairs))].image_BCHW
    places = [next(n for n in range(toy.NUM_PAIRS) if torch.equal(whole[n], image)) for image in found]
    assert places == sorted(set(places))
    assert 20 < len(places) < 76
    starts = read_index(root / paths.index("toy")).starts
    assert np.histogram(places, starts)[0].tolist() == list(half.shard_sizes)


def test_a_batch_is_read_forward_with_one_read_a_pair(root, monkeypatch):
    reads, pread = [], os.pread
    data = dataset(root)
    data[Request(0, np.arange(toy.NUM_PAIRS))]  # opens the shards

    def recorded(descriptor, size, offset):
        reads.append((descriptor, offset))
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", recorded)
    data[Request(0, np.random.default_rng(0).permutation(toy.NUM_PAIRS))]
    assert len(reads) == toy.NUM_PAIRS
    for _, shard in itertools.groupby(reads, key=lambda read: read[0]):
        offsets = [offset for _, offset in shard]
        assert offsets == sorted(offsets)


def test_few_shards_are_open_at_a_time(tmp_path):
    num_shards, pair = 4 * order.WINDOW_SHARDS, {"a.png": toy.picture("red", "top left", 0), "a.txt": b"a caption"}
    for shard in range(1, num_shards):
        toy.write_tar(tmp_path / "data/toy/train" / f"{shard:03d}.tar", pair)
    write(tmp_path, pair)
    before = len(os.listdir("/proc/self/fd"))
    data = dataset(tmp_path)
    data[Request(0, np.arange(num_shards))]
    assert len(os.listdir("/proc/self/fd")) - before <= 2 * order.WINDOW_SHARDS


def test_a_shift_moves_the_picture_and_repeats_the_border(root):
    plain = dataset(root, kind="none")[Request(0, np.arange(16))].image_BCHW
    moved = dataset(root, kind="shift", max_shift_px=2)[Request(0, np.arange(16))].image_BCHW
    padded = torch.nn.functional.pad(plain.float(), (2, 2, 2, 2), mode="replicate").to(torch.uint8)
    ways = list(itertools.product(range(5), range(5)))
    found = [
        [at for at in ways if torch.equal(image[:, at[0] : at[0] + 32, at[1] : at[1] + 32], seen)]
        for image, seen in zip(padded, moved, strict=True)
    ]
    assert all(found)
    assert len({at[0] for at in found}) > 3


def written(folder, picture_format, size=(150, 200)):
    """A set of one smooth picture of that size, at position 0; returns the picture as it is decoded."""
    coarse = np.random.default_rng(0).integers(256, size=(6, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(file, picture_format)
    members = {f"0.{picture_format.lower()}": file.getvalue(), "0.txt": b"a caption"}
    write(folder, members)
    return Image.open(file).convert("RGB")


def first_picture(folder, **changes):
    return dataset(folder, **changes)[Request(0, np.array([0]))].image_BCHW[0].int()


@pytest.mark.parametrize("size", [(150, 200), (101, 47), (32, 90)])
def test_pictures_are_resized_as_torchvision_does(tmp_path, size):
    picture = written(tmp_path, "PNG", size)
    whole = tv.center_crop(tv.resize(picture, [32], tv.InterpolationMode.BICUBIC), [32, 32])
    assert torch.equal(first_picture(tmp_path, kind="none"), tv.pil_to_tensor(whole).int())
    data = dataset(tmp_path, kind="random_resized_crop")
    key = int(data._keys(Request(0, np.array([0])), order.AUGMENTATION_KEYS)[0])
    left, top, right, bottom = data._random_box(size, key)
    box = (top, left, bottom - top, right - left)
    cropped = tv.resized_crop(picture, *box, [32, 32], tv.InterpolationMode.BICUBIC)
    assert torch.equal(first_picture(tmp_path, kind="random_resized_crop"), tv.pil_to_tensor(cropped).int())


@pytest.mark.parametrize("kind", ["none", "random_resized_crop"])
def test_torch_resizes_as_pillow_does_up_to_rounding(tmp_path, kind):
    written(tmp_path, "PNG")
    difference = first_picture(tmp_path, kind=kind, resize="torch") - first_picture(tmp_path, kind=kind)
    assert 0 < difference.abs().max() <= 2


@pytest.mark.parametrize("kind", ["none", "random_resized_crop"])
def test_a_large_jpeg_is_decoded_at_less_than_its_size_and_looks_the_same(tmp_path, monkeypatch, kind):
    written(tmp_path, "JPEG")
    full = first_picture(tmp_path, kind=kind)
    sizes = []
    honest = loader.resized
    monkeypatch.setattr(loader, "resized", lambda image, *rest: sizes.append(image.size) or honest(image, *rest))
    reduced = first_picture(tmp_path, kind=kind, jpeg="reduced")
    assert sizes == [(38, 50)]  # 150 // 32, and 150 // 34 for the smallest crop: a quarter
    assert 0 < (full - reduced).abs().float().mean() < 4


@pytest.mark.parametrize(("num_workers", "loading", "enough"), [(0, 3.0, 3), (4, 8.0, 8), (4, 3.9, None)])
def test_whoever_waits_for_batches_is_told_how_many_processes_would_keep_up(num_workers, loading, enough):
    # A step takes a second; the loader's processes bring a batch every loading / num_workers seconds.
    clock, ready, told = [0.0], [0.0], []

    def batches():
        for number in range(80):
            if num_workers:
                ready.append(max(loading * (number + 1) / num_workers, ready[-1]))
                clock[0] = max(clock[0], ready[-1])
            else:
                clock[0] += loading
            yield number

    for _ in loader.watched(batches(), num_workers, told.append, now=lambda: clock[0]):
        clock[0] += 1.0
    assert len(told) == (enough is not None)
    assert all(f"about {enough} loader processes would keep up" in text for text in told)


@pytest.mark.parametrize("kind", ["shift", "random_resized_crop"])
def test_augmentation_changes_with_the_epoch_and_the_seed(root, kind):
    positions = np.arange(32)
    pictures = dataset(root, kind=kind, crop_scale=(0.5, 1.0))
    first, again = (pictures[Request(0, positions)].image_BCHW for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, pictures[Request(1, positions)].image_BCHW)
    assert not torch.equal(first, dataset(root, kind=kind, seed=1)[Request(0, positions)].image_BCHW)


# Pairs beyond the batch ----------------------------------------------------------------------------------------------


def with_extra(data, **changes):
    settings = {"seed": 0, "global_batch_size": 16, "steps": range(8)} | changes
    shares = np.arange(6).reshape(settings.get("world_size", 1), -1)
    batches = list(build_loader(data, **settings, extra_shares=shares))
    both = (batches, [batch.extra for batch in batches])
    return [[torch.stack([getattr(b, name) for b in part]) for name in NAMES] for part in both]


def test_extra_pairs_leave_the_batch_as_it_is_and_depend_on_the_step_alone(root):
    kind = "shift"
    batch, extra = with_extra(dataset(root, kind=kind))
    assert equal(batch, stacked(dataset(root, kind=kind))[0])
    again = with_extra(dataset(root, kind=kind), num_workers=2)
    assert equal(extra, again[1])
    late = with_extra(dataset(root, kind=kind, cache_bytes=2**30), steps=range(5, 8))
    assert equal([tensor[5:] for tensor in extra], late[1])
    halves = [with_extra(dataset(root, kind=kind), rank=rank, world_size=2)[1] for rank in (0, 1)]
    assert equal(extra, [torch.cat(pair, dim=1) for pair in zip(*halves, strict=True)])
    # Each step has pairs of its own, and its pictures are those of the positions.
    positions = extra[2]
    assert len(set(map(tuple, positions.tolist()))) == 8
    one = dataset(root, kind=kind)[Request(0, positions[3].numpy())]
    assert torch.equal(extra[0][3], one.image_BCHW)
    assert torch.equal(extra[1][3], one.tokens_BT)
