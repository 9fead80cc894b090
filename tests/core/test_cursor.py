"""A cursor loses no session, whenever it is listed, and does not grow for ever."""

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
from airflow_provider_unleash.exceptions import InvalidArgumentError, UnexpectedResponseError

T = 1_700_000_000_000


def ids(*numbers: int) -> list[str]:
    return [str(T + number) for number in numbers]


# ---- pure ----------------------------------------------------------------------------------------


def test_at_first_all_sessions_are_pending_or_those_since() -> None:
    assert Cursor().pending(ids(3, 1, 2)) == ids(1, 2, 3)
    assert Cursor(floor=T + 2).pending(ids(3, 1, 2)) == ids(2, 3)


def test_what_is_handled_is_not_pending_and_what_is_listed_late_is() -> None:
    cursor = Cursor()
    cursor.mark_handled(ids(1, 3), ids(1, 3))
    assert cursor.pending(ids(1, 2, 3, 4)) == ids(2, 4)


def test_what_the_api_does_not_list_any_more_is_forgotten() -> None:
    cursor = Cursor()
    cursor.mark_handled(ids(1, 2, 3), ids(2, 3))
    assert cursor.handled == ids(2, 3)


def test_an_id_that_is_no_start_is_an_error() -> None:
    with pytest.raises(UnexpectedResponseError):
        Cursor(floor=T).pending(["not-a-start"])


@settings(max_examples=300)
@given(st.data())
def test_each_session_is_pending_until_it_is_handled_and_never_again(data: st.DataObject) -> None:
    most = 5
    cursor, listed, handled = Cursor(), set[str](), set[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cursors, "MAX_HANDLED_SESSIONS", most)
        for _ in range(data.draw(st.integers(1, 12))):
            # Late ones are listed within the sessions that are kept by name.
            least = min([int(session) - T for session in cursor.handled[-most:]], default=0)
            listed |= set(ids(*data.draw(st.lists(st.integers(least, least + 30), max_size=6))))
            assert cursor.pending(sorted(listed)) == sorted(listed - handled)
            done = data.draw(st.lists(st.sampled_from(sorted(listed)), max_size=6)) if listed else []
            cursor.mark_handled(done, listed)
            handled |= set(done)
            cursor = Cursor(**json.loads(json.dumps(asdict(cursor))))
            pending = sorted(listed - handled)
            assert cursor.pending(sorted(listed)) == pending
            assert len(cursor.handled) <= most or (pending and cursor.floor == int(pending[0]))


def test_a_full_cursor_is_smaller_than_what_the_store_takes() -> None:
    cursor = Cursor()
    everything = ids(*range(cursors.MAX_HANDLED_SESSIONS * 2))
    cursor.mark_handled(everything, everything)
    assert len(cursor.handled) == cursors.MAX_HANDLED_SESSIONS
    assert len(json.dumps(asdict(cursor))) < 65_535
    assert cursor.pending(everything) == []


# ---- on a store ----------------------------------------------------------------------------------


class Store(dict[str, Any]):
    """What ``context["asset_state_store"][asset]`` looks like; values go through JSON as they do there."""

    def get(self, key: str, default: Any = None) -> Any:
        return json.loads(super().get(key, "null")) or default

    def set(self, key: str, value: Any) -> None:
        assert value is not None
        self[key] = json.dumps(value)

    def delete(self, key: str) -> None:
        self.pop(key, None)


def make_cursor(store: Store, dag_id: str = "consumer", **arguments: Any) -> SessionCursor:
    context = {"asset_state_store": {"asset": store}, "dag": SimpleNamespace(dag_id=dag_id)}
    return SessionCursor(context, "asset", **arguments)


def test_each_dag_has_a_cursor_of_its_own() -> None:
    store = Store()
    make_cursor(store, "a").mark_handled(ids(1), ids(1, 2))
    assert make_cursor(store, "a").pending(ids(1, 2)) == ids(2)
    assert make_cursor(store, "b").pending(ids(1, 2)) == ids(1, 2)
    assert store.get(cursors.CONSUMERS_KEY) == ["a", "b"]


