"""A ``dst`` is refused, or every object is below it."""

from __future__ import annotations

import posixpath
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_unleash.core.names import object_name
from airflow_provider_unleash.core.windows import Window
from airflow_provider_unleash.exceptions import InvalidArgumentError
from airflow_provider_unleash.operators import UnleashToObjectStorageOperator
from airflow_provider_unleash.tasks import is_final
from tests.support.odd_names import DOTS, OTHERS, SLASHES
from tests.support.sample_day import DAY_START


@pytest.mark.parametrize(
    "dst",
    [
        *("", " ", "None", "lake", "./lake", "../lake", "~/lake", "file:/lake", "file:lake", "c:\\lake", "://lake"),
        *("//", "///x", "file:////", "s3://s3://c@b/x", "file:///lake/s3://c@b"),
        *("/?/", "/lake?", "/lake?#x", "s3://c@b/x#/"),
        *("file://lake/x", "file://../etc", "file://localhost/lake", "file://~/lake", "file://", "local://lake"),
        *("s3://", "s3:///", "s3://c@", "s3://c@/lake", "s3:///lake", "gs://c@", "abfs://@/x", "\x00://lake"),
        *("s3://c@b/../x", "s3://c@b/x/..", "s3://c@../x", "s3://..", "s3://c@b/./x", "S3://c@b/../x"),
        "gs://b/a/../../x",
        *("file:///lake/../etc", "/lake/../etc", "/..", "//x/../y", "local:///lake/..", "memory://x/../y"),
        *("s3://c@b/%2e%2e/x", "file:///lake/%2E./etc", "/lake/%2e%2e%2fetc", "/lake/..%5cetc", "/lake/a\\..\\etc"),
        *("/lake/\x00", "s3://c@b/a\nb", "/lake/.\u200b./x", " s3://c@b/x", "s3://c@b/x ", "/lake/.\t./x"),
    ],
)
@pytest.mark.parametrize("when", ["parsed", "rendered"])
def test_a_folder_that_leads_elsewhere_is_refused_before_any_request(dst, when):
    if when == "parsed":
        check = partial(UnleashToObjectStorageOperator, task_id="x", device_id="W1", dst=dst)
    else:
        operator = UnleashToObjectStorageOperator(task_id="x", device_id="W1", dst="{{ params.dst }}")
        operator.dst = dst
        check = partial(operator._check_arguments, is_final)
    with pytest.raises(InvalidArgumentError) as caught:
        check()
    assert caught.value.argument == "dst"


@pytest.mark.parametrize(
    "dst",
    [
        *("/lake", "/", "/lake/", "file:///lake", "file:///", "local:///lake", "memory://lake", "memory:///lake"),
        *("s3://b", "s3://c@b", "s3://c@b/", "s3://c@b/a//b", "s3://c@b/a..b/.hidden/...", "S3://c@b/x"),
        *("/Straße 1/人", "s3://c@arn:aws:s3:eu-west-1:123456789012:accesspoint/lake/x"),
        *("gs://c@b/x", "abfs://c@container/x", "s3://c@b/100%/x", "/lake/device=%2e", "s3://c@b/\u2024\u2024/x"),
    ],
)
def test_a_folder_that_leads_where_it_says_is_accepted(dst):
    UnleashToObjectStorageOperator(task_id="x", device_id="W1", dst=dst)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.sampled_from(["/", "file://", "file:///", "FILE:///lake", "local:///", "memory://", "/lake/", "file:///lake/"]),
    st.lists(st.sampled_from([*SLASHES, *DOTS, *OTHERS, "a", "/", "/", "/"]), max_size=6).map("".join),
    st.sampled_from(["W1", "a..b", "%2e%2e", "\uff0e\uff0e", "..%2f..", "~", "file:"]),
)
def test_any_folder_is_refused_or_contains_every_object(prefix, rest, device_id):
    dst = prefix + rest
    try:
        UnleashToObjectStorageOperator(task_id="x", device_id="W1", dst=dst)._check_arguments(is_final)
        root = ObjectStoragePath(dst)
    except ValueError:  # an InvalidArgumentError, or urllib refuses, e.g. a full-width slash in a host name
        return
    name = object_name(device_id, Window(DAY_START, DAY_START + 1), "csv")
    folder, path = root.path, (root / name).path
    assert folder.startswith("/")
    for spell in (str, unquote):
        below = posixpath.relpath(posixpath.normpath(spell(path)), posixpath.normpath(spell(folder)))
        assert below.startswith("device=")
    assert posixpath.relpath(posixpath.normpath(path), posixpath.normpath(folder)) == name
    assert str(Path(path).resolve()).startswith(str(Path(folder).resolve()))
