"""Which sessions are new, and between which bounds a run looks for them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from airflow_provider_unleash.core.sessions import parse_session_start, select_sessions, session_bounds
from airflow_provider_unleash.exceptions import InvalidArgumentError, UnexpectedResponseError, WindowError

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
    assert session_bounds(**times) == bounds


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
        session_bounds(**times)


@pytest.mark.parametrize("name", ["since", "until"])
def test_a_bound_in_seconds_is_an_error_that_names_it(name):
    with pytest.raises(InvalidArgumentError, match="multiply it by 1000") as caught:
        session_bounds(**{name: 1597622400})
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
    assert select_sessions(ids(2, 0, 3, 1), since_ms=since_ms, until_ms=until_ms) == ids(*minutes)
    assert select_sessions([], since_ms=since_ms, until_ms=until_ms) == []


@pytest.mark.parametrize(
    ("known", "minutes"), [([], [0, 1, 2]), (ids(1), [0, 2]), (set(ids(0, 1, 2)), []), (tuple(ids(7)), [0, 1, 2])]
)
def test_known_sessions_are_compared_by_id_whatever_the_bounds(known, minutes):
    bounds = {"since_ms": MIDNIGHT + DAY_MS, "until_ms": MIDNIGHT + 2 * DAY_MS}
    assert select_sessions(ids(2, 1, 0), known_sessions=known, **bounds) == ids(*minutes)


@pytest.mark.parametrize("known", [None, []])
@pytest.mark.parametrize(
    ("age_ms", "minutes"), [(0, [0, 1, 2]), (1, [0, 1]), (60_000, [0, 1]), (60_001, [0]), (120_001, [])]
)
def test_a_session_younger_than_min_age_is_not_new_yet(known, age_ms, minutes):
    now_ms = MIDNIGHT + 2 * 60_000
    assert select_sessions(ids(0, 1, 2), known_sessions=known, min_age_ms=age_ms, now_ms=now_ms) == ids(*minutes)


def test_each_session_is_returned_once_and_the_oldest_first():
    listed = ["1595418530512", "999999999999", "1000000000000", "999999999999"]
    assert select_sessions(listed) == ["999999999999", "1000000000000", "1595418530512"]
    assert select_sessions(ids(1, 1), known_sessions=[]) == ids(1)


def test_an_id_that_is_not_a_time_is_allowed_if_its_start_does_not_matter():
    sessions = ["session-b", *ids(1), "session-a"]
    assert select_sessions(sessions) == [*ids(1), "session-a", "session-b"]
    assert select_sessions(sessions, known_sessions=["session-a"]) == [*ids(1), "session-b"]
    assert select_sessions(["x", *ids(1)], known_sessions=["x"], min_age_ms=1, now_ms=MIDNIGHT + DAY_MS) == ids(1)


@pytest.mark.parametrize(
    "conditions",
    [{"since_ms": MIDNIGHT}, {"until_ms": MIDNIGHT}, {"known_sessions": [], "min_age_ms": 1, "now_ms": MIDNIGHT}],
)
def test_an_id_that_is_not_a_time_is_skipped_with_a_warning_if_its_start_matters(conditions, caplog):
    odd = ["session-a", "1597622400", "9" * 5000, "\u0661" * 13, "15976224000001234", "-1597622400000", ""]
    assert select_sessions([*ids(0), *odd], **conditions) in (ids(0), [])
    [warning] = caplog.records
    assert "'15976224000001234'" in warning.getMessage()
    assert "and 2 more" in warning.getMessage()
    assert len(warning.getMessage()) < 1000
    select_sessions([*ids(1), *odd], **conditions)
    assert len(caplog.records) == 1, "the next poll does not repeat it"


@pytest.mark.parametrize("session", ["session-a", "1597622400", "15976224000001234", ""])
def test_parsing_an_id_that_is_not_a_time_is_an_error_that_names_it(session):
    assert parse_session_start(*ids(0)) == MIDNIGHT
    with pytest.raises(UnexpectedResponseError, match=f"'{session}' is not in epoch milliseconds") as caught:
        parse_session_start(session)
    assert caught.value.value == session
