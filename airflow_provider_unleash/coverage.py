"""Coverage: the public names of :mod:`airflow_provider_unleash.core.coverage`, and its command line."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from airflow_provider_unleash.core.coverage import Cell, Coverage, Gap, open_path, read_coverage, scan_tree
from airflow_provider_unleash.core.coverage_page import render_coverage
from airflow_provider_unleash.core.coverage_text import Screen, format_json, format_report
from airflow_provider_unleash.core.stores import StoragePath

__all__ = ["Cell", "Coverage", "Gap", "read_coverage"]

DESCRIPTION = (
    "Show which windows of which devices have landed, from the manifests of a tree. The exit code is 1 if a window is "
    "missing, 2 if the coverage cannot be read."
)
# Flags and options of each argument; `airflow unleash coverage` has the same.
ARGUMENTS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("dst",), {"metavar": "DST", "help": "URL or path of the folder that extractions write to"}),
    (("--start",), {"required": True, "help": "start of the span in ISO 8601; UTC if it has no offset"}),
    (("--end",), {"required": True, "help": "end of the span, exclusive"}),
    (("--every",), {"required": True, "help": "length of the windows: hour, day, week, month, or such as PT6H"}),
    (("--devices",), {"metavar": "ID,ID", "help": "devices; by default those that the manifests of the span name"}),
    (("--timezone",), {"help": "time zone of the calendar, such as Europe/Berlin; by default that of --start"}),
    (("--settle",), {"metavar": "P2D", "help": "how long after its end the rows of a window may arrive"}),
    (("--json",), {"action": "store_true", "help": "print JSON, with all cells"}),
    (("--html",), {"metavar": "FILE", "help": "also write a page with a heat map"}),
)


def main(argv: Sequence[str] | None = None) -> int:
    return show(build_parser().parse_args(argv), open_path)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m airflow_provider_unleash.coverage", description=DESCRIPTION)
    for flags, options in ARGUMENTS:
        parser.add_argument(*flags, **options)
    return parser


def show(
    arguments: argparse.Namespace, open_folder: Callable[[str], StoragePath], *, with_airflow: bool = False
) -> int:
    """
    Print the coverage of a folder, and return the exit code.

    :param open_folder: returns the path of the folder.
    :param with_airflow: whether the page's commands use Airflow's connections.
    """
    try:
        folder = open_folder(arguments.dst)
        coverage = scan_tree(
            folder,
            None if arguments.devices is None else arguments.devices.split(","),
            start=arguments.start,
            end=arguments.end,
            every=arguments.every,
            timezone=arguments.timezone,
            settle=arguments.settle,
        )
        if arguments.html:
            page = render_coverage(coverage, str(folder), with_airflow=with_airflow)
            Path(arguments.html).write_text(page, encoding="utf-8")
    except Exception as error:  # 1 would mean that a window is missing
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(format_json(coverage) if arguments.json else format_report(coverage, _open_screen()))
    if not coverage.device_ids:
        print(f"{arguments.dst} has no manifests of such windows in the span", file=sys.stderr)
        return 1
    return 1 if coverage.counts()["missing"] else 0


def _open_screen() -> Screen:
    size = shutil.get_terminal_size()
    is_terminal = sys.stdout.isatty()
    return Screen(
        columns=size.columns,
        lines=max(size.lines - 15, 10) if is_terminal else Screen.lines,
        has_colors=is_terminal and "NO_COLOR" not in os.environ,
        has_unicode=(sys.stdout.encoding or "").lower().startswith("utf"),
    )


if __name__ == "__main__":
    sys.exit(main())
