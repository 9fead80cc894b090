"""The hook makes a client of every spelling of a connection, and says in words what is wrong with one."""

from __future__ import annotations

import importlib.util
import json
import socket
import subprocess
import sys
from contextlib import closing
from datetime import datetime, timedelta, timezone
from importlib.metadata import entry_points, version
from pathlib import Path

import airflow
import jsonschema
import pendulum
import pytest

from airflow_provider_unleash import __version__, get_provider_info
from airflow_provider_unleash.client import UnleashClient
from airflow_provider_unleash.core.protocol import Page
from airflow_provider_unleash.exceptions import (
    AuthenticationError,
    InvalidArgumentError,
    NotFoundError,
    SnapshotChangedError,
    TransportError,
)
from airflow_provider_unleash.hooks import UnleashHook
from airflow_provider_unleash.simulator import Fault
from tests.support.sample_day import DAY, DAY_END, DAY_START, HOUR_MS, NEXT_DAY, SILENT, STREET

pytestmark = pytest.mark.usefixtures("quick_retries")

KEY = "kEy-of-4711"
HOUR_END = DAY_START + 12 * HOUR_MS
HOUR_START = HOUR_END - 5 * HOUR_MS
CONNECTION_TYPE = get_provider_info()["connection-types"][0]


def open_client(conn_id: str = "unleash_default") -> UnleashClient:
    return UnleashHook(conn_id).get_conn()


def free_port() -> int:
    with closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


# ---- fields of a connection --------------------------------------------------------------------


def test_a_connection_of_nothing_but_a_key_means_the_documented_defaults(connect):
    connect(password=KEY)
    client = open_client()
    assert client.base_url == "https://api.unleashlive.com"
    assert (client.timeout, client.max_attempts, client.page_concurrency) == (30, 5, 4)
    assert client.mask_stream_tokens is None
    assert client._verify is True


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        ({"host": ""}, "https://api.unleashlive.com"),
        ({"host": None}, "https://api.unleashlive.com"),
        ({"host": "eu.example.com"}, "https://eu.example.com"),
        ({"host": "https://eu.example.com/"}, "https://eu.example.com"),
        ({"host": " eu.example.com "}, "https://eu.example.com"),
        ({"host": "eu.example.com", "port": 8443}, "https://eu.example.com:8443"),
        ({"host": "eu.example.com", "port": "8443"}, "https://eu.example.com:8443"),
        ({"host": "eu.example.com/proxy", "port": 8443}, "https://eu.example.com:8443/proxy"),
        ({"host": "https://eu.example.com:9443", "port": 8443}, "https://eu.example.com:9443"),
        ({"host": "http://127.0.0.1", "port": 8642}, "http://127.0.0.1:8642"),
        ({"host": "http://localhost:8642"}, "http://localhost:8642"),
        ({"host": "http://[::1]", "port": 8642}, "http://[::1]:8642"),
        ({"host": "http://lake.internal", "extra": {"allow_http": True}}, "http://lake.internal"),
        ({"host": "http://lake.internal", "extra": {"allow_http": "true"}}, "http://lake.internal"),
    ],
)
def test_host_and_port_become_the_base_url(connect, fields, url):
    connect(password=KEY, **fields)
    assert open_client().base_url == url


def test_a_port_without_a_host_is_not_forgotten(connect):
    connect(password=KEY, port=8443)
    assert open_client().base_url == "https://api.unleashlive.com:8443"


@pytest.mark.parametrize(
    ("extra", "attribute", "value"),
    [
        ({"timeout": 4.5}, "timeout", 4.5),
        ({"timeout": "4.5"}, "timeout", 4.5),
        ({"timeout": 7}, "timeout", 7),
        ({"timeout": ""}, "timeout", 30),
        ({"timeout": None}, "timeout", 30),
        ({"max_attempts": 2}, "max_attempts", 2),
        ({"max_attempts": "2"}, "max_attempts", 2),
        ({"max_attempts": ""}, "max_attempts", 5),
        ({"page_concurrency": 8}, "page_concurrency", 8),
        ({"page_concurrency": "8"}, "page_concurrency", 8),
        ({"page_concurrency": ""}, "page_concurrency", 4),
        ({"mask_stream_tokens": True}, "mask_stream_tokens", True),
        ({"mask_stream_tokens": False}, "mask_stream_tokens", False),
        ({"mask_stream_tokens": "true"}, "mask_stream_tokens", True),
        ({"mask_stream_tokens": 1}, "mask_stream_tokens", True),
        ({"mask_stream_tokens": 0}, "mask_stream_tokens", False),
        ({"mask_stream_tokens": "False"}, "mask_stream_tokens", False),
        ({"mask_stream_tokens": ""}, "mask_stream_tokens", None),
        ({"mask_stream_tokens": None}, "mask_stream_tokens", None),
        ({"verify": True}, "_verify", True),
        ({"verify": "true"}, "_verify", True),
        ({"verify": ""}, "_verify", True),
        ({"verify": __file__}, "_verify", __file__),
    ],
)
def test_an_extra_is_read_from_json_and_from_the_text_that_the_form_stores(connect, extra, attribute, value):
    connect(password=KEY, extra=extra)
    read = getattr(open_client(), attribute)
    assert (read, type(read) is bool) == (value, type(value) is bool)


