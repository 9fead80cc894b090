"""Names of objects and manifests."""

from __future__ import annotations

import pytest

from airflow_provider_unleash.core.names import manifest_name, object_name, parse_window
from airflow_provider_unleash.core.windows import Window

MIDNIGHT = 1_597_622_400_000  # 2020-08-17T00:00:00Z
DAY = Window(MIDNIGHT, MIDNIGHT + 86_400_000)
ODD = Window(MIDNIGHT - 1, MIDNIGHT + 5)


@pytest.mark.parametrize(
    ("device_id", "window", "extension", "name"),
    [
        ("W1", DAY, "csv.gz", "device=W1/start_date=2020-08-17/20200817T000000Z_20200818T000000Z.csv.gz"),
        (
            *("a b%2F", ODD, "parquet"),
            "device=a%20b%252F/start_date=2020-08-16/20200816T235959.999Z_20200817T000000.005Z.parquet",
        ),
        (
            *("k=ü?#", Window(0, 0), "jsonl"),
            "device=k%3D%C3%BC%3F%23/start_date=1970-01-01/19700101T000000Z_19700101T000000Z.jsonl",
        ),
        (None, DAY, "parquet", "start_date=2020-08-17/20200817T000000Z_20200818T000000Z.parquet"),
    ],
)
def test_the_name_of_an_object_depends_on_device_window_and_format(device_id, window, extension, name):
    assert object_name(device_id, window, extension) == name


def test_the_manifest_of_some_devices_has_a_hash_of_their_ids_in_any_order():
    folder = "_manifest/start_date=2020-08-17/20200817T000000Z_20200818T000000Z"
    assert manifest_name(None, DAY) == f"{folder}.manifest"
    some = manifest_name(["W2", "W1", "W1"], DAY)
    assert some == manifest_name(["W1", "W2"], DAY) == f"{folder}.d45b1316.manifest"
    assert manifest_name(["W1"], DAY) != some


@pytest.mark.parametrize("window", [DAY, ODD, Window(0, 1)])
def test_the_window_of_a_name_is_the_one_that_it_was_made_of(window):
    assert parse_window(manifest_name(["W1"], window)) == window
    assert parse_window(object_name(None, window, "jsonl.gz")) == window


@pytest.mark.parametrize("name", ["", "readme.txt", "2020-08-17.manifest", "20200817T000000Z.manifest"])
def test_other_names_have_no_window(name):
    assert parse_window(name) is None
