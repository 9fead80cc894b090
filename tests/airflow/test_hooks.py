"""The hook turns any form of a connection into a client, and says in plain words what is wrong with it."""

from __future__ import annotations

import importlib.util
import json
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import airflow
import certifi
import jsonschema
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_unleash import __version__, get_provider_info
from airflow_provider_unleash.client import UnleashClient
from airflow_provider_unleash.core.protocol import Page
from airflow_provider_unleash.exceptions import InvalidArgumentError, SnapshotChangedError, WindowError
from airflow_provider_unleash.hooks import UnleashHook
from airflow_provider_unleash.simulator import Fault
from airflow_provider_unleash.simulator.data import format_timestamp
from airflow_provider_unleash.window import Window
from tests.support.python_processes import run_code
from tests.support.sample_day import DAY, DAY_END, DAY_START, HOUR_MS, NEXT_DAY, SILENT, STREET, make_context

pytestmark = pytest.mark.usefixtures("quick_retries")

KEY = "kEy-of-4711"
CA_BUNDLE = certifi.where()
MORNING = (DAY_START + 7 * HOUR_MS, DAY_START + 12 * HOUR_MS)
CONNECTION_TYPE = get_provider_info()["connection-types"][0]


def open_client(conn_id: str = "unleash_default") -> UnleashClient:
    return UnleashHook(conn_id).get_conn()


# ---- fields of a connection --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        ({}, "https://api.unleashlive.com"),
        ({"host": ""}, "https://api.unleashlive.com"),
        ({"port": 8443}, "https://api.unleashlive.com:8443"),
        ({"host": "eu.example.com"}, "https://eu.example.com"),
        ({"host": "https://eu.example.com/"}, "https://eu.example.com"),
        ({"host": " eu.example.com "}, "https://eu.example.com"),
        ({"host": "eu.example.com", "port": 8443}, "https://eu.example.com:8443"),
        ({"host": "eu.example.com", "port": "8443"}, "https://eu.example.com:8443"),
        ({"host": "eu.example.com/proxy", "port": 8443}, "https://eu.example.com:8443/proxy"),
        ({"host": "https://eu.example.com:9443", "port": 8443}, "https://eu.example.com:9443"),
        ({"host": "http://127.0.0.1", "port": 8642}, "http://127.0.0.1:8642"),
        ({"host": "http://[::1]", "port": 8642}, "http://[::1]:8642"),
        ({"host": "http://lake.internal", "extra": {"allow_http": True}}, "http://lake.internal"),
        ({"host": "http://lake.internal", "extra": {"allow_http": "true"}}, "http://lake.internal"),
    ],
)
def test_host_and_port_become_the_base_url(connect, fields, url):
    connect(password=KEY, **fields)
    assert open_client().base_url == url


class Recording(UnleashClient):
    """A client that shows its arguments."""

    def __init__(self, api_key: str, **arguments: Any) -> None:
        self.arguments = arguments
        super().__init__(api_key, **arguments)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("timeout", [4.5, "4.5"], 4.5),
        ("max_attempts", [2, "2"], 2),
        ("page_concurrency", [8, "8"], 8),
        ("mask_stream_tokens", [True, "true", 1, "1"], True),
        ("mask_stream_tokens", [False, "False", 0], False),
        ("verify", [True, "true"], True),
        ("verify", [CA_BUNDLE], CA_BUNDLE),
        ("auth", ["bearer"], "bearer"),
        ("allow_http", ["false"], False),
        *((name, ["", None], "the default") for name in CONNECTION_TYPE["conn-fields"]),
    ],
)
def test_an_extra_can_be_json_or_text(connect, monkeypatch, name, values, expected):
    monkeypatch.setattr("airflow_provider_unleash.client.UnleashClient", Recording)
    for value in values:
        for extra in ({name: value}, json.dumps({name: value})):
            connect(password=KEY, extra=extra)
            found = open_client().arguments.get(name, "the default")
            assert (found, type(found)) == (expected, type(expected))