def test_the_extra_is_read_where_it_is_a_json_text(connect):
    connect(password=KEY, extra=json.dumps({"timeout": 9, "auth": "bearer"}))
    assert open_client().timeout == 9


def test_a_connection_of_nothing_but_empty_texts_means_the_defaults(connect):
    connect(password=KEY, host="", extra=dict.fromkeys(CONNECTION_TYPE["conn-fields"], ""))
    client = open_client()
    assert client.base_url == "https://api.unleashlive.com"
    assert (client.timeout, client.max_attempts, client.page_concurrency) == (30, 5, 4)


def test_a_connection_uri_carries_host_port_key_and_extras(connect):
    connect(f"unleash://:{KEY}@eu.example.com:8443/?timeout=5&page_concurrency=2&mask_stream_tokens=true&auth=api_key")
    client = open_client()
    assert client.base_url == "https://eu.example.com:8443"
    assert (client.timeout, client.page_concurrency, client.mask_stream_tokens) == (5, 2, True)


def test_a_connection_uri_can_name_http_and_a_key_with_special_characters(connect, serve):
    sim = serve(key="a/b+c=d")
    connect(f"unleash://http://:a%2Fb%2Bc%3Dd@127.0.0.1:{sim.port}/?auth=bearer")
    assert UnleashHook().get_version() == "1.0.1"
    assert sim.requests[0].auth == "bearer"


@pytest.mark.parametrize(
    ("key", "extra", "auth"),
    [
        ("ul_pat_4711", {}, "bearer"),
        ("4711", {}, "x-api-key"),
        ("4711", {"auth": ""}, "x-api-key"),
        ("ul_pat_4711", {"auth": "auto"}, "bearer"),
        ("ul_pat_4711", {"auth": "api_key"}, "x-api-key"),
        ("4711", {"auth": "bearer"}, "bearer"),
    ],
)
def test_the_key_goes_in_the_header_that_auth_and_its_prefix_say(serve, key, extra, auth):
    sim = serve(key=key, extra=extra)
    UnleashHook().get_version()
    assert sim.requests[0].auth == auth


def test_white_space_around_a_pasted_key_is_not_sent(serve, connect):
    sim = serve(key=KEY)
    connect(host=sim.base_url, password=f" {KEY}\n")
    assert UnleashHook().get_version() == "1.0.1"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"password": ""}, "password"),
        ({"password": None}, "password"),
        ({"password": "two words"}, "password"),
        ({"host": "http://eu.example.com"}, "host"),
        ({"host": "http://192.168.0.1"}, "host"),
        ({"host": "http://127.0.0.1.example.com"}, "host"),
        ({"host": "ftp://eu.example.com"}, "host"),
        ({"host": "https://"}, "host"),
        ({"host": "https://eu.example.com:port"}, "host"),
        ({"host": "https://eu.example.com?x=1"}, "host"),
        ({"host": f"https://user:{KEY}@eu.example.com"}, "host"),
        ({"extra": {"auth": "basic"}}, "auth"),
        ({"extra": {"timeout": "soon"}}, "timeout"),
        ({"extra": {"timeout": 0}}, "timeout"),
        ({"extra": {"timeout": -1}}, "timeout"),
        ({"extra": {"timeout": "nan"}}, "timeout"),
        ({"extra": {"timeout": True}}, "timeout"),
        ({"extra": {"timeout": [30]}}, "timeout"),
        ({"extra": {"max_attempts": 0}}, "max_attempts"),
        ({"extra": {"max_attempts": 2.5}}, "max_attempts"),
        ({"extra": {"page_concurrency": "four"}}, "page_concurrency"),
        ({"extra": {"page_concurrency": 0}}, "page_concurrency"),
        ({"extra": {"mask_stream_tokens": "maybe"}}, "mask_stream_tokens"),
        ({"extra": {"mask_stream_tokens": 2}}, "mask_stream_tokens"),
        ({"extra": {"mask_stream_tokens": [1]}}, "mask_stream_tokens"),
        ({"extra": {"verify": False}}, "verify"),
        ({"extra": {"verify": "/no/such/bundle.pem"}}, "verify"),
        ({"extra": {"allow_http": "perhaps"}}, "allow_http"),
    ],
)
def test_a_field_that_cannot_be_used_is_named_with_its_connection_and_without_the_key(connect, fields, named):
    connect(conn_id="unleash_lab", **{"password": KEY, **fields})
    with pytest.raises(InvalidArgumentError) as caught:
        open_client("unleash_lab")
    assert caught.value.argument == named
    assert {"password": "API key"}.get(named, named) in str(caught.value)
    assert "'unleash_lab'" in str(caught.value)
    assert KEY not in str(caught.value)


