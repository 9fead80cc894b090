"""``airflow unleash coverage`` is a command of Airflow 3.2 and later, with the options of the module."""

from __future__ import annotations

import pytest
from airflow import __version__ as airflow_version
from packaging.version import Version

from airflow_provider_unleash.core.account import land_account
from airflow_provider_unleash.hooks import UnleashHook
from airflow_provider_unleash.window import plan_windows

SPAN = ["--start", "2026-05-01", "--end", "2026-05-04", "--every", "day"]

pytestmark = pytest.mark.skipif(
    Version(Version(airflow_version).base_version) < Version("3.2"), reason="has no commands of providers"
)


def run(*words: str) -> int:
    """Run a command of Airflow in this process, and return its exit code."""
    from airflow.cli.cli_parser import get_parser

    arguments = get_parser().parse_args(["unleash", "coverage", *words])
    with pytest.raises(SystemExit) as ended:
        arguments.func(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_command_finds_a_gap(airflow_home, serve, tmp_path, capsys):
    from upath import UPath

    serve(devices=("W1", "W2"))
    first, _, last = plan_windows("2026-05-01", "2026-05-04", every="day")
    with UnleashHook().get_conn() as client:
        for window in (first, last):
            land_account(client, None, window, UPath(tmp_path))
    assert run(f"file://{tmp_path}", *SPAN) == 1
    printed = capsys.readouterr().out
    assert "2026-05-02  2026-05-03  1 window  all 2 devices" in printed


@pytest.mark.parametrize(
    ("dst", "words"),
    [
        ("s4://lake/unleash", "no file system has the scheme s4://"),
        ("s3://no_such_connection@lake/unleash", "no_such_connection"),
        ("lake", "is not a URL or absolute path"),
    ],
)
def test_a_wrong_folder_is_explained_with_exit_code_2(airflow_home, capsys, dst, words):
    assert run(dst, *SPAN) == 2
    assert words in capsys.readouterr().err