def test_a_connection_uri_has_host_port_key_and_extras(connect, serve):
    connect(f"unleash://:{KEY}@eu.example.com:8443/?timeout=5&page_concurrency=2&mask_stream_tokens=true&auth=api_key")
    client = open_client()
    assert client.base_url == "https://eu.example.com:8443"
    assert (client.page_concurrency, client.mask_stream_tokens) == (2, True)
    sim = serve(key="a/b+c=d")
    connect(f"unleash://http://:a%2Fb%2Bc%3Dd@127.0.0.1:{sim.port}/?auth=bearer")
    assert UnleashHook().get_version() == "1.0.1"
    assert sim.requests[0].auth == "bearer"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"password": ""}, "password"),
        ({"password": None}, "password"),
        ({"password": "two words"}, "password"),
        ({"host": "http://eu.example.com"}, "host"),
        ({"host": "http://127.0.0.1.example.com"}, "host"),
        ({"host": "ftp://eu.example.com"}, "host"),
        ({"host": "https://"}, "host"),
        ({"host": "https://eu.example.com:port"}, "host"),
        ({"host": "https://eu.example.com?x=1"}, "host"),
        ({"host": "https:/eu.example.com"}, "host"),
        ({"host": "https://[::1"}, "host"),
        ({"host": "https://[::1", "port": 8443}, "host"),
        ({"host": f"https://user:{KEY}@eu.example.com"}, "host"),
        ({"extra": {"auth": "basic"}}, "auth"),
        ({"extra": {"timeout": "soon"}}, "timeout"),
        ({"extra": {"timeout": 0}}, "timeout"),
        ({"extra": {"timeout": "nan"}}, "timeout"),
        ({"extra": {"timeout": True}}, "timeout"),
        ({"extra": {"timeout": [30]}}, "timeout"),
        ({"extra": {"max_attempts": 0}}, "max_attempts"),
        ({"extra": {"max_attempts": 2.5}}, "max_attempts"),
        ({"extra": {"page_concurrency": "four"}}, "page_concurrency"),
        ({"extra": {"mask_stream_tokens": "maybe"}}, "mask_stream_tokens"),
        ({"extra": {"mask_stream_tokens": 2}}, "mask_stream_tokens"),
        ({"extra": {"mask_stream_tokens": [1]}}, "mask_stream_tokens"),
        ({"extra": {"verify": False}}, "verify"),
        ({"extra": {"verify": "/no/such/bundle.pem"}}, "verify"),
        ({"extra": {"allow_http": "perhaps"}}, "allow_http"),
    ],
)
def test_the_error_of_an_invalid_field_names_field_and_connection_but_not_the_key(connect, fields, named):
    connect(conn_id="unleash_lab", **{"password": KEY, **fields})
    with pytest.raises(InvalidArgumentError) as caught:
        open_client("unleash_lab")
    assert caught.value.argument == named
    assert {"password": "API key"}.get(named, named) in str(caught.value)
    assert "'unleash_lab'" in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("extra", "hint"),
    [
        ({"page_concurency": 8}, "did you mean page_concurrency?"),
        ({"mask_stream_token": 1}, "did you mean mask_stream_tokens?"),
        ({"Timeout": 5, "timeout": 4}, "did you mean timeout?"),
        *(({name: 1}, "did you mean mask_stream_tokens?") for name in ("MASK_STREAM_TOKENS", "mask-stream-tokens")),
        ({"AUTH": "bearer"}, "did you mean auth?"),
        *(({name: "red"}, "the extras are auth, timeout, response_timeout, ") for name in ("colour", "authentication")),
        ({"api_key": "4711"}, "belongs in the password"),
        ({"password": "4711"}, "belongs in the password"),
    ],
)
def test_an_unknown_extra_is_refused_with_a_suggestion_also_by_the_connection_test(connect, extra, hint):
    connect(password=KEY, extra=extra)
    with pytest.raises(InvalidArgumentError) as caught:
        open_client()
    assert hint in str(caught.value)
    assert next(iter(extra)) in str(caught.value)
    assert "4711" not in str(caught.value)
    is_working, message = UnleashHook().test_connection()
    assert not is_working
    assert hint in message