def test_a_refused_http_url_says_why_and_how_to_allow_it(connect):
    connect(password=KEY, host="http://eu.example.com")
    with pytest.raises(InvalidArgumentError, match=r"unencrypted.*allow_http"):
        open_client()


def test_no_request_is_sent_to_an_http_url_that_is_not_loopback(serve, connect):
    sim = serve()
    # The same machine under a name that does not say so.
    connect(host=f"http://{socket.gethostname()}:{sim.port}", password=sim.api_key)
    with pytest.raises(InvalidArgumentError):
        UnleashHook().list_devices()
    assert sim.requests == []


def test_the_default_connection_is_unleash_default_and_another_can_be_named(connect):
    connect(password=KEY, host="one.example.com")
    connect(conn_id="unleash_two", password=KEY, host="two.example.com")
    assert UnleashHook().get_conn().base_url == "https://one.example.com"
    assert UnleashHook("unleash_two").get_conn().base_url == "https://two.example.com"
    assert UnleashHook(unleash_conn_id="unleash_two").get_conn().base_url == "https://two.example.com"


def test_the_key_is_in_no_text_of_hook_and_client(connect):
    connect(password=KEY)
    hook = UnleashHook()
    assert KEY not in f"{hook!r} {hook} {hook.get_conn()!r} {hook.get_conn()}"


# ---- what the hook gives -----------------------------------------------------------------------


def test_requests_name_this_package_and_airflow_with_their_versions(serve):
    sim = serve()
    UnleashHook().list_devices()
    assert sim.requests[0].user_agent == f"airflow-provider-unleash/{__version__} airflow/{airflow.__version__}"


def test_version_devices_and_sessions_are_the_accounts(serve):
    sim = serve(sessions_from=DAY_START)
    hook = UnleashHook()
    assert hook.get_version() == "1.0.1"
    assert hook.list_devices() == sim.devices
    assert hook.list_sessions() == sim.sessions()


@pytest.mark.parametrize("endpoint", ["compact", "tableau"])
def test_get_records_returns_all_rows_of_the_closed_window_as_they_came(serve, endpoint):
    sim = serve()
    expected = sim.rows(STREET, HOUR_START, HOUR_END)
    assert len(expected) > 20  # more than a page
    assert UnleashHook().get_records(STREET, HOUR_START, HOUR_END, endpoint=endpoint) == expected


def test_rows_stamped_at_the_end_are_kept_by_the_hook(serve):
    stamps = ("2026-01-12T00:00:00.000Z", "2026-01-13T00:00:00.000Z")
    sim = serve(rows={STREET: [{"timestamp": stamp} for stamp in stamps]})
    assert [row["timestamp"] for row in UnleashHook().get_records(STREET, DAY, NEXT_DAY)] == list(stamps)
    assert sim.requests[0].path == f"/v1/analytics/{STREET}/{DAY_START}/{DAY_END}/1"


