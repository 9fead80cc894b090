"""
The small files of each day into a few large ones, in another tree, with DuckDB.

``UNLEASH_LAKE`` has hourly (or minutely) Parquet files, ``UNLEASH_COMPACT`` gets ``SHARDS`` files a day.
Needs duckdb and pyarrow.
"""

from __future__ import annotations

# [START compact]
import hashlib
import os
import tempfile
import zlib
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path

from airflow.providers.common.compat.sdk import DAG, AirflowSkipException, ObjectStoragePath, task
from airflow.timetables.interval import CronDataIntervalTimetable

LAKE = os.environ.get("UNLEASH_LAKE", "s3://aws_default@lake/unleash_hourly")
# Never LAKE itself: one tree holds one grid of windows, and whoever reads both grids has each row twice.
COMPACT = os.environ.get("UNLEASH_COMPACT", "s3://aws_default@lake/unleash_compact")
SHARDS = 4  # files a day: as many as make each some 100 MB; change it for an empty COMPACT only
DAYS = 3  # as far back as late data is extracted again
SQL = Path(__file__).parent / "sql" / "duckdb_compact.sql"

with DAG(
    dag_id="example_unleash_compact",
    schedule=CronDataIntervalTimetable("@daily", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5)},
) as dag:

    @task(multiple_outputs=False)
    def compact(days_back, shard, data_interval_start=None) -> dict[str, int]:
        """Merge the files of one day and one share of the devices into one; return its rows, and how many they were."""
        import duckdb
        import pyarrow.parquet as pq

        day = f"start_date={data_interval_start - timedelta(days=days_back):%Y-%m-%d}"
        fs = ObjectStoragePath(LAKE).fs
        fs.invalidate_cache()  # what this process has listed before may be old
        sources = []
        for device in fs.ls(ObjectStoragePath(LAKE).path, detail=False):
            name = device.rstrip("/").rpartition("/")[2]
            if name.startswith("device=") and zlib.crc32(name.encode()) % SHARDS == shard:
                with suppress(FileNotFoundError):  # a silent day
                    found = fs.ls(f"{device}/{day}", detail=True)
                    sources += [file for file in found if file["name"].endswith(".parquet")]
        if not sources:
            raise AirflowSkipException(f"{LAKE} has no files of {day} for shard {shard}")
        sources.sort(key=lambda file: file["name"])
        # Also what tells a file from the one that it has replaced: S3's name for that, Azure's and Google's, a disk's.
        marks = [[file["name"], file["size"], *map(file.get, ("ETag", "etag", "mtime"))] for file in sources]
        version = hashlib.sha256(repr(marks).encode()).hexdigest()

        target = ObjectStoragePath(COMPACT) / day / f"part-{shard:03}.parquet"
        target.fs.invalidate_cache()
        if target.exists():
            with target.open("rb") as stream:
                if (pq.read_metadata(stream).metadata or {}).get(b"made_of") == version.encode():
                    raise AirflowSkipException(f"{target} is made of these {len(sources)} files as they are")

        urls = [fs.unstrip_protocol(file["name"]) for file in sources]
        with duckdb.connect() as connection, tempfile.TemporaryDirectory() as folder:
            connection.register_filesystem(fs)
            connection.execute("SET temp_directory = $folder", {"folder": folder})  # for what memory has no room for
            connection.execute("SET VARIABLE urls = $urls", {"urls": urls})
            connection.execute("SET VARIABLE made_of = $version", {"version": version})
            connection.execute(SQL.read_text(), {"file": f"{folder}/new.parquet"})
            counts = "SELECT sum(num_rows)::BIGINT FROM parquet_file_metadata({})"
            [(expected,)] = connection.execute(counts.format("getvariable('urls')")).fetchall()
            [(rows,)] = connection.execute(counts.format("$file"), {"file": f"{folder}/new.parquet"}).fetchall()
            if rows != expected:
                raise RuntimeError(f"{target} would have {rows} rows, and its sources have {expected}")

            # Under a name that no reader takes, until it is whole.
            target.parent.mkdir(parents=True, exist_ok=True)
            hidden = f"{target.parent.path}/_{target.name}.tmp"
            target.fs.put_file(f"{folder}/new.parquet", hidden)
            target.fs.mv(hidden, target.path)
        return {"rows": rows, "files": len(sources)}

    compact.expand(days_back=list(range(DAYS)), shard=list(range(SHARDS)))
# [END compact]
