"""
Merge the small files of each day into a few large ones, in another tree, with DuckDB.

``UNLEASH_LAKE`` holds hourly (or minutely) Parquet files; ``UNLEASH_COMPACT`` receives ``SHARDS`` files per day.
Requires duckdb and pyarrow.
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
# Never LAKE itself: one tree holds one grid of windows. A reader of two grids gets each row twice.
COMPACT = os.environ.get("UNLEASH_COMPACT", "s3://aws_default@lake/unleash_compact")
SHARDS = 4  # files per day; aim for about 100 MB each. Change it only while COMPACT is empty.
DAYS = 3  # days to check: at least as many as you extract again for late data
SQL = Path(__file__).parent / "sql" / "duckdb_compact.sql"

with DAG(
    dag_id="example_unleash_compact",
    description="Merges each day's small files into a few large ones",
    tags=["unleash", "recipe"],
    schedule=CronDataIntervalTimetable("@daily", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5)},
) as dag:

    @task(multiple_outputs=False)
    def compact(days_back, shard, data_interval_start=None) -> dict[str, int]:
        """Merge one day's files for one shard of the devices, and return the number of rows and of merged files."""
        import duckdb
        import pyarrow.parquet as pq

        day = f"start_date={data_interval_start - timedelta(days=days_back):%Y-%m-%d}"
        fs = ObjectStoragePath(LAKE).fs
        fs.invalidate_cache()  # earlier listings in this process may be stale
        sources = []
        for device in fs.ls(ObjectStoragePath(LAKE).path, detail=False):
            name = device.rstrip("/").rpartition("/")[2]
            if name.startswith("device=") and zlib.crc32(name.encode()) % SHARDS == shard:
                with suppress(FileNotFoundError):  # no rows that day
                    found = fs.ls(f"{device}/{day}", detail=True)
                    sources += [file for file in found if file["name"].endswith(".parquet")]
        if not sources:
            raise AirflowSkipException(f"{LAKE} has no files for {day} in shard {shard}")
        sources.sort(key=lambda file: file["name"])
        # A replaced file differs in its ETag (S3), etag (Azure and Google Cloud Storage) or mtime (local disk).
        versions = [[file["name"], file["size"], *map(file.get, ("ETag", "etag", "mtime"))] for file in sources]
        sources_hash = hashlib.sha256(repr(versions).encode()).hexdigest()

        target = ObjectStoragePath(COMPACT) / day / f"part-{shard:03}.parquet"
        target.fs.invalidate_cache()
        if target.exists():
            with target.open("rb") as stream:
                if (pq.read_metadata(stream).metadata or {}).get(b"sources_hash") == sources_hash.encode():
                    raise AirflowSkipException(f"{target} is up to date with its sources ({len(sources)} files)")

        urls = [fs.unstrip_protocol(file["name"]) for file in sources]
        with duckdb.connect() as connection, tempfile.TemporaryDirectory() as folder:
            connection.register_filesystem(fs)
            connection.execute("SET temp_directory = $folder", {"folder": folder})  # for what exceeds memory
            connection.execute("SET VARIABLE urls = $urls", {"urls": urls})
            connection.execute("SET VARIABLE sources_hash = $hash", {"hash": sources_hash})
            connection.execute(SQL.read_text(), {"file": f"{folder}/new.parquet"})
            counts = "SELECT sum(num_rows)::BIGINT FROM parquet_file_metadata({})"
            [(expected,)] = connection.execute(counts.format("getvariable('urls')")).fetchall()
            [(rows,)] = connection.execute(counts.format("$file"), {"file": f"{folder}/new.parquet"}).fetchall()
            if rows != expected:
                raise RuntimeError(f"{target} would have {rows} rows, but its sources have {expected}")

            # Upload under a name that readers ignore, then rename the complete file.
            target.parent.mkdir(parents=True, exist_ok=True)
            hidden = f"{target.parent.path}/_{target.name}.tmp"
            target.fs.put_file(f"{folder}/new.parquet", hidden)
            target.fs.mv(hidden, target.path)
        return {"rows": rows, "files": len(sources)}

    compact.expand(days_back=list(range(DAYS)), shard=list(range(SHARDS)))
# [END compact]