def test_iter_records_and_iter_pages_hold_the_same_rows_in_the_same_order(serve):
    sim = serve()
    expected = sim.rows(STREET, HOUR_START, HOUR_END)
    hook = UnleashHook()
    pages = list(hook.iter_pages(STREET, HOUR_START, HOUR_END, endpoint="tableau"))
    assert all(isinstance(page, Page) for page in pages)
    assert [page.number for page in pages] == list(range(1, pages[0].total_pages + 1))
    assert [record for page in pages for record in page.records()] == expected
    assert list(hook.iter_records(STREET, HOUR_START, HOUR_END)) == expected


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (DAY, NEXT_DAY),
        (pendulum.datetime(2026, 1, 12), pendulum.datetime(2026, 1, 13)),
        (pendulum.datetime(2026, 1, 12, 1, tz="Europe/Vienna"), pendulum.datetime(2026, 1, 13, 1, tz="Europe/Vienna")),
        (DAY_START, DAY_END),
        (DAY.astimezone(timezone(timedelta(hours=-5))), NEXT_DAY),
    ],
)
def test_the_same_moment_in_every_spelling_is_the_same_request(serve, start, end):
    sim = serve()
    UnleashHook().get_records(STREET, start, end)
    assert sim.requests[0].path == f"/v1/analytics/{STREET}/{DAY_START}/{DAY_END}/1"


@pytest.mark.parametrize(
    ("device_id", "start", "end", "argument"),
    [
        (STREET, datetime(2026, 1, 12), NEXT_DAY, "start"),
        (STREET, DAY, DAY_END // 1000, "end"),
        (STREET, NEXT_DAY, DAY, "start"),
        (STREET, "2026-01-12", NEXT_DAY, "start"),
        ("../devices", DAY, NEXT_DAY, "device_id"),
        ("", DAY, NEXT_DAY, "device_id"),
    ],
)
@pytest.mark.parametrize("method", ["get_records", "iter_records", "iter_pages"])
def test_a_bad_argument_is_a_value_error_before_any_request(serve, method, device_id, start, end, argument):
    sim = serve()
    with pytest.raises(ValueError, match=argument) as caught:
        getattr(UnleashHook(), method)(device_id, start, end)
    assert caught.value.argument == argument
    assert sim.requests == []


def test_page_concurrency_of_a_call_wins_over_the_connections(serve):
    sim = serve(extra={"page_concurrency": 4}, latency=0.01)
    UnleashHook().get_records(STREET, DAY, NEXT_DAY, page_concurrency=1)
    assert sim.max_in_flight == 1
    sim.clear_requests()
    UnleashHook().get_records(STREET, DAY, NEXT_DAY)
    assert 1 < sim.max_in_flight <= 4


def test_max_attempts_of_the_connection_bounds_the_tries_of_a_request(serve):
    sim = serve(extra={"max_attempts": 3}, faults=[Fault("500", times=None)])
    with pytest.raises(Exception, match="answered 500"):
        UnleashHook().list_devices()
    assert len(sim.requests) == 3


def test_the_timeout_of_the_connection_ends_a_request_that_hangs(serve):
    serve(extra={"timeout": 0.1, "max_attempts": 1}, faults=[Fault("slow", seconds=3)])
    with pytest.raises(TransportError) as caught:
        UnleashHook().get_version()
    assert caught.value.reason == "timeout"


def test_mask_stream_tokens_of_the_connection_masks_what_the_hook_returns(serve):
    serve(extra={"mask_stream_tokens": True})
    names = {row["source_file_name"] for row in UnleashHook().iter_records(STREET, HOUR_START, HOUR_END)}
    assert names == {f"{STREET}?token=***"}


def test_get_records_starts_again_when_pages_change_and_iter_pages_raises(serve):
    sim = serve(growing=200)
    with pytest.raises(SnapshotChangedError):
        list(UnleashHook().iter_pages(STREET, DAY, NEXT_DAY))
    assert UnleashHook().get_records(STREET, DAY, NEXT_DAY) == sim.rows(STREET, DAY_START, DAY_END)


def test_errors_of_the_api_come_as_their_own_types(serve, connect):
    sim = serve(unknown_device="404")
    with pytest.raises(NotFoundError):
        UnleashHook().get_records("W000", DAY, NEXT_DAY)
    connect(host=sim.base_url, password="wrong")
    with pytest.raises(AuthenticationError):
        UnleashHook().list_devices()


def test_a_silent_device_has_no_rows(serve):
    serve()
    assert UnleashHook().get_records(SILENT, DAY, NEXT_DAY) == []
    assert [page.rows for page in UnleashHook().iter_pages(SILENT, DAY, NEXT_DAY)] in ([], [[]])


# ---- test_connection ---------------------------------------------------------------------------


def test_the_right_key_is_said_to_be_right_with_address_and_version(serve):
    sim = serve()
    ok, message = UnleashHook().test_connection()
    assert ok is True
    assert sim.base_url in message
    assert "1.0.1" in message
    assert [request.path for request in sim.requests] == ["/v1/analytics/version"]


@pytest.mark.parametrize("key", ["wrong-key", "ul_pat_expired"])
def test_a_wrong_or_expired_key_is_said_to_be_so_with_where_keys_are_made(serve, connect, key):
    sim = serve()
    connect(host=sim.base_url, password=key)
    ok, message = UnleashHook().test_connection()
    assert ok is False
    assert message.startswith("Wrong or expired key")
    assert "expires" in message
    assert "Developers" in message
    assert key not in message


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault("echo_key", times=None), "Wrong or expired key"),
        (Fault("403", times=None), "Wrong or expired key"),
        (Fault("404", times=None), "Not the Unleash live Analytics API"),
        (Fault("html", times=None), "Not the Unleash live Analytics API"),
        (Fault("html", times=None, status=404), "Not the Unleash live Analytics API"),
        (Fault("wrong_shape", times=None), "Not the Unleash live Analytics API"),
        (Fault("redirect", times=None, location="https://login.example.com/"), "https://login.example.com/"),
        (Fault("500", times=None), "The API has a problem"),
        (Fault("429", times=None, retry_after=30), "The API has a problem"),
        (Fault("reset", times=None), "No route to the API"),
        (Fault("half_body", times=None), "The answer was cut short"),
        (Fault("slow", times=None, seconds=1), "No answer in time"),
    ],
    ids=lambda value: f"{value.kind}{value.status or ''}" if isinstance(value, Fault) else "",
)
def test_what_goes_wrong_is_said_in_words_after_one_attempt_and_without_the_key(serve, fault, words):
    sim = serve(key=KEY, faults=[fault], extra={"timeout": 0.3 if fault.kind == "slow" else 30})
    ok, message = UnleashHook().test_connection()
    assert ok is False
    assert words in message
    assert KEY not in message
    assert len(sim.requests) == 1 or fault.kind == "slow"


