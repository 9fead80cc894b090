"""The Spark recipe, run with spark-submit as users run it."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from tests.support.expected_rows import daily_means
from tests.support.paths import RECIPES
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
