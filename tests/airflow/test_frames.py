"""The hook's tables and data frames have the rows of the operator's Parquet file of the same window."""

from __future__ import annotations

import sys

import pyarrow.parquet as pq
import pytest

from airflow_provider_unleash.core.frames import to_frame
from airflow_provider_unleash.exceptions import InvalidArgumentError, SnapshotChangedError
from airflow_provider_unleash.hooks import UnleashHook
from airflow_provider_unleash.operators import UnleashToObjectStorageOperator
from tests.support.sample_day import DAY_END, DAY_START, SILENT, STREET, make_context

pytestmark = pytest.mark.usefixtures("quick_retries")

WINDOW = (DAY_START, DAY_END - 1)  # the operator drops rows at the end, the hook does not
DECLARED = {"confidence": "float64", "seen": "bool"}


@pytest.mark.parametrize("endpoint", ["compact", "tableau"])
@pytest.mark.parametrize(("device_id", "column_types"), [(STREET, None), (STREET, DECLARED), (SILENT, DECLARED)])
def test_a_table_equals_the_operators_file(device_id, column_types, endpoint, serve, tmp_path):
    serve(nulls=True, new_key="confidence", reorder_keys=True)
    land = UnleashToObjectStorageOperator(
        task_id="land", device_id=device_id, dst=str(tmp_path), file_format="parquet", column_types=column_types
    )
    [written] = land.execute(make_context())["files"]
    file = pq.read_table(written["path"].removeprefix("file://"), partitioning=None)
    table = UnleashHook().get_arrow_table(device_id, *WINDOW, endpoint=endpoint, column_types=column_types)
    assert table.schema == file.schema.remove_metadata()
    assert table.equals(file)
    assert bool(table.num_rows) is (device_id == STREET)


@pytest.mark.parametrize("df_type", ["pandas", "polars"])
def test_a_data_frame_has_the_rows_of_the_table(df_type, serve):
    pytest.importorskip(df_type)
    serve(nulls=True, new_key="confidence")
    hook = UnleashHook()
    frame = hook.get_df(STREET, *WINDOW, df_type=df_type, column_types=DECLARED)
    assert frame.equals(to_frame(hook.get_arrow_table(STREET, *WINDOW, column_types=DECLARED), df_type))
    assert len(frame) > 0


def test_a_table_is_read_again_if_its_pages_change(serve):
    sim = serve(growing=60)
    table = UnleashHook().get_arrow_table(STREET, *WINDOW)
    frames = [record["frame_number"] for record in sim.rows(STREET, *WINDOW)]
    assert table.column("frame_number").to_pylist() == frames
    serve(growing=1)
    with pytest.raises(SnapshotChangedError):
        UnleashHook().get_arrow_table(STREET, *WINDOW)


@pytest.mark.parametrize(
    ("missing", "arguments", "message"),
    [
        ("pandas", {}, "needs pandas: pip install 'airflow-provider-unleash[pandas]'"),
        ("polars", {"df_type": "polars"}, "needs polars: pip install 'airflow-provider-unleash[polars]'"),
        ("pyarrow", {}, "pyarrow: pip install 'airflow-provider-unleash[pandas]'"),
        ("dask", {"df_type": "dask"}, "df_type='dask' must be one of pandas, polars"),
        ("dask", {"column_types": {"count": "int64"}}, "'count' is already a column"),
    ],
)
def test_an_unusable_argument_is_an_error_before_any_request(missing, arguments, message, serve, monkeypatch):
    pytest.importorskip("pandas")
    sim = serve()
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(InvalidArgumentError) as caught:
        UnleashHook().get_df(STREET, *WINDOW, **arguments)
    assert message in str(caught.value)
    assert sim.requests == []


def test_without_pyarrow_a_table_is_an_error_before_any_request(serve, monkeypatch):
    sim = serve()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidArgumentError, match=r"pip install 'airflow-provider-unleash\[parquet\]'"):
        UnleashHook().get_arrow_table(STREET, *WINDOW)
    assert sim.requests == []
