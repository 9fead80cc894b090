"""The app behind the coverage page in Airflow's web interface, for Airflow 3.1 and later."""

from __future__ import annotations

import asyncio
import html
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, TypeVar

from airflow.api_fastapi.core_api.security import requires_access_asset
from airflow.providers.common.compat.sdk import ObjectStoragePath
from fastapi import Depends, FastAPI
from fastapi.responses import HTMLResponse, PlainTextResponse

from airflow_provider_unleash.core.coverage import scan_tree
from airflow_provider_unleash.core.coverage_page import render_coverage, render_message
from airflow_provider_unleash.core.coverage_span import choose_span
from airflow_provider_unleash.core.manifest import read_newest
from airflow_provider_unleash.core.moments import UTC, parse_timezone
from airflow_provider_unleash.core.names import MANIFESTS, parse_window, window_name
from airflow_provider_unleash.exceptions import InvalidArgumentError
from airflow_provider_unleash.folders import open_folder
from airflow_provider_unleash.page import read_trees

log = logging.getLogger(__name__)
T = TypeVar("T")

READ_SECONDS = 20.0
MAX_WINDOWS = 1_000
MAX_CELLS = 100_000
# In memory, a line of a manifest takes about 1 KB.
MAX_LINES = 300_000
MAX_MANIFEST_BYTES = 16 * 1024 * 1024
# A store that does not respond occupies a thread for as long as its own timeouts allow, so there are only a few.
_READS_AT_ONCE = 4

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
}


@dataclass
class PageQuery:
    """What the query asks for; empty means the default. ``tree`` is a configured name, never a folder."""

    tree: str = ""
    start: str = ""
    end: str = ""
    every: str = ""
    timezone: str = ""
    devices: str = ""
    settle: str = ""
    window: str = ""
    dag_id: str = ""


