"""Names of objects and manifests below ``dst``. They depend on devices, window and format alone."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from datetime import datetime

from airflow_provider_unleash.core.moments import from_epoch_ms, to_ms
from airflow_provider_unleash.core.protocol import quote_device_id
from airflow_provider_unleash.core.windows import Window

# Spark, Hive, Athena and Trino ignore folders whose name starts with an underscore.
MANIFESTS = "_manifest"
STAGING = "_staging"
DELTA = "delta"
DELTA_LOG = "_delta_log"

_INSTANT = r"(\d{8}T\d{6})(?:\.(\d{3}))?Z"
_WINDOW = re.compile(f"{_INSTANT}_{_INSTANT}")


def object_name(device_id: str | None, window: Window, extension: str) -> str:
    """
    Return the name of a window's object; ``device_id`` is None for an object of all devices.

    ``[device=<id>/]start_date=<YYYY-MM-DD>/<start>_<end>.<extension>``, with the id percent-encoded and times in UTC.
    In a Delta table, the names of files change when it is compacted, so its log stands for them.
    """
    if extension == DELTA:
        return DELTA_LOG
    folder = "" if device_id is None else f"device={quote_device_id(device_id)}/"
    return f"{folder}{window_name(window)}.{extension}"


def manifest_name(device_ids: Iterable[str] | None, window: Window) -> str:
    """
    Return the name of a window's manifest; ``device_ids`` is None if it covers the whole account.

    ``_manifest/start_date=<YYYY-MM-DD>/<start>_<end>[.<hash>].manifest``, with a hash of the device ids.
    """
    suffix = "" if device_ids is None else f".{hash_ids(device_ids)}"
    return f"{MANIFESTS}/{window_name(window)}{suffix}.manifest"


def hash_ids(device_ids: Iterable[str]) -> str:
    """Return 8 hex digits that depend on the ids, but not on their order."""
    return hashlib.sha256("\n".join(sorted(set(device_ids))).encode()).hexdigest()[:8]


def window_name(window: Window) -> str:
    """Return ``start_date=<YYYY-MM-DD>/<start>_<end>``."""
    return f"start_date={window.start:%Y-%m-%d}/{_basic_iso(window.start_ms)}_{_basic_iso(window.end_ms)}"


def parse_window(name: str) -> Window | None:
    found = _WINDOW.match(name.rpartition("/")[2])
    if found is None:
        return None
    start, start_fraction, end, end_fraction = found.groups()
    try:
        return Window(_parse_basic_iso(start, start_fraction), _parse_basic_iso(end, end_fraction))
    except ValueError:  # such as the 13th month
        return None


def _basic_iso(moment_ms: int) -> str:
    fraction = f".{moment_ms % 1000:03}" if moment_ms % 1000 else ""
    return f"{from_epoch_ms(moment_ms):%Y%m%dT%H%M%S}{fraction}Z"


def _parse_basic_iso(text: str, fraction: str | None) -> int:
    return to_ms(datetime.strptime(text, "%Y%m%dT%H%M%S")) + int(fraction or 0)
