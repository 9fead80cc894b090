"""Without a span, the newest complete windows of a tree are shown, in its own grid."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from airflow_provider_unleash.core.coverage_span import WINDOWS, Span, choose_span
from airflow_provider_unleash.core.manifest import publish_manifest, read_newest
from airflow_provider_unleash.core.names import parse_window
from airflow_provider_unleash.exceptions import InvalidArgumentError
from airflow_provider_unleash.window import Window, plan_windows

UTC = timezone.utc
BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 11, 27, 22, 40, tzinfo=UTC)


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_provider_unleash.core.coverage_span.now_ms", lambda: round(NOW.timestamp() * 1000))


def choose(**values: Any) -> Span:
    missing: dict[str, Any] = dict.fromkeys(["start", "end", "every", "window", "newest"])
    return choose_span(**{**missing, "zone": UTC, **values})


@pytest.mark.parametrize(
    ("newest", "every", "zone", "bounds"),
    [
        (("2026-11-20", "2026-11-21"), "day", UTC, ("2026-10-28", "2026-11-27")),
        (("2026-11-27", "2026-11-28"), "day", UTC, ("2026-10-29", "2026-11-28")),
        (("2026-11-27T21:00Z", "2026-11-27T22:00Z"), "hour", UTC, ("2026-11-26T16:00+00:00", "2026-11-27T22:00+00:00")),
        (("2026-11-01T06:00Z", "2026-11-01T12:00Z"), "PT6H", UTC, ("2026-11-20T06:00+00:00", "2026-11-27T18:00+00:00")),
        (("2026-10-01T00:30Z", "2026-10-01T00:45Z"), "PT15M", UTC, None),
        (("2026-11-15", "2026-11-22"), "week", UTC, ("2026-04-26", "2026-11-22")),
        (("2026-07-01", "2026-08-01"), "month", UTC, ("2024-05-01", "2026-11-01")),
        # The clocks change on 25 October; the newest window is before that.
        (("2026-10-01T00:00+02:00", "2026-10-02T00:00+02:00"), "day", BERLIN, ("2026-10-28", "2026-11-27")),
    ],
)
def test_the_newest_window_gives_the_grid_and_the_clock_its_end(
    newest: tuple[str, str], every: str, zone: Any, bounds: tuple[str, str] | None
) -> None:
    start, end = (datetime.fromisoformat(bound) for bound in newest)
    [window] = plan_windows(start, end, every=timedelta(days=400))
    span = choose(newest=window, zone=zone)
    assert (span.every, span.count_windows()) == (every, WINDOWS)
    assert bounds is None or span.bounds() == bounds


def test_a_tree_without_manifests_has_days_until_midnight() -> None:
    assert choose().bounds() == ("2026-10-28", "2026-11-27")
    assert choose(zone=ZoneInfo("Asia/Tokyo")).bounds() == ("2026-10-29", "2026-11-28")


def test_a_given_window_is_the_last_one() -> None:
    [window] = plan_windows("2025-03-01", "2025-03-02", every="day")
    assert choose(window=window).bounds() == ("2025-01-31", "2025-03-02")


def test_a_given_window_may_be_the_last_of_the_calendar() -> None:
    span = choose(window=parse_window("99991231T000000Z_99991231T120000Z"))
    assert (span.every, span.count_windows()) == ("PT12H", WINDOWS)


def test_given_bounds_are_in_the_time_zone() -> None:
    span = choose(start="2026-10-01", end="2026-10-01T12:00", every="PT6H", zone=BERLIN)
    assert span.bounds() == ("2026-10-01", "2026-10-01T12:00+02:00")
    assert span.count_windows() == 2
    assert choose(start="2026-10-01T00:00:00Z", zone=BERLIN).bounds()[0] == "2026-10-01T02:00+02:00"


@pytest.mark.parametrize(
    ("values", "argument"),
    [
        ({"every": "fortnight"}, "every"),
        ({"every": "PT0S"}, "every"),
        ({"every": "P5000Y"}, "every"),
        ({"start": "soon"}, "start"),
        ({"end": "1795820214"}, "end"),
        ({"window": Window(5, 5)}, "every"),
    ],
)
def test_a_wrong_argument_is_named(values: dict[str, Any], argument: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        choose(**values)
    assert caught.value.argument == argument


def test_the_newest_manifest_of_a_tree_is_read(folder: Any) -> None:
    assert read_newest(folder) is None
    windows = plan_windows("2026-05-01", "2026-05-03", every="hour")
    for window in (windows[-1], *windows[:3]):
        publish_manifest(folder, None, window, {})
    (folder / "_manifest" / "start_date=2026-05-09").mkdir()
    (folder / "_manifest" / "start_date=2026-05-08").mkdir()
    (folder / "_manifest" / "start_date=2026-05-08" / "20261399T000000Z_20261399T000000Z.manifest").write_text("")
    assert read_newest(folder) == (windows[-1], [])
