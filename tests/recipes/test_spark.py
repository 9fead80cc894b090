"""The Spark recipe, run with spark-submit as users run it, and what Spark reads from files in each format."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.dataset as ds
import pytest

from airflow_provider_unleash.core.names import object_name
from airflow_provider_unleash.window import Window
from tests.support.expected_rows import daily_means
from tests.support.pages import Place, page_of, record, write
from tests.support.paths import RECIPES, ROOT
from tests.support.sample_day import DAY_MS, DAY_START, NEXT_DAY, SILENT, STREET

pytestmark = pytest.mark.usefixtures("quick_retries")

# By default, Spark listens on all interfaces and serves a web interface.
LOCAL = ("--master", "local[1]", "--conf", "spark.ui.enabled=false", "--conf", "spark.driver.bindAddress=127.0.0.1")


def submit(lake: Path, result: Path) -> dict[tuple[str, str, str], tuple[float, int]]:
    """Run the job, and return the counts that pyarrow reads."""
    command = ["spark-submit", *LOCAL, "--conf", "spark.driver.host=127.0.0.1", RECIPES / "spark_daily_counts.py"]
    # spark-submit looks for Spark next to the first Python in PATH. This works without an activated environment.
    environ = os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    done = subprocess.run(
        [*map(str, command), str(lake), str(result)], capture_output=True, text=True, timeout=300, env=environ
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = ds.dataset(result, partitioning="hive").to_table().to_pylist()
    found = {
        (str(row["start_date"]), row["device_id"], row["class_name"]): (row["mean"], row["row_count"]) for row in rows
    }
    assert len(found) == len(rows)
    return found


def test_spark_counts_the_lake_and_counts_it_again_after_a_day_is_replaced(run_recipe, serve, tree_of, tmp_path):
    lake = tree_of("past_year")
    # One id looks like a number, and one is encoded in the folder name.
    devices, expected = (STREET, "0042", "a street é=1", SILENT), {}
    for seed, days in ((1, (0, 1)), (2, (1,))):
        for day in days:
            sim = serve(devices=devices, seed=seed)
            run_recipe("past_year", moment=NEXT_DAY + timedelta(days=day))
            start = DAY_START + day * DAY_MS
            name = f"{NEXT_DAY + timedelta(days=day - 1):%Y-%m-%d}"
            expected = {key: value for key, value in expected.items() if key[0] != name}
            expected |= {(name, *key): value for key, value in daily_means(sim, start, start + DAY_MS - 1).items()}
        staged = lake / "_staging" / "x" / "00000.pages"  # a killed extraction leaves such files
        staged.parent.mkdir(parents=True, exist_ok=True)
        staged.write_bytes(b"not Parquet")
        assert submit(lake, tmp_path / "counts") == expected
    assert {device for _, device, _ in expected} == set(devices) - {SILENT}


# ---- files whose odd value comes late ------------------------------------------------------------

MANY = 30_000
TEXTS = ['say "hi"', '"', "a,b", "two\nlines", "two\r\nlines", "it's", "a\\", 'a\\"b', "#1,2", " a ", "NA", "x" * 10**5]


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master("local[1]").config("spark.ui.enabled", False)
    for name in ("bindAddress", "host"):
        builder = builder.config(f"spark.driver.{name}", "127.0.0.1")
    session = builder.config("spark.sql.session.timeZone", "UTC").getOrCreate()
    logging.getLogger("py4j").setLevel(logging.WARNING)  # it logs at exit, when pytest has closed its streams
    yield session
    session.stop()


def documented(call: str) -> dict[str, Any]:
    """Return the arguments that docs/formats.md gives for a call."""
    page = (ROOT / "docs" / "formats.md").read_text()
    [arguments] = re.findall(rf"^\| `{re.escape(call)}` \| `(.*)` \|$", page, re.MULTILINE)
    found: dict[str, Any] = eval(f"dict({arguments})")
    return found


def write_late(folder: Path, file_format: str, *last: dict[str, Any], **first: Any) -> str:
    path = f"{folder}/o.{file_format}"
    pages = [page_of(*[record(**first)] * MANY), page_of(*last)]
    write(Place(path, "file", fsspec.filesystem("file")), pages, file_format)
    return path


def last_rows(frame: Any, count: int, *columns: str) -> list[tuple[Any, ...]]:
    rows = frame.select(*columns).collect()
    assert len(rows) == MANY + count
    return [tuple(row) for row in rows[-count:]]


def test_the_documented_arguments_read_a_csv_whose_quotes_come_late(spark, tmp_path):
    path = write_late(tmp_path, "csv", *(record(class_name=text, count=1.5, new=text) for text in TEXTS), count=None)
    rows = last_rows(
        spark.read.csv(path, **documented("spark.read.csv")), len(TEXTS), "class_name", "count", "timestamp"
    )
    assert rows == [(text, 1.5, datetime(2020, 8, 17, 2, 8, 49)) for text in TEXTS]


@pytest.mark.parametrize("text", ['say "hi"', "two\nlines", "a,b"])
def test_sparks_defaults_read_such_a_csv_wrong(spark, tmp_path, text):
    path = write_late(tmp_path, "csv", record(class_name=text, new=text))
    rows = spark.read.csv(path, header=True).select("class_name", "extra").collect()
    expected = spark.read.csv(path, **documented("spark.read.csv")).select("class_name", "extra").collect()
    assert tuple(rows[-1]) != tuple(expected[-1]), "then docs/formats.md need not warn"


def test_sparks_defaults_read_json_lines_and_parquet_whose_odd_values_come_late(spark, tmp_path):
    odd = [record(class_name=text, count=1.5, session_id="live-7", model_id="ai", new=text) for text in TEXTS]
    expected = [(text, 1.5, "live-7", "ai") for text in TEXTS]
    for file_format, read in (("jsonl", spark.read.json), ("parquet", spark.read.parquet)):
        path = write_late(tmp_path, file_format, *odd, session_id="0007", model_id=None)
        frame = read(path)
        assert last_rows(frame, len(odd), "class_name", "count", "session_id", "model_id") == expected
        assert frame.first()["session_id"] == "0007"


def test_the_documented_arguments_read_json_and_json_lines_with_the_same_types(spark, tmp_path):
    schema = re.sub(", extra STRING$", "", documented("spark.read.csv")["schema"])
    for file_format, more in (("jsonl", {}), ("json", {"multiLine": True})):
        path = write_late(tmp_path, file_format, record(class_name="x", session_id="live-7"), session_id="0007")
        frame = spark.read.json(path, schema=schema, **more)
        assert last_rows(frame, 1, "class_name", "count", "session_id") == [("x", 1.0, "live-7")]
    assert dict(spark.read.json(f"{tmp_path}/o.jsonl").dtypes)["count"] == "bigint", "then the page need not warn"
    assert spark.read.json(f"{tmp_path}/o.json", schema=schema).count() == MANY + 3, "then it need not warn"


def test_the_column_device_id_tells_devices_apart_that_sparks_defaults_merge(spark, tmp_path):
    for device_id in ("0123", "123"):
        path = tmp_path / object_name(device_id, Window(DAY_START, DAY_START + DAY_MS), "parquet")
        write(Place(str(path), "file", fsspec.filesystem("file")), [page_of(record(device_id=device_id))], "parquet")
    rows = spark.read.parquet(str(tmp_path)).select("device", "device_id").collect()
    assert sorted(tuple(row) for row in rows) == [(123, "0123"), (123, "123")]
