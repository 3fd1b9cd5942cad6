"""Everything that a library decides for the bridge is decided on purpose."""

import inspect

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Router

from zmqrt.bridge_http.config import BridgeSettings
from zmqrt.bridge_http.connection import HttpConnection
from zmqrt.bridge_http.server import STARLETTE, UVICORN, uvicorn_config

FROM_SETTINGS = {"app", "http", "access_log", "timeout_graceful_shutdown"}


def test_every_parameter_of_the_server_is_chosen() -> None:
    """One that a new version brings is seen here, and not by whoever attacks it."""
    known = set(inspect.signature(uvicorn.Config).parameters)

    assert known - FROM_SETTINGS <= set(UVICORN), "choose what is new in bridge_http/server.py, and say why"
    assert set(UVICORN) - known == set(), "this is gone: delete it in bridge_http/server.py"


def test_every_parameter_of_the_routes_is_chosen() -> None:
    """As those of the server."""
    known = set(inspect.signature(Starlette).parameters) | set(inspect.signature(Router).parameters)

    assert known - {"routes", "exception_handlers"} == set(STARLETTE)


def test_every_choice_has_a_reason() -> None:
    """A sentence, however short."""
    assert [name for name, (_, reason) in {**UVICORN, **STARLETTE}.items() if len(reason) < 5] == []


def test_what_is_chosen_is_what_the_server_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever uvicorn would read from the environment."""
    monkeypatch.setenv("WEB_CONCURRENCY", "4")
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    config = uvicorn_config(Starlette(), BridgeSettings(drain_timeout_s=7.0, access_log=True))

    assert (config.workers, config.forwarded_allow_ips, config.proxy_headers) == (1, "", False)
    assert (config.timeout_graceful_shutdown, config.access_log, config.ws) == (7, True, "none")
    assert isinstance(config.http, type)
    assert issubclass(config.http, HttpConnection)


def test_no_class_of_the_server_s_connections_is_inherited() -> None:
    """What it does by default would come along."""
    assert [base.__module__ for base in HttpConnection.__mro__ if base.__module__.startswith("uvicorn")] == []


def test_idle_connections_outlive_those_of_usual_pools_and_proxies() -> None:
    """Whoever waits less than its pool cuts requests that are just being sent. Go and many proxies keep 90 s."""
    assert BridgeSettings().keep_alive_timeout_s > 90
