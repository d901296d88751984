"""Tars of any content: each pair that is indexed is one that was put in, or it is left out with a reason."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support import evalsets, toy
from support.fuzzing import Refused, damaged, judge, share

from engine.data.index import index_shard
from engine.evaluation import reading
from engine.schema.run import CaptionSource

pytestmark = pytest.mark.slow

PAIRS = {
    f"{n:03d}": (toy.picture("red", "top left", n)[: 400 + 100 * n], f"a square, number {n}".encode()) for n in range(6)
}


def tar(form: int = tarfile.USTAR_FORMAT, name: str = "{}") -> bytes:
    """The pairs in an archive, in one of its forms."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for key, members in PAIRS.items():
            for extension, data in zip(("png", "txt"), members, strict=True):
                info = tarfile.TarInfo(f"{name.format(key)}.{extension}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


LONG = "f" * 120 + "/{}"
WHOLE = [tar(), tar(tarfile.GNU_FORMAT, LONG), tar(tarfile.PAX_FORMAT, LONG)]


def nearest(data: bytes, side: int) -> str | None:
    """The pair whose picture or caption differs least, if in three bytes at most."""
    same_size = {key: pair[side] for key, pair in PAIRS.items() if len(pair[side]) == len(data)}
    distances = {key: sum(a != b for a, b in zip(data, own, strict=True)) for key, own in same_size.items()}
    key = min(distances, key=distances.__getitem__, default=None)
    return key if key is not None and distances[key] <= 3 else None


@share(0.038)
@given(whole=st.sampled_from(WHOLE), data=st.data())
def test_no_picture_gets_another_s_caption(whole, data):
    damage = data.draw(damaged(whole))
    Path("0.tar").write_bytes(damage)
    found = judge(lambda: index_shard(Path("0.tar"), CaptionSource()), "0.tar")
    assert not isinstance(found, Refused), "a shard is never refused as a whole"
    rows, rejected, _ = found
    assert all(each.reason for each in rejected)
    for image_offset, image_bytes, caption_offset, caption_bytes, _ in rows.tolist():
        assert image_offset + image_bytes <= len(damage)
        of_image = nearest(damage[image_offset : image_offset + image_bytes], 0)
        of_caption = nearest(damage[caption_offset : caption_offset + caption_bytes], 1)
        assert of_image == of_caption or None in (of_image, of_caption)
    assert len(rows) == len(PAIRS) or damage != whole


@share(0.024)
@given(which=st.sampled_from(("test/0.tar", "test/nshards.txt", "classnames.txt")), data=st.data())
@example(which="test/nshards.txt", data=None)
def test_damage_of_an_evaluation_set_is_refused_or_read_as_it_stands(which, data):
    eval_card, target = evalsets.classification(Path("kinds"), 6, shards=1), Path("kinds") / which
    before = reading.survey(eval_card)
    target.write_bytes(b"9" * 30 if data is None else data.draw(damaged(target.read_bytes())))
    found = judge(lambda: reading.count(eval_card) and reading.survey(eval_card), "'kinds'", "kinds/")
    if isinstance(found, Refused):
        return
    if which == "classnames.txt":
        assert found.classes == [line.strip() for line in target.read_bytes().decode().splitlines()]
    else:
        # Of a label no more is known than that it is one; that no picture is taken for another's is.
        assert [at.key for at in found.locations][:6] == [at.key for at in before.locations]
        assert np.isin(found.labels, range(len(evalsets.CLASSES))).all()
