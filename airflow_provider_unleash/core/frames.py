"""Pages become an Arrow table or a data frame, with the column types of the Parquet files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal, cast, get_args

from airflow_provider_unleash.core.arguments import check_choice
from airflow_provider_unleash.core.columns import COLUMN_TYPES, ArrowConverter, check_extra_installed, columns_of
from airflow_provider_unleash.core.protocol import Page

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa

FrameType = Literal["pandas", "polars"]


def to_table(pages: Iterable[Page], column_types: Mapping[str, str] | None = None) -> pa.Table:
    import pyarrow as pa

    converter = ArrowConverter(columns_of(column_types))
    return pa.Table.from_batches(map(converter.convert, pages), converter.schema)


def check_df_type(df_type: FrameType) -> None:
    check_choice("df_type", df_type, get_args(FrameType))
    check_extra_installed(df_type, f"df_type={df_type!r}", "df_type")


def to_frame(table: pa.Table, df_type: FrameType) -> pd.DataFrame | pl.DataFrame:
    """Return a table as a data frame; nulls stay nulls and whole numbers stay whole."""
    if df_type == "polars":
        import polars as pl

        return cast("pl.DataFrame", pl.from_arrow(table))
    import pandas as pd
    import pyarrow as pa

    # By default, pandas turns whole numbers into floats and flags into objects if there is a null among them.
    types = {kind.arrow(pa): kind.pandas(pd) for kind in COLUMN_TYPES.values() if kind.pandas}
    return table.to_pandas(types_mapper=types.get)