@pytest.mark.parametrize("body", [b'{"status": "ok"}', b"[1, 2]", b"null", b"42"])
def test_json_of_another_service_is_not_taken_for_this_api(answer, body):
    answer(body)
    ok, message = UnleashHook().test_connection()
    assert ok is False
    assert message.startswith("Not the Unleash live Analytics API")


def test_a_html_page_is_shown_in_excerpt(answer):
    answer(b"<html><title>Hotel wifi: please log in</title></html>", "text/html")
    ok, message = UnleashHook().test_connection()
    assert ok is False
    assert message.startswith("Not the Unleash live Analytics API")
    assert "please log in" in message


def test_a_host_that_does_not_exist_has_no_route_and_is_named(connect):
    connect(host="nowhere.invalid", password=KEY, extra={"timeout": 3})
    ok, message = UnleashHook().test_connection()
    assert ok is False
    assert message.startswith("No route to the API")
    assert "nowhere.invalid" in message
    assert KEY not in message


def test_a_port_where_nobody_listens_has_no_route(connect):
    connect(host="http://127.0.0.1", port=free_port(), password=KEY)
    ok, message = UnleashHook().test_connection()
    assert ok is False
    assert message.startswith("No route to the API")
    assert KEY not in message


def test_https_to_a_port_that_speaks_http_is_a_tls_problem(serve, connect):
    sim = serve()
    connect(host=f"https://127.0.0.1:{sim.port}", password=KEY)
    ok, message = UnleashHook().test_connection()
    assert ok is False
    assert message.startswith("TLS problem")
    assert sim.requests == []


def test_a_connection_that_cannot_be_used_says_which_field(connect):
    connect(host="http://eu.example.com", password=KEY)
    ok, message = UnleashHook().test_connection()
    assert ok is False
    assert message.startswith("The connection cannot be used")
    assert "host" in message


def test_a_missing_connection_is_said_to_be_missing(airflow_home):
    ok, message = UnleashHook("unleash_nowhere").test_connection()
    assert ok is False
    assert "unleash_nowhere" in message


