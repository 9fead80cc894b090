"""An Arrow table becomes a data frame of pandas or polars, and no value and no null becomes something else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast, get_args

from airflow_provider_unleash.exceptions import InvalidArgumentError
from airflow_provider_unleash.writers import check_extra

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa

FrameType = Literal["pandas", "polars"]


def check_df_type(df_type: FrameType) -> None:
    """
    Return if such frames can be made here.

    :raises InvalidArgumentError: there is no such type, or its library is not installed; says how to install it.
    """
    known = get_args(FrameType)
    if df_type not in known:
        raise InvalidArgumentError(f"df_type={df_type!r} is none of {', '.join(known)}", argument="df_type")
    check_extra(df_type, f"df_type={df_type!r}", "df_type")


def to_frame(table: pa.Table, df_type: FrameType) -> pd.DataFrame | pl.DataFrame:
    """Return the table as a frame: pandas with its nullable types, polars with its own."""
    return _to_pandas(table) if df_type == "pandas" else _to_polars(table)


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    import pandas as pd
    import pyarrow as pa

    # Left to itself, pandas makes floats of whole numbers and objects of flags where there is a null among them.
    types = {
        pa.string(): pd.StringDtype("pyarrow"),
        pa.int64(): pd.Int64Dtype(),
        pa.float64(): pd.Float64Dtype(),
        pa.bool_(): pd.BooleanDtype(),
    }
    return table.to_pandas(types_mapper=types.get)


def _to_polars(table: pa.Table) -> pl.DataFrame:
    import polars as pl

    return cast("pl.DataFrame", pl.from_arrow(table))  # a Series is what arrays become