def test_since_counts_until_there_is_a_cursor() -> None:
    store = Store()
    make_cursor(store, since=T + 5).mark_handled(ids(7), ids(3, 7))
    assert make_cursor(store, since=T).pending(ids(3, 7, 8)) == ids(8)


def test_windows_follow_each_other_without_gap_or_overlap() -> None:
    store = Store()
    listed = ids(10, 20)
    window = make_cursor(store).begin_window(listed, T + 30)
    assert window == {"start": T + 10, "end": T + 30, "sessions": listed, "late": []}
    make_cursor(store).finish_window(window, listed)
    assert make_cursor(store).begin_window(listed, T + 40) is None
    listed = ids(10, 20, 25, 50, 90)  # one of them listed late, another too young
    window = make_cursor(store).begin_window(listed, T + 60)
    assert window == {"start": T + 30, "end": T + 60, "sessions": ids(25, 50), "late": ids(25)}
    make_cursor(store).finish_window(window, listed)
    assert make_cursor(store).pending(listed) == ids(90)


def test_a_window_that_was_not_finished_comes_again_as_it_was() -> None:
    store = Store()
    window = make_cursor(store).begin_window(ids(10), T + 30)
    assert make_cursor(store).begin_window(ids(10, 40), T + 60) == window
    make_cursor(store).finish_window(window, ids(10, 40))
    window = make_cursor(store).begin_window(ids(10, 40), T + 60)
    assert window == {"start": T + 30, "end": T + 60, "sessions": ids(40), "late": []}


def test_a_task_that_was_cleared_and_finishes_an_old_window_changes_nothing() -> None:
    store = Store()
    old = make_cursor(store).begin_window(ids(10), T + 30)
    make_cursor(store).finish_window(old, ids(10))
    new = make_cursor(store).begin_window(ids(10, 40), T + 60)
    make_cursor(store).finish_window(old, ids(10, 40))
    assert make_cursor(store).pending(ids(10, 40)) == ids(40)
    assert make_cursor(store).begin_window(ids(10, 40), T + 90) == new


def test_a_window_ends_where_its_sessions_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cursors, "MAX_HANDLED_SESSIONS", 3)
    store, listed, windows = Store(), ids(*range(10, 80, 10)), []
    while window := make_cursor(store).begin_window(listed, T + 75):
        windows.append((window["start"] - T, window["end"] - T, window["sessions"]))
        make_cursor(store).finish_window(window, listed)
    assert windows == [(10, 40, listed[:3]), (40, 70, listed[3:6]), (70, 75, listed[6:])]


def test_an_empty_list_is_no_reason_to_forget() -> None:
    cursor = Cursor()
    cursor.mark_handled(ids(1, 2), ids(1, 2))
    cursor.mark_handled([], [])
    assert cursor.pending(ids(1, 2)) == []


def test_a_dag_that_is_forgotten_starts_anew_and_is_waited_for_no_more() -> None:
    store = Store()
    for dag_id in ("a", "b"):
        make_cursor(store, dag_id).mark_handled(ids(1), ids(1))
    make_cursor(store, "a").forget()
    assert store.get(cursors.CONSUMERS_KEY) == ["b"]
    assert make_cursor(store, "a").pending(ids(1)) == ids(1)


def test_finishing_what_was_not_begun_changes_nothing() -> None:
    store = Store()
    make_cursor(store).finish_window({"start": T, "end": T + 1}, ids(1))
    assert make_cursor(store).pending(ids(1)) == ids(1)


def test_a_window_never_runs_backwards() -> None:
    store = Store()
    window = make_cursor(store).begin_window(ids(10), T + 30)
    make_cursor(store).finish_window(window, ids(10))
    assert make_cursor(store).begin_window(ids(10, 15), T + 30) is None


@pytest.mark.parametrize("context", [{}, {"asset_state_store": {"another": None}}])
def test_without_a_store_the_error_says_what_it_takes(context: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=r"Airflow 3[.]3 and the asset among the task's inlets"):
        SessionCursor({"dag": SimpleNamespace(dag_id="a"), **context}, "asset")
