"""Tars of any content: each pair that is indexed is one that was put in, or it is left out with a reason."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support import evalsets, toy
from support.fuzzing import Judge, Refused, damaged, share

from engine.data.index import index_shard
from engine.evaluation import reading
from engine.schema.run import CaptionSource

pytestmark = pytest.mark.slow

NUM_PAIRS = 6
PAIRS = {
    f"{number:03d}": (
        toy.picture("red", "top left", number)[: 400 + 100 * number],
        f"a square, number {number}".encode(),
    )
    for number in range(NUM_PAIRS)
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
WHOLE = {
    "ustar": tar(),
    "gnu, long names": tar(tarfile.GNU_FORMAT, LONG),
    "pax, long names": tar(tarfile.PAX_FORMAT, LONG),
}


def distance(ours: bytes, theirs: bytes) -> int:
    """Bytes that differ; all of them where lengths do."""
    return sum(a != b for a, b in zip(ours, theirs, strict=True)) if len(ours) == len(theirs) else len(theirs)


@share(0.038)
@given(form=st.sampled_from(sorted(WHOLE)), data=st.data())
def test_no_picture_gets_another_s_caption(judge, form, data):
    damage = data.draw(damaged(WHOLE[form]))
    Path("0.tar").write_bytes(damage)
    found = judge(lambda: index_shard(Path("0.tar"), CaptionSource()), "0.tar")
    assert not isinstance(found, Refused), "a shard is never refused as a whole"
    rows, rejected, _ = found
    assert all(each.reason for each in rejected)
    for image_offset, image_bytes, caption_offset, caption_bytes, _ in rows.tolist():
        image = damage[image_offset : image_offset + image_bytes]
        caption = damage[caption_offset : caption_offset + caption_bytes]
        assert len(image) == image_bytes
        nearest = [
            min(PAIRS, key=lambda key: distance(said, PAIRS[key][side])) for side, said in enumerate((image, caption))
        ]
        close = [
            distance(said, PAIRS[key][side])
            for side, (key, said) in enumerate(zip(nearest, (image, caption), strict=True))
        ]
        if close[0] <= 3 and close[1] <= 3:
            assert nearest[0] == nearest[1]
    if damage == WHOLE[form]:
        assert len(rows) == NUM_PAIRS


@pytest.fixture
def evaluation_set(judge: Judge):
    return evalsets.classification(Path("kinds"), 6, shards=1)


@share(0.024)
@given(
    which=st.sampled_from(
        ("test/0.tar", "test/nshards.txt", "classnames.txt", "zeroshot_classification_templates.txt")
    ),
    data=st.data(),
)
@example(which="test/nshards.txt", data=None)
def test_damage_of_an_evaluation_set_is_refused_or_read_as_it_stands(evaluation_set, judge, which, data):
    target = Path("kinds") / which
    whole = target.read_bytes()
    before = reading.survey(evaluation_set)
    try:
        target.write_bytes(b"9" * 30 if data is None else data.draw(damaged(whole)))
        found = judge(lambda: reading.count(evaluation_set) and reading.survey(evaluation_set), "'kinds'", "kinds/")
        if isinstance(found, Refused):
            return
        if which == "test/0.tar":
            # Of a label no more is known than that it is one; that no picture is taken for another's is.
            assert [at.key for at in found.locations][: len(before.locations)] == [at.key for at in before.locations]
            assert np.isin(found.labels, range(len(evalsets.CLASSES))).all()
        elif which == "test/nshards.txt":
            assert len(found.locations) == len(before.locations)
        else:
            lines = [line.strip() for line in target.read_bytes().decode().splitlines()]
            assert lines in (found.classes, found.templates)
    finally:
        target.write_bytes(whole)