@pytest.mark.one_airflow  # Airflow 3.0 refuses such variables itself
@pytest.mark.parametrize("extra", ["{", f"{{'mask_stream_tokens': '{KEY}'}}", "page_concurrency=8", "[1]", "null", "1"])
def test_an_extra_that_is_not_a_json_object_is_an_error_that_keeps_neither_it_nor_the_key(connect, extra):
    connect(password=KEY, extra=extra)
    with pytest.raises(InvalidArgumentError, match="extra must be a JSON object") as caught:
        open_client()
    assert caught.value.argument == "extra"
    own_frames = [entry for entry in caught.traceback if "airflow_provider_unleash" in str(entry.path)]
    for text in (str(caught.value), *(str(entry.frame.f_locals) for entry in own_frames)):
        assert KEY not in text
        assert "Connection(" not in text


def test_a_connection_without_an_extra_gives_a_client(connect):
    for extra in ("", None):
        connect(password=KEY, extra=extra)
        open_client().close()


@pytest.mark.one_airflow  # Airflow 2.11 masks such a password in all texts
@pytest.mark.parametrize("password", [" ", "e"])
def test_a_short_wrong_password_leaves_the_message_readable(connect, password):
    connect(password=password, extra={"timeout": "soon"} if password.strip() else None)
    message = UnleashHook().test_connection()[1]
    assert "The API key is missing" in message or "extra timeout must be a number" in message


def test_a_key_in_login_is_said_to_be_there(connect):
    connect(login=KEY)
    is_working, message = UnleashHook().test_connection()
    assert not is_working
    assert "belongs in the password, but only login is set" in message
    assert KEY not in message


@pytest.mark.parametrize("path", ["/v1/analytics", "/v1/analytics/", "/proxy/V1/Analytics/devices"])
def test_a_host_with_the_path_of_the_api_is_told_so(connect, path):
    connect(host=f"https://eu.example.com{path}", password=KEY)
    with pytest.raises(InvalidArgumentError, match="contains /v1/analytics, which is added to each request") as caught:
        open_client()
    assert caught.value.argument == "host"


def test_the_default_connection_is_unleash_default_and_another_can_be_named(connect):
    connect(password=KEY, host="one.example.com")
    connect(conn_id="unleash_two", password=KEY, host="two.example.com")
    assert UnleashHook().get_conn().base_url == "https://one.example.com"
    assert UnleashHook("unleash_two").get_conn().base_url == "https://two.example.com"
    assert UnleashHook(unleash_conn_id="unleash_two").get_conn().base_url == "https://two.example.com"


def test_hook_and_client_do_not_print_the_key(connect):
    connect(password=KEY)
    hook = UnleashHook()
    assert KEY not in f"{hook!r} {hook} {hook.get_conn()!r} {hook.get_conn()}"


# ---- methods -----------------------------------------------------------------------------------


def test_version_devices_and_sessions_are_those_of_the_account(serve):
    sim = serve(sessions_from=DAY_START)
    hook = UnleashHook()
    assert hook.get_version() == "1.0.1"
    assert hook.list_devices() == sim.devices
    assert hook.list_sessions() == sim.sessions()
    assert sim.requests[0].user_agent == f"airflow-provider-unleash/{__version__} airflow/{airflow.__version__}"


@pytest.mark.parametrize("endpoint", ["compact", "tableau"])
def test_all_methods_return_all_rows_of_the_closed_window_in_order(serve, endpoint):
    sim = serve()
    expected = sim.rows(STREET, *MORNING)
    assert len(expected) > 20  # more than a page
    hook = UnleashHook()
    assert hook.get_records(STREET, *MORNING, endpoint=endpoint) == expected
    assert list(hook.iter_records(STREET, *MORNING, endpoint=endpoint)) == expected
    pages = list(hook.iter_pages(STREET, *MORNING, endpoint=endpoint))
    assert all(isinstance(page, Page) for page in pages)
    assert [page.number for page in pages] == list(range(1, pages[0].total_pages + 1))
    assert [record for page in pages for record in page.records()] == expected
    assert hook.get_records(SILENT, *MORNING, endpoint=endpoint) == []


