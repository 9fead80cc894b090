"""Which sessions are new, and between which bounds a run looks for them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from airflow_provider_unleash.core.sessions import SessionList, parse_session_start
from airflow_provider_unleash.exceptions import InvalidArgumentError, UnexpectedResponseError, WindowError
from tests.support.run_times import bounds_of

DAY = datetime(2020, 8, 17, tzinfo=timezone.utc)
NEXT_DAY = DAY + timedelta(days=1)
INTERVAL = {"data_interval_start": DAY, "data_interval_end": NEXT_DAY}
MIDNIGHT, HOUR_MS, DAY_MS = 1_597_622_400_000, 3_600_000, 86_400_000


@pytest.mark.parametrize(
    ("times", "bounds"),
    [
        ({}, (None, None)),
        ({"run_after": DAY, "logical_date": None, "partition_date": NEXT_DAY}, (MIDNIGHT, None)),
        ({"run_after": DAY, "until": NEXT_DAY}, (MIDNIGHT, MIDNIGHT + DAY_MS)),
        ({"run_after": NEXT_DAY, "since": DAY}, (MIDNIGHT, None)),
        ({"since": "2020-08-17", "until": "2020-08-18"}, (MIDNIGHT, MIDNIGHT + DAY_MS)),
        ({"since": "", "until": "None", "run_after": DAY}, (MIDNIGHT, None)),
        ({**INTERVAL, "run_after": NEXT_DAY}, (MIDNIGHT, MIDNIGHT + DAY_MS)),
        ({**INTERVAL, "data_interval_end": DAY, "run_after": NEXT_DAY}, (MIDNIGHT + DAY_MS, None)),
        ({**INTERVAL, "since": "2020-08-01"}, (MIDNIGHT - 16 * DAY_MS, MIDNIGHT + DAY_MS)),
        ({**INTERVAL, "until": "2020-08-17T06:00:00Z"}, (MIDNIGHT, MIDNIGHT + 6 * HOUR_MS)),
    ],
)
def test_bounds_that_are_not_given_come_from_the_data_interval_else_from_run_after(times, bounds):
    assert bounds_of(**times) == bounds


@pytest.mark.parametrize(
    "times",
    [
        *({"since": since, "until": DAY} for since in (NEXT_DAY, DAY)),
        {"since": DAY, "until": DAY + timedelta(microseconds=999)},
        {"until": DAY, "run_after": NEXT_DAY},
        {**INTERVAL, "since": NEXT_DAY},
    ],
)
def test_bounds_without_a_millisecond_between_them_are_an_error(times):
    with pytest.raises(WindowError, match="no session starts between them"):
        bounds_of(**times)


@pytest.mark.parametrize("name", ["since", "until"])
def test_a_bound_in_seconds_is_an_error_that_names_it(name):
    with pytest.raises(InvalidArgumentError, match="multiply it by 1000") as caught:
        bounds_of(**{name: 1597622400})
    assert caught.value.argument == name


def ids(*minutes: float) -> list[str]:
    """Return the ids of sessions that start so many minutes after midnight."""
    return [str(MIDNIGHT + int(minute * 60_000)) for minute in minutes]


@pytest.mark.parametrize(
    ("since", "until", "minutes"),
    [
        *((None, None, [0, 1, 2, 3]), (1, None, [1, 2, 3]), (None, 2, [0, 1]), (1, 3, [1, 2]), (2, 2.5, [2])),
        *((5, None, []), (0.0001, 1, []), (None, 0, []), (3, 4, [3])),
    ],
)
def test_new_sessions_start_at_or_after_since_and_before_until(since, until, minutes):
    since_ms, until_ms = (None if bound is None else MIDNIGHT + int(bound * 60_000) for bound in (since, until))
    assert SessionList(ids(2, 0, 3, 1)).select(since_ms=since_ms, until_ms=until_ms) == ids(*minutes)
    assert SessionList([]).select(since_ms=since_ms, until_ms=until_ms) == []


@pytest.mark.parametrize(
    ("known", "minutes"), [([], [0, 1, 2]), (ids(1), [0, 2]), (set(ids(0, 1, 2)), []), (tuple(ids(7)), [0, 1, 2])]
)
def test_known_sessions_are_compared_by_id_whatever_the_bounds(known, minutes):
    bounds = {"since_ms": MIDNIGHT + DAY_MS, "until_ms": MIDNIGHT + 2 * DAY_MS}
    assert SessionList(ids(2, 1, 0)).select(known_sessions=known, **bounds) == ids(*minutes)


@pytest.mark.parametrize("known", [None, []])
@pytest.mark.parametrize(
    ("age_ms", "minutes"), [(0, [0, 1, 2]), (1, [0, 1]), (60_000, [0, 1]), (60_001, [0]), (120_001, [])]
)
def test_a_session_younger_than_min_age_is_not_new_yet(known, age_ms, minutes):
    now_ms = MIDNIGHT + 2 * 60_000
    assert SessionList(ids(0, 1, 2)).select(known_sessions=known, min_age_ms=age_ms, now_ms=now_ms) == ids(*minutes)


def test_each_session_is_returned_once_and_the_oldest_first():
    listed = ["1595418530512", "999999999999", "1000000000000", "999999999999"]
    assert SessionList(listed).select() == ["999999999999", "1000000000000", "1595418530512"]
    assert SessionList(ids(1, 1)).select(known_sessions=[]) == ids(1)


def test_an_id_that_is_not_a_time_is_allowed_if_its_start_does_not_matter():
    sessions = ["session-b", *ids(1), "session-a"]
    assert SessionList(sessions).select() == [*ids(1), "session-a", "session-b"]
    assert SessionList(sessions).select(known_sessions=["session-a"]) == [*ids(1), "session-b"]
    assert SessionList(["x", *ids(1)]).select(known_sessions=["x"], min_age_ms=1, now_ms=MIDNIGHT + DAY_MS) == ids(1)


@pytest.mark.parametrize(
    "conditions",
    [{"since_ms": MIDNIGHT}, {"until_ms": MIDNIGHT}, {"known_sessions": [], "min_age_ms": 1, "now_ms": MIDNIGHT}],
)
def test_an_id_that_is_not_a_time_is_skipped_with_a_warning_if_its_start_matters(conditions, caplog):
    odd = ["session-a", "1597622400", "9" * 5000, "\u0661" * 13, "15976224000001234", "-1597622400000", ""]
    assert SessionList([*ids(0), *odd]).select(**conditions) in (ids(0), [])
    [warning] = caplog.records
    assert "'15976224000001234'" in warning.getMessage()
    assert "and 2 more" in warning.getMessage()
    assert len(warning.getMessage()) < 1000
    SessionList([*ids(1), *odd]).select(**conditions)
    assert len(caplog.records) == 1, "the next poll does not repeat it"


@pytest.mark.parametrize("session", ["session-a", "1597622400", "15976224000001234", ""])
def test_parsing_an_id_that_is_not_a_time_is_an_error_that_names_it(session):
    assert parse_session_start(*ids(0)) == MIDNIGHT
    with pytest.raises(UnexpectedResponseError, match=f"'{session}' is not in epoch milliseconds") as caught:
        parse_session_start(session)
    assert caught.value.value == session