@pytest.mark.parametrize("value", ["not a uri", "{not json", "unleash://a://b://c"])
def test_a_connection_that_airflow_itself_cannot_read_does_not_raise(airflow_home, connect, value):
    connect(value)
    ok, message = UnleashHook().test_connection()
    assert ok is False
    assert message


def test_an_extra_that_is_no_json_does_not_raise(airflow_home, connect):
    connect(password=KEY, extra="{not json")
    ok, message = UnleashHook().test_connection()
    assert ok in (True, False)
    assert KEY not in message


# ---- what Airflow is told ----------------------------------------------------------------------


def test_the_entry_point_gives_the_provider_info():
    [entry] = [
        entry
        for entry in entry_points(group="apache_airflow_provider")
        if entry.value.startswith("airflow_provider_unleash")
    ]
    assert entry.load()() == get_provider_info()


def test_the_provider_info_is_valid_by_airflows_schema():
    schema = json.loads((Path(airflow.__file__).parent / "provider_info.schema.json").read_text())
    jsonschema.validate(get_provider_info(), schema)


def test_the_connection_type_is_valid_by_airflows_schema_of_providers():
    path = Path(airflow.__file__).parent / "provider.yaml.schema.json"
    if not path.exists():
        pytest.skip("this Airflow ships no schema of provider.yaml")
    schema = json.loads(path.read_text())
    connection_types = schema["properties"]["connection-types"]
    if "conn-fields" not in connection_types["items"]["properties"]:
        pytest.skip("this Airflow reads the form from the hook, not from the provider info")
    jsonschema.validate(get_provider_info()["connection-types"], connection_types)


def test_the_version_is_the_distributions():
    assert get_provider_info()["versions"] == [__version__] == [version("airflow-provider-unleash")]


def test_every_module_that_the_provider_info_names_can_be_imported():
    info = get_provider_info()
    for kind in ("hooks", "operators", "sensors", "triggers"):
        for entry in info.get(kind, []):
            for module in entry["python-modules"]:
                __import__(module)


def test_hook_and_provider_info_name_the_same_connection_type():
    assert CONNECTION_TYPE["hook-class-name"] == f"{UnleashHook.__module__}.{UnleashHook.__name__}"
    assert CONNECTION_TYPE["connection-type"] == UnleashHook.conn_type == "unleash"
    assert CONNECTION_TYPE["hook-name"] == UnleashHook.hook_name == "Unleash live"
    assert UnleashHook.default_conn_name == "unleash_default"
    assert UnleashHook.conn_name_attr == "unleash_conn_id"


def test_the_form_hides_what_makes_no_sense_and_never_the_key():
    behaviour = UnleashHook.get_ui_field_behaviour()
    declared = CONNECTION_TYPE["ui-field-behaviour"]
    assert behaviour == {
        "hidden_fields": declared["hidden-fields"],
        "relabeling": declared["relabeling"],
        "placeholders": declared["placeholders"],
    }
    assert {"login", "schema"} <= set(behaviour["hidden_fields"])
    assert not {"host", "port", "password"} & set(behaviour["hidden_fields"])


def test_the_form_behaviour_is_valid_by_airflows_schema_of_customized_forms():
    path = Path(airflow.__file__).parent / "customized_form_field_behaviours.schema.json"
    if not path.exists():
        pytest.skip("this Airflow ships no schema of form behaviours")
    jsonschema.validate(UnleashHook.get_ui_field_behaviour(), json.loads(path.read_text()))


def test_the_forms_extras_are_those_that_the_hook_reads(connect):
    documented = {"auth", "timeout", "max_attempts", "page_concurrency", "mask_stream_tokens", "verify"}
    assert set(CONNECTION_TYPE["conn-fields"]) == {*documented, "allow_http"}
    for name in CONNECTION_TYPE["conn-fields"]:
        connect(password=KEY, extra={name: "?"})
        with pytest.raises(InvalidArgumentError) as caught:
            open_client()
        assert caught.value.argument == name


def test_every_choice_and_default_of_the_form_makes_a_client(connect):
    for name, field in CONNECTION_TYPE["conn-fields"].items():
        schema = field["schema"]
        for value in (*schema.get("enum", ()), schema.get("default"), schema.get("minimum")):
            connect(password=KEY, extra={name: value})
            open_client().close()