def test_a_window_gives_the_rows_of_the_half_open_interval_of_the_run(serve):
    rows = [{"timestamp": format_timestamp(stamp)} for stamp in (DAY_START, DAY_END - 1, DAY_END)]
    serve(rows={STREET: rows})
    hook = UnleashHook()
    window = hook.window_of(make_context((DAY, NEXT_DAY)))
    assert (window.start, window.end, window.rule) == (DAY, NEXT_DAY, "data_interval")
    assert hook.get_records(STREET, window=window) == list(hook.iter_records(STREET, window=window)) == rows[:2]
    assert sum(len(page.rows) for page in hook.iter_pages(STREET, window=window)) == 2
    assert hook.get_records(STREET, DAY, NEXT_DAY) == rows


def test_the_window_of_a_run_without_dates_is_counted_back_from_it(serve):
    context = make_context(None, run_after=NEXT_DAY)
    assert UnleashHook().window_of(context, "P1D").start == DAY
    with pytest.raises(WindowError) as caught:
        UnleashHook().window_of(context)
    assert isinstance(caught.value, AirflowFailException)


@pytest.mark.parametrize(
    "bounds", [{}, {"start": DAY}, {"start": DAY, "end": NEXT_DAY, "window": Window(DAY_START, DAY_END)}]
)
def test_rows_of_no_window_or_of_two_are_refused_before_any_request(serve, bounds):
    sim = serve()
    with pytest.raises(InvalidArgumentError, match="Give start and end, or window"):
        UnleashHook().get_records(STREET, **bounds)
    assert sim.requests == []


def test_get_records_starts_again_if_pages_change_and_iter_pages_raises(serve):
    sim = serve(growing=200)
    with pytest.raises(SnapshotChangedError):
        list(UnleashHook().iter_pages(STREET, DAY, NEXT_DAY))
    assert UnleashHook().get_records(STREET, DAY, NEXT_DAY) == sim.rows(STREET, DAY_START, DAY_END)


# ---- test_connection ---------------------------------------------------------------------------


def test_a_working_connection_is_confirmed_with_address_and_version_after_one_request(serve):
    sim = serve()
    ok, message = UnleashHook().test_connection()
    assert ok is True
    assert sim.base_url in message
    assert "1.0.1" in message
    assert [request.path for request in sim.requests] == ["/v1/analytics/version"]


def diagnose(conn_id: str = "unleash_default") -> str:
    """Return what test_connection says about a connection that does not work."""
    ok, message = UnleashHook(conn_id).test_connection()
    assert ok is False
    assert KEY not in message
    return message


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault("echo_key", times=None), "The API key is wrong, revoked, or"),
        (Fault("403", times=None), "The API key is wrong, revoked, or"),
        (Fault("404", times=None), "whether the connection's host is the API's"),
        (Fault("html", times=None), "Is the connection's host the Unleash live API"),
        (Fault("html", times=None, status=404), "whether the connection's host is the API's"),
        (Fault("wrong_shape", times=None), "Is the connection's host the Unleash live API"),
        (Fault("redirect", times=None, location="https://login.example.com/"), "https://login.example.com/"),
        (Fault("500", times=None), "returned 500"),
        (Fault("429", times=None, retry_after=30), "returned 429"),
        (Fault("reset", times=None), "The connection was closed before a response"),
        (Fault("half_body", times=None), "The response was truncated"),
        (Fault("slow", times=None, seconds=1), "timed out"),
    ],
    ids=lambda value: f"{value.kind}{value.status or ''}" if isinstance(value, Fault) else "",
)
def test_a_fault_is_diagnosed_in_words_after_one_attempt(serve, fault, words):
    sim = serve(key=KEY, faults=[fault], extra={"timeout": 0.3 if fault.kind == "slow" else 30})
    assert words in diagnose()
    assert len(sim.requests) == 1 or fault.kind == "slow"


