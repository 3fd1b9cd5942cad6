"""`zmqrt explain REQUEST`: what happened to one request, from its coming in to its end.

Brokers share nothing, so each one given is asked for its part.
"""

from __future__ import annotations

import dataclasses

import click
import msgspec
from rich.text import Text

from ...protocol.errors import ZmqrtError
from ...protocol.request_trace import RequestTrace
from ...protocol.settings import options
from ..config import ClientSettings
from ..sync import Client
from .stdio import data, note
from .text import screen
from .trace_view import trace_view

_PIPE_WIDTH = 120


@click.command(
    help="Tell what happened to one request, and where the time went.",
    epilog="REQUEST is its request id (X-Request-Id over HTTP) or its rid. A broker knows the requests that live, and "
    "the last 2,048 that ended. Keys that are not marked admin are told of their own requests alone.",
)
@click.argument("request")
@click.option("--json", "as_json", is_flag=True, help="Print all that is known as one line of JSON.")
@options(ClientSettings)
def command(settings: ClientSettings, request: str, as_json: bool) -> None:
    """Ask every broker."""
    traces: list[RequestTrace] = []
    errors: dict[str, ZmqrtError] = {}
    for endpoint in settings.broker:
        try:
            alone = dataclasses.replace(settings, broker=(endpoint,))
            with Client.from_settings(alone, name="zmqrt explain") as client:
                traces += client.explain(request)
        except ZmqrtError as error:
            errors[endpoint] = error
    if len(errors) == len(settings.broker):
        raise next(iter(errors.values()))
    for endpoint, problem in errors.items():
        note(f"warning: {problem if endpoint in str(problem) else f'{endpoint}: {problem}'}")
    traces.sort(key=lambda trace: trace.ago_s)
    if as_json:
        data(msgspec.to_builtins(traces))
    elif traces:
        _show(traces)
    if not traces:
        asked = ", ".join(endpoint for endpoint in settings.broker if endpoint not in errors)
        why = "it came to another broker, was refused at once, or is too old"
        raise ZmqrtError(f"no request called {request!r} is known at {asked}: {why}")


def _show(traces: list[RequestTrace]) -> None:
    console = screen(pipe_width=_PIPE_WIDTH)
    for number, trace in enumerate(traces):
        if number:
            console.print(Text())
        console.print(trace_view(trace))
