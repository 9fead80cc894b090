"""The journal of an account's extraction."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from airflow_provider_unleash.core import journal as module
from airflow_provider_unleash.core.journal import Journal, Record
from airflow_provider_unleash.core.manifest import Entry
from airflow_provider_unleash.core.windows import RowCounts

HOUR = timedelta(hours=1)


def record(device_id: str, minute: int = 0) -> Record:
    times = ("2026-01-12T00:00:00.000Z", "2026-01-13T00:00:00.000Z", f"2026-01-13T01:{minute:02}:00.000Z")
    return Record(Entry(device_id, *times[:2], 3, 1, 300, "x", times[2]), RowCounts(1, 3))


def journal_in(lake: Path, *, source: tuple[Any, ...] = (1,), resume_within: timedelta = HOUR) -> Journal:
    return Journal(UPath(f"file://{lake}"), "name", source, resume_within)


def save(lake: Path, *records: Record, **options: Any) -> None:
    journal = journal_in(lake, **options)
    journal.load(dict)
    for added in records:
        journal.add(added)
    journal.save()


def test_another_try_loads_what_earlier_ones_saved(tmp_path):
    save(tmp_path, record("A"), record("B"))
    save(tmp_path, record("B", 1), record("C"))
    assert journal_in(tmp_path).load(dict) == {"A": record("A"), "B": record("B", 1), "C": record("C")}


@pytest.mark.parametrize("options", [{"source": (2,)}, {"resume_within": timedelta(microseconds=1)}])
def test_records_of_other_settings_and_old_ones_are_ignored(tmp_path, options):
    save(tmp_path, record("A"))
    assert journal_in(tmp_path, **options).load(dict) == {}


def test_without_resuming_nothing_is_saved_or_loaded(tmp_path):
    save(tmp_path, record("A"), resume_within=timedelta(0))
    assert list(tmp_path.iterdir()) == []
    save(tmp_path, record("A"))
    assert journal_in(tmp_path, resume_within=timedelta(0)).load(dict) == {}


def test_records_are_saved_every_few_seconds(tmp_path, monkeypatch):
    journal = journal_in(tmp_path)
    journal.add(record("A"))
    assert journal_in(tmp_path).load(dict) == {}
    monkeypatch.setattr(module, "SAVE_SECONDS", 0)
    journal.add(record("B"))
    assert set(journal_in(tmp_path).load(dict)) == {"A", "B"}


def test_records_of_a_completed_task_are_ignored(tmp_path):
    """A task that completed but could not remove its journal was cleared, perhaps more than once."""
    save(tmp_path, record("A", 1), record("B", 1), record("C", 1))
    completed = {one.entry.device_id: one.entry for one in (record("A", 1), record("B", 2), record("C", 0))}
    assert set(journal_in(tmp_path).load(lambda: completed)) == {"C"}


def test_other_files_in_its_folder_are_ignored(tmp_path):
    """A task killed while it saves leaves part of a file."""
    save(tmp_path, record("A"))
    [saved] = tmp_path.rglob("*.landed")
    for name in (f".{saved.name}.0123.tmp", "notes.txt", "00001.landed"):
        saved.with_name(name).write_bytes(saved.read_bytes()[:50])
    assert set(journal_in(tmp_path).load(dict)) == {"A"}
    save(tmp_path, record("B"))
    assert set(journal_in(tmp_path).load(dict)) == {"A", "B"}


def test_a_removed_journal_leaves_nothing(tmp_path):
    save(tmp_path, record("A"))
    journal = journal_in(tmp_path)
    journal.load(dict)
    journal.add(record("B"))
    journal.remove()
    journal.save()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["load", "save", "remove"])
def test_a_store_that_refuses_costs_requests_only(tmp_path, monkeypatch, caplog, step):
    journal = journal_in(tmp_path)
    journal.add(record("A"))
    if step == "save":
        (tmp_path / "_staging").write_text("not a folder")
    else:
        journal.save()

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(UPath(tmp_path).fs), {"load": "ls", "save": "ls", "remove": "rm"}[step], refuse)
    {"load": lambda: journal.load(dict), "save": journal.save, "remove": journal.remove}[step]()
    assert "Cannot" in caplog.text