@pytest.mark.parametrize("body", [b'{"status": "ok"}', b"[1, 2]", b"null", b"<html>Hotel wifi: please log in</html>"])
def test_another_service_is_not_mistaken_for_this_api(answer, body):
    answer(body)
    message = diagnose()
    assert "Is the connection's host the Unleash live" in message
    assert "html" not in str(body) or "please log in" in message


@pytest.mark.parametrize("host", ["nowhere.invalid", "http://127.0.0.1:1"])
def test_a_host_that_cannot_be_reached_is_named(connect, host):
    connect(host=host, password=KEY, extra={"timeout": 3})
    message = diagnose()
    assert "Check the host, port, proxy and firewall" in message
    assert host in message


def test_https_to_a_server_without_tls_is_a_tls_problem(serve, connect):
    sim = serve()
    connect(host=f"https://127.0.0.1:{sim.port}", password=KEY)
    assert "TLS failed" in diagnose()
    assert sim.requests == []


def test_a_connection_that_airflow_does_not_find_or_cannot_read_does_not_raise(airflow_home, connect):
    assert "unleash_nowhere" in diagnose("unleash_nowhere")
    assert "cannot be a URL" in diagnose(f"unleash://:{KEY}@eu.example.com")  # diagnose looks for the key
    for value in ("not a uri", "{not json", "unleash://a://b://c"):
        connect(value)
        assert diagnose()
    connect(password=KEY, extra="{not json")
    assert KEY not in str(UnleashHook().test_connection())


# ---- provider info and form --------------------------------------------------------------------


def test_the_entry_point_returns_the_provider_info_with_the_distributions_version():
    [entry] = [
        entry
        for entry in entry_points(group="apache_airflow_provider")
        if entry.value.startswith("airflow_provider_unleash")
    ]
    assert entry.load()() == get_provider_info()
    assert get_provider_info()["versions"] == [__version__] == [version("airflow-provider-unleash")]


def airflows_schema(name: str) -> dict[str, Any]:
    path = Path(airflow.__file__).parent / name
    if not path.exists():
        pytest.skip(f"this Airflow does not ship {name}")
    return json.loads(path.read_text())


def test_the_provider_info_fits_airflows_schema():
    jsonschema.validate(get_provider_info(), airflows_schema("provider_info.schema.json"))


def test_the_connection_type_fits_airflows_schema_of_providers():
    connection_types = airflows_schema("provider.yaml.schema.json")["properties"]["connection-types"]
    if "conn-fields" not in connection_types["items"]["properties"]:
        pytest.skip("this Airflow reads the form from the hook, not from the provider info")
    jsonschema.validate(get_provider_info()["connection-types"], connection_types)


def test_every_module_in_the_provider_info_can_be_imported():
    info = get_provider_info()
    for kind in ("hooks", "operators", "sensors", "triggers"):
        for module in (module for entry in info[kind] for module in entry["python-modules"]):
            importlib.import_module(module)


def test_hook_and_provider_info_name_the_same_connection_type():
    assert CONNECTION_TYPE["hook-class-name"] == f"{UnleashHook.__module__}.{UnleashHook.__name__}"
    assert CONNECTION_TYPE["connection-type"] == UnleashHook.conn_type == "unleash"
    assert CONNECTION_TYPE["hook-name"] == UnleashHook.hook_name == "Unleash live"
    assert UnleashHook.default_conn_name == "unleash_default"
    assert UnleashHook.conn_name_attr == "unleash_conn_id"


def test_the_form_hides_unused_fields_and_neither_host_nor_key():
    behavior = UnleashHook.get_ui_field_behaviour()
    declared = CONNECTION_TYPE["ui-field-behaviour"]
    assert behavior == {
        "hidden_fields": declared["hidden-fields"],
        "relabeling": declared["relabeling"],
        "placeholders": declared["placeholders"],
    }
    assert {"login", "schema"} <= set(behavior["hidden_fields"])
    assert not {"host", "port", "password"} & set(behavior["hidden_fields"])
    jsonschema.validate(behavior, airflows_schema("customized_form_field_behaviours.schema.json"))


