"""Tables and data frames hold what the Parquet file of the same window holds: the same values, nulls and types."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_provider_unleash.client import UnleashClient
from airflow_provider_unleash.core.columns import ArrowConverter, columns_of
from airflow_provider_unleash.exceptions import InvalidArgumentError, SnapshotChangedError, UnexpectedResponseError
from airflow_provider_unleash.hooks import UnleashHook
from airflow_provider_unleash.operators import UnleashToObjectStorageOperator
from airflow_provider_unleash.simulator import Simulator
from tests.support.sample_day import DAY_END, DAY_START, SILENT, STREET, make_context

pytestmark = pytest.mark.usefixtures("quick_retries")

# What may lie in a window, and columns declared for it.
WINDOWS: dict[str, dict[str, Any]] = {
    "rows": {},
    "nulls": {"nulls": True},
    "keys in another order on each page": {"reorder_keys": True},
    "a new key": {"new_key": "confidence"},
    "a new key and nulls, declared": {
        "new_key": "confidence",
        "nulls": True,
        "column_types": {
            "confidence": "float64",
            "seen": "bool",
            "zone": "int64",
            "at": "timestamp",
            "note": "string",
        },
    },
    "no rows": {"device_id": SILENT},
    "no rows, declared": {"device_id": SILENT, "column_types": {"confidence": "float64"}},
}
WINDOW = (DAY_START, DAY_END - 1)  # the hook drops nothing, the operator what is stamped at the end


@pytest.fixture(params=[pytest.param(options, id=name) for name, options in WINDOWS.items()])
def window(request: pytest.FixtureRequest, serve: Callable[..., Simulator]) -> dict[str, Any]:
    """Serve a window, and give what asks for it."""
    options = dict(request.param)
    asking = {"device_id": options.pop("device_id", STREET), "column_types": options.pop("column_types", None)}
    serve(**options)
    return asking


@pytest.fixture
def file(window: dict[str, Any], tmp_path: Path) -> pa.Table:
    """Give what the operator writes for the window, read by pyarrow."""
    land = UnleashToObjectStorageOperator(task_id="land", dst=str(tmp_path), file_format="parquet", **window)
    [written] = land.execute(make_context())["files"]
    return pq.read_table(written["path"].removeprefix("file://"), partitioning=None)


def device_of(window: dict[str, Any]) -> tuple[str, int, int]:
    return (window["device_id"], *WINDOW)


# ---- the same as the file ------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ["compact", "tableau"])
def test_a_table_is_the_file_in_memory(window: dict[str, Any], file: pa.Table, endpoint: Any) -> None:
    table = UnleashHook().get_arrow_table(*device_of(window), endpoint=endpoint, column_types=window["column_types"])
    assert table.schema == file.schema.remove_metadata()
    assert table.equals(file)
    assert bool(table.num_rows) is (window["device_id"] == STREET)


def test_a_pandas_frame_goes_back_to_the_table_without_a_loss(window: dict[str, Any], file: pa.Table) -> None:
    pytest.importorskip("pandas")
    frame = UnleashHook().get_df(*device_of(window), column_types=window["column_types"])
    dtypes = {name: str(dtype) for name, dtype in frame.dtypes.items()}
    names = {"string": "string", "int64": "Int64", "double": "Float64", "bool": "boolean"}
    assert dtypes == {field.name: names.get(str(field.type), "datetime64[ms, UTC]") for field in file.schema}
    assert pa.Table.from_pandas(frame, preserve_index=False).cast(file.schema).equals(file)
    nulls = {name: column.null_count for name, column in zip(file.column_names, file.columns, strict=True)}
    assert frame.isna().sum().to_dict() == nulls


def test_a_polars_frame_goes_back_to_the_table_without_a_loss(window: dict[str, Any], file: pa.Table) -> None:
    polars = pytest.importorskip("polars")
    frame = UnleashHook().get_df(*device_of(window), df_type="polars", column_types=window["column_types"])
    assert frame.schema["timestamp"] == polars.Datetime("ms", "UTC")
    assert frame.schema["frame_number"] == polars.Int64
    assert frame.to_arrow().cast(file.schema).equals(file)


def test_a_whole_number_beyond_a_floats_stays_whole_beside_a_null(serve: Callable[..., Simulator]) -> None:
    pytest.importorskip("pandas")
    stamp = {"timestamp": "2026-01-12T12:00:00.000Z"}
    serve(rows={STREET: [{"frame_number": 2**53 + 1, **stamp}, {"frame_number": None, **stamp}]})
    frame = UnleashHook().get_df(STREET, *WINDOW)
    assert frame["frame_number"].tolist()[0] == 2**53 + 1
    assert frame["frame_number"].isna().tolist() == [False, True]


def test_without_airflow_pages_become_a_table_too(serve: Callable[..., Simulator]) -> None:
    sim = serve(nulls=True)
    with UnleashClient(sim.api_key, sim.base_url) as client:
        table = ArrowConverter(columns_of(None)).read(client.iter_pages(STREET, *WINDOW))
    assert table.equals(UnleashHook().get_arrow_table(STREET, *WINDOW))


# ---- what goes wrong -----------------------------------------------------------------------------


def test_it_starts_again_when_pages_change_while_they_are_read(serve: Callable[..., Simulator]) -> None:
    sim = serve(growing=60)
    table = UnleashHook().get_arrow_table(STREET, *WINDOW)
    stamps = [record["frame_number"] for record in sim.rows(STREET, *WINDOW)]
    assert table.column("frame_number").to_pylist() == stamps
    sim = serve(growing=1)
    with pytest.raises(SnapshotChangedError):
        UnleashHook().get_arrow_table(STREET, *WINDOW)


def test_a_value_that_does_not_fit_is_an_error_that_names_it(serve: Callable[..., Simulator]) -> None:
    serve(rows={STREET: [{"frame_number": 1.5, "timestamp": "2026-01-12T12:00:00.000Z"}]})
    with pytest.raises(UnexpectedResponseError, match=r"row 0: frame_number is 1\.5"):
        UnleashHook().get_arrow_table(STREET, *WINDOW)


@pytest.mark.parametrize(
    ("missing", "arguments", "said"),
    [
        ("pandas", {}, "needs pandas: pip install 'airflow-provider-unleash[pandas]'"),
        ("polars", {"df_type": "polars"}, "needs polars: pip install 'airflow-provider-unleash[polars]'"),
        ("pyarrow", {}, "pyarrow: pip install 'airflow-provider-unleash[pandas]'"),
    ],
)
def test_what_is_missing_is_said_with_its_remedy_before_any_request(
    serve: Callable[..., Simulator],
    monkeypatch: pytest.MonkeyPatch,
    missing: str,
    arguments: dict[str, Any],
    said: str,
) -> None:
    sim = serve()
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(InvalidArgumentError) as caught:
        UnleashHook().get_df(STREET, *WINDOW, **arguments)
    assert said in str(caught.value)
    if missing == "pyarrow":
        with pytest.raises(InvalidArgumentError, match=r"pip install 'airflow-provider-unleash\[parquet\]'"):
            UnleashHook().get_arrow_table(STREET, *WINDOW)
    assert sim.requests == []


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [({"df_type": "dask"}, "df_type"), ({"column_types": {"count": "int64"}}, "column_types")],
)
def test_an_argument_that_cannot_be_used_is_refused_before_any_request(
    serve: Callable[..., Simulator], arguments: dict[str, Any], argument: str
) -> None:
    pytest.importorskip("pandas")
    sim = serve()
    with pytest.raises(InvalidArgumentError) as caught:
        UnleashHook().get_df(STREET, *WINDOW, **arguments)
    assert caught.value.argument == argument
    assert sim.requests == []
