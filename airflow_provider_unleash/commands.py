"""Commands of Airflow's command line, on Airflow 3.2 and later: ``airflow unleash coverage``."""

from __future__ import annotations

import argparse
import sys

from airflow.cli.cli_config import ARG_VERBOSE, ActionCommand, Arg, CLICommand, GroupCommand, lazy_load_command
from airflow.utils.cli import suppress_logs_and_warning


def get_commands() -> list[CLICommand]:
    from airflow_provider_unleash.coverage import ARGUMENTS, DESCRIPTION

    coverage = ActionCommand(
        name="coverage",
        help="Show which windows of which devices have landed",
        description=DESCRIPTION,
        func=lazy_load_command("airflow_provider_unleash.commands.show_coverage"),
        args=[*(Arg(flags, **options) for flags, options in ARGUMENTS), ARG_VERBOSE],
    )
    return [GroupCommand(name="unleash", help="Inspect extracted Unleash live data", subcommands=[coverage])]


@suppress_logs_and_warning  # they would be in the way of --json
def show_coverage(arguments: argparse.Namespace) -> None:
    """Print the coverage of a folder whose URL may have an Airflow connection in it, and exit."""
    from airflow_provider_unleash.coverage import show
    from airflow_provider_unleash.folders import open_folder

    sys.exit(show(arguments, open_folder, with_airflow=True))
