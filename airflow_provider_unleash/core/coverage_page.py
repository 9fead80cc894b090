"""One HTML page that shows the coverage of a tree. It loads nothing from elsewhere."""

from __future__ import annotations

import html
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from airflow_provider_unleash.core.coverage import Coverage
from airflow_provider_unleash.core.coverage_text import describe_others, format_bound, group_gaps, name_devices
from airflow_provider_unleash.core.manifest import Layout, format_now
from airflow_provider_unleash.core.moments import to_ms
from airflow_provider_unleash.core.names import DELTA, object_name, window_name

_MAX_LISTED_GAPS = 500

_COMMAND = """\
python - <<'END'
{imports}
from airflow_provider_unleash.core.account import land_account
from airflow_provider_unleash.window import Window

with {client} as client:
    for start_ms, end_ms in __WINDOWS__:
        landed = land_account(client, __DEVICES__, Window(start_ms, end_ms), {folder}, {options})
        print(landed.counts.rows, "rows, recorded in", landed.manifest)
END
"""


def render_coverage(coverage: Coverage, dst: str, *, with_airflow: bool = False, form: str = "") -> str:
    """
    Return the page.

    :param dst: the folder, as the page and its commands name it.
    :param with_airflow: whether its commands use Airflow's connections instead of the environment.
    :param form: an HTML form that chooses what the page shows.
    """
    return _fill(
        _read_template(),
        title=html.escape(f"Coverage of {dst}"),
        form=form,
        notes="".join(map(_format_note, describe_others(coverage))),
        gaps=_list_gaps(coverage),
        data=_encode_data(coverage, dst, with_airflow),
    )


def render_message(title: str, message: str, *, form: str = "") -> str:
    head, _, _ = _read_template().partition("<!--coverage-->")
    return _fill(head, title=html.escape(title), form=form, notes=_format_note(message)) + "</body>\n</html>\n"


def _read_template() -> str:
    return Path(__file__).with_suffix(".html").read_text(encoding="utf-8")


def _fill(page: str, **texts: str) -> str:
    """Fill the template. Fill the untrusted text last, because it may contain placeholders."""
    for name, text in texts.items():
        page = page.replace(f"<!--{name}-->", text)
    return page


def _format_note(note: str) -> str:
    return f"<p class=note>{html.escape(note)}</p>"


def format_command(coverage: Coverage, dst: str, *, with_airflow: bool) -> str:
    """Return a shell command that extracts __DEVICES__ in __WINDOWS__ to the tree, in its own layout and format."""
    layout = coverage.layout or Layout(True, "jsonl")
    file_format, _, compression = layout.extension.partition(".")
    options: dict[str, str | bool] = {"file_format": file_format}
    if compression:
        options["compression"] = "gzip"
    if not layout.is_split:
        options["split_by_device"] = False
    if with_airflow:
        imports = (
            "from airflow_provider_unleash.folders import open_folder\n"
            "from airflow_provider_unleash.hooks import UnleashHook"
        )
        client, folder = "UnleashHook().get_conn()", f"open_folder({dst!r})"
    else:
        imports = "import os\nfrom upath import UPath\nfrom airflow_provider_unleash.client import UnleashClient"
        client, folder = 'UnleashClient(os.environ["UNLEASH_API_KEY"])', f"UPath({dst!r})"
    arguments = ", ".join(f"{name}={value!r}" for name, value in options.items())
    if with_airflow and file_format == DELTA:
        imports += "\nfrom airflow_provider_unleash.delta import storage_options_of"
        arguments += f", storage_options=lambda: storage_options_of({dst!r})"
    return _COMMAND.format(imports=imports, client=client, folder=folder, options=arguments)


def _list_gaps(coverage: Coverage) -> str:
    gaps = group_gaps(coverage)
    rows = [
        "<tr><td>"
        + "<td>".join(
            (
                format_bound(gap.start),
                format_bound(gap.end),
                f"{gap.windows:,}",
                html.escape(name_devices(device_ids, len(coverage.device_ids))),
            )
        )
        for gap, device_ids in gaps[:_MAX_LISTED_GAPS]
    ]
    if len(gaps) > _MAX_LISTED_GAPS:
        rows.append(f"<tr><td colspan=4>and {len(gaps) - _MAX_LISTED_GAPS:,} more")
    return "\n".join(rows)


def _encode_data(coverage: Coverage, dst: str, with_airflow: bool) -> str:
    """Return what the page draws, as JSON that cannot end its script element."""
    runs: dict[tuple[str | None, str | None], int] = {}
    layout = coverage.layout
    data = {
        "zone": str(coverage.zone),
        "read_at": format_now(),
        "is_split": layout is None or layout.is_split,
        "extension": layout.extension if layout else "jsonl",
        "windows": [[window.start_ms, window.end_ms] for window in coverage.windows],
        "names": list(map(window_name, coverage.windows)),
        "labels": [[format_bound(start), format_bound(end)] for start, end in coverage.bounds()],
        "ids": coverage.device_ids,
        "devices": [_list_cells(coverage, device_id, runs) for device_id in coverage.device_ids],
        "runs": list(runs),
        "command": format_command(coverage, dst, with_airflow=with_airflow),
    }
    return msgspec.json.encode(data).decode().replace("<", "\\u003c")


def _list_cells(coverage: Coverage, device_id: str, runs: dict[tuple[str | None, str | None], int]) -> dict[str, Any]:
    """
    Return the cells of a device as columns with an item per window, short because there may be many.

    ``states`` has the first letter of each state. Times are in seconds after the end of the window. ``first`` has only
    those that differ from ``last``, and ``paths`` only those that the page's script does not derive, by window.
    """
    rows, sizes, last, run = [], [], [], []
    first: dict[int, int] = {}
    paths: dict[int, str | None] = {}
    layout = coverage.layout
    for number, window in enumerate(coverage.windows):
        entry = coverage.entry_of(device_id, number)
        rows.append(entry.rows if entry else 0)
        sizes.append(entry.bytes if entry else 0)
        last.append(_delay(entry.extracted_at, window.end_ms) if entry else 0)
        run.append(runs.setdefault((entry.dag_id, entry.run_id), len(runs)) if entry else 0)
        first_extracted_at = coverage.first_extracted_at(device_id, number)
        if entry and first_extracted_at:
            first[number] = _delay(first_extracted_at, window.end_ms)
        if entry and layout:
            owner = device_id if layout.is_split else None
            has_object = entry.rows and layout.extension != DELTA
            expected = object_name(owner, window, layout.extension) if has_object else None
            if entry.path != expected:
                paths[number] = entry.path
    states = "".join(state[0] for state in coverage.states_of(device_id))
    return {"states": states, "rows": rows, "bytes": sizes, "last": last, "first": first, "run": run, "paths": paths}


def _delay(extracted_at: str, end_ms: int) -> int:
    return (to_ms(datetime.fromisoformat(extracted_at)) - end_ms) // 1000