def test_the_hook_reads_every_extra_of_the_form_and_shows_no_invalid_value(connect):
    for name in CONNECTION_TYPE["conn-fields"]:
        connect(password=KEY, extra={name: "older-key-0815"})
        with pytest.raises(InvalidArgumentError) as caught:
            open_client()
        assert caught.value.argument == name
        assert "older-key-0815" not in str(caught.value)


def test_every_choice_and_default_of_the_form_gives_a_client(connect):
    for name, field in CONNECTION_TYPE["conn-fields"].items():
        schema = field["schema"]
        for value in (*schema.get("enum", ()), schema.get("default"), schema.get("minimum")):
            connect(password=KEY, extra={name: value})
            open_client().close()


def test_airflow_does_not_mask_the_choices_and_defaults_of_the_form():
    # It would hide the value in the form, and the same word everywhere else.
    from airflow.providers.common.compat.sdk import redact

    for name, field in CONNECTION_TYPE["conn-fields"].items():
        for value in (*field["schema"].get("enum", ()), field["schema"].get("default")):
            assert redact({name: value}) == {name: value}
    assert redact({"mask_stream_tokens": "false"}) == {"mask_stream_tokens": "***"}


def older_form() -> dict[str, Any]:
    """Return the widgets of the form before Airflow 3.2."""
    for package in ("flask_appbuilder", "wtforms"):
        pytest.importorskip(package, reason="only Airflow 2 builds its form with Flask AppBuilder and WTForms")
    return UnleashHook.get_connection_form_widgets()


def test_the_older_form_has_a_field_for_each_extra():
    widgets, fields = older_form(), CONNECTION_TYPE["conn-fields"]
    assert list(widgets) == list(fields)
    for name, widget in widgets.items():
        assert widget.args[:1] == (fields[name]["label"],)
        assert widget.kwargs["description"] == fields[name]["description"]


@pytest.mark.parametrize(
    ("typed", "saved"),
    [("True", 1), ("false", 0), ("1", 1), ("0", 0), ("", None), ("yes", "an error"), ("2", "an error")],
)
def test_the_older_form_accepts_a_choice_as_a_number_or_as_true_or_false(typed, saved):
    field = older_form()["mask_stream_tokens"]
    import wtforms
    from werkzeug.datastructures import MultiDict

    form = type("Form", (wtforms.Form,), {"choice": field})(MultiDict([("choice", typed)]))
    assert form.validate() is (saved != "an error")
    if saved == "an error":
        assert form.errors == {"choice": ["Must be 1 or 0."]}
    else:
        assert (form.choice.data, type(form.choice.data)) == (saved, type(saved))


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
    behavior = manager.field_behaviours["unleash"]
    extras = [name.removeprefix(prefix) for name in manager.connection_form_widgets if name.startswith(prefix)]
    shown = [behavior["hidden_fields"], behavior["relabeling"], extras]
else:
    [hook] = [hook for hook in HookMetaService.hook_meta_data() if hook.connection_type == "unleash"]
    fields = {name: field for name, field in hook.standard_fields or () if field}
    hidden = [name.replace("url_schema", "schema") for name, field in fields.items() if field.hidden]
    titles = {name: field.title for name, field in fields.items() if field.title}
    shown = [hidden, titles, hook.extra_fields and list(hook.extra_fields)]
print(json.dumps(shown))
"""


def test_airflow_shows_the_form_as_declared():
    # In its own process, like the web server: modules that a worker has loaded would make a difference.
    hidden, labels, extras = json.loads(run_code(FORM).splitlines()[-1])
    if extras is None and importlib.util.find_spec("flask_appbuilder") is None:
        pytest.skip("without Flask AppBuilder, Airflow 3.0 shows the extras of every connection as one JSON text")
    behavior = CONNECTION_TYPE["ui-field-behaviour"]
    assert (sorted(hidden), labels) == (behavior["hidden-fields"], behavior["relabeling"])
    assert extras == list(CONNECTION_TYPE["conn-fields"])
