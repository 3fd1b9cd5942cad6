"""`zmqrt models`: what can be asked now; and, on a machine with the worker installed, which files to get."""

from __future__ import annotations

import importlib.util
import subprocess

import click
import msgspec
from rich.table import Table
from rich.text import Text

from ...protocol.children import python
from ...protocol.errors import ZmqrtError
from ...protocol.sanitize import printable
from ...protocol.settings import options
from ...protocol.snapshot import ServiceStatus
from ..config import ClientSettings
from ..sync import Client
from .fleet_view import capabilities
from .stdio import data
from .text import screen

_WORKER_MODELS = "zmqrt.worker.models_cli"


@click.group(help="List the models that can be asked; fetch and convert others.", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
@options(ClientSettings)
def command(settings: ClientSettings, context: click.Context, as_json: bool) -> None:
    """Without a subcommand, ask the broker."""
    if context.invoked_subcommand is not None:
        return
    with Client.from_settings(settings, name="zmqrt models") as client:
        services = client.models()
    if as_json:
        data(msgspec.to_builtins(services))
    elif services:
        screen().print(_table(services), *capabilities(services), sep="\n")
    else:
        click.echo("no node offers a model yet; `zmqrt status` shows what the nodes are doing", err=True)


@command.command(help="Download a model that zmqrt knows, and convert it, with a progress bar.")
@click.argument("name")
@click.pass_context
def fetch(context: click.Context, name: str) -> None:
    """Leave it to the worker package, in a process of its own: a client never imports it."""
    context.exit(_ask_worker("fetch", name))


@command.command("list-known", help="List the models that can be fetched by name.")
@click.pass_context
def list_known(context: click.Context) -> None:
    """Leave this too to the worker package."""
    context.exit(_ask_worker("list"))


def _ask_worker(*words: str) -> int:
    if importlib.util.find_spec(_WORKER_MODELS) is None:
        raise ZmqrtError("this needs the worker: pip install 'zmqrt[worker,models]'")
    return subprocess.run(python(_WORKER_MODELS, *words), check=False).returncode


def _table(services: list[ServiceStatus]) -> Table:
    table = Table("model", "task", "weights", "context", "nodes", "running", "waiting", box=None, pad_edge=False)
    for service in sorted(services, key=lambda service: service.service):
        table.add_row(
            service.service,
            service.task,
            Text(printable(service.revision or service.model)),
            str(service.context or ""),
            str(service.nodes),
            f"{service.running}/{service.capacity}",
            str(service.queued),
        )
    return table