@cache
def get_app() -> FastAPI:
    """Return the app. Airflow's API server authenticates its users, who need permission to read assets."""
    app = FastAPI(title="Unleash live", openapi_url=None)
    threads = ThreadPoolExecutor(_READS_AT_ONCE, "unleash-coverage")

    async def read(work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.wait_for(asyncio.wrap_future(threads.submit(work, *arguments)), READ_SECONDS)

    @app.get("/coverage", dependencies=[Depends(requires_access_asset("GET"))])
    async def show_coverage(query: Annotated[PageQuery, Depends()]) -> HTMLResponse:
        trees: Mapping[str, str] = {}
        try:
            trees = read_trees()
            status, page = 200, await read(_render, query, trees)
        except Exception as error:
            status, message = _explain(error)
            page = render_message("Coverage", message, form=_format_form(query, trees))
        return HTMLResponse(page, status, headers=_HEADERS)

    @app.get("/manifest", dependencies=[Depends(requires_access_asset("GET"))])
    async def show_manifest(tree: str, file: str) -> PlainTextResponse:
        try:
            status, text = 200, await read(_read_manifest, tree, file)
        except Exception as error:
            status, text = _explain(error)
        return PlainTextResponse(text, status, headers=_HEADERS)

    return app


def _explain(error: Exception) -> tuple[int, str]:
    if isinstance(error, InvalidArgumentError):
        return 400, str(error)
    if isinstance(error, FileNotFoundError):
        return 404, "There is no such manifest"
    if isinstance(error, TimeoutError):
        return 504, f"The store did not respond within {READ_SECONDS:g} seconds"
    # Its message may be about credentials.
    log.error("The coverage page cannot be shown", exc_info=error)
    return 502, f"The manifests cannot be read ({type(error).__name__}). The log of the API server has the reason"


def _render(query: PageQuery, trees: Mapping[str, str]) -> str:
    name = query.tree or _choose_tree(trees, query.dag_id)
    folder = _open_tree(trees, name)
    query = replace(query, tree=name)
    zone = parse_timezone(query.timezone) or UTC
    window = parse_window(query.window)
    newest = None if window else read_newest(folder)
    span = choose_span(
        start=query.start,
        end=query.end,
        every=query.every,
        zone=zone,
        window=window,
        newest=newest and newest[0],
    )
    _check_size("windows", span.count_windows(), MAX_WINDOWS)
    coverage = scan_tree(
        folder,
        list(filter(None, map(str.strip, query.devices.split(",")))) or None,
        start=span.start_ms,
        end=span.end_ms,
        every=span.every,
        timezone=zone,
        settle=query.settle,
        check_lines=_limit_reads(),
    )
    _check_size("devices × windows", len(coverage), MAX_CELLS)
    start, end = span.bounds()
    form = _format_form(replace(query, start=start, end=end, every=span.every), trees)
    return render_coverage(coverage, trees[name], with_airflow=True, form=form)


def _read_manifest(tree: str, file: str) -> str:
    """Return the content of a manifest; its name comes from the address, so it must be exactly that of a window."""
    folder = _open_tree(read_trees(), tree)
    window = parse_window(file)
    if window is None or not re.fullmatch(re.escape(window_name(window)) + r"(\.[0-9a-f]{8})?\.manifest", file):
        raise InvalidArgumentError(f"{file!r} is not the name of a manifest", argument="file")
    path = folder / MANIFESTS / file
    content: bytes = path.fs.cat_file(path.path, end=MAX_MANIFEST_BYTES)
    return content.decode("utf-8", "replace")


def _open_tree(trees: Mapping[str, str], name: str) -> ObjectStoragePath:
    if name not in trees:
        raise InvalidArgumentError(f"[unleash] coverage_paths has no tree {name!r}", argument="tree")
    return open_folder(trees[name])


def _choose_tree(trees: Mapping[str, str], dag_id: str) -> str:
    """Return the first tree, or that whose newest window the DAG has extracted."""
    if not dag_id:
        return next(iter(trees), "")
    failure = None
    for name, dst in trees.items():
        try:
            newest = read_newest(open_folder(dst))
        except Exception as error:
            failure = failure or error  # another tree may be the one
            continue
        if newest and any(entry.dag_id == dag_id for entry in newest[1]):
            return name
    if failure:
        raise failure
    raise InvalidArgumentError(
        f"The DAG {dag_id} has not extracted the newest window of any tree. Choose a tree", argument="dag_id"
    )


def _limit_reads() -> Callable[[int], None]:
    """Return a check that ends a scan which is too large, or past its deadline."""
    deadline = time.monotonic() + READ_SECONDS

    def check(lines: int) -> None:
        _check_size("lines of manifests", lines, MAX_LINES)
        if time.monotonic() > deadline:
            raise TimeoutError

    return check


def _check_size(what: str, number: int, most: int) -> None:
    if number > most:
        raise InvalidArgumentError(
            f"{number:,} {what} are more than {most:,}: choose a shorter span or fewer devices", argument="start"
        )


_FIELDS = (
    ("start", "From", "date"),
    ("end", "Until (exclusive)", "date"),
    ("every", "Windows", "day"),
    ("timezone", "Time zone", "UTC"),
    ("settle", "Settle", "such as P2D"),
    ("devices", "Devices", "all, or ID,ID"),
)


def _format_form(query: PageQuery, trees: Iterable[str]) -> str:
    """Return the form that chooses what the page shows. Choosing another tree resets the other fields."""
    options = "".join(
        f"<option{' selected' if name == query.tree else ''}>{html.escape(name)}</option>" for name in trees
    )
    fields = "".join(
        f'<label>{label} <input name="{name}" placeholder="{hint}" value="{html.escape(getattr(query, name))}"></label>'
        for name, label, hint in _FIELDS
    )
    change = "location.search = new URLSearchParams({tree: this.value})"
    return (
        f'<form id="query"><label>Tree <select name="tree" onchange="{change}">{options}</select></label>{fields}'
        "<button>Show</button></form>"
    )
