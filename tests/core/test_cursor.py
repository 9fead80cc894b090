"""A cursor loses no session, however late it is listed, and its size is limited."""

from __future__ import annotations

import json
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_unleash import cursor as cursors
from airflow_provider_unleash.cursor import Cursor, SessionCursor
from airflow_provider_unleash.exceptions import InvalidArgumentError

T = 1_700_000_000_000


def ids(*numbers: int) -> list[str]:
    return [str(T + number) for number in numbers]


def test_at_first_all_sessions_since_the_floor_are_pending():
    assert Cursor().pending(ids(3, 1, 2)) == ids(1, 2, 3)
    assert Cursor(floor=T + 2).pending(ids(3, 1, 2)) == ids(2, 3)


def test_a_session_id_that_is_not_a_number_is_never_pending():
    cursor = Cursor()
    assert cursor.pending(["s-4711", *ids(1)]) == ids(1)
    cursor.mark_handled(["s-4711", *ids(1)], ["s-4711", *ids(1)])
    assert cursor.handled == ids(1)


def test_a_handled_session_is_not_pending_and_one_listed_late_is():
    cursor = Cursor()
    cursor.mark_handled(ids(1, 3), ids(1, 3))
    assert cursor.pending(ids(1, 2, 3, 4)) == ids(2, 4)


def test_a_session_that_the_api_no_longer_lists_is_forgotten_unless_it_lists_none():
    cursor = Cursor()
    cursor.mark_handled(ids(1, 2, 3), ids(2, 3))
    assert cursor.handled == ids(2, 3)
    cursor.mark_handled([], [])
    assert cursor.handled == ids(2, 3)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data())
def test_each_session_is_pending_until_it_is_handled_and_never_again(data):
    limit = 5
    cursor, listed, handled = Cursor(), set[str](), set[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cursors, "MAX_HANDLED_SESSIONS", limit)
        for _ in range(data.draw(st.integers(1, 12))):
            # A late session may start after the oldest one that the cursor keeps.
            oldest = min([int(session) - T for session in cursor.handled[-limit:]], default=0)
            listed |= set(ids(*data.draw(st.lists(st.integers(oldest, oldest + 30), max_size=6))))
            assert cursor.pending(sorted(listed)) == sorted(listed - handled)
            done = data.draw(st.lists(st.sampled_from(sorted(listed)), max_size=6)) if listed else []
            cursor.mark_handled(done, listed)
            handled |= set(done)
            cursor = Cursor(**json.loads(json.dumps(asdict(cursor))))
            pending = sorted(listed - handled)
            assert cursor.pending(sorted(listed)) == pending
            assert len(cursor.handled) <= limit or (pending and cursor.floor == int(pending[0]))


def test_a_full_cursor_is_smaller_than_the_stores_limit():
    cursor = Cursor()
    sessions = ids(*range(cursors.MAX_HANDLED_SESSIONS * 2))
    cursor.mark_handled(sessions, sessions)
    assert len(cursor.handled) == cursors.MAX_HANDLED_SESSIONS
    assert len(json.dumps(asdict(cursor))) < 65_535
    assert cursor.pending(sessions) == []


class Store(dict[str, Any]):
    """An asset's state store, which keeps JSON."""

    def get(self, key: str, default: Any = None) -> Any:
        return json.loads(super().get(key, "null")) or default

    def set(self, key: str, value: Any) -> None:
        assert value is not None
        self[key] = json.dumps(value)

    def delete(self, key: str) -> None:
        self.pop(key, None)


@pytest.fixture
def store() -> Store:
    return Store()


def make_cursor(store: Store, dag_id: str = "consumer", **arguments: Any) -> SessionCursor:
    context = {"asset_state_store": {"asset": store}, "dag": SimpleNamespace(dag_id=dag_id)}
    return SessionCursor(context, "asset", **arguments)


def test_each_dag_has_its_own_cursor_until_it_forgets_it(store):
    make_cursor(store, "a").mark_handled(ids(1), ids(1, 2))
    assert make_cursor(store, "a").pending(ids(1, 2)) == ids(2)
    assert make_cursor(store, "b").pending(ids(1, 2)) == ids(1, 2)
    assert store.get(cursors.CONSUMERS_KEY) == ["a", "b"]
    make_cursor(store, "a").forget()
    assert store.get(cursors.CONSUMERS_KEY) == ["b"]
    assert make_cursor(store, "a").pending(ids(1)) == ids(1)


def test_since_is_ignored_once_there_is_a_cursor(store):
    make_cursor(store, since=T + 5).mark_handled(ids(7), ids(3, 7))
    assert make_cursor(store, since=T).pending(ids(3, 7, 8)) == ids(8)


def test_windows_follow_each_other_without_gap_or_overlap(store):
    listed = ids(10, 20)
    window = make_cursor(store).begin_window(listed, T + 30)
    assert window == {"start": T + 10, "end": T + 30, "sessions": listed, "late": []}
    make_cursor(store).finish_window(window, listed)
    assert make_cursor(store).begin_window(listed, T + 40) is None
    assert make_cursor(store).begin_window(ids(10, 15, 20), T + 30) is None, "a window never runs backwards"
    listed = ids(10, 20, 25, 50, 90)  # 25 is listed late, and 90 starts after the window
    window = make_cursor(store).begin_window(listed, T + 60)
    assert window == {"start": T + 30, "end": T + 60, "sessions": ids(25, 50), "late": ids(25)}
    make_cursor(store).finish_window(window, listed)
    assert make_cursor(store).pending(listed) == ids(90)


def test_an_unfinished_window_is_returned_again_unchanged(store):
    make_cursor(store).finish_window({"start": T, "end": T + 1}, ids(10))  # never begun
    window = make_cursor(store).begin_window(ids(10), T + 30)
    assert window is not None
    assert make_cursor(store).begin_window(ids(10, 40), T + 60) == window
    make_cursor(store).finish_window(window, ids(10, 40))
    window = make_cursor(store).begin_window(ids(10, 40), T + 60)
    assert window == {"start": T + 30, "end": T + 60, "sessions": ids(40), "late": []}


def test_finishing_an_old_window_again_changes_nothing(store):
    old = make_cursor(store).begin_window(ids(10), T + 30)
    assert old is not None
    make_cursor(store).finish_window(old, ids(10))
    new = make_cursor(store).begin_window(ids(10, 40), T + 60)
    make_cursor(store).finish_window(old, ids(10, 40))
    assert make_cursor(store).pending(ids(10, 40)) == ids(40)
    assert make_cursor(store).begin_window(ids(10, 40), T + 90) == new


def test_a_window_ends_before_it_has_too_many_sessions(store, monkeypatch):
    monkeypatch.setattr(cursors, "MAX_HANDLED_SESSIONS", 3)
    listed, windows = ids(*range(10, 80, 10)), []
    while window := make_cursor(store).begin_window(listed, T + 75):
        windows.append((window["start"] - T, window["end"] - T, window["sessions"]))
        make_cursor(store).finish_window(window, listed)
    assert windows == [(10, 40, listed[:3]), (40, 70, listed[3:6]), (70, 75, listed[6:])]


@pytest.mark.parametrize("context", [{}, {"asset_state_store": {"another": None}}])
def test_without_a_store_the_error_says_what_is_needed(context):
    with pytest.raises(InvalidArgumentError, match=r"Airflow 3[.]3 and the asset among the task's inlets"):
        SessionCursor({"dag": SimpleNamespace(dag_id="a"), **context}, "asset")