def test_airflow_takes_no_choice_or_default_of_the_form_for_a_secret():
    # It would hide the value from the form, and wherever else the same word stands.
    from airflow.providers.common.compat.sdk import redact

    for name, field in CONNECTION_TYPE["conn-fields"].items():
        for value in (*field["schema"].get("enum", ()), field["schema"].get("default")):
            assert redact({name: value}) == {name: value}
    assert redact({"mask_stream_tokens": "false"}) == {"mask_stream_tokens": "***"}


def test_the_older_form_has_a_field_for_each_extra():
    pytest.importorskip("flask_appbuilder", reason="only Airflow 2 builds its form with Flask AppBuilder")
    pytest.importorskip("wtforms", reason="only Airflow 2 builds its form with WTForms")
    widgets = UnleashHook.get_connection_form_widgets()
    fields = CONNECTION_TYPE["conn-fields"]
    assert list(widgets) == list(fields)
    for name, widget in widgets.items():
        assert widget.args[:1] == (fields[name]["label"],)
        assert widget.kwargs["description"] == fields[name]["description"]


def submit_choice(typed):
    """Submit the older form with this in the field of a choice that is saved as a number."""
    pytest.importorskip("flask_appbuilder", reason="only Airflow 2 builds its form with Flask AppBuilder")
    wtforms = pytest.importorskip("wtforms", reason="only Airflow 2 builds its form with WTForms")
    from werkzeug.datastructures import MultiDict

    field = UnleashHook.get_connection_form_widgets()["mask_stream_tokens"]
    return type("Form", (wtforms.Form,), {"choice": field})(MultiDict([("choice", typed)]))


@pytest.mark.parametrize(("typed", "saved"), [("True", 1), ("false", 0), ("1", 1), ("0", 0), ("", None)])
def test_the_older_form_takes_a_choice_that_was_made_as_true_or_false(typed, saved):
    form = submit_choice(typed)
    assert form.validate()
    assert (form.choice.data, type(form.choice.data)) == (saved, type(saved))


@pytest.mark.parametrize("typed", ["yes", "2"])
def test_the_older_form_refuses_what_is_no_choice(typed):
    form = submit_choice(typed)
    assert not form.validate()
    assert form.errors == {"choice": ["Neither 1 nor 0."]}


@pytest.mark.filterwarnings("ignore:ProvidersManager.hooks is deprecated")
def test_airflow_lists_the_connection_type():
    from airflow.providers_manager import ProvidersManager

    manager = ProvidersManager()
    assert manager.providers["airflow-provider-unleash"].version == __version__
    hook = manager.hooks["unleash"]
    assert hook.hook_name == "Unleash live"
    assert hook.hook_class_name == "airflow_provider_unleash.hooks.UnleashHook"
    assert hook.connection_id_attribute_name == "unleash_conn_id"
    assert hook.connection_testable is True


FORM = """
import json
try:
    from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService
except ImportError:  # Airflow 2
    from airflow.providers_manager import ProvidersManager

    manager, prefix = ProvidersManager(), "extra__unleash__"
    behaviour = manager.field_behaviours["unleash"]
    extras = [name.removeprefix(prefix) for name in manager.connection_form_widgets if name.startswith(prefix)]
    shown = [behaviour["hidden_fields"], behaviour["relabeling"], extras]
else:
    [hook] = [hook for hook in HookMetaService.hook_meta_data() if hook.connection_type == "unleash"]
    fields = {name: field for name, field in hook.standard_fields or () if field}
    hidden = [name.replace("url_schema", "schema") for name, field in fields.items() if field.hidden]
    titles = {name: field.title for name, field in fields.items() if field.title}
    shown = [hidden, titles, hook.extra_fields and list(hook.extra_fields)]
print(json.dumps(shown))
"""


def test_airflow_shows_the_form_as_it_is_declared():
    # In a process of its own, as the web server is: what a worker has loaded before would count here.
    shown = subprocess.run([sys.executable, "-c", FORM], capture_output=True, check=True, text=True).stdout
    hidden, labels, extras = json.loads(shown.splitlines()[-1])
    if extras is None and importlib.util.find_spec("flask_appbuilder") is None:
        pytest.skip("without Flask AppBuilder, Airflow 3.0 shows the extras of every connection as one JSON text")
    behaviour = CONNECTION_TYPE["ui-field-behaviour"]
    assert (sorted(hidden), labels) == (behaviour["hidden-fields"], behaviour["relabeling"])
    assert extras == list(CONNECTION_TYPE["conn-fields"])
