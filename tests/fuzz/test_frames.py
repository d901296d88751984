"""Damaged collected frames: exactly the rows that were written, or one clear error."""

import io
from pathlib import Path

import pandas as pd
import pytest
import synthetic
from hypothesis import example, given
from hypothesis import strategies as st
from support.fuzzing import Judge, Refused, changed, damaged, share

from analysis import frame as tidy
from analysis.collect import collect

pytestmark = pytest.mark.slow

PATH = Path("collected.parquet")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("results"))
        specs = [synthetic.run_spec(method, seed) for method in ("neuclip", "openclip") for seed in range(2)]
        return collect(synthetic.write_suite(specs)).head(300)


@pytest.fixture(scope="module")
def whole(rows: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "frame.parquet"
    tidy.write(rows, path)
    return path.read_bytes()


def judged(judge: Judge, data: bytes, rows: pd.DataFrame) -> None:
    PATH.write_bytes(data)
    found = judge(lambda: tidy.read(PATH), PATH)
    if not isinstance(found, Refused):
        pd.testing.assert_frame_equal(found, rows)


@share(0.058)
@given(data=st.data())
def test_a_damaged_frame_is_refused_or_has_the_rows_that_were_written(judge, rows, whole, data):
    judged(judge, data.draw(damaged(whole)), rows)


@share(0.038)
@given(data=st.data())
def test_damage_of_what_describes_the_rows_is_refused_or_changes_none(judge, rows, whole, data):
    """The end of a parquet file, which its pages' checksums do not cover."""
    size = int.from_bytes(whole[-8:-4], "little") + 8
    judged(judge, whole[:-size] + data.draw(damaged(whole[-size:])), rows)


TABLES = [
    pd.DataFrame({"a": [1]}),
    pd.DataFrame(),
    pd.DataFrame({column: pd.Series(dtype="object") for column in tidy.COLUMNS}),
    pd.DataFrame({column: ["x"] for column in tidy.COLUMNS}),
    pd.DataFrame({column: [1.5] for column in tidy.COLUMNS}),
    pd.DataFrame({column: [[1, 2]] for column in tidy.COLUMNS}),
    pd.DataFrame({column: [None] for column in tidy.COLUMNS}),
]


@pytest.mark.parametrize("number", range(len(TABLES)))
def test_another_table_is_refused(judge, number):
    TABLES[number].to_parquet(PATH)
    assert isinstance(judge(lambda: tidy.read(PATH), PATH), Refused)


@share(0.01)
@given(change=changed({column: ["x", 1, 2.5, None, True] for column in ("seed", "value", "status", "is_main")}, most=1))
@example(change={"seed": ["0"]})
def test_a_column_of_another_type_is_refused(judge, rows, change):
    other = rows.head(1).copy()
    for column, values in change.items() if isinstance(change, dict) else ():
        if column in other and isinstance(values, list) and values:
            other[column] = pd.Series([values[0]], dtype="object")
    file = io.BytesIO()
    try:
        other.to_parquet(file)
    except Exception:
        return  # no parquet can hold it
    PATH.write_bytes(file.getvalue())
    found = judge(lambda: tidy.read(PATH), PATH)
    if not isinstance(found, Refused):
        assert {name: str(kind) for name, kind in found.dtypes.items()} == tidy.COLUMNS
