"""Airflow accepts the commands, variables and JSON that the documents show."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_unleash import get_provider_info
from airflow_provider_unleash.hooks import UnleashHook, open_client
from airflow_provider_unleash.operators import UnleashAccountToObjectStorageOperator, UnleashToObjectStorageOperator
from tests.support.paths import EXAMPLES, ROOT
from tests.support.sample_day import STREET, make_context
from tools.docs_snippets import documents, read_blocks, read_commands

BLOCKS = [block for document in documents() for block in read_blocks(document)]
FIELDS = get_provider_info()["connection-types"][0]["conn-fields"]


def commands_of(program: str) -> list[Any]:
    return [
        pytest.param(words[1:], id=f"{block.path.relative_to(ROOT)}:{block.line}-{' '.join(words[1:3])[:40]}")
        for block in BLOCKS
        # tests/airflow/test_recipes.py tests those of recipes, some of which are for another Airflow.
        if block.language in ("shell", "bash") and "recipes" not in block.path.parts
        for words in read_commands(block.text)
        if words[0] == program
    ]


def with_key(text: str) -> str:
    """Return the text with a key in place of the placeholder that the documents use."""
    return text.replace("ul_pat_…", "ul_pat_0123456789abcdef")


def check_client(connection: Any) -> None:
    """Check that the hook creates a client from a connection, and knows all of its extras."""
    assert connection.conn_type == "unleash"
    assert set(connection.extra_dejson) <= set(FIELDS)
    with open_client(connection) as client:
        assert client.base_url.startswith("http")


def try_airflow(words: list[str]) -> None:
    """Parse a command with Airflow's own command line, and run it if it adds a connection."""
    from airflow.cli.cli_parser import get_parser
    from airflow.models import Connection
    from airflow.utils.session import create_session

    parser = get_parser()
    arguments = parser.parse_args([with_key(word) for word in words])
    if words[:2] == ["connections", "add"]:
        arguments.func(arguments)
        with create_session() as session:
            connection = session.query(Connection).filter(Connection.conn_id == words[2]).one()
            session.delete(connection)
        check_client(connection)


@pytest.mark.parametrize("words", commands_of("airflow"))
def test_airflow_accepts_its_commands_and_the_hook_their_connections(airflow_home, words):
    try_airflow(words)


def try_export(assignment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that something reads a variable, or that the hook can use its connection."""
    from airflow.configuration import conf

    name, _, value = assignment.partition("=")
    assert re.fullmatch(r"[A-Z][A-Z0-9_]*", name)
    if name.startswith("AIRFLOW_CONN_"):
        monkeypatch.setenv(name, with_key(value))
        check_client(UnleashHook.get_connection(name.removeprefix("AIRFLOW_CONN_").lower()))
    elif name.startswith("AIRFLOW__"):
        _, section, option = name.lower().split("__")
        assert option in conf.configuration_description[section]["options"]
    else:
        assert any(f'"{name}"' in path.read_text() for path in EXAMPLES.rglob("*.py"))


@pytest.mark.parametrize("words", commands_of("export"))
def test_every_exported_variable_is_read(words, monkeypatch):
    for word in words:
        try_export(word, monkeypatch)


@pytest.fixture
def try_json(serve, tmp_path: Path) -> Callable[[str], None]:
    """Return a function that checks that JSON is extras that the hook accepts, or the summary of an extraction."""

    def try_json(text: str) -> None:
        from airflow.models import Connection

        shown = json.loads(with_key(text))
        if shown.keys() <= FIELDS.keys():
            check_client(Connection(conn_id="x", conn_type="unleash", password="any-key", extra=json.dumps(shown)))
            return
        serve()
        arguments: dict[str, Any] = {"task_id": "t", "dst": f"file://{tmp_path}", "file_format": "parquet"}
        operator = (
            UnleashToObjectStorageOperator(device_id=STREET, **arguments)
            if "device_id" in shown
            else UnleashAccountToObjectStorageOperator(**arguments)
        )
        summary = operator.execute(make_context())
        varying = ("seconds", "requests", "bytes", "path", "url", "files", "manifest")
        [place], [written] = ([*facts.get("files", ()), facts.get("manifest")][:1] for facts in (shown, summary))
        for one, other in ((shown, summary), (place, written)):
            assert {name: type(value) for name, value in one.items()} == {n: type(v) for n, v in other.items()}
            assert [*one] == [*other]
            assert {n: v for n, v in one.items() if n not in varying} == {
                n: v for n, v in other.items() if n not in varying
            }
        assert all(place[name].endswith(written[name].removeprefix(f"file://{tmp_path}/")) for name in ("path", "url"))

    return try_json


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "json"], ids=str)
def test_json_is_extras_that_the_hook_accepts_or_the_summary_of_an_extraction(block, try_json):
    try_json(block.text)
